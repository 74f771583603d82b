"""Laws of sampling k-space on fewer or more frequencies."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsr.physics.kspace import fourier_resample, truncate

SHAPE = (12, 15, 16)
COARSE = [(6, 15, 8), (7, 9, 11)]
coarser = pytest.mark.parametrize("shape", COARSE)


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
    """Gibbs: the overshoot tends to (Si(π)/π − 1/2) = 8.949 % of the step, not to zero."""
    n = 4096
    step = (jnp.arange(n) >= n // 2).astype(jnp.float32)
    for m in (129, 257):
        assert truncate(step, (m,)).max() - 1 == pytest.approx(0.08949, abs=5e-4)


def test_a_shape_of_other_rank_is_refused_by_name():
    with pytest.raises(ValueError, match=r"3 sides like the volume's \(12, 15, 16\), got \(6, 6\)"):
        fourier_resample(noise(SHAPE), (6, 6))
