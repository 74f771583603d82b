"""Batches of whole cubes: slices of cubes of N³ voxels, across the first axis, the second and the third, N each (`jaxsr.data.cubes`)."""

import jax.numpy as jnp
from jax import Array


def over_axes(x: Array) -> Array:
    """The mean of the three values that slices across three axes have of each voxel, as slices again.

    Args:
      x: `[3 N K, N, N, C]`, of K cubes.

    Raises:
      ValueError: where these are no whole cubes.
    """
    side = x.shape[1]
    if x.shape[0] % (3 * side) or x.shape[2] != side:
        raise ValueError(f"{x.shape[0]} slices of {x.shape[1]} × {x.shape[2]} pixels are no whole cubes of {3 * side} slices")
    of_cubes = x.reshape(-1, 3, side, side, side, x.shape[-1])
    mean = sum(jnp.moveaxis(of_cubes[:, axis], 1, 1 + axis) for axis in range(3)) / 3
    return jnp.stack([jnp.moveaxis(mean, 1 + axis, 1) for axis in range(3)], axis=1).reshape(x.shape)
