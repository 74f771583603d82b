"""k-space: what a scanner samples, and what it leaves out.

A scanner that images the same field of view with M instead of N voxels measures the lowest M of the N spatial frequencies
[survey, Eq. 1 with H a low-pass and ↓ a decimation]. Per axis, with X_k the discrete Fourier transform of x,

    y_m = 1/N Σ_{|k| ≤ K} X_k exp(2πi k p_m / N),      p_m = (m + ½) N/M − ½,      K = ⌊(min(N, M) − 1) / 2⌋,

p_m being the position of voxel m when both grids share the edges of the field of view. The unpaired Nyquist frequency of an
even grid has no sign and is left out, so that the operator is real, keeps the mean, and repeating it changes nothing. M > N is
zero filling, the scanner's own interpolation.
"""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jax import Array


def fourier_resample(volume: Array, shape: Sequence[int]) -> Array:
    """`volume` `[X, Y, Z]` (or any real array) on a grid of `shape` over the same field of view: truncated or zero-filled per axis.

    Linear; exact for signals below both grids' Nyquist frequencies; periodic at the edges, as k-space is. Sharp truncation
    rings (Gibbs), as it does in a scanner.
    """
    if len(shape) != volume.ndim:
        raise ValueError(f"the new shape needs {volume.ndim} sides like the volume's {volume.shape}, got {tuple(shape)}")
    # Shrinking axes first: every later transform then has less to do.
    for axis in sorted(range(volume.ndim), key=lambda axis: shape[axis] / volume.shape[axis]):
        if shape[axis] != volume.shape[axis]:
            volume = _resample_axis(volume, shape[axis], axis)
    return volume


def truncate(volume: Array, shape: Sequence[int]) -> Array:
    """`volume` with only the frequencies that a grid of `shape` holds, on its own grid: sampled coarsely, then zero-filled."""
    return fourier_resample(fourier_resample(volume, shape), volume.shape)


def _resample_axis(x: Array, m: int, axis: int) -> Array:
    n = x.shape[axis]
    kept = (min(n, m) - 1) // 2 + 1
    spectrum = jnp.moveaxis(jnp.fft.rfft(x, axis=axis), axis, -1)[..., :kept]
    shift = np.exp(1j * np.pi * np.arange(kept) * (1 / m - 1 / n)).astype(np.complex64)
    return jnp.moveaxis(jnp.fft.irfft(spectrum * shift, n=m) * (m / n), -1, axis).astype(x.dtype)
