"""Laws of the dense block: what sees what, and how much comes out."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsr.nn.dense_block import DenseBlock

X = jax.random.normal(jax.random.key(0), (2, 6, 8, 5))
EMBEDDING = jax.random.normal(jax.random.key(1), (2, 3))
BLOCK = DenseBlock(features=7, layers=4, growth=2)
LAYERS = [f"layer{i}" for i in range(4)]


@pytest.fixture(scope="module")
def variables():
    return nn.meta.unbox(BLOCK.init(jax.random.key(2), X, EMBEDDING))


@jax.jit
def run(variables):
    """What each layer adds, and the block's output."""
    out, state = BLOCK.apply(variables, X, EMBEDDING, capture_intermediates=True)
    return [state["intermediates"][name]["__call__"][0] for name in LAYERS], out


def test_a_layer_adds_growth_channels_and_is_shown_all_before_it(variables):
    params = variables["params"]
    assert [params[name]["conv"]["kernel"].shape for name in LAYERS] == [(3, 3, 5 + 2 * i, 2) for i in range(4)]
    assert params["transition"]["kernel"].shape == (1, 1, 5 + 4 * 2, 7)


def test_the_output_is_a_mixture_of_the_input_and_of_what_every_layer_adds_in_that_order(variables):
    """[Huang et al. 2017, Eq. 2; RDN, Eq. 6]: x_0 first, one map after another."""
    added, out = run(variables)
    transition = variables["params"]["transition"]
    expected = jnp.concatenate([X, *added], -1) @ transition["kernel"][0, 0] + transition["bias"]
    np.testing.assert_allclose(out, expected, atol=1e-5)


@pytest.mark.parametrize("changed", range(4))
def test_a_layer_reaches_every_later_layer_and_no_earlier_one(variables, changed):
    other = jax.tree.map(lambda leaf: leaf, variables)
    other["params"][LAYERS[changed]]["conv"]["bias"] += jnp.array([0.5, -0.5])
    (before, out), (after, out_after) = run(variables), run(other)
    moved = [bool(np.abs(a - b).max() > 1e-3) for a, b in zip(after, before, strict=True)]
    assert moved == [layer >= changed for layer in range(4)]
    assert np.abs(out_after - out).max() > 1e-3


@pytest.mark.parametrize("seeing, seen", [(i, j) for i in range(4) for j in range(i)])
def test_every_layer_sees_each_layer_before_it_directly(variables, seeing, seen):
    """Without the others' part in it: the kernel's rows for that layer's channels alone decide."""
    other = jax.tree.map(lambda leaf: leaf, variables)
    kernel = other["params"][LAYERS[seeing]]["conv"]["kernel"]
    rows = slice(5 + 2 * seen, 5 + 2 * (seen + 1))
    other["params"][LAYERS[seeing]]["conv"]["kernel"] = kernel.at[:, :, rows].set(0)
    (before, _), (after, _) = run(variables), run(other)
    assert np.abs(after[seeing] - before[seeing]).max() > 1e-3


def test_every_layer_is_told_the_embedding(variables):
    """Each by itself: with the others' modulation switched off, the output still follows the embedding."""
    for name in LAYERS:
        alone = jax.tree.map(lambda leaf: leaf, variables)
        for other in set(LAYERS) - {name}:
            alone["params"][other]["film"] = jax.tree.map(jnp.zeros_like, alone["params"][other]["film"])
        outputs = [BLOCK.apply(alone, X, e) for e in (EMBEDDING, 0 * EMBEDDING)]
        assert np.abs(outputs[0] - outputs[1]).max() > 1e-2, name
