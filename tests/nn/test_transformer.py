"""Laws of the spatial transformer [Vaswani et al. 2017; Rombach et al. 2022, §3.3]."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsr.nn.transformer import Attention, FeedForward, SpatialTransformer


def drawn(module, *inputs, scale=0.4):
    """Random weights, biases too, without compiling the initialisers."""
    rng = np.random.default_rng(0)
    shapes = nn.meta.unbox(jax.eval_shape(module.init, jax.random.key(0), *inputs))
    return jax.tree.map(lambda leaf: jnp.asarray(scale * rng.normal(size=leaf.shape), jnp.float32), shapes)


@pytest.fixture(scope="module")
def transformer():
    """One of two blocks, jitted with its weights, and what it takes."""
    x, context = jax.random.normal(jax.random.key(0), (2, 4, 6, 8)), jax.random.normal(jax.random.key(1), (2, 5, 3))
    module = SpatialTransformer(heads=2, depth=2, groups=4)
    return jax.jit(lambda x, context, v=drawn(module, x, context): module.apply(v, x, context)), x, context


def test_it_does_not_know_where_pixels_are(transformer):
    """Permuting pixels permutes the output (the norm in front pools over all of them)."""
    apply, x, context = transformer
    order = np.random.default_rng(0).permutation(24)
    permute = lambda a: a.reshape(2, 24, 8)[:, order].reshape(a.shape)  # noqa: E731
    out = apply(x, context)
    np.testing.assert_allclose(apply(permute(x), context), permute(out), atol=1e-5 * np.abs(out).max())


def test_the_order_of_the_context_s_tokens_means_nothing_their_content_does(transformer):
    apply, x, context = transformer
    out = apply(x, context)
    np.testing.assert_allclose(apply(x, context[:, ::-1]), out, atol=1e-5 * np.abs(out).max())
    assert np.abs(apply(x, context.at[:, 0].add(1)) - out).max() > 1e-2


def test_in_attention_only_the_output_has_a_bias():
    params = drawn(Attention(2), jnp.ones((1, 3, 8)), jnp.ones((1, 5, 6)))["params"]
    assert {name: set(layer) for name, layer in params.items()} == {
        "query": {"kernel"}, "key": {"kernel"}, "value": {"kernel"}, "out": {"kernel", "bias"},
    }  # fmt: skip


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_scores_and_softmax_are_float32_whatever_is_computed_in(dtype):
    """Scores of 100/√2 and 100.25/√2, values 1 and −1: tanh of half the scores' difference. Bfloat16 has no number between 70.5 and 71."""
    tokens = jnp.array([[[10.0, 1.0]]])
    context = jnp.array([[[10.0, 0.0, -1.0], [10.0, 0.25, 1.0]]])
    eye, pick = jnp.eye(2), jnp.array([[0, 0], [0, 0], [1, 0]])
    kernels = {"query": eye, "key": jnp.eye(3)[:, :2], "value": pick, "out": eye}
    params = {name: {"kernel": jnp.asarray(kernel, jnp.float32)} for name, kernel in kernels.items()}
    params["out"]["bias"] = jnp.zeros(2)
    out = Attention(1, dtype).apply({"params": params}, tokens, context)
    assert out.dtype == dtype
    np.testing.assert_allclose(np.float32(out[0, 0]), [np.tanh(0.125 / np.sqrt(2)), 0], rtol=1e-3 if dtype == jnp.float32 else 0.05)


def test_a_feed_forward_is_its_equation_with_the_exact_gelu():
    """W_2 (a ⊙ b Φ(b)): 10⁻⁴ and more away from the gelu that is made of tanh."""
    from scipy.stats import norm

    tokens = jax.random.normal(jax.random.key(0), (2, 3, 4))
    variables = drawn(FeedForward(), tokens)
    inner, outer = variables["params"]["in"], variables["params"]["out"]
    a, b = np.split(np.asarray(tokens @ inner["kernel"] + inner["bias"], np.float64), 2, axis=-1)
    assert a.shape[-1] == 16
    expected = (a * b * norm.cdf(b)) @ np.asarray(outer["kernel"], np.float64) + outer["bias"]
    np.testing.assert_allclose(FeedForward().apply(variables, tokens), expected, atol=1e-5)


def test_heads_that_do_not_divide_the_channels_are_refused():
    with pytest.raises(ValueError, match="got 8 channels and 3 heads"):
        jax.eval_shape(SpatialTransformer(heads=3, groups=4).init, jax.random.key(0), jnp.ones((1, 2, 2, 8)), jnp.ones((1, 1, 4)))
