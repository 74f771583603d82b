"""Laws of CLIP's vision transformer and of the images that it sees, and its published sizes."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from jaxsr.bench.count import multiply_adds
from jaxsr.models.clip import CLIP, MEAN, SIDE, STD, VisionTransformer, clip_image
from jaxsr.runtime.mesh import make_mesh, variable_shardings

TINY = {"patch": 4, "width": 16, "layers": 2, "heads": 2, "projection": 6}


def drawn(network, x, scale=0.3):
    """Random weights without compiling the initialisers."""
    rng = np.random.default_rng(0)
    shapes = nn.meta.unbox(jax.eval_shape(network.init, jax.random.key(0), x))
    return jax.tree.map(lambda leaf: jnp.asarray(scale * rng.normal(size=leaf.shape), jnp.float32), shapes)


def images(n=2, height=12, width=12, channels=3, seed=1):
    return jnp.asarray(np.random.default_rng(seed).uniform(-1, 1, (n, height, width, channels)), jnp.float32)


def to_unit(seen):
    """What `clip_image` gave, without CLIP's mean and deviation: `[B, S, S]` in [0, 1]; the three channels are one."""
    values = np.asarray(seen) * np.array(STD) + np.array(MEAN)
    np.testing.assert_allclose(values, values[..., :1] + np.zeros(3), atol=1e-6)
    return values[..., 0]


@pytest.mark.parametrize("name, parameters, giga, tokens", [("vit-l-14", 303_966_208, 81.0, 257), ("vit-b-32", 87_849_216, 4.4, 50)])
def test_published_networks_have_exactly_their_published_sizes(name, parameters, giga, tokens):
    """spec 10, 'Counts that are unit tests'."""
    network, image = VisionTransformer(**CLIP[name]), jax.ShapeDtypeStruct((1, SIDE, SIDE, 3), jnp.float32)
    out, variables = jax.eval_shape(network.init_with_output, jax.random.key(0), image)
    assert sum(leaf.size for leaf in jax.tree.leaves(variables)) == parameters
    assert multiply_adds(network.apply, nn.meta.unbox(variables), image) / 1e9 == pytest.approx(giga, abs=0.05)
    assert out.tokens.shape == (1, tokens, CLIP[name]["width"])
    assert out.pooled.shape == (1, CLIP[name]["projection"])


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_outputs_and_parameters_are_float32_whatever_is_computed_in(dtype):
    out, variables = jax.eval_shape(VisionTransformer(**TINY, dtype=dtype).init_with_output, jax.random.key(0), images())
    assert {leaf.dtype for leaf in jax.tree.leaves((out, variables))} == {jnp.dtype(jnp.float32)}


def test_activations_computed_again_give_the_same_parameters_values_and_gradients():
    x = images()
    kept, again = (VisionTransformer(**TINY, remat=remat) for remat in (False, True))
    variables = drawn(kept, x)
    assert jax.tree.map(jnp.shape, drawn(again, x)) == jax.tree.map(jnp.shape, variables)
    total = lambda network: jax.jit(jax.value_and_grad(lambda v: network.apply(v, x).pooled.sum()))(variables)  # noqa: E731
    (value, gradients), (value_again, gradients_again) = total(kept), total(again)
    np.testing.assert_allclose(value_again, value, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(b).max()), gradients_again, gradients)


def test_every_matrix_is_split_over_the_tensor_axis_by_its_outputs():
    """By names that the table of runtime/mesh.py has; one that it has not is an error there."""
    boxed = jax.eval_shape(VisionTransformer(**TINY).init, jax.random.key(0), images())
    variable_shardings(make_mesh(devices=jax.devices()[:1]), boxed)
    names = nn.get_partition_spec(boxed)["params"]
    assert tuple(names["positions"]) == (None, "embed_out")
    for part in ("query", "key", "value", "out", "wide", "narrow"):
        assert tuple(names["block0"][part]["kernel"]) == ("embed_in", "embed_out")


@pytest.mark.parametrize("shape", [(1, 12, 16, 3), (1, 14, 14, 3)])
def test_what_is_no_square_of_whole_patches_is_refused(shape):
    with pytest.raises(ValueError, match=f"multiple of 4, got {shape[1]} × {shape[2]}: use clip_image"):
        jax.eval_shape(VisionTransformer(**TINY).init, jax.random.key(0), jnp.zeros(shape))


# ------------------------------------------------------------------------------------------------ images


@pytest.mark.parametrize("side", [96, 224, 256, 517])
def test_images_shrink_and_grow_as_those_of_pil_which_clip_was_trained_on(side):
    """PIL's bicubic has a = −½ and widens when it shrinks, as jax.image.resize: they are one filter, to float32."""
    x = images(1, side, side, 1)
    grey = (np.asarray(x)[0, ..., 0] + 1) / 2
    expected = np.asarray(Image.fromarray(grey).resize((SIDE, SIDE), Image.Resampling.BICUBIC)).clip(0, 1)
    np.testing.assert_allclose(to_unit(clip_image(x))[0], expected, atol=5e-5)


@pytest.mark.parametrize("height, width", [(40, 56), (57, 40)])
def test_the_whole_slice_is_seen_in_the_middle_of_a_black_square(height, width):
    """Brought to the side of its longer edge, nothing is interpolated: the slice itself, and black beside it."""
    x, side = images(1, height, width, 1), max(height, width)
    seen = to_unit(clip_image(x, side))[0]
    top, left = (side - height) // 2, (side - width) // 2
    np.testing.assert_allclose(seen[top : top + height, left : left + width], (np.asarray(x)[0, ..., 0] + 1) / 2, atol=1e-6)
    seen[top : top + height, left : left + width] = 0
    np.testing.assert_allclose(seen, 0, atol=1e-6)


def test_values_beyond_the_range_are_clipped_to_it():
    x = images(1, 32, 32, 1)
    seen = clip_image(3 * x)
    np.testing.assert_array_equal(seen, clip_image(jnp.clip(3 * x, -1, 1)))
    assert to_unit(seen).min() == pytest.approx(0, abs=1e-6)
    assert to_unit(seen).max() == pytest.approx(1, abs=1e-6)


def test_a_slice_is_seen_the_same_in_any_batch():
    x = images(3, 20, 28, 1)
    np.testing.assert_allclose(clip_image(x[1:2], 24)[0], clip_image(x, 24)[1], atol=1e-6)
