"""How noisy a magnitude image is: σ, the standard deviation of the noise in its real and in its imaginary channel.

    air      of magnitudes without signal, of L coils, a share q lies below σ √(F⁻¹(q)), F of χ² with 2L degrees of freedom: Rayleigh's
             distribution for one coil                                      [Aja-Fernández et al. 2009, Magn. Reson. Imaging 27:1397]
    tissue   σ = median |d| / 0.6745, d the finest diagonal Haar coefficients of the head
                                     [Donoho & Johnstone 1994, Biometrika 81:425; for MRI Coupé et al. 2010, Med. Image Anal. 14:483]

Air is taken where there is enough of it and it looks like noise alone: three quantiles must give about one σ. Where a scanner has cleared
it, or somebody has stripped the skull, tissue has to do: the coefficients where the approximation band is bright and varies least about
them, so that few edges are among them [after Coupé et al., who leave out steep gradients]. That is independent of white noise in d. What
anatomy is left adds to σ, which is an upper bound then, unless an image was interpolated or smoothed: its coefficients are smaller, and so
is that σ, by as much.

Integers are spread evenly over their step first, as quantiles of a σ of few steps are no other than multiples of it.
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
LEAST_AIR = 0.005  # of the voxels: fewer are what somebody who cleared the air left of it about the head
_QUANTILES = (0.25, 0.5, 0.75)
_BESIDE = 3  # voxels about the head that are not looked at: ringing and skin
_FLATTEST = 0.05  # share of the head's bright coefficients that is looked at, those among the least structure
_BRIGHT = 0.5  # of the head's median, over the darkest: an SNR where magnitudes are not narrower than σ
_LOOKED_AT = 200_000  # voxels that show whether a volume holds integers
_FLOOR = 1.5  # ratio of the air's median to that of noise within which it is noise
_MODE = 3  # a value that so many times as many voxels have as the next has no distribution of noise


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


def cleared(data: np.ndarray) -> np.ndarray:
    """Where somebody set `data` `[X, Y, Z]` to one value, bool. The most common value of an integer scan's air is not such a one."""
    if (filled := filling(data)) is None:
        return np.zeros(data.shape, bool)
    found = data == filled
    below, above = data[data < filled], data[data > filled]
    if below.size and above.size:  # rounded magnitudes seldom are 0, so a common lowest value is set
        next_ones = max(int((below == below.max()).sum()), int((above == above.min()).sum()))
        if found.sum() < _MODE * next_ones:
            return np.zeros(data.shape, bool)
    return found


def air_is_noise(data: np.ndarray, sigma: float, *, head: np.ndarray, coils: int = 1) -> bool:
    """Whether the median of the air is about that of a magnitude's noise of `sigma`; true where there is no air to say otherwise."""
    air = _air(data, head)
    expected = sigma * np.sqrt(stats.chi2.ppf(0.5, 2 * coils))
    return air.size < FEWEST or bool(expected / _FLOOR < np.median(air) < expected * _FLOOR)


def _air(data: np.ndarray, head: np.ndarray) -> np.ndarray:
    return data[~ndimage.binary_dilation(head, iterations=_BESIDE) & ~cleared(data)]


def _in_air(data: np.ndarray, head: np.ndarray, coils: int) -> float | None:
    values = _air(data, head)
    if values.size < max(FEWEST, LEAST_AIR * data.size) or values.min() < 0:
        return None
    sigmas = np.quantile(np.abs(_dithered(values, _step(values))), _QUANTILES) / np.sqrt(stats.chi2.ppf(_QUANTILES, 2 * coils))
    return float(sigmas[1]) if 0 < sigmas.max() < ALIKE * sigmas.min() else None


def _in_tissue(data: np.ndarray, head: np.ndarray) -> float:
    even = tuple(slice(0, n - n % 2) for n in data.shape)
    detail, inside = np.asarray(data[even], np.float32), head[even]
    coarse = detail
    for axis in range(3):  # (x_2i ∓ x_2i+1) / √2 along each axis; a coefficient counts where all it is made of is head
        first, second = (tuple([slice(None)] * axis + [slice(start, None, 2)]) for start in (0, 1))
        detail = (detail[first] - detail[second]) / np.sqrt(np.float32(2))
        coarse = (coarse[first] + coarse[second]) / np.sqrt(np.float32(2))
        inside = inside[first] & inside[second]
    if inside.sum() < FEWEST:
        return 0.0
    dark = coarse.min()
    inside &= coarse - dark >= _BRIGHT * (np.median(coarse[inside]) - dark)
    varies = ndimage.uniform_filter((coarse - ndimage.uniform_filter(coarse, 3)) ** 2, 3)[inside]
    looked_at = min(varies.size, max(FEWEST, int(_FLATTEST * varies.size)))
    flattest = np.argpartition(varies, looked_at - 1)[:looked_at]
    values = detail[inside][flattest]
    if not np.median(np.abs(values)) > 0:
        return 0.0
    return float(np.median(np.abs(_dithered(values, _step(data) / 8**0.5)))) / NORMAL  # of integers d is a multiple of 1/√8


def _step(values: np.ndarray) -> float:
    """The smallest difference of two values: of integers their unit, of what is continuous next to nothing."""
    steps = np.diff(np.unique(values.ravel()[:: max(1, values.size // _LOOKED_AT)]))
    return float(steps.min()) if steps.size else 0.0


def _dithered(values: np.ndarray, step: float) -> np.ndarray:
    """`values` plus what is uniform over ± half a `step`; the same at every call."""
    uniform = np.random.default_rng(0).random(values.shape, np.float32) - np.float32(0.5)
    return values + uniform * np.float32(step)
