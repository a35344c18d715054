"""jgolf: train a language model into sixteen megabytes with JAX."""

__version__ = "0.1.0"
