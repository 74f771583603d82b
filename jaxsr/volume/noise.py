"""How noisy a magnitude image is: σ, the standard deviation of the noise in its real and in its imaginary channel.

    air      of magnitudes without signal, of L coils, a share q lies below σ √(F⁻¹(q)), F of χ² with 2L degrees of freedom: Rayleigh's
             distribution for one coil                                      [Aja-Fernández et al. 2009, Magn. Reson. Imaging 27:1397]
    tissue   σ = median |d| / 0.6745, d the finest diagonal Haar coefficients of the head
                                     [Donoho & Johnstone 1994, Biometrika 81:425; for MRI Coupé et al. 2010, Med. Image Anal. 14:483]

Air is taken where it looks like noise alone: three quantiles must give about one σ. Where a scanner has cleared it, or somebody has
stripped the skull, tissue has to do. Coefficients of tissue are smaller where an image was interpolated or smoothed, and so is that σ, by
as much as it was; of an SNR below 3 the magnitude has narrowed them too, which is not corrected.
"""

from typing import Literal, NamedTuple

import numpy as np
from scipy import ndimage, stats

from jaxsr.volume.errors import VolumeError
from jaxsr.volume.foreground import foreground
from jaxsr.volume.intensity import filling

NORMAL = 0.6745  # the median of |x|, x normal with standard deviation 1
ALIKE = 1.1  # ratio of σ by different quantiles up to which air is noise alone
FEWEST = 1000  # voxels, or coefficients
_QUANTILES = (0.25, 0.5, 0.75)
_BESIDE = 3  # voxels about the head that are not looked at: ringing and skin


class Noise(NamedTuple):
    """`sigma` in the units of the image, and what it was found in."""

    sigma: float
    source: Literal["air", "tissue"]


def estimate_noise(data: np.ndarray, *, head: np.ndarray | None = None, coils: int = 1) -> Noise:
    """σ of a magnitude image `[X, Y, Z]`, from its air where that is noise alone, else from its head.

    Args:
      head: where it is, bool `[X, Y, Z]`; found where it is not given.
      coils: whose root of the sum of squares the image is.

    Raises:
      VolumeError: where there is no noise to be found.
    """
    head = foreground(data) if head is None else head
    sigma, source = _in_air(data, head, coils), "air"
    if sigma is None:
        sigma, source = _in_tissue(data, head), "tissue"
    if not sigma > 0:
        raise VolumeError("no noise is to be found in the volume, neither in its air nor in its head")
    return Noise(sigma, source)  # type: ignore[arg-type]


def _in_air(data: np.ndarray, head: np.ndarray, coils: int) -> float | None:
    air = ~ndimage.binary_dilation(head, iterations=_BESIDE)
    if (filled := filling(data)) is not None:
        air &= data != filled
    values = data[air]
    if values.size < FEWEST or values.min() < 0:
        return None
    sigmas = np.quantile(values, _QUANTILES) / np.sqrt(stats.chi2.ppf(_QUANTILES, 2 * coils))
    return float(sigmas[1]) if 0 < sigmas.max() < ALIKE * sigmas.min() else None


def _in_tissue(data: np.ndarray, head: np.ndarray) -> float:
    even = tuple(slice(0, n - n % 2) for n in data.shape)
    detail, inside = np.asarray(data[even], np.float32), head[even]
    for axis in range(3):  # (x_2i − x_2i+1) / √2 along each axis; a coefficient counts where all it is made of is head
        first, second = ([slice(None)] * axis + [slice(start, None, 2)] for start in (0, 1))
        detail = (detail[tuple(first)] - detail[tuple(second)]) / np.sqrt(np.float32(2))
        inside = inside[tuple(first)] & inside[tuple(second)]
    values = np.abs(detail[inside])
    return float(np.median(values)) / NORMAL if values.size >= FEWEST else 0.0
