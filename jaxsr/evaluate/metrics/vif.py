"""Visual information fidelity in the pixel domain: how much of what an eye could learn from the reference the image still tells.

    VIFp = Σ log₁₀(1 + g² σ_y² / (σ_v² + σ_n²)) / Σ log₁₀(1 + σ_y² / σ_n²),      g = σ_xy / σ_y²,   σ_v² = σ_x² − g σ_xy

[survey, Eq. 41; Sheikh & Bovik, IEEE TIP 15:430, 2006, in the pixel-domain form of the authors' code, not the wavelet form of the paper]
with y the reference, sums over four scales and all positions, σ_n² = 2 for values of 0 to 255, and local moments under Gaussian windows of
17, 9, 5 and 3 taps, σ a fifth of the taps. Between scales an image is filtered with the coming window and every second voxel kept. As in
that code, nothing is told where either image is flat, all is noise where g < 0, and against a flat reference everything scores 1.

It is 1 for equal images, 0 for nothing in common, and may exceed 1 for an image with more contrast than its reference. It is not symmetric.
So computed, it is piq's `vif_p`, and torchmetrics' once that one is given values of 0 to 255 (given 0 to 1, its σ_n² is 65025 times
too large). In three dimensions the windows are three-dimensional and nothing else changes.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from jaxsr.evaluate.metrics.images import check_range, check_sides, checked, expanded, mean
from jaxsr.evaluate.metrics.windows import correlate, gaussian, sum_slabs

WINDOWS = (17, 9, 5, 3)  # taps, a scale each
NOISE = 2 / 255**2  # of the eye's channel, σ_n², for a data range of 1
LEAST = 41  # voxels a side: less leaves no place for the last window
_EPS = 1e-8 / 255**2
_ROUNDING = 16 * float(np.finfo(np.float32).eps)


def vif(x: ArrayLike, y: ArrayLike, *, data_range: ArrayLike, mask: ArrayLike | None = None) -> Array:
    """Pixel-domain VIF of `x` given the reference `y`; conventions above. `data_range`: R > 0, one number or one an image.

    With a mask, the sums run over its voxels among the windows' centres, at coarser scales over every second of them.

    Raises:
      ValueError: where a side is shorter than 41 voxels, or shapes or data range make no sense; says which.
    """
    check_range(data_range)
    x, y, mask, like_input = checked(x, y, mask)
    check_sides(x, LEAST, "VIF")
    return like_input(_vif(x, y, jnp.asarray(data_range, jnp.float32), mask))


@jax.jit
def _vif(x: Array, y: Array, data_range: Array, mask: Array | None) -> Array:
    x, y, mask = expanded(x, y, mask)
    data_range = jnp.reshape(data_range, (-1,) + (1,) * (x.ndim - 1))
    centre = mean(y, None).reshape(-1, *(1,) * (x.ndim - 1))  # second moments lose fewest digits around zero

    def information(x: Array, y: Array, window: np.ndarray) -> tuple[Array, Array]:
        return _information((x - centre) / data_range, (y - centre) / data_range, window)

    told = possible = jnp.zeros(())
    for scale, taps in enumerate(WINDOWS):
        window = gaussian(taps, taps / 5)
        if scale:
            x, y = correlate(x, window, stride=2), correlate(y, window, stride=2)
            mask = _decimated(mask, taps // 2)
        (here, there), count = sum_slabs(partial(information, window=window), (x, y), mask, taps)
        told, possible = told + here.sum(-1), possible + there.sum(-1)
    return jnp.where(count.sum(-1) > 0, (told + _EPS) / (possible + _EPS), jnp.nan)


def _decimated(mask: Array | None, radius: int) -> Array | None:
    """At the voxels that `correlate(…, stride=2)` keeps; an axis of length one stays."""
    if mask is None:
        return None
    return mask[(slice(None), *(slice(radius, n - radius, 2) if n > 1 else slice(None) for n in mask.shape[1:-1]))]


def _information(x: Array, y: Array, window: np.ndarray) -> tuple[Array, Array]:
    """What `x` tells of `y` and what `y` could tell, in units of log₁₀, at each centre."""
    mean_x, mean_y = correlate(x, window), correlate(y, window)
    var_x = jnp.maximum(correlate(x * x, window) - mean_x**2, 0)
    var_y = jnp.maximum(correlate(y * y, window) - mean_y**2, 0)
    covariance = correlate(x * y, window) - mean_x * mean_y
    gain = covariance / (var_y + _EPS)
    noise = var_x - gain * covariance
    # Where an image is flat its variance is the rounding error of two second moments, and a quotient of such errors is anything.
    flat, lost = (var < _EPS + _ROUNDING * mean**2 for var, mean in ((var_y, mean_y), (var_x, mean_x)))
    gain, noise, var_y = jnp.where(flat, 0, gain), jnp.where(flat, var_x, noise), jnp.where(flat, 0, var_y)
    gain, noise = jnp.where(lost, 0, gain), jnp.where(lost, 0, noise)
    noise = jnp.maximum(jnp.where(gain < 0, var_x, noise), _EPS)
    gain = jnp.maximum(gain, 0)
    return jnp.log10(1 + gain**2 * var_y / (noise + NOISE)), jnp.log10(1 + var_y / NOISE)
