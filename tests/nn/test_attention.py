"""Laws of self-attention over pixels."""

import flax.linen as nn
import jax
import numpy as np
import pytest

from jaxsr.nn.attention import PixelAttention


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
