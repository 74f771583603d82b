"""Laws of sampling k-space on fewer or more frequencies."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.signal import windows
from scipy.special import sici

from jaxsr.physics.kspace import apply_window, fourier_resample, modulate_lines, partial_fourier, sampled_lines, truncate, window_weights

SHAPE = (12, 15, 16)
COARSE = [(6, 15, 8), (7, 9, 11)]
coarser = pytest.mark.parametrize("shape", COARSE)
every_window = pytest.mark.parametrize("window", ["box", "ellipse", "hamming", "tukey"])
FRACTIONS = [0.55, 0.75, 1.0]


def noise(shape, seed=0):
    return jax.random.normal(jax.random.key(seed), shape)


def band_limited(n, highest, seed=0):
    """A real periodic signal as a function of the position in the field of view (0…1), and its samples at `n` voxel centres."""
    a, b = np.random.default_rng(seed).normal(size=(2, highest + 1))
    k = np.arange(highest + 1)

    def at(n):
        angle = 2 * np.pi * np.multiply.outer((np.arange(n) + 0.5) / n, k)
        return jnp.asarray(np.cos(angle) @ a + np.sin(angle) @ b, jnp.float32)

    return at


@coarser
def test_truncating_twice_is_truncating_once(shape):
    once = truncate(noise(SHAPE), shape)
    np.testing.assert_allclose(truncate(once, shape), once, atol=2e-6)


@coarser
def test_truncation_keeps_the_mean(shape):
    x = noise(SHAPE)
    np.testing.assert_allclose(fourier_resample(x, shape).mean(), x.mean(), atol=1e-7)
    np.testing.assert_allclose(truncate(x, shape).mean(), x.mean(), atol=1e-7)


@coarser
def test_truncation_is_its_own_adjoint(shape):
    """A projector onto low frequencies is orthogonal: ⟨Tx, y⟩ = ⟨x, Ty⟩, and the transpose that JAX derives is T."""
    x, y = noise(SHAPE, 1), noise(SHAPE, 2)
    (transposed,) = jax.linear_transpose(lambda v: truncate(v, shape), x)(y)
    np.testing.assert_allclose(transposed, truncate(y, shape), atol=2e-6)
    np.testing.assert_allclose(jnp.vdot(truncate(x, shape), y), jnp.vdot(x, truncate(y, shape)), atol=1e-4)


@coarser
def test_resampling_has_the_adjoint_of_the_dot_product_test(shape):
    x, y = noise(SHAPE, 1), noise(shape, 2)
    (transposed,) = jax.linear_transpose(lambda v: fourier_resample(v, shape), x)(y)
    np.testing.assert_allclose(jnp.vdot(fourier_resample(x, shape), y), jnp.vdot(x, transposed), atol=1e-4)


@coarser
def test_zero_filling_is_the_adjoint_of_truncation_but_for_the_scale(shape):
    """By N/M, as the inverse Fourier transform is the adjoint of the transform but for 1/N."""
    y = noise(shape)
    (transposed,) = jax.linear_transpose(lambda v: fourier_resample(v, shape), jnp.zeros(SHAPE))(y)
    ratio = np.prod(SHAPE) / np.prod(shape)
    filled = fourier_resample(y, SHAPE)
    np.testing.assert_allclose(ratio * transposed, filled, atol=1e-5)


@pytest.mark.parametrize("n, m", [(16, 8), (15, 8), (16, 7), (15, 9)])
def test_exactly_the_frequencies_above_the_limit_are_lost(n, m):
    """K = ⌊(M − 1)/2⌋: frequencies up to K keep amplitude and phase, all others are gone."""
    x = noise((n,))
    before, after = np.fft.rfft(x), np.fft.rfft(truncate(x, (m,)))
    limit = (m - 1) // 2
    np.testing.assert_allclose(after[: limit + 1], before[: limit + 1], atol=1e-5)
    np.testing.assert_allclose(after[limit + 1 :], 0, atol=1e-5)


@pytest.mark.parametrize("n, m", [(32, 16), (32, 9), (9, 32), (15, 16)])
def test_a_band_limited_signal_is_sampled_exactly_where_the_new_voxels_lie(n, m):
    """The sampling theorem, with voxel centres half a voxel inside the edges of one field of view."""
    signal = band_limited(n, 4)
    np.testing.assert_allclose(fourier_resample(signal(n), (m,)), signal(m), atol=2e-5)


@coarser
def test_zero_filling_a_truncated_volume_and_truncating_again_is_exact(shape):
    odd = tuple(s - (s % 2 == 0) for s in shape)
    y = noise(odd)
    np.testing.assert_allclose(fourier_resample(fourier_resample(y, SHAPE), odd), y, atol=2e-6)


def test_a_truncated_step_overshoots_by_9_percent_however_fine_the_sampling():
    """Wilbraham and Gibbs: the overshoot tends to Si(π)/π − ½ = 8.949 % of the step, not to zero."""
    n, limit = 4096, sici(np.pi)[0] / np.pi - 0.5
    assert limit == pytest.approx(0.08949, abs=1e-5)
    step = (jnp.arange(n) >= n // 2).astype(jnp.float32)
    for m in (129, 257):
        assert truncate(step, (m,)).max() - 1 == pytest.approx(limit, abs=5e-4)


@pytest.mark.parametrize("window, overshoot, far", [("box", 0.0895, 0.02), ("hamming", 0.002, 0.00126), ("tukey", 0.079, 0.0015)])
def test_an_apodised_step_rings_less_or_less_far(window, overshoot, far):
    """Far: five coarse voxels and more from the edge."""
    seen = np.asarray(truncate((jnp.arange(4096) >= 2048).astype(jnp.float32), (129,), window))
    assert seen.max() - 1 == pytest.approx(overshoot, abs=5e-4)
    ripple = np.abs(seen[2048 + 160 : 4096 - 160] - 1).max()
    assert ripple == pytest.approx(far, rel=0.2)


def test_a_shape_of_other_rank_is_refused_by_name():
    with pytest.raises(ValueError, match=r"3 sides like the volume's \(12, 15, 16\), got \(6, 6\)"):
        fourier_resample(noise(SHAPE), (6, 6))


# ------------------------------------------------------------------------------------------------ windows


@every_window
@coarser
def test_a_window_keeps_the_mean_on_the_coarse_grid_and_on_its_own(window, shape):
    x = noise(SHAPE)
    np.testing.assert_allclose(fourier_resample(x, shape, window).mean(), x.mean(), atol=1e-6)
    np.testing.assert_allclose(truncate(x, shape, window).mean(), x.mean(), atol=1e-6)


@pytest.mark.parametrize("window", ["box", "ellipse"])
@coarser
def test_a_window_of_zeros_and_ones_is_a_projection(window, shape):
    once = truncate(noise(SHAPE), shape, window)
    np.testing.assert_allclose(truncate(once, shape, window), once, atol=2e-6)


def test_the_ellipse_leaves_out_exactly_the_corners():
    """Σ (2k/M)² ≤ 1, on a grid with one more axis that is not filtered."""
    x = noise((12, 5, 16))
    before, after = (np.fft.fftn(v, axes=(0, 2)) for v in (x, apply_window(x, "ellipse", (0, 2))))
    k, m = np.meshgrid(np.fft.fftfreq(12) * 2, np.fft.fftfreq(16) * 2, indexing="ij")
    inside = (k**2 + m**2 <= 1 + 1e-9)[:, None, :]
    np.testing.assert_allclose(after, np.where(inside, before, 0), atol=1e-4)
    assert 0.7 < inside.mean() < 0.85  # π/4 of the rectangle, but for the grid


@pytest.mark.parametrize("kind, other", [("hamming", windows.hamming(16, sym=False)), ("tukey", windows.tukey(16, 0.5, sym=False))])
def test_windows_are_those_of_scipy(kind, other):
    np.testing.assert_allclose(np.fft.fftshift(window_weights(kind, (16,))), other, atol=1e-6)


def test_a_window_of_several_axes_is_the_product_however_they_are_ordered():
    x = noise((12, 5, 16))
    one_by_one = apply_window(apply_window(x, "hamming", (2,)), "hamming", (0,))
    for axes in ((0, 2), (2, 0), (-1, 0)):
        np.testing.assert_allclose(apply_window(x, "hamming", axes), one_by_one, atol=1e-6)


@every_window
def test_a_truncated_slice_is_a_slice_of_a_volume_truncated_in_its_plane_and_batches_by_vmap(window):
    x = noise(SHAPE)
    volume = fourier_resample(x, (6, 15, 8), window)
    by_slice = jax.vmap(lambda s: fourier_resample(s, (6, 8), window), 1, 1)(x)
    np.testing.assert_allclose(by_slice, volume, atol=2e-6)


# ------------------------------------------------------------------------------------------------ partial Fourier


@pytest.mark.parametrize("lines, fraction, count", [(16, 0.75, 12), (16, 0.5001, 9), (15, 0.6, 9), (15, 1.0, 15), (8, 0.625, 5)])
def test_partial_fourier_samples_the_fraction_of_the_lines_with_the_largest_k(lines, fraction, count):
    k = np.rint(np.fft.fftfreq(lines) * lines)
    sampled = sampled_lines(lines, fraction)
    assert sorted(k[sampled]) == sorted(k)[lines - count :]
    assert sampled[0]


@pytest.mark.parametrize("fraction", FRACTIONS)
@pytest.mark.parametrize("shape", [(12, 15), (12, 15, 16)])
def test_zero_filled_partial_fourier_is_a_projection_that_keeps_the_mean(fraction, shape):
    x = noise(shape)
    once = partial_fourier(x, fraction, 1)
    np.testing.assert_allclose(partial_fourier(once, fraction, 1), once, atol=2e-6)
    np.testing.assert_allclose(once.mean(), x.mean(), atol=1e-6)


@pytest.mark.parametrize("fraction", FRACTIONS)
@pytest.mark.parametrize("n", [15, 16])
def test_conjugate_filling_restores_an_image_without_phase(fraction, n):
    """X(−k) is the conjugate of X(k); the Nyquist frequency, which has no mirror image, is not there after truncation."""
    x = truncate(noise((n, 6)), (n - 1 - n % 2, 6))
    np.testing.assert_allclose(partial_fourier(x, fraction, 0, "conjugate"), x, atol=2e-6)


def test_conjugate_filling_knows_only_the_lines_that_were_sampled():
    """Whatever the others were: only the projection of the image counts."""
    x = noise((16, 6)) + 1j * noise((16, 6), 1)
    known = partial_fourier(x, 0.625, 0)
    np.testing.assert_allclose(partial_fourier(known, 0.625, 0, "conjugate"), partial_fourier(x, 0.625, 0, "conjugate"), atol=2e-6)


def test_zero_filling_without_phase_blurs_only_the_imaginary_part():
    """The real part of what half of k-space gives is, but for the lines that have both signs, half of the image [Noll 1991]."""
    x = truncate(noise((64,)), (63,))
    kept = partial_fourier(x, 0.625, 0)
    both = modulate_lines(x, np.abs(np.rint(np.fft.fftfreq(64) * 64)) <= 8, 0).real
    np.testing.assert_allclose(kept.real, (x + both) / 2, atol=1e-5)


def test_all_lines_are_the_image():
    x = noise((12, 15))
    for fill in ("zero", "conjugate"):
        np.testing.assert_allclose(partial_fourier(x, 1.0, 0, fill), x, atol=2e-6)


@pytest.mark.parametrize(
    "wrong, message", [((0.5, 0), "more than half of the lines.*got a fraction of 0.5"), ((0.7, 0, "x"), "'x'; known: zero")]
)
def test_wrong_partial_fourier_is_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        partial_fourier(noise((8, 8)), *wrong)


def test_an_unknown_window_is_refused_by_name():
    with pytest.raises(ValueError, match="'hann'; known: box, ellipse, hamming, tukey"):
        truncate(noise((8,)), (4,), "hann")
