"""The trainers; importing this package registers them all."""

from trainers import cocoop, coop, proxyfda, zsclip  # noqa: F401
