"""Laws of slice profiles and of the point spread."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage
from scipy.integrate import quad

from jaxsr.physics.blur import excite, gaussian_blur, sinc_profile, slice_profile

KINDS = ("rectangular", "gaussian", "sinc")
every_kind = pytest.mark.parametrize("kind", KINDS)


def volume(shape=(9, 10, 11), seed=0):
    return jax.random.normal(jax.random.key(seed), shape)


def full_width_at_half_maximum(weights):
    """In samples, by linear interpolation of the flanks."""
    half = weights.max() / 2
    rising = np.flatnonzero(weights >= half)
    first, last = rising[0], rising[-1]
    left = first - (weights[first] - half) / (weights[first] - weights[first - 1])
    right = last + (weights[last] - half) / (weights[last] - weights[last + 1])
    return right - left


@every_kind
@pytest.mark.parametrize("thickness", [0.3, 1.0, 2.0, 3.7, 10.0])
def test_a_profile_integrates_to_one_and_is_symmetric(kind, thickness):
    weights = slice_profile(kind, thickness)
    assert weights.sum() == pytest.approx(1, abs=1e-6)
    assert len(weights) % 2
    np.testing.assert_allclose(weights, weights[::-1], atol=1e-8)


@every_kind
@pytest.mark.parametrize("thickness", [101.0, 250.5])
def test_the_full_width_at_half_maximum_is_the_slice_thickness(kind, thickness):
    assert full_width_at_half_maximum(slice_profile(kind, thickness)) == pytest.approx(thickness, rel=5e-3)


@pytest.mark.parametrize("voxels", [1, 3, 5])
def test_a_rectangular_profile_of_whole_voxels_is_the_box_average(voxels):
    x = volume()
    blurred = excite(x, "rectangular", voxels, x.shape[1], 1)
    np.testing.assert_allclose(blurred, ndimage.uniform_filter1d(np.asarray(x), voxels, axis=1, mode="reflect"), atol=1e-6)


@every_kind
def test_a_slice_thinner_than_a_voxel_still_reads_that_voxel(kind):
    x = volume()
    np.testing.assert_allclose(excite(x, kind, 0.01, len(x), 0), x, atol=1e-6)


@every_kind
@pytest.mark.parametrize("axis", [0, 2])
def test_blurring_on_the_same_grid_is_its_own_adjoint(kind, axis):
    """A symmetric profile continued by mirror images is a symmetric matrix."""
    x, y = volume(seed=1), volume(seed=2)
    blur = lambda v: excite(v, kind, 3.0, v.shape[axis], axis)  # noqa: E731
    (transposed,) = jax.linear_transpose(blur, x)(y)
    np.testing.assert_allclose(transposed, blur(y), atol=1e-6)
    np.testing.assert_allclose(jnp.vdot(blur(x), y), jnp.vdot(x, transposed), atol=1e-4)


@every_kind
@pytest.mark.parametrize("count", [1, 4, 10, 15])
def test_exciting_slices_keeps_constants_and_is_linear(kind, count):
    np.testing.assert_allclose(excite(jnp.full((5, 10, 7), 3.0), kind, 2.5, count, 1), np.full((5, count, 7), 3.0), atol=1e-5)
    x, y = volume(seed=1), volume(seed=2)
    both = excite(2 * x - y, kind, 2.5, count, 1)
    np.testing.assert_allclose(both, 2 * excite(x, kind, 2.5, count, 1) - excite(y, kind, 2.5, count, 1), atol=1e-5)


@every_kind
@pytest.mark.parametrize("count", [4, 5, 16])
def test_slices_lie_at_equidistant_centres_of_the_same_field_of_view(kind, count):
    """A symmetric profile reads a ramp at its centre; away from the edges, where the ramp turns round."""
    ramp = jnp.arange(40.0)
    centres = (np.arange(count) + 0.5) * 40 / count - 0.5
    inside = (centres > 8) & (centres < 31)
    read = np.asarray(excite(ramp, kind, 3.0, count, 0))
    np.testing.assert_allclose(read[inside], centres[inside], atol=2e-3)


@pytest.mark.parametrize("voxels", [2, 3, 5, 10])
def test_slices_without_gaps_average_blocks_odd_or_even(voxels):
    """Every depth belongs to one slice: the matrix is a partition of the voxels."""
    x = jnp.asarray(np.random.default_rng(0).normal(size=30), jnp.float32)
    np.testing.assert_allclose(excite(x, "rectangular", voxels, 30 // voxels, 0), x.reshape(-1, voxels).mean(1), atol=1e-6)


@pytest.mark.parametrize(
    "wrong, message",
    [
        (("rectangular", 0.0), "got 0.0 voxels"),
        (("hat", 2.0), "'hat'; known: rectangular, gaussian, sinc"),
        (("sinc", 2.0, 0.0, 0.5), "at least 1, got 0.5"),
    ],
)
def test_wrong_values_are_refused_by_name(wrong, message):
    with pytest.raises(ValueError, match=message):
        slice_profile(*wrong)


# ------------------------------------------------------------------------------------------------ the windowed sinc


@pytest.mark.parametrize("product", [2.0, 4.0, 8.0])
@pytest.mark.parametrize("frequency", [0.0, 0.7, 2.0, 3.3, 6.1])
def test_the_sinc_profile_is_the_fourier_transform_of_the_pulse(product, frequency):
    """Small tip angles [Pauly 1989]: the pulse of duration 1 is sinc(Bt) under a Hamming window."""

    def pulse(t):
        return np.sinc(product * t) * (0.54 + 0.46 * np.cos(2 * np.pi * t)) * np.cos(2 * np.pi * frequency * t)

    assert sinc_profile(np.array([frequency]), product)[0] == pytest.approx(2 * quad(pulse, 0, 0.5)[0], abs=1e-9)


def test_a_longer_pulse_has_steeper_flanks():
    """The transition from 90 % to 10 % takes 1.8/duration, whatever the bandwidth: of the thickness, 1.8/B."""
    for product in (4.0, 8.0, 16.0):
        f = np.linspace(0, product, 20001)
        profile = sinc_profile(f, product) / sinc_profile(np.zeros(1), product)
        width = f[np.flatnonzero(profile > 0.1)[-1]] - f[np.flatnonzero(profile > 0.9)[-1]]
        assert width == pytest.approx(1.8, abs=0.05)


def test_a_sinc_slice_ripples_and_its_ripples_are_small():
    weights = slice_profile("sinc", 100.0)
    top = weights.max()
    far = np.abs(np.arange(len(weights)) - len(weights) // 2) > 100
    assert weights.min() < 0
    assert 1e-4 * top < np.abs(weights[far]).max() < 0.01 * top


# ------------------------------------------------------------------------------------------------ gaps


@pytest.mark.parametrize("depth, slices", [(4, 1), (7, 1), (8, 0), (11, 0), (14, 1)])
def test_what_lies_in_a_gap_is_not_seen(depth, slices):
    """Slices of 5 voxels every 10 are centred on 4.5, 14.5, …: they reach from 2 to 7, from 12 to 17, …"""
    x = jnp.zeros(40).at[depth].set(1.0)
    seen = np.asarray(excite(x, "rectangular", 5.0, 4, 0))
    assert (seen > 0).sum() == slices


def test_what_lies_in_an_overlap_is_seen_twice():
    x = jnp.zeros(40).at[10].set(1.0)
    assert (np.asarray(excite(x, "rectangular", 15.0, 4, 0)) > 0).sum() == 2


# ------------------------------------------------------------------------------------------------ the point spread


@pytest.mark.parametrize("shape, axes", [((15, 16), (0, 1)), ((9, 16, 11), (0, 2))])
def test_the_point_spread_is_that_of_scipy(shape, axes):
    """scipy.ndimage.fourier_gaussian has the same transfer function."""
    x = volume(shape)
    fwhm = [2.0 + axis for axis in axes]
    sigma = [fwhm[axes.index(axis)] / 2.3548200 if axis in axes else 0 for axis in range(len(shape))]
    expected = np.fft.ifftn(ndimage.fourier_gaussian(np.fft.fftn(x), sigma)).real
    np.testing.assert_allclose(gaussian_blur(x, fwhm, axes), expected, atol=1e-6)


def test_two_blurs_are_one_of_the_sum_of_squares():
    """The semigroup law σ² = σ₁² + σ₂² [teacher, Eq. 7], and with it FWHM² = FWHM₁² + FWHM₂²."""
    x = volume()
    twice = gaussian_blur(gaussian_blur(x, (3.0, 1.0), (0, 1)), (4.0, 2.4), (0, 1))
    np.testing.assert_allclose(twice, gaussian_blur(x, (5.0, 2.6), (0, 1)), atol=1e-6)


def test_a_point_spreads_to_the_stated_full_width_at_half_maximum():
    spread = np.asarray(gaussian_blur(jnp.zeros(201).at[100].set(1.0), (31.0,), (0,)))
    assert full_width_at_half_maximum(spread) == pytest.approx(31, rel=1e-3)
    assert spread.sum() == pytest.approx(1, abs=1e-5)


def test_no_width_is_no_blur_and_a_batch_is_a_vmap():
    x = volume()
    np.testing.assert_allclose(gaussian_blur(x, (0.0, 0.0), (0, 1)), x, atol=1e-6)
    widths = jnp.array([1.0, 3.0])
    batch = jax.vmap(lambda v, w: gaussian_blur(v, (w, w), (0, 1)), (None, 0))(x, widths)
    for blurred, width in zip(batch, widths, strict=True):
        np.testing.assert_allclose(blurred, gaussian_blur(x, (width, width), (0, 1)), atol=1e-6)


@every_kind
def test_slices_of_a_batch_are_excited_by_vmap(kind):
    x = volume((3, 9, 10))
    batch = jax.vmap(lambda v: excite(v, kind, 2.5, 4, 1))(x)
    np.testing.assert_allclose(batch[1], excite(x[1], kind, 2.5, 4, 1), atol=1e-6)
