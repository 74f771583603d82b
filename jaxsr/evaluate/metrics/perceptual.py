"""Learned perceptual image patch similarity (LPIPS), version 0.1 [Zhang et al., CVPR 2018]: 0 for equal images, larger for less alike ones.

Equation and networks stand in `jaxsr.models.perceptual`; the weights come from a file, by `jaxsr.weights.perceptual.read_perceptual`,
and from nowhere else. Shapes: `jaxsr.evaluate.metrics.images`.

Conventions. The data range (low, high) is mapped to [−1, 1], which LPIPS is defined on; nothing is clipped. One channel is repeated to
three. LPIPS is two-dimensional: a volume's is the mean over its slices across `axis`, whatever they show, so the dark ones around a head
lower it. With a mask, every layer's distance map is averaged over the mask (`mean_distance`); a volume's slices then count by their share
of it. Value, gradient and map are those of the package lpips 0.1.4.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from jaxsr.evaluate.metrics.images import batched
from jaxsr.models.perceptual import Net, PerceptualDistance, check_images, distance_map, mean_distance, summed_distance
from jaxsr.volume.slices import AXES
from jaxsr.weights.perceptual import Perceptual

Axis = Literal["sagittal", "coronal", "axial"]
Range = tuple[ArrayLike, ArrayLike]


def lpips(
    x: ArrayLike,
    y: ArrayLike,
    weights: Perceptual,
    *,
    data_range: Range,
    mask: ArrayLike | None = None,
    axis: Axis = "axial",
    batch: int = 8,
) -> Array:
    """LPIPS; conventions above. Symmetric in `x` and `y`.

    Args:
      weights: of one of the three networks.
      data_range: (low, high), the intensities that are black and white; numbers, or one each an image.
      mask: boolean, broadcastable to `x` and of one channel; an empty one gives NaN.
      axis: across which a volume, whose axes are right, anterior and superior, is cut into slices.
      batch: slices the network sees at a time; memory grows with it, results do not change.

    Raises:
      ValueError: where a slice's side is shorter than the network needs, or shapes or data range make no sense; says which.
    """
    x, y, mask, like_input = batched(x, y, mask)
    if mask is not None:
        if mask.shape[-1] != 1:
            raise ValueError(f"a mask for LPIPS has one channel, as its features have no colours, got the shape {mask.shape}")
        mask = _slices(jnp.broadcast_to(mask, (*x.shape[:-1], 1)), axis)[..., 0]
    x, y = _prepared(x, y, weights.net, data_range, axis)
    return like_input(_lpips(x, y, mask, weights.variables, weights.net, batch))


def lpips_map(x: ArrayLike, y: ArrayLike, weights: Perceptual, *, data_range: Range, axis: Axis = "axial", batch: int = 8) -> Array:
    """Where the images differ: the layers' maps, each brought to the image's size bilinearly, summed; `x`'s shape, of one channel.

    Arguments and errors as in `lpips`. Interpolation weighs the border otherwise, so its mean is `lpips` only nearly.
    """
    dimensions = np.ndim(x)
    x, y, _, _ = batched(x, y, None)
    x, y = _prepared(x, y, weights.net, data_range, axis)
    found = _lpips_map(x, y, weights.variables, weights.net, batch)  # [B, n, H, W]
    if dimensions == 4:
        return found[:, 0, ..., None]
    found = jnp.moveaxis(found, 1, 1 + AXES[axis])
    return found[0] if dimensions == 3 else found[..., None]


@partial(jax.jit, static_argnames=("net", "batch"))
def _lpips(x: Array, y: Array, mask: Array | None, variables: Any, net: Net, batch: int) -> Array:
    """Slices `[B, n, H, W, C]` in [−1, 1] → `[B]`."""
    if mask is None:
        return _by_slice(mean_distance, (x, y), variables, net, batch).mean(1)
    summed = _by_slice(summed_distance, (x, y, mask), variables, net, batch)
    return summed.sum(1) / mask.sum((1, 2, 3))


@partial(jax.jit, static_argnames=("net", "batch"))
def _lpips_map(x: Array, y: Array, variables: Any, net: Net, batch: int) -> Array:
    return _by_slice(lambda maps: distance_map(maps, (x.shape[2], x.shape[3])), (x, y), variables, net, batch)


def _by_slice(reduce: Callable[..., Array], slices: tuple[Array, ...], variables: Any, net: Net, batch: int) -> Array:
    """`reduce` of the maps of all slices, and of their masks where there are some, in equal parts of at most `batch`: `[B, n, …]`."""
    leading = slices[0].shape[:2]
    n = math.prod(leading)
    parts = -(-n // batch)
    size = -(-n // parts)

    def in_parts(of: Array) -> Array:
        """The last part is filled up with the last slice, so that one program does for all."""
        flat = of.reshape(n, *of.shape[2:])
        filled = jnp.concatenate([flat, jnp.repeat(flat[-1:], parts * size - n, axis=0)])
        return filled.reshape(parts, size, *flat.shape[1:])

    def of_part(images: tuple[Array, ...]) -> Array:
        x, y, *mask = images
        with jax.default_matmul_precision("highest"):  # float32 on every device
            return reduce(PerceptualDistance(net).apply(variables, x, y), *mask)

    found = jax.lax.map(of_part, tuple(map(in_parts, slices)))  # [parts, size, …]
    return found.reshape(parts * size, *found.shape[2:])[:n].reshape(*leading, *found.shape[2:])


def _prepared(x: Array, y: Array, net: Net, data_range: Range, axis: Axis) -> tuple[Array, Array]:
    """Both as slices `[B, n, H, W, C]` in [−1, 1], if they are fit for `net`."""
    if not isinstance(data_range, tuple | list) or len(data_range) != 2:
        raise ValueError(f"LPIPS takes its data range as (low, high), got {data_range!r}")
    low, high = (jnp.asarray(end, jnp.float32) for end in data_range)
    if not isinstance(high - low, jax.core.Tracer) and not np.all(np.isfinite(high - low) & (high > low)):
        raise ValueError(f"LPIPS takes its data range as (low, high), finite and low below high, got {data_range!r}")
    low, high = (end.reshape(-1, *(1,) * (x.ndim - 1)) for end in (low, high))
    x, y = (_slices(2 * (image - low) / (high - low) - 1, axis) for image in (x, y))
    check_images((len(x), *x.shape[2:]), (len(y), *y.shape[2:]), net)
    return x, y


def _slices(images: Array, axis: Axis) -> Array:
    """`[B, H, W, C]` or `[B, X, Y, Z, C]` → `[B, n, H, W, C]`."""
    if axis not in AXES:
        raise ValueError(f"a volume is cut across {', '.join(AXES)}, got {axis!r}")
    return images[:, None] if images.ndim == 4 else jnp.moveaxis(images, 1 + AXES[axis], 1)
