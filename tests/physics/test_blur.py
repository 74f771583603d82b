"""Laws of slice profiles."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from jaxsr.physics.blur import excite, slice_profile

KINDS = ("rectangular", "gaussian")
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
    inside = (centres > 6) & (centres < 33)
    read = np.asarray(excite(ramp, kind, 3.0, count, 0))
    np.testing.assert_allclose(read[inside], centres[inside], atol=2e-3)


@pytest.mark.parametrize("voxels", [2, 3, 5, 10])
def test_slices_without_gaps_average_blocks_odd_or_even(voxels):
    """Every depth belongs to one slice: the matrix is a partition of the voxels."""
    x = jnp.asarray(np.random.default_rng(0).normal(size=30), jnp.float32)
    np.testing.assert_allclose(excite(x, "rectangular", voxels, 30 // voxels, 0), x.reshape(-1, voxels).mean(1), atol=1e-6)


@pytest.mark.parametrize(
    "wrong, message", [(("rectangular", 0.0), "got 0.0 voxels"), (("sinc", 2.0), "'sinc'; known: rectangular, gaussian")]
)
def test_wrong_values_are_refused_by_name(wrong, message):
    with pytest.raises(ValueError, match=message):
        slice_profile(*wrong)
