"""The trainers; importing this package registers them all."""

from trainers import coop, proxyfda, zsclip  # noqa: F401
