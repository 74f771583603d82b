"""What the metrics take: images of one shape, a mask beside them, a data range.

Shapes. `[B, H, W, C]`, a batch of slices, and `[B, X, Y, Z, C]`, a batch of volumes, give `[B]`, one value each; `[X, Y, Z]`, a volume,
gives a scalar. Everything is computed in float32. R, the data range, is always the caller's: no metric guesses it, and none rescales an
image. Means run over all pixels and channels or, with a mask, over the mask; an empty mask gives NaN.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike


def checked(x: ArrayLike, y: ArrayLike, mask: ArrayLike | None) -> tuple[Array, Array, Array | None, Callable[[Array], Array]]:
    """Both images as float32, of the shape they have, the mask beside them, and what turns `[B, …]` into the shape the caller expects.

    A compiled function brings them to `[B, …, C]` with `expanded`, which costs nothing there and a copy anywhere else.

    Raises:
      ValueError: where the shapes differ, are none of those above, or the mask does not broadcast to them.
    """
    if np.shape(x) != np.shape(y):
        raise ValueError(f"images of one shape are compared, got {np.shape(x)} and {np.shape(y)}")
    if np.ndim(x) not in (3, 4, 5):
        raise ValueError(f"expected [X, Y, Z], [B, H, W, C] or [B, X, Y, Z, C], got the shape {np.shape(x)}")
    x, y = jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.float32)
    mask = None if mask is None else jnp.asarray(mask, bool)
    if mask is not None and (mask.ndim != x.ndim or any(m not in (1, n) for m, n in zip(mask.shape, x.shape, strict=True))):
        raise ValueError(f"the mask's shape {mask.shape} does not fit the images' {x.shape}")
    return x, y, mask, (lambda values: values[0]) if x.ndim == 3 else (lambda values: values)


def expanded(*images: Array | None) -> list[Any]:
    """`[X, Y, Z]` as `[1, X, Y, Z, 1]`; batches, and None, as they are."""
    return [image[None, ..., None] if image is not None and image.ndim == 3 else image for image in images]


def batched(x: ArrayLike, y: ArrayLike, mask: ArrayLike | None) -> tuple[Array, Array, Array | None, Callable[[Array], Array]]:
    """`checked`, and `expanded` at once."""
    x, y, mask, like_input = checked(x, y, mask)
    return *expanded(x, y, mask), like_input  # type: ignore[return-value]


def sides(x: Array) -> tuple[int, ...]:
    """The spatial ones."""
    return x.shape if x.ndim == 3 else x.shape[1:-1]


def check_range(data_range: ArrayLike) -> None:
    if not isinstance(data_range, jax.core.Tracer) and not np.all(np.asarray(data_range) > 0):
        raise ValueError(f"a data range is positive, got {data_range}")


def check_sides(x: Array, least: int, metric: str) -> None:
    """Raises ValueError where a spatial side of `x` is shorter than `least`."""
    if min(sides(x)) < least:
        raise ValueError(f"{metric} needs at least {least} voxels on every side, got {sides(x)}")


def mean(values: Array, mask: Array | None) -> Array:
    """`[B, …]` → `[B]`: one image's mean over everything, or over its mask."""
    axes = tuple(range(1, values.ndim))
    if mask is None:
        return values.mean(axes)
    mask = jnp.broadcast_to(mask, values.shape)
    return jnp.where(mask, values, 0).sum(axes) / mask.sum(axes)


def spacing(voxel_size: ArrayLike, rank: int) -> np.ndarray:
    """mm along each of `rank` axes, from as many numbers or one; raises ValueError for other counts and sizes not positive."""
    sizes = np.asarray(voxel_size, np.float64)
    if sizes.shape not in ((), (rank,)):
        raise ValueError(f"expected one voxel size or {rank}, in mm, got the shape {sizes.shape}")
    if not np.all(sizes > 0):
        raise ValueError(f"voxel sizes are positive, got {voxel_size}")
    return np.broadcast_to(sizes, (rank,))
