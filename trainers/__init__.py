"""The trainers; importing this package registers them all."""

from trainers import cocoop, coop, maple, promptsrc, proxyfda, zsclip  # noqa: F401
