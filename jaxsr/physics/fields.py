"""Smooth fields of a scanner: the multiplicative bias field of its coils.

    b(r) = exp(Σ_k c_k φ_k(r)),      φ_k products of cosines of low order, c_k normal        [teacher §II-A; SynthSR]

Cosines of half-periods 1 … `order` over the field of view are smooth and need no edge treatment; their weights fall with
frequency, and the field is scaled so that log b has the standard deviation `strength` whatever was drawn.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array


def bias_field(key: Array, shape: Sequence[int], strength: Array | float, order: int = 3) -> Array:
    """A random bias field `[X, Y, Z]` (or `[X, Y]`, of any rank), positive, with standard deviation `strength` of its logarithm and mean
    logarithm 0. A side of n voxels holds cosines of less than n half-periods, the others are left out: a single voxel has no field."""
    frequencies = jnp.arange(order + 1)
    degree = _summed(frequencies, len(shape))
    held = functools.reduce(np.multiply.outer, [np.arange(order + 1) < n for n in shape])
    weights = jnp.where(held & (degree > 0) & (degree <= order), 1.0 / jnp.maximum(degree, 1), 0.0)
    coefficients = weights * jax.random.normal(key, weights.shape)
    cosines = [jnp.cos(jnp.pi * frequencies[:, None] * (jnp.arange(n) + 0.5) / n) for n in shape]
    # The basis is orthogonal on the half-sample grid: its variance is known without a pass over the volume.
    variance = (coefficients**2 * 0.5 ** _summed((frequencies > 0).astype(jnp.float32), len(shape))).sum()
    indices, sides = "ijk"[: len(shape)], "xyz"[: len(shape)]
    terms = ",".join(index + side for index, side in zip(indices, sides, strict=True))
    log_field = jnp.einsum(f"{indices},{terms}->{sides}", coefficients, *cosines, optimize="greedy", precision="highest")
    return jnp.exp(strength * log_field / jnp.sqrt(jnp.where(variance > 0, variance, 1)))


def _summed(values: Array, rank: int) -> Array:
    """The sum of `values` over the indices of an array of `rank` axes: of frequencies their degree; of those above zero the number of
    cosines, each of which has mean square ½."""
    return sum(values.reshape([-1 if axis == a else 1 for a in range(rank)]) for axis in range(rank))  # type: ignore[return-value]
