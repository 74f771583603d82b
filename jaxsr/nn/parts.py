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
    """`function` `[b, …]` → `[b, …]`, of each slice by itself, of `batch` `[B, …]`, at most `at_once` slices at a time on each device.

    Parts are of one size; what the last lacks is filled up with zeros, less than a slice for each part. A batch that does not divide over
    devices is not divided.
    """
    mesh = jax.sharding.get_abstract_mesh()
    devices = math.prod(mesh.shape[axis] for axis in SLICES if axis in mesh.shape)
    share, rest = divmod(len(batch), devices)
    if rest or share <= at_once:
        return function(batch)
    count = -(-share // at_once)
    size = -(-share // count)
    # Every part has slices of every device, where they lie.
    whole = batch.reshape(devices, share, *batch.shape[1:])
    filled = jnp.pad(whole, [(0, 0), (0, count * size - share)] + [(0, 0)] * (batch.ndim - 1))
    parts = jnp.moveaxis(filled.reshape(devices, count, size, *batch.shape[1:]), 1, 0)
    done = jax.lax.map(function, parts.reshape(count, devices * size, *batch.shape[1:]))
    made = jnp.moveaxis(done.reshape(count, devices, size, *done.shape[2:]), 0, 1)
    return made.reshape(devices, count * size, *done.shape[2:])[:, :share].reshape(len(batch), *done.shape[2:])
