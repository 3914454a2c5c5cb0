"""jaxemb: train, adapt, evaluate and search embedding models with pure functions in JAX."""

__version__ = "0.1.0"
