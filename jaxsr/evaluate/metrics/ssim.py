"""Structural similarity of an image and its reference.

    SSIM = ⟨ (2 μ_x μ_y + C₁)(2 σ_xy + C₂) / ((μ_x² + μ_y² + C₁)(σ_x² + σ_y² + C₂)) ⟩,   C₁ = (0.01 R)², C₂ = (0.03 R)²

[Wang et al., IEEE TIP 13:600, 2004, Eq. 13] with local moments under a Gaussian window of 11 taps and σ = 1.5, separable, in two or three
dimensions. R is the data range. Shapes: `jaxsr.evaluate.metrics.images`.

Conventions, on which libraries differ. Variances are population variances: weights sum to one, no N / (N − 1). SSIM is averaged over the
centres whose window lies inside the image ("valid": five voxels are cut from every side); with a mask, over the mask's voxels among those
centres, whose windows may reach outside the mask. So computed, it is
skimage's `structural_similarity(gaussian_weights=True, sigma=1.5, use_sample_covariance=False)`, and pytorch-msssim's, piq's and MONAI's.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from jaxsr.evaluate.metrics.images import batched, check_range, check_sides, mean

WINDOW, SIGMA, K1, K2 = 11, 1.5, 0.01, 0.03  # [Wang 2004, §III-B and §III-C]


def ssim(x: ArrayLike, y: ArrayLike, *, data_range: ArrayLike, mask: ArrayLike | None = None) -> Array:
    """Structural similarity, at most 1; conventions above. `data_range`: R > 0, one number or one an image.

    Raises:
      ValueError: where a side is shorter than the window's 11 voxels, or shapes or data range make no sense; says which.
    """
    check_range(data_range)
    x, y, mask, like_input = batched(x, y, mask)
    check_sides(x, WINDOW, "SSIM")
    return like_input(_ssim(x, y, jnp.asarray(data_range, jnp.float32), mask))


def ssim_map(x: ArrayLike, y: ArrayLike, *, data_range: ArrayLike) -> Array:
    """SSIM at every centre whose window lies inside the image: the shape of `x` with each spatial side 10 shorter. Its mean is `ssim`."""
    check_range(data_range)
    volume = np.ndim(x) == 3
    x, y, _, _ = batched(x, y, None)
    check_sides(x, WINDOW, "SSIM")
    similarity = _ssim_map(x, y, jnp.asarray(data_range, jnp.float32))
    return similarity[0, ..., 0] if volume else similarity


@jax.jit
def _ssim(x: Array, y: Array, data_range: Array, mask: Array | None) -> Array:
    if mask is not None:
        mask = mask[(slice(None), *(slice(WINDOW // 2, -(WINDOW // 2)),) * (x.ndim - 2))]
    return mean(_ssim_map(x, y, data_range), mask)


@jax.jit
def _ssim_map(x: Array, y: Array, data_range: Array) -> Array:
    """Four filtered images, not five: only the sum of the variances is needed.

    The variances are differences of second moments, which float32 forgives only near zero: y's mean is taken off both images, and given
    back to the local means, which alone feel it.
    """
    data_range = jnp.reshape(data_range, (-1,) + (1,) * (x.ndim - 1))
    centre = mean(y, None).reshape(-1, *(1,) * (x.ndim - 1)) / data_range
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
