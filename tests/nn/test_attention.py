"""Laws of attention over pixels and over channels."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsr.nn.attention import ChannelAttention, NonLocal, PixelAttention


def setup(heads=1):
    x = jax.random.normal(jax.random.key(0), (2, 4, 6, 8))
    module = PixelAttention(heads=heads, groups=4)
    return module, nn.meta.unbox(module.init(jax.random.key(1), x)), x


@pytest.mark.parametrize("heads", [1, 2])
def test_it_does_not_know_where_pixels_are(heads):
    """Permuting pixels permutes the output: only content is compared (and the norm pools over all pixels)."""
    module, variables, x = setup(heads)
    order = np.random.default_rng(0).permutation(24)
    permute = lambda a: a.reshape(2, 24, 8)[:, order].reshape(a.shape)  # noqa: E731
    np.testing.assert_allclose(module.apply(variables, permute(x)), permute(module.apply(variables, x)), atol=2e-5)


def test_equal_queries_average_the_values():
    """softmax of equal scores is uniform: with W_q = 0 every pixel is moved by the same vector."""
    module, variables, x = setup()
    variables["params"]["qkv"]["kernel"] = variables["params"]["qkv"]["kernel"].at[..., :8].set(0)
    moved = module.apply(variables, x) - x
    np.testing.assert_allclose(moved, np.broadcast_to(moved.mean((1, 2), keepdims=True), moved.shape), atol=1e-5)


def test_only_the_output_has_a_bias():
    _, variables, _ = setup()
    assert set(variables["params"]["qkv"]) == {"kernel"}
    assert set(variables["params"]["out"]) == {"kernel", "bias"}


def test_one_convolution_or_three_is_the_same_function():
    fused, variables, x = setup()
    apart = PixelAttention(groups=4, fused=False)
    kernels = np.split(np.asarray(variables["params"]["qkv"]["kernel"]), 3, axis=-1)
    three = {
        name: {"kernel": kernel, "bias": np.zeros(8, np.float32)} for name, kernel in zip(("query", "key", "value"), kernels, strict=True)
    }
    kept = {name: variables["params"][name] for name in ("norm", "out")}
    np.testing.assert_allclose(apart.apply({"params": {**kept, **three}}, x), fused.apply(variables, x), atol=1e-5)


X = jax.random.normal(jax.random.key(0), (2, 4, 6, 8))


def drawn(module, scale=0.5):
    """Random weights, also where they start at zero."""
    shapes = nn.meta.unbox(jax.eval_shape(module.init, jax.random.key(1), X))
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: jnp.asarray(scale * rng.normal(size=leaf.shape), jnp.float32), shapes)


def test_a_non_local_block_is_its_sum_over_all_pixels():
    """[Wang et al. 2018, Eqs. 1–4, 6], pixel by pixel: y_i = Σ_j exp(θ_i · φ_j) g_j / Σ_j exp(θ_i · φ_j), z_i = W_z y_i + x_i."""
    variables = drawn(NonLocal())
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), variables["params"])
    layer = lambda x, name: x @ params[name]["kernel"][0, 0] + params[name]["bias"]  # noqa: E731
    for x, out in zip(np.asarray(X, np.float64).reshape(2, 24, 8), NonLocal().apply(variables, X).reshape(2, 24, 8), strict=True):
        theta, phi, g = (layer(x, name) for name in ("theta", "phi", "g"))
        assert theta.shape == (24, 4)
        for i in range(24):
            weights = np.exp([theta[i] @ phi[j] for j in range(24)])
            y = sum(weight * g[j] for j, weight in enumerate(weights)) / weights.sum()
            np.testing.assert_allclose(out[i], layer(y, "out") + x[i], rtol=1e-4, atol=1e-4)


def test_a_non_local_block_starts_as_the_identity_and_can_leave_it():
    variables = nn.meta.unbox(NonLocal().init(jax.random.key(1), X))
    np.testing.assert_array_equal(NonLocal().apply(variables, X), X)
    gradient = jax.grad(lambda v: (NonLocal().apply(v, X) * X).sum())(variables)
    assert np.abs(gradient["params"]["out"]["kernel"]).max() > 0


def test_a_non_local_block_refuses_an_odd_number_of_channels():
    with pytest.raises(ValueError, match="even number, got 7"):
        NonLocal().init(jax.random.key(0), X[..., :7])


def test_channel_attention_is_squeeze_and_excitation():
    """[Hu et al. 2018, Eqs. 2–4], by numpy."""
    module = ChannelAttention(reduction=4)
    variables = drawn(module)
    squeeze, excite = (jax.tree.map(np.asarray, variables["params"][name]) for name in ("squeeze", "excite"))
    hidden = np.maximum(np.asarray(X).mean((1, 2)) @ squeeze["kernel"] + squeeze["bias"], 0)
    assert hidden.shape == (2, 2)
    weight = 1 / (1 + np.exp(-(hidden @ excite["kernel"] + excite["bias"])))
    np.testing.assert_allclose(module.apply(variables, X), X * weight[:, None, None, :], atol=1e-6)


def test_channel_attention_gives_each_channel_of_a_slice_one_weight_between_zero_and_one():
    module = ChannelAttention(reduction=4)
    weight = np.asarray(module.apply(drawn(module), X) / X)
    np.testing.assert_allclose(weight, np.broadcast_to(weight[:, :1, :1], weight.shape), rtol=1e-5)
    assert weight.min() > 0
    assert weight.max() < 1
    assert np.abs(weight[0, 0, 0] - weight[1, 0, 0]).max() > 0.01  # slices differ
    assert weight[:, 0, 0].std(1).min() > 0.01  # and channels


def test_channel_attention_does_not_know_where_pixels_are():
    module = ChannelAttention(reduction=4)
    variables, order = drawn(module), np.random.default_rng(0).permutation(24)
    permute = lambda a: a.reshape(2, 24, 8)[:, order].reshape(a.shape)  # noqa: E731
    np.testing.assert_allclose(module.apply(variables, permute(X)), permute(module.apply(variables, X)), atol=1e-6)


def test_channel_attention_leaves_at_least_one_channel_between_its_layers():
    assert drawn(ChannelAttention(reduction=16))["params"]["squeeze"]["kernel"].shape == (8, 1)
