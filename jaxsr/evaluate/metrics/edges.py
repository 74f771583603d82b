"""How sharp edges and fine detail are beside the reference's: HFEN, gradient error, GMSD.

    HFEN = ‖∇²G_σ * (x − y)‖ / ‖∇²G_σ * y‖   [Ravishankar & Bresler, IEEE TMI 30:1028, 2011, §IV]
    gradient error = √(Σ |∇x − ∇y|² / Σ |∇y|²)
    GMSD = √⟨(GMS − ⟨GMS⟩)²⟩,   GMS = (2 m_x m_y + c) / (m_x² + m_y² + c),   m = |∇|   [Xue et al., IEEE TIP 23:684, 2014, Eqs. 4 to 6]

y is the reference. Shapes: `jaxsr.evaluate.metrics.images`.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from jaxsr.evaluate.metrics.images import check_range, check_sides, checked, expanded, mean, sides, spacing
from jaxsr.evaluate.metrics.windows import correlate, correlate_axis, gaussian, halve, halve_mask, mean_slabs

LOG_TAPS, LOG_SIGMA = 15, 1.5  # [Ravishankar & Bresler 2011, §IV]
GMSD_C = 170 / 255**2  # c for a data range of 1 [Xue 2014, §III-A]


def hfen(x: ArrayLike, y: ArrayLike, *, mask: ArrayLike | None = None) -> Array:
    """High-frequency error norm: 0 for equal images, 1 for an image without detail; no data range enters.

    The Laplacian of a Gaussian of σ = 1.5 voxels on 15 taps an axis, in two or three dimensions, is summed to zero, so that constants
    vanish; only the centres whose window lies inside the image count (7 voxels are cut from every side) and, with a mask, those inside it.
    Libraries differ: some give the norm undivided, or its mean, or pad the border with zeros (MATLAB's imfilter). This is
    scipy's `gaussian_laplace(sigma=1.5, truncate=14 / 3)` without its border.

    Raises:
      ValueError: where a side is shorter than 15 voxels, or shapes make no sense; says which.
    """
    x, y, mask, like_input = checked(x, y, mask)
    check_sides(x, LOG_TAPS, "HFEN")
    return like_input(_hfen(x, y, mask))


def gradient_error(x: ArrayLike, y: ArrayLike, *, voxel_size: ArrayLike, mask: ArrayLike | None = None) -> Array:
    """Error of the gradient vector over the reference's root-mean-square gradient: 0 for equal images, 1 for a constant one.

    Central differences over two voxels, in intensity per mm, at the voxels that have both neighbours along every axis and, with a mask,
    lie inside it. The papers name a gradient error without an equation [SPCDD, §5.3 and §6]; this relative form is free of the
    intensity's unit.

    Args:
      voxel_size: mm along each spatial axis, or one number.
    """
    x, y, mask, like_input = checked(x, y, mask)
    check_sides(x, 3, "the gradient error")
    return like_input(_gradient_error(x, y, jnp.asarray(spacing(voxel_size, len(sides(x))), jnp.float32), mask))


def gmsd(x: ArrayLike, y: ArrayLike, *, data_range: ArrayLike, mask: ArrayLike | None = None) -> Array:
    """Gradient-magnitude similarity deviation: 0 for equal images; how unevenly the loss of edges is spread. Channels count alike.

    Gradients by Prewitt filters (zeros beyond the border) after averaging blocks of two voxels, c = 170 at a range of 255: piq's `gmsd`
    for even sides; an odd one repeats its first voxel, where piq adds a border of zeros. In three dimensions the filter also averages
    three voxels along the third axis. A block is in the mask where half of it is. The mean and the deviation run over image or mask.

    Args:
      data_range: R > 0, one number or one an image.
    """
    check_range(data_range)
    x, y, mask, like_input = checked(x, y, mask)
    check_sides(x, 2, "GMSD")
    return like_input(_gmsd(x, y, jnp.asarray(data_range, jnp.float32), mask))


@jax.jit
def _hfen(x: Array, y: Array, mask: Array | None) -> Array:
    x, y, mask = expanded(x, y, mask)

    def squares(x: Array, y: Array) -> tuple[Array, Array]:
        return _laplacian_of_gaussian(x - y) ** 2, _laplacian_of_gaussian(y) ** 2

    error, reference = mean_slabs(squares, (x, y), mask, LOG_TAPS)
    return jnp.sqrt(error / reference)


def _laplacian_of_gaussian(x: Array) -> Array:
    """Σ over axes of the second derivative along that one and the Gaussian along the others, built up axis by axis."""
    offsets = np.arange(LOG_TAPS) - LOG_TAPS // 2
    smooth = gaussian(LOG_TAPS, LOG_SIGMA)
    second = (offsets**2 / LOG_SIGMA**4 - 1 / LOG_SIGMA**2) * smooth
    second -= second.sum() * smooth  # constants vanish
    smoothed, laplacian = correlate_axis(x, smooth, 1), correlate_axis(x, second, 1)
    for axis in range(2, x.ndim - 1):
        laplacian = correlate_axis(laplacian, smooth, axis) + correlate_axis(smoothed, second, axis)
        smoothed = correlate_axis(smoothed, smooth, axis)
    return laplacian


@jax.jit
def _gradient_error(x: Array, y: Array, voxel_size: Array, mask: Array | None) -> Array:
    x, y, mask = expanded(x, y, mask)
    axes = range(1, x.ndim - 1)

    def squared(image: Array) -> Array:
        return sum(((_central(image, axis) / voxel_size[axis - 1]) ** 2 for axis in axes), jnp.zeros(()))

    error, reference = mean_slabs(lambda x, y: (squared(x - y), squared(y)), (x, y), mask, 3)
    return jnp.sqrt(error / reference)


def _central(x: Array, axis: int) -> Array:
    """Central differences along `axis`, one voxel less on every spatial side."""
    x = x[(slice(None), *(slice(None) if a == axis else slice(1, -1) for a in range(1, x.ndim - 1)))]
    return (jax.lax.slice_in_dim(x, 2, None, axis=axis) - jax.lax.slice_in_dim(x, 0, -2, axis=axis)) / 2


@jax.jit
def _gmsd(x: Array, y: Array, data_range: Array, mask: Array | None) -> Array:
    x, y, mask = expanded(x, y, mask)
    inside = halve_mask(mask, x.shape)
    data_range = jnp.reshape(data_range, (-1,) + (1,) * (x.ndim - 1))
    m_x, m_y = _prewitt(halve(x) / data_range), _prewitt(halve(y) / data_range)
    similarity = (2 * m_x * m_y + GMSD_C) / (m_x**2 + m_y**2 + GMSD_C)
    average = mean(similarity, inside).reshape(-1, *(1,) * (x.ndim - 1))
    return jnp.sqrt(mean((similarity - average) ** 2, inside))


def _prewitt(x: Array) -> Array:
    """Gradient magnitude, each component a difference over two voxels averaged over three along the other axes; zeros beyond the border."""
    padded = jnp.pad(x, ((0, 0), *((1, 1),) * (x.ndim - 2), (0, 0)))
    across, along = np.full(3, 1 / 3), np.array([-1.0, 0, 1])
    axes = range(x.ndim - 2)
    squares = (correlate(padded, [along if axis == component else across for axis in axes]) ** 2 for component in axes)
    return jnp.sqrt(sum(squares, jnp.zeros(())))
