"""The trainers; importing this package registers them all."""

from trainers import coop, zsclip  # noqa: F401
