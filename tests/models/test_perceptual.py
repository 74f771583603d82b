"""Laws of the networks of LPIPS and of the distance between their features, and the networks' published sizes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxsr.bench.count import multiply_adds
from jaxsr.models.perceptual import (
    BACKBONES,
    CHANNELS,
    LEAST_SIDE,
    NETS,
    PerceptualDistance,
    distance_map,
    mean_distance,
    perceptual_shapes,
    unit_features,
)

SMALL = 20  # pixels


def drawn(net, seed=0):
    """Variables of the published shapes: He's normal kernels, biases, heads above zero."""
    rng = np.random.default_rng(seed)

    def array(name, shape):
        values = rng.normal(size=shape) * np.sqrt(2 / np.prod(shape[:-1])) if len(shape) > 1 else 0.1 * rng.normal(size=shape)
        return np.asarray(np.abs(values) if "head" in name else values, np.float32)

    flat = flatten_dict(perceptual_shapes(net), sep="/")
    return unflatten_dict({name: array(name, leaf.shape) for name, leaf in flat.items()}, sep="/")


def images(n=2, side=SMALL, channels=3, seed=1):
    """Two batches in [−1, 1]."""
    return jnp.asarray(np.random.default_rng(seed).uniform(-1, 1, (2, n, side, side, channels)), jnp.float32)


@pytest.fixture(scope="module")
def distance():
    """LPIPS' formula with the smallest of the networks, its weights drawn: compiled once."""
    network, variables = PerceptualDistance("squeeze"), drawn("squeeze")
    return jax.jit(lambda x, y: mean_distance(network.apply(variables, x, y)))


@pytest.mark.parametrize("net, parameters, giga", [("alex", 2_469_696, 0.656), ("vgg", 14_714_688, 15.347), ("squeeze", 722_496, 0.263)])
def test_the_networks_have_their_published_sizes(net, parameters, giga):
    """torchvision's `features`, at the 224 × 224 of ImageNet."""
    network, image = BACKBONES[net](), jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    variables = jax.eval_shape(network.init, jax.random.key(0), image)
    assert sum(leaf.size for leaf in jax.tree.leaves(variables)) == parameters
    assert multiply_adds(network.apply, variables, image) / 1e9 == pytest.approx(giga, abs=0.0005)
    assert tuple(f.shape[-1] for f in jax.eval_shape(network.apply, variables, image)) == CHANNELS[net]


@pytest.mark.parametrize("net", NETS)
def test_the_least_side_gives_every_layer_a_pixel_and_one_less_does_not(net):
    def maps(side):
        image = jax.ShapeDtypeStruct((1, side, side + 40, 3), jnp.float32)
        return jax.eval_shape(lambda image: BACKBONES[net]().init_with_output(jax.random.key(0), image)[0], image)

    least = LEAST_SIDE[net]
    assert min(found.shape[1] for found in maps(least)) == 1
    assert min(found.shape[1] for found in maps(least - 1)) == 0


@pytest.mark.parametrize("net", NETS)
def test_too_small_images_are_refused_with_the_least_side(net):
    least = LEAST_SIDE[net]
    image = jax.ShapeDtypeStruct((1, least - 1, 64, 1), jnp.float32)
    with pytest.raises(ValueError, match=rf"LPIPS \({net}\) needs at least {least} pixels on every side, got {least - 1} × 64"):
        jax.eval_shape(PerceptualDistance(net).init, jax.random.key(0), image, image)


def test_equal_images_are_at_no_distance_and_others_at_some(distance):
    x, y = images()
    np.testing.assert_allclose(distance(x, x), 0, atol=1e-9)
    assert (distance(x, y) > 1e-3).all()


def test_the_distance_is_symmetric(distance):
    x, y = images()
    np.testing.assert_allclose(distance(x, y), distance(y, x), rtol=1e-5)


def test_images_of_a_batch_do_not_see_each_other(distance):
    x, y = images()
    np.testing.assert_allclose(distance(x, y)[::-1], distance(x[::-1], y[::-1]), rtol=1e-5)
    np.testing.assert_allclose(distance(x, y.at[1].set(0))[0], distance(x, y)[0], rtol=1e-5)


def test_the_distance_grows_with_the_noise(distance):
    x, noise = images()
    distances = np.stack([distance(x, x + scale * noise) for scale in (0.01, 0.03, 0.1, 0.3)])
    assert (np.diff(distances, axis=0) > 0).all()


def test_one_channel_is_three_equal_ones(distance):
    x, y = images()
    x, y = x[..., :1], y[..., :1]
    np.testing.assert_allclose(distance(x, y), distance(jnp.repeat(x, 3, -1), jnp.repeat(y, 3, -1)), rtol=1e-5)


def test_a_step_against_the_gradient_lowers_the_distance_by_its_length(distance):
    """d(x − s g) ≈ d(x) − s |g|² for a small s; and at x = y there is no slope."""
    x, y = images(1)
    y = x + 0.3 * y
    slope = jax.jit(jax.value_and_grad(lambda x, y: distance(x, y).sum()))
    value, gradient = slope(x, y)
    square = float((gradient**2).sum())
    step = 0.02 * float(value) / square
    drop = float(value) - float(slope(x - step * gradient, y)[0])
    assert drop == pytest.approx(step * square, rel=0.1)
    assert jnp.abs(slope(y, y)[1]).max() < 1e-4 * jnp.abs(gradient).max()


def test_features_have_length_one_and_zero_keeps_a_slope():
    """At zero the slope is that of f / ε: 10¹⁰, not infinite nor NaN."""
    features = jnp.asarray(np.random.default_rng(0).random((3, 4, 4, 8)), jnp.float32)
    np.testing.assert_allclose(jnp.linalg.norm(unit_features(features), axis=-1), 1, rtol=1e-6)
    np.testing.assert_array_equal(unit_features(0 * features), 0)
    np.testing.assert_allclose(jax.grad(lambda f: unit_features(f).sum())(0 * features), 1e10, rtol=1e-6)


# ------------------------------------------------------------------------------------------------ maps, masks


def maps(seed=0):
    """Of two layers, for images of 12 × 20: one divides them, one does not."""
    rng = np.random.default_rng(seed)
    return tuple(jnp.asarray(rng.random(shape), jnp.float32) for shape in ((2, 6, 10), (2, 5, 7)))


def test_a_mask_of_everything_is_no_mask_and_an_empty_one_has_no_mean():
    whole = np.ones((2, 12, 20), bool)
    np.testing.assert_allclose(mean_distance(maps(), whole), mean_distance(maps()), rtol=1e-6)
    assert np.isnan(mean_distance(maps(), ~whole)).all()


def test_disjoint_masks_share_the_distance_by_their_pixels():
    part = np.random.default_rng(3).random((2, 12, 20)) < 0.3
    parts = [mask.sum((1, 2)) * mean_distance(maps(), mask) for mask in (part, ~part)]
    np.testing.assert_allclose(sum(parts), 12 * 20 * mean_distance(maps()), rtol=1e-5)


def test_a_mask_along_the_features_edges_is_the_mean_of_its_features():
    found, mask = maps()[:1], np.zeros((2, 12, 20), bool)
    mask[0, 2:6, 8:18] = mask[1, :, :2] = True
    np.testing.assert_allclose(mean_distance(found, mask), [found[0][0, 1:3, 4:9].mean(), found[0][1, :, 0].mean()], rtol=1e-6)


def test_the_picture_of_even_distances_is_even():
    even = tuple(jnp.full_like(found, 0.25) for found in maps())
    np.testing.assert_allclose(distance_map(even, (12, 20)), np.full((2, 12, 20), 0.5), rtol=1e-6)
