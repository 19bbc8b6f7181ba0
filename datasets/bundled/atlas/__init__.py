"""The atlas: a larger rendered world, and nine datasets of it on which methods are compared."""
