"""Laws of the shared losses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsr.losses import mean_absolute_error, mean_squared_error

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
