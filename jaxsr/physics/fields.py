"""Smooth fields of a scanner: the multiplicative bias field of its coils.

    b(r) = exp(Σ_k c_k φ_k(r)),      φ_k products of cosines of low order, c_k normal        [teacher §II-A; SynthSR]

Cosines of half-periods 1 … `order` over the field of view are smooth and need no edge treatment; their weights fall with
frequency, and the field is scaled so that log b has the standard deviation `strength` whatever was drawn.
"""

import jax
import jax.numpy as jnp
from jax import Array


def bias_field(key: Array, shape: tuple[int, int, int], strength: Array | float, order: int = 3) -> Array:
    """A random bias field `[X, Y, Z]`, positive, with standard deviation `strength` of its logarithm and mean logarithm 0."""
    frequencies = jnp.arange(order + 1)
    degree = frequencies[:, None, None] + frequencies[None, :, None] + frequencies[None, None, :]
    weights = jnp.where((degree > 0) & (degree <= order), 1.0 / jnp.maximum(degree, 1), 0.0)
    coefficients = weights * jax.random.normal(key, weights.shape)
    x, y, z = (jnp.cos(jnp.pi * frequencies[:, None] * (jnp.arange(n) + 0.5) / n) for n in shape)
    # The basis is orthogonal on the half-sample grid: its variance is known without a pass over the volume.
    variance = (coefficients**2 * 0.5 ** (_cosines(order))).sum()
    log_field = jnp.einsum("ijk,ix,jy,kz->xyz", coefficients, x, y, z, optimize="greedy")
    return jnp.exp(strength * log_field / jnp.sqrt(variance))


def _cosines(order: int) -> Array:
    """How many of the three frequencies are above zero, `[order + 1] * 3`: each such cosine has mean square ½."""
    above = (jnp.arange(order + 1) > 0).astype(jnp.float32)
    return above[:, None, None] + above[None, :, None] + above[None, None, :]
