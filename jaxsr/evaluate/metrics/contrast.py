"""Whether intensities and their local variation are the reference's, and how far two tissues stand apart: histogram, local contrast, CNR.

The papers name an "intensity histogram matching" and "localized contrast" score without an equation [SPCDD, §4.1 and §6]; these are the
usual ones. Shapes: `jaxsr.evaluate.metrics.images`.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jaxsr.evaluate.metrics.images import check_range, check_sides, checked, expanded, mean
from jaxsr.evaluate.metrics.windows import correlate, gaussian, mean_slabs

BINS = 256
WINDOW, SIGMA = 11, 1.5  # of the local contrast: SSIM's


def histogram_match(
    x: ArrayLike, y: ArrayLike, *, data_range: ArrayLike, low: ArrayLike = 0.0, bins: int = BINS, mask: ArrayLike | None = None
) -> Array:
    """Histogram intersection Σ min(p, q) = 1 − ½ Σ |p − q| of shares p, q a bin: 1 for equal histograms, 0 for disjoint ones.

    [Swain & Ballard, IJCV 7:11, 1991, Eq. 1, with shares for counts.] It depends on the bins: `bins` of equal width from `low` to
    `low` + `data_range`, the last one closed, and values beyond in the first and the last. With a mask, its voxels' histograms. All
    channels make one histogram. No place enters: shuffled voxels match.
    """
    check_range(data_range)
    x, y, mask, like_input = checked(x, y, mask)
    data_range, low = (jnp.asarray(value, jnp.float32) for value in (data_range, low))
    return like_input(_histogram_match(x, y, data_range, low, bins, mask))


def local_contrast(x: ArrayLike, *, mask: ArrayLike | None = None) -> Array:
    """Mean of the local standard deviation of one image, in its unit: RMS contrast [Peli, JOSA A 7:2032, 1990] under SSIM's window.

    Not divided by the local mean, which in MRI is arbitrary in air. Population variance; averaged over the centres whose window lies
    inside the image and, with a mask, those inside it.

    Raises:
      ValueError: where a side is shorter than the window's 11 voxels.
    """
    x = jnp.asarray(x, jnp.float32)
    x, _, mask, like_input = checked(x, x, mask)
    check_sides(x, WINDOW, "the local contrast")
    return like_input(_local_contrast(x, x, mask)[1])


def local_contrast_error(x: ArrayLike, y: ArrayLike, *, mask: ArrayLike | None = None) -> Array:
    """⟨|s_x − s_y|⟩ / ⟨s_y⟩ of the local standard deviations s: 0 for equal images, 1 for a flat one; more where noise is added.

    Window, mask and errors as for `local_contrast`, whose ratio of image to reference says which way the contrast went.
    """
    x, y, mask, like_input = checked(x, y, mask)
    check_sides(x, WINDOW, "the local contrast")
    error, reference = _local_contrast(x, y, mask)
    return like_input(error / reference)


def cnr(x: ArrayLike, *, roi: ArrayLike, background: ArrayLike, noise: ArrayLike | None = None) -> Array:
    """Contrast-to-noise ratio |μ_roi − μ_background| / σ_noise [survey, Eq. 42] of one image.

    Args:
      roi, background: masks, broadcastable to `x`; for instance white and grey matter.
      noise: the region whose standard deviation (population) is the noise, by default `background`. In air, magnitude images have only
        √(2 − π/2) = 0.655 of the noise elsewhere; nothing here corrects for that. Smoothing raises the CNR: it is no measure of fidelity.
    """
    x = jnp.asarray(x, jnp.float32)
    image, _, in_background, like_input = checked(x, x, background)
    in_roi, in_noise = (checked(x, x, region)[2] for region in (roi, background if noise is None else noise))
    return like_input(_cnr(image, in_roi, in_background, in_noise))


@partial(jax.jit, static_argnums=4)
def _histogram_match(x: Array, y: Array, data_range: Array, low: Array, bins: int, mask: Array | None) -> Array:
    x, y, mask = expanded(x, y, mask)
    data_range, low = (jnp.reshape(value, (-1,) + (1,) * (x.ndim - 1)) for value in (data_range, low))

    def shares(image: Array) -> Array:
        index = jnp.clip(jnp.floor((image - low) / data_range * bins), 0, bins - 1).astype(jnp.int32)
        if mask is not None:
            index = jnp.where(mask, index, bins)
        counts = jax.vmap(lambda values: jnp.zeros(bins + 1, jnp.int32).at[values.ravel()].add(1))(index)[:, :bins]
        return counts / counts.sum(-1, keepdims=True)

    return jnp.minimum(shares(x), shares(y)).sum(-1)


@jax.jit
def _local_contrast(x: Array, y: Array, mask: Array | None) -> tuple[Array, Array]:
    """⟨|s_x − s_y|⟩ and ⟨s_y⟩, `[B]`."""
    x, y, mask = expanded(x, y, mask)
    # Variances are differences of second moments, which float32 forgives only near zero, and neither too large nor too small.
    level, power = mean_slabs(lambda y: (y, y**2), (y,), None)
    centre, scale = (value.reshape(-1, *(1,) * (y.ndim - 1)) for value in (level, jnp.sqrt(jnp.maximum(power, 1e-30))))
    window = gaussian(WINDOW, SIGMA)

    def deviation(image: Array) -> Array:
        image = (image - centre) / scale
        return jnp.sqrt(jnp.maximum(correlate(image**2, window) - correlate(image, window) ** 2, 0))

    def terms(x: Array, y: Array) -> tuple[Array, Array]:
        s_x, s_y = deviation(x), deviation(y)
        return jnp.abs(s_x - s_y), s_y

    error, reference = mean_slabs(terms, (x, y), mask, WINDOW)
    return error * scale.ravel(), reference * scale.ravel()


@jax.jit
def _cnr(x: Array, roi: Array | None, background: Array | None, noise: Array | None) -> Array:
    x, roi, background, noise = expanded(x, roi, background, noise)
    level = mean(x, noise)
    deviation = jnp.sqrt(mean((x - level.reshape(-1, *(1,) * (x.ndim - 1))) ** 2, noise))
    return jnp.abs(mean(x, roi) - mean(x, background)) / deviation
