"""A batch in parts, one after another in one program: for a network that takes far more memory for a slice than the one before it.

A sampler of latents wants a large batch, and what decodes them has images of eight times their sides in hundreds of channels.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

from jaxsr.nn.layout import SLICES

DECODED = 16  # slices at a time on a device: an autoencoder's decoder keeps one busy with fewer


def in_parts(function: Callable[[Array], Array], batch: Array, at_once: int = DECODED) -> Array:
    """`function` `[b, …]` → `[b, …]`, of each slice by itself, of `batch` `[B, …]`, `at_once` slices at a time on each device.

    A batch that is no multiple of those is not divided.
    """
    mesh = jax.sharding.get_abstract_mesh()
    devices = math.prod(mesh.shape[axis] for axis in SLICES if axis in mesh.shape)
    size = len(batch)
    if size <= at_once * devices or size % (at_once * devices):
        return function(batch)
    # Every part has slices of every device: slice i is in part i mod count, as neighbours lie on one device.
    count = size // (at_once * devices)
    parts = jnp.swapaxes(batch.reshape(size // count, count, *batch.shape[1:]), 0, 1)
    done = jnp.swapaxes(jax.lax.map(function, parts), 0, 1)
    return done.reshape(size, *done.shape[2:])
