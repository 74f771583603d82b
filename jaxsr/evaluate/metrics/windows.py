"""Local sums of images of any size in little memory: separable windows, and slabs of a few planes at a time.

A window of n taps is only laid where it lies inside the image ("valid"), which takes n − 1 voxels off every spatial side. What a metric
makes of a volume is summed slab by slab along the first spatial axis: its filtered images then live in the processor's cache, and its
extra memory does not grow with the volume.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

SLAB, LEAST_PLANES = 1 << 19, 8  # voxels of a slab: a few such images stay in a cache; planes, of which neighbours filter some twice
BLOCK = 64  # rows of a band matrix in one product: more would mostly multiply zeros


def gaussian(taps: int, sigma: float) -> np.ndarray:
    """`taps` (odd) samples of a Gaussian around the middle one, summing to one; sigma in voxels."""
    weights = np.exp(-((np.arange(taps) - taps // 2) ** 2) / (2 * sigma**2))
    return weights / weights.sum()


def correlate(x: Array, taps: Sequence[np.ndarray] | np.ndarray, stride: int = 1) -> Array:
    """`x` `[B, …, C]` under a separable window, valid, every `stride`-th position; `taps`: one filter, or one for each spatial axis."""
    filters = [taps] * (x.ndim - 2) if isinstance(taps, np.ndarray) else taps
    for axis, weights in enumerate(filters, 1):
        x = correlate_axis(x, weights, axis, stride)
    return x


def correlate_axis(x: Array, taps: np.ndarray, axis: int, stride: int = 1) -> Array:
    """As `correlate`, along one axis: products with the blocks of a band matrix, as XLA's convolutions of one channel are slower."""
    rows, parts = (x.shape[axis] - len(taps)) // stride + 1, []
    for first in range(0, rows, BLOCK):
        count = min(BLOCK, rows - first)
        length = (count - 1) * stride + len(taps)
        places = np.arange(0, length - len(taps) + 1, stride)[:, None] + np.arange(len(taps))  # [rows, taps]
        band = np.zeros((count, length), np.float32)
        np.put_along_axis(band, places, taps.astype(np.float32)[None], axis=1)
        piece = jax.lax.slice_in_dim(x, first * stride, first * stride + length, axis=axis)
        parts.append(jnp.moveaxis(jnp.tensordot(band, piece, axes=(1, axis), precision="highest"), 0, axis))
    return jnp.concatenate(parts, axis)


def centres(x: Array, radius: int) -> Array:
    """`x` `[B, …, C]` without `radius` voxels on every spatial side: the centres of the windows of `correlate`."""
    return x[(slice(None), *(slice(radius, n - radius) for n in x.shape[1:-1]))]


def sum_slabs(terms: Callable[..., Any], images: Sequence[Array], mask: Array | None, taps: int) -> tuple[Any, Array]:
    """Sums of local terms over an image or its mask, and how many voxels they are sums over.

    Args:
      terms: `[B, …, C]` images → a pytree of `[B, …, C]` maps, `taps` − 1 shorter on every spatial side.
      images: `[B, …, C]`, of one shape. mask: boolean, broadcastable to them; it chooses among the centres of the windows.

    Returns:
      The pytree of `[B, C]` sums, and counts `[B, C]` or `[1, 1]`, float32.
    """
    rank, radius = images[0].ndim, taps // 2
    if mask is None:
        mask = jnp.ones((1,) * rank, bool)
    mask = jnp.broadcast_to(mask, (*mask.shape[:1], *images[0].shape[1:-1], *mask.shape[-1:]))

    def part(slabs: Sequence[Array], new: Array) -> tuple[Any, Array]:
        keep = centres(slabs[-1], radius) & new.reshape(1, -1, *(1,) * (rank - 2))
        axes = tuple(range(1, rank - 1))
        sums = jax.tree.map(lambda values: jnp.where(keep, values, 0).sum(axes), terms(*slabs[:-1]))
        return sums, keep.sum(axes, dtype=jnp.float32)

    starts, fresh, height = _slabs(images[0], taps)
    if len(starts) == 1:
        return part((*images, mask), fresh[0])
    parts = jax.lax.map(lambda slab: part(_cut((*images, mask), slab[0], height + taps - 1), slab[1]), (starts, fresh))
    return jax.tree.map(lambda sums: sums.sum(0), parts)


def mean_slabs(terms: Callable[..., Any], images: Sequence[Array], mask: Array | None, taps: int = 1) -> Any:
    """The pytree of `[B]` means, over positions and channels, of what `sum_slabs` sums."""
    sums, count = sum_slabs(terms, images, mask, taps)
    return jax.tree.map(lambda total: total.sum(-1) / jnp.broadcast_to(count, total.shape).sum(-1), sums)


def map_slabs(terms: Callable[..., Array], images: Sequence[Array], taps: int) -> Array:
    """The whole map of local terms; `terms` and `images` as for `sum_slabs`, with one map."""
    starts, _, height = _slabs(images[0], taps)
    if len(starts) == 1:
        return terms(*images)
    shape = tuple(n - taps + 1 if 0 < axis < images[0].ndim - 1 else n for axis, n in enumerate(images[0].shape))

    def add(whole: Array, start: Array) -> tuple[Array, None]:
        return jax.lax.dynamic_update_slice_in_dim(whole, terms(*_cut(images, start, height + taps - 1)), start, axis=1), None

    return jax.lax.scan(add, jnp.zeros(shape, jnp.float32), starts)[0]


def _slabs(image: Array, taps: int) -> tuple[Array, Array, int]:
    """First planes of the slabs along the first spatial axis, which of their planes no earlier slab has (`[slabs, height]`), and height.

    The last begins early enough to be as high as the others: one program for all.
    """
    planes = image.shape[1] - taps + 1
    height = min(planes, max(LEAST_PLANES, SLAB * image.shape[1] // image.size))
    first = np.arange(0, planes, height)
    starts = np.minimum(first, planes - height)
    return jnp.asarray(starts), jnp.asarray(starts[:, None] + np.arange(height) >= first[:, None]), height


def _cut(images: Sequence[Array], start: Array, planes: int) -> list[Array]:
    return [jax.lax.dynamic_slice_in_dim(image, start, planes, axis=1) for image in images]


def halve(x: Array) -> Array:
    """Means of blocks of 2 voxels along every spatial axis, of `x` `[B, …, C]`; an odd side first repeats its first voxel."""
    for axis in range(1, x.ndim - 1):
        if x.shape[axis] % 2:
            x = jnp.concatenate([jax.lax.slice_in_dim(x, 0, 1, axis=axis), x], axis)
        x = (jax.lax.slice_in_dim(x, 0, None, 2, axis) + jax.lax.slice_in_dim(x, 1, None, 2, axis)) / 2
    return x


def halve_mask(mask: Array | None, shape: Sequence[int]) -> Array | None:
    """The mask of `halve`'s image, given that image's former `shape`: blocks of which at least half lies inside."""
    if mask is None:
        return None
    full = jnp.broadcast_to(mask, (*mask.shape[:1], *shape[1:-1], *mask.shape[-1:]))
    return halve(full.astype(jnp.float32)) >= 0.5
