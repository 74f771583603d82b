"""Laws of the bias field."""

import jax
import jax.numpy as jnp
import pytest

from jaxsr.physics.fields import bias_field

SHAPE = (12, 15, 10)


@pytest.mark.parametrize("seed", range(4))
def test_its_logarithm_has_mean_zero_and_exactly_the_stated_deviation(seed):
    """Cosines on the half-sample grid are orthogonal to each other and to constants, so every draw has both."""
    field = bias_field(jax.random.key(seed), SHAPE, 0.3)
    assert (field > 0).all()
    assert jnp.log(field).mean() == pytest.approx(0, abs=1e-6)
    assert jnp.log(field).std() == pytest.approx(0.3, rel=1e-5)


@pytest.mark.parametrize("shape", [(8, 8, 1), (3, 2, 9), (1, 1, 2)])
def test_a_side_that_cannot_hold_every_cosine_leaves_the_deviation_as_stated(shape):
    """cos(πk(j + ½)/n) vanishes at k = n and is another or a constant beyond."""
    log_field = jnp.log(bias_field(jax.random.key(0), shape, 0.3))
    assert log_field.mean() == pytest.approx(0, abs=1e-6)
    assert log_field.std() == pytest.approx(0.3, rel=1e-5)


def test_a_single_voxel_has_no_field():
    assert (bias_field(jax.random.key(0), (1, 1, 1), 0.3) == 1).all()


def test_no_strength_is_no_field():
    assert (bias_field(jax.random.key(0), SHAPE, 0.0) == 1).all()


def test_it_is_smooth_the_gradient_is_that_of_the_highest_cosine_at_most():
    """Half-periods up to 3 over the field of view: neighbouring voxels of 64 differ in log b by no more than Σ|c_k| · 3π/64."""
    log_field = jnp.log(bias_field(jax.random.key(1), (64, 64, 64), 0.3))
    assert jnp.abs(jnp.diff(log_field, axis=0)).max() < 3 * jnp.pi / 64


def test_the_field_over_one_field_of_view_does_not_depend_on_the_voxel_size():
    """Fine voxels averaged in pairs lie where the coarse ones are: one scanner, two matrices."""
    fine, coarse = (jnp.log(bias_field(jax.random.key(2), shape, 0.2)) for shape in ((48, 60, 40), (24, 30, 20)))
    averaged = fine.reshape(24, 2, 30, 2, 20, 2).mean((1, 3, 5))
    assert jnp.abs(averaged - coarse).max() < 0.01


@pytest.mark.parametrize("shape", [(40, 60), (50,)])
def test_slices_have_fields_too_with_the_same_law(shape):
    field = bias_field(jax.random.key(3), shape, 0.3)
    assert field.shape == shape
    assert jnp.log(field).mean() == pytest.approx(0, abs=1e-6)
    assert jnp.log(field).std() == pytest.approx(0.3, rel=1e-5)


def test_a_batch_of_fields_is_a_vmap_over_keys_and_strengths():
    keys, strengths = jax.random.split(jax.random.key(0), 3), jnp.array([0.0, 0.1, 0.2])
    batch = jax.vmap(lambda k, s: bias_field(k, SHAPE, s))(keys, strengths)
    assert jnp.log(batch[2]).std() == pytest.approx(0.2, rel=1e-4)
    assert (batch[0] == 1).all()
