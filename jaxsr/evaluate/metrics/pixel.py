"""How far values lie from their reference, voxel by voxel: MSE, RMSE, NRMSE, MAE, PSNR.

    MSE = ⟨(x − y)²⟩,   RMSE = √MSE,   NRMSE = RMSE / √⟨y²⟩,   MAE = ⟨|x − y|⟩,   PSNR = 10 log₁₀(R² / MSE)   [survey, Eq. 38]

y is the reference. ⟨·⟩ runs over all pixels and channels or, with a mask, over the mask. Shapes: `jaxsr.evaluate.metrics.images`.
"""

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jaxsr.evaluate.metrics.images import check_range, checked, expanded, mean
from jaxsr.evaluate.metrics.windows import mean_slabs


def mse(x: ArrayLike, y: ArrayLike, *, mask: ArrayLike | None = None) -> Array:
    """Mean squared error. `mask`: boolean, broadcastable to `x`; an empty one gives NaN, here and below."""
    x, y, mask, like_input = checked(x, y, mask)
    return like_input(_mse(x, y, mask))


def rmse(x: ArrayLike, y: ArrayLike, *, mask: ArrayLike | None = None) -> Array:
    """Root of the mean squared error, in the images' own unit."""
    return jnp.sqrt(mse(x, y, mask=mask))


def nrmse(x: ArrayLike, y: ArrayLike, *, mask: ArrayLike | None = None) -> Array:
    """RMSE over the reference's root mean square, ‖x − y‖ / ‖y‖: 0 for equal images, 1 for an image of zeros.

    The Euclidean convention, the default of skimage's `normalized_root_mse` and the root of fastMRI's NMSE. Elsewhere RMSE is divided by
    the reference's range (then it is 10^(−PSNR/20)) or by its mean.
    """
    x, y, mask, like_input = checked(x, y, mask)
    return like_input(_nrmse(x, y, mask))


def mae(x: ArrayLike, y: ArrayLike, *, mask: ArrayLike | None = None) -> Array:
    """Mean absolute error, in the images' own unit."""
    x, y, mask, like_input = checked(x, y, mask)
    return like_input(_mae(x, y, mask))


def psnr(x: ArrayLike, y: ArrayLike, *, data_range: ArrayLike, mask: ArrayLike | None = None) -> Array:
    """Peak signal-to-noise ratio in dB; infinite for equal images. `data_range`: R > 0, one number or one an image."""
    check_range(data_range)
    return 20 * jnp.log10(data_range) - 10 * jnp.log10(mse(x, y, mask=mask))


@jax.jit
def _mse(x: Array, y: Array, mask: Array | None) -> Array:
    x, y, mask = expanded(x, y, mask)
    return mean((x - y) ** 2, mask)


@jax.jit
def _nrmse(x: Array, y: Array, mask: Array | None) -> Array:
    x, y, mask = expanded(x, y, mask)
    error, power = mean_slabs(lambda x, y: ((x - y) ** 2, y**2), (x, y), mask)
    return jnp.sqrt(error / power)


@jax.jit
def _mae(x: Array, y: Array, mask: Array | None) -> Array:
    x, y, mask = expanded(x, y, mask)
    return mean(jnp.abs(x - y), mask)
