"""Noise of magnitude images.

Thermal noise is complex and Gaussian in each channel; the magnitude of signal plus noise is Rician [survey §II-B]:

    y = |x + σ (n₁ + i n₂)|,      E[y²] = x² + 2σ²,      in air (x = 0) E[y] = σ √(π/2).
"""

import jax
import jax.numpy as jnp
from jax import Array


def rician(key: Array, image: Array, sigma: Array | float) -> Array:
    """Magnitude of `image` with complex Gaussian noise of standard deviation `sigma` a channel; same shape and units."""
    real, imaginary = jax.random.normal(key, (2, *image.shape), image.dtype)
    return jnp.hypot(image + sigma * real, sigma * imaginary)
