"""Structural similarity of an image and its reference, at one scale and at five.

    l = (2 μ_x μ_y + C₁) / (μ_x² + μ_y² + C₁),      cs = (2 σ_xy + C₂) / (σ_x² + σ_y² + C₂),      C₁ = (0.01 R)², C₂ = (0.03 R)²

    SSIM = ⟨l · cs⟩   [Wang et al., IEEE TIP 13:600, 2004, Eq. 13; survey, Eqs. 39 and 40]
    MS-SSIM = ⟨l · cs⟩₅^w₅ Π_{j<5} ⟨cs⟩_j^w_j   [Wang et al., Asilomar 2003, Eq. 7]

with local moments under a Gaussian window of 11 taps and σ = 1.5, separable, in two or three dimensions; scale j + 1 has the means of
blocks of two voxels of scale j. R is the data range. Shapes: `jaxsr.evaluate.metrics.images`.

Conventions, on which libraries differ. Variances are population variances: weights sum to one, no N / (N − 1). SSIM is averaged over the
centres whose window lies inside the image ("valid": five voxels are cut from every side); with a mask, over the mask's voxels among those
centres, whose windows may reach outside the mask. So computed, it is
skimage's `structural_similarity(gaussian_weights=True, sigma=1.5, use_sample_covariance=False)`, and pytorch-msssim's, piq's and MONAI's;
torchmetrics differs by 4e-4 (it keeps the border), skimage's default, a uniform window of 7, by 1e-3.
MS-SSIM takes means before powers, sets negative ones to 0, multiplies channel by channel, and repeats the first voxel of an odd side, as
piq does; pytorch-msssim pads with zeros instead, torchmetrics differs by 8e-4. A coarse voxel is in the mask where half of its block is.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jaxsr.evaluate.metrics.images import check_range, check_sides, checked, expanded, mean
from jaxsr.evaluate.metrics.windows import correlate, gaussian, halve, halve_mask, map_slabs, mean_slabs, sum_slabs

WINDOW, SIGMA, K1, K2 = 11, 1.5, 0.01, 0.03  # [Wang 2004, §III-B and §III-C]
SCALES = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # exponents, finest first [Wang 2003, §3.2]
LEAST = (WINDOW - 1) * 2 ** (len(SCALES) - 1) + 1  # voxels a side for MS-SSIM: 161


def ssim(x: ArrayLike, y: ArrayLike, *, data_range: ArrayLike, mask: ArrayLike | None = None) -> Array:
    """Structural similarity, at most 1; conventions above. `data_range`: R > 0, one number or one an image.

    Raises:
      ValueError: where a side is shorter than the window's 11 voxels, or shapes or data range make no sense; says which.
    """
    check_range(data_range)
    x, y, mask, like_input = checked(x, y, mask)
    check_sides(x, WINDOW, "SSIM")
    return like_input(_ssim(x, y, jnp.asarray(data_range, jnp.float32), mask))


def ssim_map(x: ArrayLike, y: ArrayLike, *, data_range: ArrayLike) -> Array:
    """SSIM at every centre whose window lies inside the image: the shape of `x` with each spatial side 10 shorter. Its mean is `ssim`."""
    check_range(data_range)
    x, y, _, _ = checked(x, y, None)
    check_sides(x, WINDOW, "SSIM")
    return _ssim_map(x, y, jnp.asarray(data_range, jnp.float32))


def ms_ssim(x: ArrayLike, y: ArrayLike, *, data_range: ArrayLike, mask: ArrayLike | None = None) -> Array:
    """Multi-scale structural similarity, 0 to 1; conventions above. `data_range`: R > 0, one number or one an image.

    Raises:
      ValueError: where a side is shorter than 161 voxels, which leave the coarsest scale one window, or shapes or data range make no sense.
    """
    check_range(data_range)
    x, y, mask, like_input = checked(x, y, mask)
    check_sides(x, LEAST, "MS-SSIM")
    return like_input(_ms_ssim(x, y, jnp.asarray(data_range, jnp.float32), mask))


@jax.jit
def _ssim(x: Array, y: Array, data_range: Array, mask: Array | None) -> Array:
    x, y, mask = expanded(x, y, mask)
    similarity = _similarity(y, data_range)
    return mean_slabs(lambda x, y: similarity(x, y)[0], (x, y), mask, WINDOW)


@jax.jit
def _ssim_map(x: Array, y: Array, data_range: Array) -> Array:
    volume = x.ndim == 3
    x, y = expanded(x, y)
    similarity = _similarity(y, data_range)
    values = map_slabs(lambda x, y: similarity(x, y)[0], (x, y), WINDOW)
    return values[0, ..., 0] if volume else values


@jax.jit
def _ms_ssim(x: Array, y: Array, data_range: Array, mask: Array | None) -> Array:
    x, y, mask = expanded(x, y, mask)
    similarity = _similarity(y, data_range)
    product = jnp.ones(())
    for scale, weight in enumerate(SCALES):
        if scale:
            mask, x, y = halve_mask(mask, x.shape), halve(x), halve(y)
        sums, count = sum_slabs(similarity, (x, y), mask, WINDOW)
        whole, structure = (jnp.maximum(total / count, 0) for total in sums)  # [B, C] each
        product = product * (whole if scale == len(SCALES) - 1 else structure) ** weight
    return product.mean(-1)


def _similarity(y: Array, data_range: Array) -> Callable[[Array, Array], tuple[Array, Array]]:
    """What makes maps of l · cs and cs of both images or of parts of them, at any scale.

    The variances are differences of second moments, which float32 forgives only near zero: y's mean is taken off both images, and given
    back to the local means, which alone feel it.
    """
    data_range = jnp.reshape(data_range, (-1,) + (1,) * (y.ndim - 1))
    centre = mean(y, None).reshape(-1, *(1,) * (y.ndim - 1)) / data_range
    window = gaussian(WINDOW, SIGMA)

    def similarity(x: Array, y: Array) -> tuple[Array, Array]:
        """Four filtered images, not five: only the sum of the variances is needed."""
        x, y = x / data_range - centre, y / data_range - centre
        mean_x, mean_y = correlate(x, window), correlate(y, window)
        variances = correlate(x**2 + y**2, window) - mean_x**2 - mean_y**2
        covariance = correlate(x * y, window) - mean_x * mean_y
        mean_x, mean_y = mean_x + centre, mean_y + centre
        structure = (2 * covariance + K2**2) / (variances + K2**2)
        return (2 * mean_x * mean_y + K1**2) / (mean_x**2 + mean_y**2 + K1**2) * structure, structure

    return similarity
