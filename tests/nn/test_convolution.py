"""Laws of named convolutions."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsr.nn.convolution import DENSE, KERNEL, conv, conv_transpose, dense


@pytest.mark.parametrize(
    "module, shape, names", [(conv(6), (1, 4, 4, 2), KERNEL), (conv_transpose(6), (1, 4, 4, 2), KERNEL), (dense(6), (1, 2), DENSE)]
)
def test_every_dimension_of_a_kernel_has_a_name(module, shape, names):
    boxed = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros(shape))["params"]
    assert boxed["kernel"].names == names
    assert boxed["bias"].names == names[-1:]


@pytest.mark.parametrize("module", [conv(3, zero=True), dense(3, zero=True)])
def test_a_layer_that_is_to_start_at_zero_does(module):
    x = jnp.ones((1, 4, 4, 2))
    assert (module.apply(nn.meta.unbox(module.init(jax.random.key(0), x)), x) == 0).all()


@pytest.mark.parametrize("size", [1, 3, 5])
def test_an_odd_kernel_keeps_the_sides(size):
    x = jnp.ones((1, 5, 6, 2))
    module = conv(3, size)
    assert jax.eval_shape(module.init_with_output, jax.random.key(0), x)[0].shape == (1, 5, 6, 3)


def test_a_dilated_kernel_is_one_with_zeros_between_its_taps():
    x = jax.random.normal(jax.random.key(0), (1, 8, 9, 2))
    dilated, wide = conv(3, dilation=2), conv(3, 5)
    variables = nn.meta.unbox(dilated.init(jax.random.key(1), x))
    kernel = variables["params"]["kernel"]
    spread = {"params": {**variables["params"], "kernel": jnp.zeros((5, 5, 2, 3)).at[::2, ::2].set(kernel)}}
    np.testing.assert_allclose(dilated.apply(variables, x), wide.apply(spread, x), atol=1e-5)


def test_a_transposed_convolution_writes_its_kernel_around_every_pixel():
    """One pixel of a 4 × 5 image at (i, j): the kernel turned by 180°, from (2i − 1, 2j − 1) on, in an image of twice the sides."""
    module = conv_transpose(3)
    x = jnp.zeros((1, 4, 5, 2)).at[0, 1, 2, 0].set(1)
    variables = nn.meta.unbox(module.init(jax.random.key(1), x))
    expected = np.zeros((1, 8, 10, 3), np.float32)
    expected[0, 1:5, 3:7] = variables["params"]["kernel"][::-1, ::-1, 0]
    np.testing.assert_array_equal(module.apply(variables, x), expected)


def test_a_transposed_convolution_starts_by_keeping_a_unit_variance():
    x, module = jax.random.normal(jax.random.key(0), (1, 32, 32, 64)), conv_transpose(64)
    out = module.apply(nn.meta.unbox(module.init(jax.random.key(1), x)), x)
    assert float(out[:, 1:-1, 1:-1].var()) == pytest.approx(1, abs=0.05)
