"""Batches of whole cubes: slices of cubes of N³ voxels, across the first axis, the second and the third, N each (`jaxsr.data.cubes`)."""

from collections.abc import Sequence

import jax.numpy as jnp
from jax import Array


def over_axes(x: Array, axes: Array | None = None) -> Array:
    """The mean of the values that slices across several axes have of each voxel, as slices again.

    Args:
      x: `[3 N K, N, N, C]`, of K cubes.
      axes: over how many, `[3 N K]`, of a cube as its first slices have it; None: all three. Over two those are the first two, and slices
        across the third are as they are; so are all over one.

    Raises:
      ValueError: where these are no whole cubes.
    """
    cubes = _cubes(x)
    side = x.shape[1]
    along = [jnp.moveaxis(cubes[:, axis], 1, 1 + axis) for axis in range(3)]  # the voxels of each, all in one order
    mean = sum(along) / 3
    means = [mean] * 3
    if axes is not None:
        count = axes[:: 3 * side].reshape(-1, 1, 1, 1, 1)
        pair = (along[0] + along[1]) / 2
        of_two = (pair, pair, along[2])
        means = [jnp.where(count > 2, mean, jnp.where(count > 1, two, one)) for two, one in zip(of_two, along, strict=True)]
    return jnp.stack([jnp.moveaxis(means[axis], 1 + axis, 1) for axis in range(3)], axis=1).reshape(x.shape)


def slabs(x: Array, steps: Sequence[int]) -> Array:
    """Slices of cubes and, after them, those so many `steps` further on in its cube, as `Condition.estimate` has them; the outermost slice
    stands for those beyond it: `[3 N K, N, N, 1]` → `[3 N K, N, N, 1 + len(steps)]`.

    Raises:
      ValueError: where these are no whole cubes.
    """
    side = x.shape[1]
    stacks = _cubes(x)[..., 0]
    places = [jnp.clip(jnp.arange(side) + step, 0, side - 1) for step in (0, *steps)]
    return jnp.stack([stacks[:, :, at] for at in places], axis=-1).reshape(*x.shape[:3], len(places))


def _cubes(x: Array) -> Array:
    """`[K, 3, N, N, N, C]`: of each cube, of each axis, its slices."""
    side = x.shape[1]
    if x.shape[0] % (3 * side) or x.shape[2] != side:
        raise ValueError(f"{x.shape[0]} slices of {x.shape[1]} × {x.shape[2]} pixels are no whole cubes of {3 * side} slices")
    return x.reshape(-1, 3, side, side, side, x.shape[-1])
