"""Laws of feature-wise linear modulation."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxsr.nn.film import Film, FilmConvBlock

X = jax.random.normal(jax.random.key(0), (2, 6, 8, 4))
EMBEDDING = jax.random.normal(jax.random.key(1), (2, 3))


def init(module):
    return nn.meta.unbox(module.init(jax.random.key(2), X, EMBEDDING))


def test_it_scales_and_shifts_each_channel_by_what_the_embedding_says():
    """[Perez et al. 2018, Eqs. 1–2], by numpy."""
    variables = init(Film())
    layer = variables["params"]["scale_and_shift"]
    layer["bias"] = jnp.arange(8.0)
    said = np.asarray(EMBEDDING) @ np.asarray(layer["kernel"]) + np.arange(8)
    expected = np.asarray(X) * (1 + said[:, None, None, :4]) + said[:, None, None, 4:]
    np.testing.assert_allclose(Film().apply(variables, X, EMBEDDING), expected, atol=1e-5)


def test_an_embedding_that_says_nothing_changes_nothing():
    np.testing.assert_array_equal(Film().apply(init(Film()), X, jnp.zeros_like(EMBEDDING)), X)


def test_a_convolution_block_modulates_what_it_has_normalised():
    """With W = 0 all is swish(norm(conv)); a shift of b moves it within swish, whatever scale the convolution has."""
    block = FilmConvBlock(6, groups=3)
    variables = init(block)
    film = variables["params"]["film"]["scale_and_shift"]
    film["kernel"] *= 0
    plain = block.apply(variables, X, EMBEDDING)
    variables["params"]["conv"]["kernel"] *= 10
    np.testing.assert_allclose(block.apply(variables, X, EMBEDDING), plain, atol=1e-4)
    film["bias"] = jnp.r_[jnp.full(6, -1.0), jnp.full(6, 0.7)]  # (1 + s) = 0
    np.testing.assert_allclose(block.apply(variables, X, EMBEDDING), jnp.full_like(plain, nn.swish(0.7)), atol=1e-6)


def test_each_slice_is_told_its_own_embedding():
    block = FilmConvBlock(6, groups=3)
    variables = init(block)
    out, swapped = (block.apply(variables, X, e) for e in (EMBEDDING, EMBEDDING.at[1].set(0)))
    np.testing.assert_array_equal(swapped[0], out[0])
    assert np.abs(swapped[1] - out[1]).max() > 0.1
