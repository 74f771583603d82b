"""Laws of convolution over complex numbers stored as pairs of channels."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsr.nn.complex import ComplexConv
from jaxsr.nn.convolution import KERNEL, conv

X = jax.random.normal(jax.random.key(0), (2, 6, 8, 4))


def init(module, x=X):
    """Random weights, also where they start at zero."""
    shapes = nn.meta.unbox(jax.eval_shape(module.init, jax.random.key(1), x))
    keys = iter(jax.random.split(jax.random.key(2), 8))
    return jax.tree.map(lambda leaf: jax.random.normal(next(keys), leaf.shape), shapes)


def paired(z):
    """Complex → pairs: real channels, then imaginary ones."""
    return jnp.concatenate([z.real, z.imag], axis=-1)


def complex_of(x):
    real, imaginary = jnp.split(x, 2, axis=-1)
    return real + 1j * imaginary


def test_it_is_multiplication_of_complex_numbers():
    """A 1×1 convolution is a complex matrix at every pixel: W z + b, by numpy's complex arithmetic."""
    module = ComplexConv(6, size=1)
    variables = init(module)
    params = variables["params"]
    matrix = params["real"][0, 0] + 1j * params["imaginary"][0, 0]
    expected = complex_of(X) @ matrix + complex_of(params["bias"])
    np.testing.assert_allclose(complex_of(module.apply(variables, X)), expected, atol=1e-5)


def test_it_is_the_real_convolution_with_the_two_by_two_block_kernel():
    module = ComplexConv(6)
    variables = init(module)
    a, b = np.asarray(variables["params"]["real"]), np.asarray(variables["params"]["imaginary"])
    kernel = np.zeros((3, 3, 4, 6), np.float32)
    kernel[:, :, :2, :3], kernel[:, :, :2, 3:], kernel[:, :, 2:, :3], kernel[:, :, 2:, 3:] = a, b, -b, a
    expected = conv(6).apply({"params": {"kernel": kernel, "bias": variables["params"]["bias"]}}, X)
    np.testing.assert_allclose(module.apply(variables, X), expected, atol=1e-5)


@pytest.mark.parametrize("angle", [np.pi / 2, 0.7])
def test_without_a_bias_it_commutes_with_a_turn_of_the_phase(angle):
    """π / 2 is multiplication by i. A free real convolution of the same shape does not."""
    turn = lambda x: paired(complex_of(x) * np.complex64(np.exp(1j * angle)))  # noqa: E731
    module, free = ComplexConv(6, bias=False), conv(6, bias=False)
    variables = init(module)
    np.testing.assert_allclose(module.apply(variables, turn(X)), turn(module.apply(variables, X)), atol=2e-5)
    assert np.abs(free.apply(init(free), turn(X)) - turn(free.apply(init(free), X))).max() > 1


def test_it_is_linear_over_the_complex_numbers_so_magnitudes_scale_and_phases_add():
    module = ComplexConv(6, bias=False)
    variables = init(module)
    out, scaled = (complex_of(module.apply(variables, x)) for x in (X, paired(complex_of(X) * (0.3 - 1.2j))))
    np.testing.assert_allclose(jnp.abs(scaled), jnp.abs(out) * abs(0.3 - 1.2j), atol=2e-5)
    np.testing.assert_allclose(jnp.exp(1j * jnp.angle(scaled / out)), np.exp(1j * np.angle(0.3 - 1.2j)) * np.ones(out.shape), atol=1e-3)


def test_it_has_half_the_parameters_of_a_free_convolution_and_keeps_a_unit_variance():
    x = jax.random.normal(jax.random.key(0), (1, 32, 32, 64))
    module = ComplexConv(64)
    variables = nn.meta.unbox(module.init(jax.random.key(1), x))
    assert sum(leaf.size for leaf in jax.tree.leaves(variables)) == 9 * 64 * 64 // 2 + 64
    assert float(module.apply(variables, x)[:, 1:-1, 1:-1].var()) == pytest.approx(1, abs=0.05)


def test_every_dimension_of_its_kernels_has_a_name():
    boxed = jax.eval_shape(ComplexConv(6).init, jax.random.key(0), X)["params"]
    assert {name: leaf.names for name, leaf in boxed.items()} == {"real": KERNEL, "imaginary": KERNEL, "bias": KERNEL[-1:]}


def test_in_bfloat16_it_computes_in_bfloat16_with_float32_parameters():
    module = ComplexConv(6, dtype=jnp.bfloat16)
    out, variables = jax.eval_shape(module.init_with_output, jax.random.key(0), X)
    assert out.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float32)}


@pytest.mark.parametrize("channels, features", [(3, 4), (4, 5)])
def test_channels_that_are_not_pairs_are_refused_with_both_numbers(channels, features):
    with pytest.raises(ValueError, match=f"must be even, got {channels} in, {features} out"):
        jax.eval_shape(ComplexConv(features).init, jax.random.key(0), jnp.zeros((1, 4, 4, channels)))
