"""Laws of errors of spectra."""

import numpy as np
import pytest
from scipy.signal import ShortTimeFFT, get_window

from jaxsr.losses.pixels import squared_errors
from jaxsr.losses.spectra import fourier_errors, stft, stft_errors


@pytest.mark.parametrize("shape", [(2, 12, 13, 3), (2, 12, 14, 3), (2, 5, 1, 3), (2, 1, 2, 3)])
def test_the_printed_spectrum_is_the_squared_error(shape, latents):
    """MoEDiff-SR, Eq. 11, second term, by Parseval: an odd and an even number of columns, and one."""
    x, y = latents(*shape)
    np.testing.assert_allclose(fourier_errors(x, y), squared_errors(x, y), rtol=1e-5)


def test_spectra_are_numpys(latents):
    """MoEDiff-SR, Eq. 11, second term, from all frequencies."""
    x, y = latents()
    of_x, of_y = (np.fft.fft2(z, axes=(1, 2), norm="ortho") for z in (x, y))
    np.testing.assert_allclose(fourier_errors(x, y), (np.abs(of_x - of_y) ** 2).mean((1, 2, 3)), rtol=1e-5)
    np.testing.assert_allclose(fourier_errors(x, y, "magnitude"), ((np.abs(of_x) - np.abs(of_y)) ** 2).mean((1, 2, 3)), rtol=1e-5)


def test_magnitudes_do_not_see_a_shift_and_cost_no_more_than_coefficients(latents):
    """| |a| − |b| | ≤ |a − b|."""
    x, y = latents()
    np.testing.assert_allclose(fourier_errors(np.roll(x, (2, 5), (1, 2)), x, "magnitude"), 0, atol=1e-10)
    assert (fourier_errors(x, y, "magnitude") < fourier_errors(x, y)).all()
    assert (stft_errors(x, y, (4, 8), "magnitude") < stft_errors(x, y, (4, 8))).all()


@pytest.mark.parametrize("window, hop", [(8, 4), (16, 8), (32, 16), (8, 2), (6, 3)])
def test_the_short_time_transform_is_scipys_along_both_axes(window, hop, latents):
    """MoEDiff-SR, Eq. 12: its Hann window has the mean square 3/8, to which ours is scaled, and its DFT is not orthonormal."""
    x, _ = latents(2, 41, 36, 1)
    transform = ShortTimeFFT(get_window("hann", window), hop, fs=1, fft_mode="twosided", phase_shift=None)
    inside = {n: (window // 2 // hop, window // 2 // hop + (n - window) // hop + 1) for n in (41, 36)}  # slices that lie in the signal
    theirs = transform.stft(x[..., 0], *inside[41], axis=1)  # [B, k, w, n]
    theirs = transform.stft(theirs, *inside[36], axis=2)  # [B, k, l, n, m]
    theirs = theirs.transpose(0, 3, 4, 1, 2)[..., : window // 2 + 1] / (3 / 8 * window)
    ours = stft(x, window, hop)
    assert ours.shape == (*theirs.shape, 1)
    np.testing.assert_allclose(ours[..., 0], theirs, atol=1e-5)


def test_printed_windows_are_weighted_squared_errors(latents):
    """MoEDiff-SR, Eq. 12, by Parseval, window by window."""
    x, y = latents()
    expected = np.zeros(3)
    for size in (4, 8):
        hann = np.sin(np.pi * np.arange(size) / size) ** 2
        weight = np.outer(hann, hann) ** 2 / (3 / 8) ** 2
        starts = [(i, j) for i in range(0, 12 - size + 1, size // 2) for j in range(0, 13 - size + 1, size // 2)]
        errors = [(weight[:, :, None] * ((x - y) ** 2)[:, i : i + size, j : j + size]).mean((1, 2, 3)) for i, j in starts]
        expected += np.mean(errors, axis=0)
    np.testing.assert_allclose(stft_errors(x, y, (4, 8)), expected, rtol=1e-5)


@pytest.mark.parametrize("windows", [(4,), (16,), (4, 8, 16)])
def test_a_constant_error_costs_its_square_at_every_window_size(windows, latents):
    """MoEDiff-SR, Eq. 12, normalised: no size counts for more than another."""
    x, _ = latents(2, 16, 20, 3)
    np.testing.assert_allclose(stft_errors(x + 0.5, x, windows), 0.25 * len(windows), rtol=1e-4)


@pytest.mark.parametrize("wrong, message", [
    (lambda x: stft_errors(x, x), r"a window of 16 pixels does not fit latents of 12 × 13: leave it out of the config's windows"),
    (lambda x: stft_errors(x, x, (5,)), "a window of 5 pixels is not some whole steps of 2: take an even one"),
    (lambda x: stft(x, 8, 3), "a window of 8 pixels is not some whole steps of 3"),
    (lambda x: fourier_errors(x, x, "phase"), "'printed' or by their 'magnitude', got 'phase'"),
])  # fmt: skip
def test_what_cannot_be_compared_is_refused_with_the_way_out(wrong, message, latents):
    with pytest.raises(ValueError, match=message):
        wrong(latents()[0])
