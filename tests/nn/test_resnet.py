"""Laws of the residual block and of changes of resolution."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsr.nn.complex import ComplexConv
from jaxsr.nn.resnet import Downsample, ResnetBlock, Upsample, depth_to_space, space_to_depth


def image(shape=(2, 8, 8, 8), seed=0):
    return jax.random.normal(jax.random.key(seed), shape)


def init(module, *inputs):
    return nn.meta.unbox(module.init(jax.random.key(1), *inputs))


@pytest.mark.parametrize("block", [1, 2, 4])
def test_depth_to_space_undoes_space_to_depth(block):
    x = image((2, 8, 12, 3))
    deep = space_to_depth(x, block)
    assert deep.shape == (2, 8 // block, 12 // block, 3 * block**2)
    np.testing.assert_array_equal(depth_to_space(deep, block), x)


def test_the_channels_of_a_block_are_its_pixels_row_by_row():
    x = jnp.arange(16.0).reshape(1, 4, 4, 1)
    np.testing.assert_array_equal(space_to_depth(x, 2)[0, 0, 1], [2, 3, 6, 7])


def test_a_block_with_a_zero_last_convolution_is_its_skip():
    x, embedding = image(), image((2, 16))
    block = ResnetBlock(8, groups=4)
    variables = init(block, x, embedding)
    variables["params"]["conv2"]["kernel"] *= 0
    np.testing.assert_array_equal(block.apply(variables, x, embedding), x)


def test_dropout_acts_in_training_only():
    x, embedding = image(), image((2, 16))
    block = ResnetBlock(8, groups=4, dropout=0.5)
    variables = init(block, x, embedding)
    quiet = block.apply(variables, x, embedding)
    noisy = block.apply(variables, x, embedding, train=True, rngs={"dropout": jax.random.key(0)})
    np.testing.assert_array_equal(block.apply(variables, x, embedding), quiet)
    assert not np.allclose(noisy, quiet)


@pytest.mark.parametrize("module, side", [(Downsample(), 4), (Upsample(), 16)])
def test_resolution_changes_by_two_and_channels_stay(module, side):
    x = image()
    assert module.apply(init(module, x), x).shape == (2, side, side, 8)


def test_upsampling_with_an_identity_convolution_repeats_pixels():
    x = image()
    variables = init(Upsample(), x)
    variables["params"]["conv"]["kernel"] = jnp.zeros((3, 3, 8, 8)).at[1, 1].set(jnp.eye(8))
    np.testing.assert_allclose(Upsample().apply(variables, x), x.repeat(2, 1).repeat(2, 2), atol=1e-6)


@pytest.mark.parametrize("padding, first", [((1, 1), -1), ((0, 1), 0)])
def test_halving_reads_from_the_padding_before(padding, first):
    """A kernel of one at its first corner picks every other pixel, from `first` on."""
    x, module = image(), Downsample(padding=padding)
    variables = init(module, x)
    variables["params"]["conv"]["kernel"] = jnp.zeros((3, 3, 8, 8)).at[0, 0].set(jnp.eye(8))
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))[:, 1 + first :: 2, 1 + first :: 2][:, :4, :4]
    np.testing.assert_allclose(module.apply(variables, x), padded, atol=1e-6)


def test_a_block_without_an_embedding_is_one_whose_embedding_says_nothing():
    x, embedding = image(), image((2, 16))
    variables = init(ResnetBlock(8, groups=4), x, embedding)
    variables["params"]["embedding"] = jax.tree.map(jnp.zeros_like, variables["params"]["embedding"])
    with_ = ResnetBlock(8, groups=4).apply(variables, x, embedding)
    del variables["params"]["embedding"]
    np.testing.assert_allclose(ResnetBlock(8, groups=4).apply(variables, x), with_, atol=1e-6)


def test_with_film_an_embedding_that_says_nothing_is_none_and_one_that_speaks_is_heard_after_the_norm():
    """A shift of one channel within the norm's group would be normalised away; FiLM's is not."""
    x, embedding = image(), image((2, 16))
    block = ResnetBlock(8, groups=1, film=True)
    variables = init(block, x, embedding)
    silent = block.apply(variables, x, jnp.zeros_like(embedding))
    kept = {name: leaf for name, leaf in variables["params"].items() if name != "film"}
    np.testing.assert_allclose(ResnetBlock(8, groups=1).apply({"params": kept}, x), silent, atol=1e-6)
    variables["params"]["film"]["scale_and_shift"] = {"kernel": jnp.zeros((16, 16)), "bias": jnp.r_[jnp.zeros(8), jnp.ones(8)]}
    assert np.abs(block.apply(variables, x, embedding) - silent).max() > 0.1


def test_a_block_is_made_of_the_convolutions_that_it_is_given():
    x, embedding = image(), image((2, 16))
    params = init(ResnetBlock(12, groups=4, convolution=ComplexConv), x, embedding)["params"]
    assert [set(params[name]) for name in ("conv1", "conv2", "skip")] == [{"real", "imaginary", "bias"}] * 3
    assert params["skip"]["real"].shape == (1, 1, 4, 6)
