"""Laws of the anatomy extractor's training [SPCDD §3.3; 30-spcdd, anatomy extractor]."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from pydantic import ValidationError

from jaxsr.config import ConfigError, from_dict
from jaxsr.data.anatomy import STRUCTURES, TISSUES, shares
from jaxsr.experiment import Experiment
from jaxsr.methods.anatomy import AnatomyConfig, fuzzy_errors, hard_dice, probabilities, sampled, uneven
from jaxsr.methods.base import Request, Segmenter
from jaxsr.methods.condition import Batch
from jaxsr.models.anatomy import class_means, masks_of, template

NETWORK = {"width": 4, "multipliers": [1, 2], "groups": 2}
SIDE = 16
NAMES = ("csf", "grey", "white")


def recipe(**settings):
    return AnatomyConfig(network=NETWORK, **settings).build()


def tissues_of(n=2, seed=0):
    """Labels `[n, SIDE, SIDE]`, and a noiseless T1-weighted slice of them."""
    labels = jax.random.randint(jax.random.key(seed), (n, SIDE // 4, SIDE // 4), 0, 4)
    labels = jnp.repeat(jnp.repeat(labels, 4, 1), 4, 2).astype(jnp.uint8)
    return labels, jnp.array([-1.0, -0.5, 0.1, 0.7])[labels][..., None]


def batch(seed=0):
    labels, image = tissues_of(seed=seed)
    return Batch(high=image, low=image, labels=labels)


def keys_of(n=2):
    return jax.random.split(jax.random.key(3), n)


def test_labels_are_shares_of_tissues():
    """A structure is what it is mixed of: a thalamus half of each matter, a lesion the white matter it lies in, skull and scalp none."""
    table = shares(NAMES)
    of = lambda name: table[STRUCTURES.index(name)]  # noqa: E731
    np.testing.assert_allclose(table.sum(-1), 1, rtol=1e-6)
    np.testing.assert_allclose(of("thalamus"), [0, 0, 0.5, 0.5])
    np.testing.assert_allclose(of("lesion"), [0, 0, 0, 1])
    np.testing.assert_allclose([of("skull"), of("scalp"), of("background")], [[1, 0, 0, 0]] * 3)
    labels = jnp.array([[[TISSUES.index("csf"), 255]]], jnp.uint8)
    np.testing.assert_allclose(probabilities(labels, NAMES), [[[[0, 1, 0, 0], [1, 0, 0, 0]]]])
    aseg = jnp.array([[[2, 3, 4, 10, 200]]], jnp.uint8)  # white matter, cortex, ventricle, thalamus; and a number of nobody's
    expected = [[0, 0, 0, 1], [0, 0, 1, 0], [0, 1, 0, 0], [0, 0, 0.5, 0.5], [1, 0, 0, 0]]
    np.testing.assert_allclose(probabilities(aseg, NAMES, "freesurfer")[0, 0], expected)


def test_the_template_is_piecewise_constant_at_the_means_of_the_slice():
    """§3.3: of hard masks it is each tissue's own mean, and air where there is no tissue; a class that is nowhere changes nothing."""
    labels, image = tissues_of()
    masks = jax.nn.one_hot(labels, 5)
    noisy = image + 0.05 * jax.random.normal(jax.random.key(1), image.shape)
    drawn = template(noisy, masks)
    for i in range(len(labels)):
        for k in range(4):
            expected = -1.0 if k == 0 else np.asarray(noisy)[i, ..., 0][np.asarray(labels[i]) == k].mean()
            np.testing.assert_allclose(np.asarray(drawn)[i, ..., 0][np.asarray(labels[i]) == k], expected, rtol=1e-3)
    np.testing.assert_allclose(class_means(noisy, masks)[:, 4], 0, atol=1e-6)
    assert np.isfinite(jax.grad(lambda x: template(x, masks).sum())(noisy)).all()


def test_weak_supervision_is_cross_entropy_and_dice():
    """Both of perfect, very sure masks are nothing; of others they are what they say."""
    method = recipe()
    known = probabilities(batch().labels, NAMES)
    both = jnp.repeat(known, 2, axis=0)  # low, high, low, high
    method._logits = lambda variables, y: 30 * both - 15
    output = method.loss({"params": {}, "stats": {}}, batch(), keys_of(), jnp.float32(0))
    assert float(output.loss) < 1e-4
    np.testing.assert_allclose([output.metrics[f"dice_{name}"] for name in NAMES], 1)
    method._logits = lambda variables, y: jnp.zeros(both.shape)
    flat = method.loss({"params": {}, "stats": {}}, batch(), keys_of(), jnp.float32(0))
    np.testing.assert_allclose(flat.metrics["cross_entropy"], np.log(4), rtol=1e-5)
    assert method.config.maps == ("labels",)


def test_hard_dice_is_that_of_the_likeliest_classes():
    labels, _ = tissues_of()
    other = jnp.roll(labels, 1, axis=1)
    found = hard_dice(jax.nn.one_hot(labels, 5), jax.nn.one_hot(other, 5))
    for k in range(4):
        a, b = np.asarray(labels) == k, np.asarray(other) == k
        np.testing.assert_allclose(found[k], 2 * (a & b).sum() / (a.sum() + b.sum()), rtol=1e-6)
    assert found[4] == 1


def test_fuzzy_clusters_of_separated_tissues_cost_nothing():
    """C and its means [Bezdek 1981]; and masks that mix cost more."""
    labels, image = tissues_of()
    masks = jax.nn.one_hot(labels, 4)
    errors, means = fuzzy_errors(image, masks)
    np.testing.assert_allclose(errors, 0, atol=1e-6)
    np.testing.assert_allclose(means[0], [-1, -0.5, 0.1, 0.7], atol=1e-3)
    assert (fuzzy_errors(image, 0.7 * masks + 0.1 * jnp.roll(masks, 1, -1) + 0.2 * jnp.roll(masks, 2, -1))[0] > 1e-3).all()


def test_masks_may_change_where_the_slice_does():
    """S: nothing for constant masks; less where the image has the same edge."""
    labels, image = tissues_of()
    masks = jax.nn.one_hot(labels, 4)
    np.testing.assert_allclose(uneven(jnp.ones_like(masks) / 4, image, 0.1), 0, atol=1e-7)
    assert (uneven(masks, image, 0.1) < 0.1 * uneven(masks, jnp.zeros_like(image), 0.1)).all()


def test_a_map_of_the_plane_moves_pixels_where_it_says():
    """T: the identity leaves a slice, a flip turns it, half a pixel is the mean of two."""
    _, image = tissues_of()
    pixels = jnp.broadcast_to(jnp.stack(jnp.meshgrid(jnp.arange(16.0), jnp.arange(16.0), indexing="ij"), -1), (2, 16, 16, 2))
    np.testing.assert_allclose(sampled(image, pixels), image, atol=1e-6)
    np.testing.assert_allclose(sampled(image, pixels.at[..., 0].set(15 - pixels[..., 0])), image[:, ::-1], atol=1e-6)
    half = sampled(image, pixels + jnp.array([0.5, 0]))
    np.testing.assert_allclose(half[:, :-1], (image[:, 1:] + image[:, :-1]) / 2, atol=1e-6)


def test_without_labels_it_learns_to_tell_tissues_apart():
    """'self': from the slice alone, classes in the order of T1-weighted brightness."""
    method, optimizer = recipe(supervision="self"), optax.adam(1e-2)
    params = nn.meta.unbox(method.init(jax.random.key(0), batch()))["params"]

    @jax.jit
    def trained(params):
        def step(carry, key):
            params, state = carry
            loss = lambda params: method.loss({"params": params, "stats": {}}, batch(), jax.random.split(key, 2), jnp.float32(0)).loss  # noqa: E731
            updates, state = optimizer.update(jax.grad(loss)(params), state)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (params, optimizer.init(params)), jax.random.split(jax.random.key(1), 250))[0][0]

    dice = hard_dice(masks_of(method._logits({"params": trained(params)}, batch().low)), probabilities(batch().labels, NAMES))
    assert method.config.maps == ()
    assert (dice > 0.9).all(), dice


def test_it_answers_with_the_template_and_says_what_is_where():
    method = recipe()
    variables = {"params": nn.meta.unbox(method.init(jax.random.key(0), batch()))["params"], "stats": {}}
    assert isinstance(method, Segmenter) and method.tissues == ("background", *NAMES)  # noqa: PT018
    masks = method.segment(variables, batch().condition)
    np.testing.assert_allclose(masks.sum(-1), 1, rtol=1e-5)
    image = method.upscale(variables, batch().condition, keys_of(), Request(1)).image
    np.testing.assert_allclose(image, template(batch().low, masks), rtol=1e-6)


@pytest.mark.parametrize("settings, message", [
    ({"tissues": []}, "names none"), ({"tissues": ["csf", "csf"]}, "one of them twice"), ({"tissues": ["gold"]}, "unknown tissue gold"),
    ({"width": 6, "groups": 4}, "multiple of groups"),
])  # fmt: skip
def test_networks_that_cannot_be_are_refused(settings, message):
    with pytest.raises(ValidationError, match=message):
        AnatomyConfig(network={**NETWORK, **settings})


@pytest.mark.parametrize("method, data, message", [
    ({"numbering": "freesurfer"}, {"maps": ["labels"]}, "only then"),
    ({}, {"maps": ["labels"], "manifest": "set"}, "jaxsr or freesurfer"),
    ({"supervision": "self"}, {"contrast": "T2w"}, "must be T1w, not T2w"),
    ({"supervision": "self"}, {}, "must be T1w, not random"),
])  # fmt: skip
def test_labels_of_nobody_s_numbers_and_clusters_of_other_names_are_refused(method, data, message):
    with pytest.raises(ConfigError, match=message):
        from_dict({"method": {"kind": "anatomy", "network": NETWORK, **method}, "data": {"crop": 16, **data}}, Experiment)
