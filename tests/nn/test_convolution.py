"""Laws of named convolutions."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from jaxsr.nn.convolution import DENSE, KERNEL, conv, dense, group_norm


@pytest.mark.parametrize("module, shape, names", [(conv(6), (1, 4, 4, 2), KERNEL), (dense(6), (1, 2), DENSE)])
def test_every_dimension_of_a_kernel_has_a_name(module, shape, names):
    boxed = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros(shape))["params"]
    assert boxed["kernel"].names == names
    assert boxed["bias"].names == names[-1:]


def test_a_zero_convolution_starts_at_zero():
    module, x = conv(3, zero=True), jnp.ones((1, 4, 4, 2))
    assert (module.apply(nn.meta.unbox(module.init(jax.random.key(0), x)), x) == 0).all()


@pytest.mark.parametrize("size", [1, 3, 5])
def test_an_odd_kernel_keeps_the_sides(size):
    x = jnp.ones((1, 5, 6, 2))
    module = conv(3, size)
    assert jax.eval_shape(module.init_with_output, jax.random.key(0), x)[0].shape == (1, 5, 6, 3)


def test_statistics_of_a_norm_are_float32_where_the_computation_is_bfloat16():
    """A mean of 300 over unit noise: in bfloat16 its steps are 2, and the variance would be lost."""
    x = 300 + jax.random.normal(jax.random.key(0), (1, 16, 16, 4))
    low, high = (group_norm(1, dtype=d) for d in (jnp.bfloat16, jnp.float32))
    variables = high.init(jax.random.key(1), x)
    difference = low.apply(variables, x).astype(jnp.float32) - high.apply(variables, x)
    assert jnp.abs(difference).max() < 0.05
