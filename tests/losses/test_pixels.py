"""Laws of errors of pixels and of the cosine."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsr.losses.pixels import ERRORS, cosine, mean_squared_error, squared_errors

every_error = pytest.mark.parametrize("name, power", [("l1", 1), ("l2", 2)])


@every_error
def test_a_constant_error_costs_its_power_whatever_the_size(name, power):
    for shape in ((1, 4, 4, 1), (3, 8, 2, 5)):
        np.testing.assert_allclose(ERRORS[name](jnp.full(shape, 2.5), jnp.zeros(shape)), np.full(shape[0], 2.5**power))


@every_error
def test_a_slice_costs_what_it_costs_alone(name, power, latents):
    x, y = latents()
    together = ERRORS[name](x, y)
    alone = [ERRORS[name](a[None], b[None])[0] for a, b in zip(x, y, strict=True)]
    np.testing.assert_allclose(together, alone, rtol=1e-6)
    np.testing.assert_allclose(together, (np.abs(np.asarray(x) - np.asarray(y)) ** power).mean((1, 2, 3)), rtol=1e-5)


def test_the_mean_squared_error_is_the_mean_over_slices(latents):
    x, y = latents()
    np.testing.assert_allclose(mean_squared_error(x, y), squared_errors(x, y).mean(), rtol=1e-6)


@every_error
def test_the_sum_is_formed_in_float32(name, power):
    """In bfloat16 a mean over this many entries would stop growing at 256."""
    error = jnp.ones((1, 64, 64, 1), jnp.bfloat16)
    value = ERRORS[name](error, jnp.zeros_like(error))
    assert value.dtype == jnp.float32
    assert float(value[0]) == 1


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
