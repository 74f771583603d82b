"""Laws of the shared losses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage
from scipy.signal import ShortTimeFFT, get_window

from jaxsr.losses import (
    cosine,
    fourier_errors,
    mean_absolute_error,
    mean_squared_error,
    sobel,
    sobel_errors,
    squared_errors,
    stft,
    stft_errors,
)

every_loss = pytest.mark.parametrize("loss, power", [(mean_absolute_error, 1), (mean_squared_error, 2)])


@every_loss
def test_a_constant_error_costs_its_power_whatever_the_size(loss, power):
    for shape in ((1, 4, 4, 1), (3, 8, 2, 5)):
        assert float(loss(jnp.full(shape, 2.5), jnp.zeros(shape))) == pytest.approx(2.5**power)


@every_loss
def test_the_mean_over_a_batch_is_the_mean_over_its_slices(loss, power):
    x, y = jax.random.normal(jax.random.key(0), (2, 4, 8, 8, 1))
    np.testing.assert_allclose(loss(x, y), np.mean([loss(a, b) for a, b in zip(x, y, strict=True)]), rtol=1e-6)


@every_loss
def test_the_sum_is_formed_in_float32(loss, power):
    """In bfloat16 a mean over this many entries would stop growing at 256."""
    error = jnp.ones((1, 64, 64, 1), jnp.bfloat16)
    value = loss(error, jnp.zeros_like(error))
    assert value.dtype == jnp.float32
    assert float(value) == 1


# ------------------------------------------------------------------------------------------------ of latents, one value a slice

LATENT_LOSSES = {
    "edges": sobel_errors,
    "frequencies": fourier_errors,
    "magnitudes": lambda x, y: fourier_errors(x, y, "magnitude"),
    "windows": lambda x, y: stft_errors(x, y, (4, 8)),
    "windows' magnitudes": lambda x, y: stft_errors(x, y, (4, 8), "magnitude"),
}
of_latents = pytest.mark.parametrize("loss", LATENT_LOSSES.values(), ids=LATENT_LOSSES.keys())


def latents(*shape, seed=0):
    """Two batches, not square, with an odd number of columns if nothing else is said."""
    return np.random.default_rng(seed).normal(size=(2, *(shape or (3, 12, 13, 5)))).astype(np.float32)


@of_latents
def test_a_slice_costs_what_it_costs_alone_and_its_channels_cost_their_mean(loss):
    x, y = latents()
    whole = loss(x, y)
    assert whole.shape == (3,)
    np.testing.assert_allclose(whole[1:2], loss(x[1:2], y[1:2]), rtol=1e-5)
    channels = [loss(x[..., c : c + 1], y[..., c : c + 1]) for c in range(5)]
    np.testing.assert_allclose(whole, np.mean(channels, axis=0), rtol=1e-5)


@of_latents
def test_equal_latents_cost_nothing_and_half_the_difference_of_scaled_ones_a_quarter(loss):
    """All are squares: of a x against x the cost goes with (a − 1)², whether coefficients or magnitudes are compared."""
    x, _ = latents()
    np.testing.assert_allclose(loss(x, x), 0, atol=1e-12)
    np.testing.assert_allclose(loss(1.5 * x, x), loss(2 * x, x) / 4, rtol=1e-5)


@of_latents
def test_it_is_float32_and_so_is_what_it_is_made_of(loss):
    x, y = (jnp.asarray(z, jnp.bfloat16) for z in latents())
    value = loss(x, y)
    assert value.dtype == jnp.float32
    np.testing.assert_allclose(value, loss(x.astype(jnp.float32), y.astype(jnp.float32)), rtol=1e-6)


@of_latents
def test_its_gradient_is_that_of_a_square_and_finite_at_zero(loss):
    """Twice the arguments cost four times as much, so by Euler's theorem ⟨x, ∂/∂x⟩ + ⟨y, ∂/∂y⟩ is twice the loss."""
    x, y = latents(1, 8, 8, 2)
    value, slopes = jax.jit(jax.value_and_grad(lambda x, y: loss(x, y).sum(), (0, 1)))(x, y)
    np.testing.assert_allclose((x * slopes[0]).sum() + (y * slopes[1]).sum(), 2 * value, rtol=1e-5)
    slope = jax.jit(jax.grad(lambda x, y: loss(x, y).sum()))
    for other in (y, 0 * y):
        assert np.isfinite(slope(0 * x, other)).all()


def test_sobel_is_scipys():
    """MoEDiff-SR, Eq. 11: also at the border, by scipy's default."""
    x, _ = latents()
    ours = sobel(x)
    assert ours.shape == (*x.shape, 2)
    for component, axis in enumerate((1, 2)):
        # scipy's is of all axes that it is given; a slice and channel at a time, its axes are the two of the plane.
        theirs = np.stack([[ndimage.sobel(x[b, :, :, c], axis - 1) for c in range(5)] for b in range(3)])
        np.testing.assert_allclose(ours[..., component], theirs.transpose(0, 2, 3, 1), atol=1e-5)


def test_sobel_errors_do_not_see_a_constant_and_see_a_ramp_eight_times():
    """MoEDiff-SR, Eq. 11: a slope of 1 down the rows is 8 in one component, 0 in the other; the border, repeated, has half of it."""
    ramp = np.broadcast_to(np.arange(6, dtype=np.float32)[:, None, None], (1, 6, 7, 2))
    np.testing.assert_allclose(sobel_errors(ramp + 3, ramp), 0, atol=1e-10)
    np.testing.assert_allclose(sobel_errors(ramp, 0 * ramp), (4 * 8**2 + 2 * 4**2) / 6 / 2, rtol=1e-6)


@pytest.mark.parametrize("shape", [(2, 12, 13, 3), (2, 12, 14, 3), (2, 5, 1, 3), (2, 1, 2, 3)])
def test_the_printed_spectrum_is_the_squared_error(shape):
    """MoEDiff-SR, Eq. 11, second term, by Parseval: an odd and an even number of columns, and one."""
    x, y = latents(*shape)
    np.testing.assert_allclose(fourier_errors(x, y), squared_errors(x, y), rtol=1e-5)


def test_spectra_are_numpys():
    """MoEDiff-SR, Eq. 11, second term, from all frequencies."""
    x, y = latents()
    of_x, of_y = (np.fft.fft2(z, axes=(1, 2), norm="ortho") for z in (x, y))
    np.testing.assert_allclose(fourier_errors(x, y), (np.abs(of_x - of_y) ** 2).mean((1, 2, 3)), rtol=1e-5)
    np.testing.assert_allclose(fourier_errors(x, y, "magnitude"), ((np.abs(of_x) - np.abs(of_y)) ** 2).mean((1, 2, 3)), rtol=1e-5)


def test_magnitudes_do_not_see_a_shift_and_cost_no_more_than_coefficients():
    """| |a| − |b| | ≤ |a − b|."""
    x, y = latents()
    np.testing.assert_allclose(fourier_errors(np.roll(x, (2, 5), (1, 2)), x, "magnitude"), 0, atol=1e-10)
    assert (fourier_errors(x, y, "magnitude") < fourier_errors(x, y)).all()
    assert (stft_errors(x, y, (4, 8), "magnitude") < stft_errors(x, y, (4, 8))).all()


@pytest.mark.parametrize("window, hop", [(8, 4), (16, 8), (32, 16), (8, 2), (6, 3)])
def test_the_short_time_transform_is_scipys_along_both_axes(window, hop):
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


def test_printed_windows_are_weighted_squared_errors():
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
def test_a_constant_error_costs_its_square_at_every_window_size(windows):
    """MoEDiff-SR, Eq. 12, normalised: no size counts for more than another."""
    x, _ = latents(2, 16, 20, 3)
    np.testing.assert_allclose(stft_errors(x + 0.5, x, windows), 0.25 * len(windows), rtol=1e-4)


@pytest.mark.parametrize("wrong, message", [
    (lambda x: stft_errors(x, x), r"a window of 16 pixels does not fit latents of 12 × 13: leave it out of the config's windows"),
    (lambda x: stft_errors(x, x, (5,)), "a window of 5 pixels is not some whole steps of 2: take an even one"),
    (lambda x: stft(x, 8, 3), "a window of 8 pixels is not some whole steps of 3"),
    (lambda x: fourier_errors(x, x, "phase"), "'printed' or by their 'magnitude', got 'phase'"),
])  # fmt: skip
def test_what_cannot_be_compared_is_refused_with_the_way_out(wrong, message):
    with pytest.raises(ValueError, match=message):
        wrong(latents()[0])


def test_the_cosine_is_that_of_all_entries_or_of_each_pixels_channels():
    """MoEDiff-SR, Eq. 14."""
    x, y = latents()
    np.testing.assert_allclose(
        cosine(x, y),
        [a.ravel() @ b.ravel() / np.linalg.norm(a) / np.linalg.norm(b) for a, b in zip(x, y, strict=True)],
        rtol=1e-5,
    )
    norms = np.linalg.norm(x, axis=-1) * np.linalg.norm(y, axis=-1)
    np.testing.assert_allclose(cosine(x, y, "pixel"), (x * y).sum(-1) / norms, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("per", ["slice", "pixel"])
def test_the_cosine_knows_directions_only_and_goes_to_zero_with_a_vector(per):
    x, y = latents()
    np.testing.assert_allclose(cosine(x, 3 * x, per), 1, rtol=1e-6)
    np.testing.assert_allclose(cosine(x, -x, per), -1, rtol=1e-6)
    np.testing.assert_allclose(cosine(0.01 * x, 5 * y, per), cosine(x, y, per), rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(cosine(0 * x, y, per), 0)
    for other in (y, 0 * y):
        assert np.isfinite(jax.grad(lambda x, other=other: cosine(x, other, per).sum())(0 * x)).all()
