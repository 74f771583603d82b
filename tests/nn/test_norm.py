"""Group normalisation against its definition, and against flax's."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsr.nn.norm import GroupNorm


def drawn(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(1, 2, shape), jnp.float32)


@pytest.mark.parametrize("shape, groups", [((2, 5, 6, 12), 3), ((2, 7, 8), 8), ((3, 4), 2), ((1, 3, 4, 5, 6), 1)])
def test_each_group_of_a_slice_has_the_mean_and_variance_that_its_parameters_say(shape, groups):
    """Wu & He 2018, Eqs. 1–3 and 6."""
    x = drawn(*shape)
    scale, bias = (drawn(shape[-1], seed=seed) for seed in (1, 2))
    found = GroupNorm(groups, epsilon=1e-3).apply({"params": {"scale": scale, "bias": bias}}, x)
    split = np.asarray(x, np.float64).reshape(shape[0], -1, groups, shape[-1] // groups)
    mean, variance = split.mean((1, 3), keepdims=True), split.var((1, 3), keepdims=True)
    expected = ((split - mean) / np.sqrt(variance + 1e-3)).reshape(shape) * np.asarray(scale) + np.asarray(bias)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_values_and_gradients_are_flax_s():
    x, weights = drawn(2, 6, 7, 16), drawn(2, 6, 7, 16, seed=1)
    ours, theirs = GroupNorm(4), nn.GroupNorm(4, epsilon=1e-5)
    params = {"scale": drawn(16, seed=2), "bias": drawn(16, seed=3)}
    assert jax.tree.map(jnp.shape, theirs.init(jax.random.key(0), x)["params"]) == jax.tree.map(jnp.shape, params)

    def of(module):
        return jax.value_and_grad(lambda params, x: (module.apply({"params": params}, x) * weights).sum(), (0, 1))(params, x)

    for a, b in zip(jax.tree.leaves(of(ours)), jax.tree.leaves(of(theirs)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_statistics_are_float32_where_the_computation_is_bfloat16():
    """A mean of 300 over unit noise: in bfloat16 its steps are 2, and the variance would be lost."""
    x = 300 + jax.random.normal(jax.random.key(0), (1, 16, 16, 4))
    low, high = (GroupNorm(1, dtype=d) for d in (jnp.bfloat16, jnp.float32))
    variables = high.init(jax.random.key(1), x)
    assert low.apply(variables, x).dtype == jnp.bfloat16
    difference = low.apply(variables, x).astype(jnp.float32) - high.apply(variables, x)
    assert jnp.abs(difference).max() < 0.05


def test_groups_that_do_not_divide_the_channels_are_refused():
    with pytest.raises(ValueError, match="3 groups do not divide 8 channels"):
        GroupNorm(3).init(jax.random.key(0), jnp.zeros((1, 4, 4, 8)))
