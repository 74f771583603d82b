"""Laws of errors of pixels and of the cosine."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsr.losses.pixels import absolute_errors, cosine, mean_absolute_error, mean_squared_error, squared_errors

every_loss = pytest.mark.parametrize("loss, power", [(mean_absolute_error, 1), (mean_squared_error, 2)])


@every_loss
def test_a_constant_error_costs_its_power_whatever_the_size(loss, power):
    for shape in ((1, 4, 4, 1), (3, 8, 2, 5)):
        assert float(loss(jnp.full(shape, 2.5), jnp.zeros(shape))) == pytest.approx(2.5**power)


@every_loss
def test_the_mean_over_a_batch_is_the_mean_over_its_slices(loss, power, latents):
    x, y = latents()
    errors = {1: absolute_errors, 2: squared_errors}[power](x, y)
    np.testing.assert_allclose(errors, [loss(a, b) for a, b in zip(x, y, strict=True)], rtol=1e-6)
    np.testing.assert_allclose(loss(x, y), errors.mean(), rtol=1e-6)


@every_loss
def test_the_sum_is_formed_in_float32(loss, power):
    """In bfloat16 a mean over this many entries would stop growing at 256."""
    error = jnp.ones((1, 64, 64, 1), jnp.bfloat16)
    value = loss(error, jnp.zeros_like(error))
    assert value.dtype == jnp.float32
    assert float(value) == 1


def test_the_cosine_is_that_of_all_entries_or_of_each_pixels_channels(latents):
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
def test_the_cosine_knows_directions_only_and_goes_to_zero_with_a_vector(per, latents):
    x, y = latents()
    np.testing.assert_allclose(cosine(x, 3 * x, per), 1, rtol=1e-6)
    np.testing.assert_allclose(cosine(x, -x, per), -1, rtol=1e-6)
    np.testing.assert_allclose(cosine(0.01 * x, 5 * y, per), cosine(x, y, per), rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(cosine(0 * x, y, per), 0)
    for other in (y, 0 * y):
        assert np.isfinite(jax.grad(lambda x, other=other: cosine(x, other, per).sum())(0 * x)).all()
