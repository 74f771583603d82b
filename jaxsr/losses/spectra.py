"""Errors of spectra, as MoEDiff-SR compares latents x, y `[B, h, w, C]`, of any C:

    frequencies   mean |F(x) − F(y)|²                     F: orthonormal Fourier transform of a slice          [Eq. 11, second term]
    windows       Σ_s mean |STFT_s(x) − STFT_s(y)|²       the mean of Eq. 12's Ω_s and of all frequencies      [Eq. 12]

As printed, they weigh nothing but the squared error of a pixel: F does not change a norm (Parseval), so they are

    mean (x − y)²    and    Σ_s mean_windows mean v_s² (x − y)²,       v_s: the window, of mean square 1.

`form` 'magnitude' compares |F(x)| with |F(y)| instead, and likewise of the windows: how much there is of each frequency, wherever it lies.
"""

from collections.abc import Callable
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

Form = Literal["printed", "magnitude"]


def fourier_errors(x: Array, y: Array, form: Form = "printed") -> Array:
    """Error of the spectrum, a mean over frequencies and channels [MoEDiff-SR, Eq. 11, second term]: `[B]` of `[B, h, w, C]`.

    Args:
      form: 'printed', |F(x) − F(y)|², which by Parseval is exactly `jaxsr.losses.pixels.squared_errors`; or 'magnitude',
        (|F(x)| − |F(y)|)², which does not change as a slice is shifted. Its gradient is finite where a magnitude is zero.

    Raises:
      ValueError: for another `form`.
    """
    return _spectral_errors(partial(_rfft2, axis=1), x.shape[2], x, y, form)


def stft_errors(x: Array, y: Array, windows: tuple[int, ...] = (8, 16, 32), form: Form = "printed") -> Array:
    """Error of the spectra of windows that overlap by half, summed over window sizes [MoEDiff-SR, Eq. 12]: `[B]` of `[B, h, w, C]`.

    Each size's term is a mean over its windows, frequencies and channels. As the windows have a mean square of 1, printed, a constant
    difference d costs d² at every size, and so does white noise of variance d² on average.

    Args:
      windows: sizes in pixels of the latents, even.
      form: as of `fourier_errors`. 'printed' is by Parseval a squared error of the pixels: those near the border are seen by fewer windows,
        and the first row and column, where a window is zero, by none.

    Raises:
      ValueError: where a window is larger than the latents, or odd, or for another `form`; says which.
    """
    errors = [_spectral_errors(partial(stft, window=size, hop=size // 2), size, x, y, form) for size in windows]
    return jnp.stack(errors).sum(0)


def stft(x: Array, window: int, hop: int) -> Array:
    """Short-time Fourier transform in both directions: `[B, h, w, C]` → `[B, n, m, window, window // 2 + 1, C]`, complex64.

    Windows lie wholly inside, `hop` apart from the first pixel on, n × m of them; what is left at the end, less than `hop`, is in none.
    Each is weighted by a periodic Hann window along both axes, scaled to a mean square of 1, and transformed by the orthonormal DFT. Of
    frequencies along the columns those below zero are left out: the slice is real, and they are conjugates of the others.

    Raises:
      ValueError: where `hop` does not divide `window`, or no window fits.
    """
    if window < 2 or hop < 1 or window % hop:
        raise ValueError(f"a window of {window} pixels is not some whole steps of {hop}: take an even one, and a hop that divides it")
    if window > min(x.shape[1:3]):
        raise ValueError(
            f"a window of {window} pixels does not fit latents of {x.shape[1]} × {x.shape[2]}: leave it out of the config's windows, or "
            "train on larger slices (data.crop)"
        )
    parts = _windows(_windows(x.astype(jnp.float32), 1, window, hop), 3, window, hop)  # [B, n, window, m, window, C]
    weight = np.sin(np.pi * np.arange(window) / window) ** 2
    weight = (weight / np.sqrt((weight**2).mean())).astype(np.float32)
    parts = parts * weight[:, None, None, None] * weight[:, None]
    return _rfft2(parts.swapaxes(2, 3), axis=3)


def _rfft2(x: Array, axis: int) -> Array:
    """The orthonormal DFT of a real `x` along `axis` and the next, of which frequencies below zero are left out.

    By matrix products: latents and windows are short, and XLA splits products over devices by slices, where it gathers what an FFT is given
    on every device.
    """
    rows, columns = x.shape[axis : axis + 2]
    x = jnp.moveaxis(x, (axis, axis + 1), (-2, -1))
    half = _dft(columns)[: columns // 2 + 1]
    product = partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)
    along = [product("...rc,kc->...rk", x, part) for part in (half.real, half.imag)]
    real, imaginary = _dft(rows).real, _dft(rows).imag
    turned = jax.lax.complex(
        product("jr,...rk->...jk", real, along[0]) - product("jr,...rk->...jk", imaginary, along[1]),
        product("jr,...rk->...jk", real, along[1]) + product("jr,...rk->...jk", imaginary, along[0]),
    )
    return jnp.moveaxis(turned, (-2, -1), (axis, axis + 1))


def _dft(size: int) -> np.ndarray:
    """The orthonormal transform as a matrix, complex64 `[frequencies, pixels]`."""
    turns = np.outer(np.arange(size), np.arange(size)) % size / size
    return (np.exp(-2j * np.pi * turns) / np.sqrt(size)).astype(np.complex64)


def _spectral_errors(transform: Callable[[Array], Array], columns: int, x: Array, y: Array, form: Form) -> Array:
    """The mean of one `form` over all frequencies, `[B]`. `transform` is linear, and of `columns` pixels; frequencies along them, its last
    axis but one, are not negative: all but zero and Nyquist stand for two."""
    x, y = x.astype(jnp.float32), y.astype(jnp.float32)
    if form == "printed":
        difference = transform(x - y)
        errors = jnp.square(difference.real) + jnp.square(difference.imag)
    elif form == "magnitude":
        errors = jnp.square(jnp.abs(transform(x)) - jnp.abs(transform(y)))
    else:
        raise ValueError(f"spectra are compared as 'printed' or by their 'magnitude', got {form!r}")
    k = np.arange(columns // 2 + 1)
    share = np.where(2 * k % columns == 0, 1, 2).astype(np.float32) / columns
    summed = (errors * share[:, None]).sum(-2)
    return summed.mean(tuple(range(1, summed.ndim)))


def _windows(x: Array, axis: int, size: int, hop: int) -> Array:
    """`[…, length, …]` → `[…, windows, size, …]`: whole steps side by side, so that the gradient is a sum of slices, not a scatter."""
    count = (x.shape[axis] - size) // hop + 1
    used = jax.lax.slice_in_dim(x, 0, (count - 1) * hop + size, axis=axis)
    steps = used.reshape(*x.shape[:axis], -1, hop, *x.shape[axis + 1 :])
    return jnp.concatenate([jax.lax.slice_in_dim(steps, i, i + count, axis=axis) for i in range(size // hop)], axis=axis + 1)
