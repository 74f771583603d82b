"""What a scan resolves along each axis, where that is less than its voxels say: scanners fill k-space with zeros, and viewers interpolate.

    S(k) = mean over lines of |F (w x)|²,  w Hann's window, k from 0 to 1, the Nyquist frequency
    k_c  = the steepest place of S about where it falls by `CLIFF` decibels or more in excess of k⁻³, from k − `HALF` to k + `HALF`

Of heads S falls about as k⁻³, to the noise; where k-space ends, it falls to what noise and the magnitude have left there. What was filtered
softly or interpolated linearly falls too slowly to be told from a smooth head, and is not found; what was interpolated by a cubic spline is
found somewhere between what it resolves and its voxels. Beyond k_c nothing comes back.
"""

import numpy as np

CLIFF = 6.0  # dB
DECAY = 30.0  # dB a decade, of k⁻³
HALF = 0.08  # of the Nyquist frequency
AVERAGED = 0.02  # S is averaged over so much on either side
RANGE = (0.15, 0.92)  # of k: below, the head itself ends; above, voxels are nearly what they say
DEEPEST = -60.0  # dB below the lowest frequencies, at k − HALF: rounding lies there, not anatomy
LINES = 4096  # that are looked at along an axis
FEWEST = 32  # voxels along it


def resolved_mm(data: np.ndarray, voxel_size: tuple[float, float, float]) -> tuple[float, float, float]:
    """mm that a volume `[X, Y, Z]` resolves along each axis: its voxels' size, or more, where its k-space ends before theirs."""
    x, y, z = (size / cutoff(data, axis) for axis, size in enumerate(voxel_size))
    return x, y, z


def cutoff(data: np.ndarray, axis: int) -> float:
    """k_c along `axis`, as a share of the Nyquist frequency; 1 where there is none."""
    if data.shape[axis] < FEWEST:
        return 1.0
    level = _spectrum(data, axis)
    k = np.linspace(0, 1, len(level))

    def fall(half: float) -> np.ndarray:
        return np.interp(k - half, k, level) - np.interp(k + half, k, level)  # type: ignore[no-any-return]

    inside = (k >= RANGE[0]) & (k + HALF <= 1)
    before, after = np.maximum(k - HALF, HALF), k + HALF
    excess = np.where(inside & (np.interp(before, k, level) > DEEPEST), fall(HALF) - DECAY * np.log10(after / before), 0)
    at = int(np.argmax(excess))
    if excess[at] < CLIFF or level[after[at] <= k].max() > np.interp(before[at], k, level) - CLIFF:
        return 1.0
    steepest = np.where(np.abs(k - k[at]) < HALF, fall(AVERAGED), -np.inf)
    found = float(k[int(np.argmax(steepest))])
    return found if RANGE[0] <= found <= RANGE[1] else 1.0


def _spectrum(data: np.ndarray, axis: int) -> np.ndarray:
    """10 log10 S from 0 to Nyquist, above that of its greatest value, of the lines through the middle of the other two axes."""
    lines = np.moveaxis(data, axis, -1)
    middle = tuple(slice(n // 4, n - n // 4) for n in lines.shape[:2])
    lines = lines[middle]
    stride = max(int(np.ceil(np.sqrt(lines.shape[0] * lines.shape[1] / LINES))), 1)
    lines = lines[::stride, ::stride].astype(np.float32)
    power = np.square(np.abs(np.fft.rfft((lines - lines.mean()) * np.hanning(lines.shape[-1]), axis=-1))).mean((0, 1))
    width = max(round(AVERAGED * len(power)), 1)
    smooth = np.convolve(np.pad(power, width, mode="edge"), np.full(2 * width + 1, 1 / (2 * width + 1)), "valid")
    return 10 * np.log10(np.maximum(smooth / max(smooth.max(), 1e-30), 1e-20))  # type: ignore[no-any-return]
