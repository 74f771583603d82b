"""Brain MRI super-resolution by diffusion models, in JAX."""

__version__ = "0.1.0"
