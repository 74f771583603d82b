"""Laws of the SR3 network, and its published sizes."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsr.methods.sr3 import Sr3NetworkConfig
from jaxsr.models.sr3 import Sr3UNet

STUDENT = (1, 2, 2, 4, 4, 8, 8, 16)
TINY = {"width": 8, "multipliers": (1, 2), "blocks": 1, "attention_at": (2,), "groups": 4}


def shapes(network, size, channels=1, batch=2):
    x, level = jnp.zeros((batch, size, size, channels)), jnp.ones(batch)
    return jax.eval_shape(network.init_with_output, jax.random.key(0), x, x, level)


def count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(nn.meta.unbox(tree)))


@pytest.mark.parametrize("attributes, channels, parameters", [
    (dict(Sr3NetworkConfig()), 1, 97_804_033),
    (dict(Sr3NetworkConfig()), 3, 97_807_491),
    ({"multipliers": STUDENT, "attention_at": (16,), "blocks": 2}, 1, 271_420_673),
    ({"multipliers": STUDENT, "attention_at": (4, 8, 16, 32), "blocks": 3}, 1, 363_834_305),
], ids=["SR3", "SR3 in colour", "student (the text)", "student (its Table IV)"])  # fmt: skip
def test_the_published_networks_have_exactly_their_published_parameters(attributes, channels, parameters):
    """spec: SR3 and its three-channel form (6 in, 3 out), and both readings of the student."""
    out, variables = shapes(Sr3UNet(**attributes, channels=channels), 128, channels)
    assert count(variables) == parameters
    assert out.shape == (2, 128, 128, channels)


@pytest.mark.parametrize("patch", [1, 2])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_the_answer_is_float32_of_the_input_s_shape_and_so_are_the_parameters(patch, dtype):
    out, variables = shapes(Sr3UNet(**TINY, patch=patch, dtype=dtype), 16)
    assert out.shape == (2, 16, 16, 1)
    assert out.dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float32)}


@pytest.mark.parametrize("patch, side", [(1, 15), (2, 18)])
def test_sides_that_do_not_divide_are_refused_with_the_multiple(patch, side):
    with pytest.raises(ValueError, match=f"multiples of {2 * patch} for 2 levels, got {side} × {side}"):
        shapes(Sr3UNet(**TINY, patch=patch), side)


def test_slices_of_a_batch_do_not_see_each_other_and_the_noise_level_is_seen():
    network = Sr3UNet(**TINY)
    x, y = jax.random.normal(jax.random.key(0), (2, 2, 8, 8, 1))
    level = jnp.array([0.3, 0.9])
    rng = np.random.default_rng(0)  # drawn without compiling the initialisers
    _, abstract = shapes(network, 8)
    variables = jax.tree.map(lambda leaf: jnp.asarray(0.3 * rng.normal(size=leaf.shape), jnp.float32), nn.meta.unbox(abstract))
    apply = jax.jit(network.apply)
    out = apply(variables, x, y, level)
    other = apply(variables, x.at[1].set(0), y.at[1].set(0), level)
    np.testing.assert_allclose(other[0], out[0], atol=1e-6)
    assert not np.allclose(apply(variables, x, y, level[::-1])[0], out[0], atol=1e-3)
