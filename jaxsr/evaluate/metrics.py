"""How far an image is from its reference: MSE, RMSE, MAE, PSNR, SSIM.

    MSE = ⟨(x − y)²⟩,   RMSE = √MSE,   MAE = ⟨|x − y|⟩,   PSNR = 10 log₁₀(R² / MSE)

    SSIM = ⟨ (2 μ_x μ_y + C₁)(2 σ_xy + C₂) / ((μ_x² + μ_y² + C₁)(σ_x² + σ_y² + C₂)) ⟩,   C₁ = (0.01 R)², C₂ = (0.03 R)²

[Wang et al., IEEE TIP 13:600, 2004, Eq. 13] with local moments under a Gaussian window of 11 taps and σ = 1.5, separable, in two or three
dimensions. R is the data range. It is always the caller's: no metric here guesses it, and none rescales an image.

Conventions, on which libraries differ. Variances are population variances: weights sum to one, no N / (N − 1). ⟨·⟩ runs over all pixels
and channels or, with a mask, over the mask. SSIM is averaged over the centres whose window lies inside the image ("valid": five voxels are
cut from every side); with a mask, over the mask's voxels among those centres, whose windows may reach outside the mask. So computed, it is
skimage's `structural_similarity(gaussian_weights=True, sigma=1.5, use_sample_covariance=False)`, and pytorch-msssim's, piq's and MONAI's.

Shapes. `[B, H, W, C]`, a batch of slices, and `[B, X, Y, Z, C]`, a batch of volumes, give `[B]`, one
value each; `[X, Y, Z]`, a volume, gives a scalar.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

WINDOW, SIGMA, K1, K2 = 11, 1.5, 0.01, 0.03  # [Wang 2004, §III-B and §III-C]


def mse(x: ArrayLike, y: ArrayLike, *, mask: ArrayLike | None = None) -> Array:
    """Mean squared error. `mask`: boolean, broadcastable to `x`; an empty one gives NaN, here and below."""
    x, y, mask, like_input = _batched(x, y, mask)
    return like_input(_mse(x, y, mask))


def rmse(x: ArrayLike, y: ArrayLike, *, mask: ArrayLike | None = None) -> Array:
    """Root of the mean squared error, in the images' own unit."""
    return jnp.sqrt(mse(x, y, mask=mask))


def mae(x: ArrayLike, y: ArrayLike, *, mask: ArrayLike | None = None) -> Array:
    """Mean absolute error, in the images' own unit."""
    x, y, mask, like_input = _batched(x, y, mask)
    return like_input(_mae(x, y, mask))


def psnr(x: ArrayLike, y: ArrayLike, *, data_range: ArrayLike, mask: ArrayLike | None = None) -> Array:
    """Peak signal-to-noise ratio in dB; infinite for equal images. `data_range`: R > 0, one number or one an image."""
    _check_range(data_range)
    return 20 * jnp.log10(data_range) - 10 * jnp.log10(mse(x, y, mask=mask))


def ssim(x: ArrayLike, y: ArrayLike, *, data_range: ArrayLike, mask: ArrayLike | None = None) -> Array:
    """Structural similarity, at most 1; conventions above. `data_range`: R > 0, one number or one an image.

    Raises:
      ValueError: where a side is shorter than the window's 11 voxels, or shapes or data range make no sense; says which.
    """
    _check_range(data_range)
    x, y, mask, like_input = _batched(x, y, mask)
    _check_sides(x)
    return like_input(_ssim(x, y, jnp.asarray(data_range, jnp.float32), mask))


def ssim_map(x: ArrayLike, y: ArrayLike, *, data_range: ArrayLike) -> Array:
    """SSIM at every centre whose window lies inside the image: the shape of `x` with each spatial side 10 shorter. Its mean is `ssim`."""
    _check_range(data_range)
    volume = np.ndim(x) == 3
    x, y, _, _ = _batched(x, y, None)
    _check_sides(x)
    similarity = _ssim_map(x, y, jnp.asarray(data_range, jnp.float32))
    return similarity[0, ..., 0] if volume else similarity


@jax.jit
def _mse(x: Array, y: Array, mask: Array | None) -> Array:
    return _mean((x - y) ** 2, mask)


@jax.jit
def _mae(x: Array, y: Array, mask: Array | None) -> Array:
    return _mean(jnp.abs(x - y), mask)


@jax.jit
def _ssim(x: Array, y: Array, data_range: Array, mask: Array | None) -> Array:
    if mask is not None:
        mask = mask[(slice(None), *(slice(WINDOW // 2, -(WINDOW // 2)),) * (x.ndim - 2))]
    return _mean(_ssim_map(x, y, data_range), mask)


@jax.jit
def _ssim_map(x: Array, y: Array, data_range: Array) -> Array:
    """Four filtered images, not five: only the sum of the variances is needed.

    The variances are differences of second moments, which float32 forgives only near zero: y's mean is taken off both images, and given
    back to the local means, which alone feel it.
    """
    data_range = jnp.reshape(data_range, (-1,) + (1,) * (x.ndim - 1))
    centre = _mean(y, None).reshape(-1, *(1,) * (x.ndim - 1)) / data_range
    x, y = x / data_range - centre, y / data_range - centre
    mean_x, mean_y = _local_mean(x), _local_mean(y)
    variances = _local_mean(x**2 + y**2) - mean_x**2 - mean_y**2
    covariance = _local_mean(x * y) - mean_x * mean_y
    mean_x, mean_y = mean_x + centre, mean_y + centre
    similar = (2 * mean_x * mean_y + K1**2) * (2 * covariance + K2**2)
    return similar / ((mean_x**2 + mean_y**2 + K1**2) * (variances + K2**2))


def _local_mean(x: Array) -> Array:
    """The Gaussian window along each spatial axis, as a product with a band matrix: XLA's convolutions of one channel are slower."""
    for axis in range(1, x.ndim - 1):
        n = x.shape[axis] - WINDOW + 1
        band = sum(np.eye(n, x.shape[axis], k, dtype=np.float32) * tap for k, tap in enumerate(_gaussian()))  # [n, n + 10]
        x = jnp.moveaxis(jnp.tensordot(band, x, axes=(1, axis), precision="highest"), 0, axis)
    return x


def _gaussian() -> np.ndarray:
    taps = np.exp(-((np.arange(WINDOW) - WINDOW // 2) ** 2) / (2 * SIGMA**2))
    return taps / taps.sum()


def _mean(values: Array, mask: Array | None) -> Array:
    """`[B, …]` → `[B]`: one image's mean over everything, or over its mask."""
    axes = tuple(range(1, values.ndim))
    if mask is None:
        return values.mean(axes)
    mask = jnp.broadcast_to(mask, values.shape)
    return jnp.where(mask, values, 0).sum(axes) / mask.sum(axes)


def _batched(x: ArrayLike, y: ArrayLike, mask: ArrayLike | None) -> tuple[Array, Array, Array | None, Callable[[Array], Array]]:
    """Both images as float32 `[B, …, C]`, the mask beside them, and what turns `[B]` into the shape the caller expects."""
    if np.shape(x) != np.shape(y):
        raise ValueError(f"images of one shape are compared, got {np.shape(x)} and {np.shape(y)}")
    if np.ndim(x) not in (3, 4, 5):
        raise ValueError(f"expected [X, Y, Z], [B, H, W, C] or [B, X, Y, Z, C], got the shape {np.shape(x)}")
    x, y = jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.float32)
    mask = None if mask is None else jnp.asarray(mask, bool)
    if mask is not None and (mask.ndim != x.ndim or any(m not in (1, n) for m, n in zip(mask.shape, x.shape, strict=True))):
        raise ValueError(f"the mask's shape {mask.shape} does not fit the images' {x.shape}")
    if x.ndim > 3:
        return x, y, mask, lambda values: values
    return x[None, ..., None], y[None, ..., None], None if mask is None else mask[None, ..., None], lambda values: values[0]


def _check_range(data_range: ArrayLike) -> None:
    if not isinstance(data_range, jax.core.Tracer) and not np.all(np.asarray(data_range) > 0):
        raise ValueError(f"a data range is positive, got {data_range}")


def _check_sides(x: Array) -> None:
    if min(x.shape[1:-1]) < WINDOW:
        raise ValueError(f"SSIM needs at least {WINDOW} voxels on every side, got {x.shape[1:-1]}")
