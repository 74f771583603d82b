"""Laws of the teacher's loss on slices that were encoded before: it is that of the slices, and computes neither encoder."""

import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsr.bench.count import count_part, multiply_adds
from jaxsr.methods.condition import Batch
from jaxsr.methods.teacher import Teacher, TeacherConfig
from jaxsr.models.autoencoder import Gaussian
from jaxsr.precompute.encoders import Encoders
from jaxsr.train.state import abstract_variables

AUTOENCODER = {"network": {"channels": 1, "width": 4, "multipliers": (1, 1), "blocks": 1, "latent": 2, "groups": 2}}
UNET = {"width": 4, "multipliers": (1,), "blocks": 1, "attention_at": (1,), "heads": 1, "context_width": 6, "groups": 2}
ENCODER = {"patch": 8, "width": 8, "layers": 1, "heads": 2, "projection": 6, "side": 16}
SIDE, SLICES = 8, 4

KINDS = {
    "pooled": {"lambda_rec": 0.7},
    "tokens": {"spatial": "vit", "image_encoder": {**ENCODER, "context": "patches"}},
}
MORE = {
    "trained": {"image_encoder": {**ENCODER, "train": True}},
    "vit and pooled": {"spatial": "vit"},
    "no image encoder": {"image_encoder": None, "guidance": None},
}


@functools.cache
def named(kind):
    """Once: what it has compiled serves again."""
    return recipe(**{**KINDS, **MORE}[kind])


def recipe(**settings):
    settings = {"image_encoder": ENCODER, "guidance": {"width": 4, "groups": 2}, "sampling_steps": 3, **settings}
    return Teacher(TeacherConfig(autoencoder=AUTOENCODER, unet=UNET, **settings))


def slices(method):
    high, error, bias = jax.random.normal(jax.random.key(0), (3, SLICES, SIDE, SIDE, 1))
    maps = {"bias": 0.2 * bias, "gradient": jax.random.normal(jax.random.key(1), (SLICES, SIDE, SIDE, 3))}
    return Batch(high=jnp.tanh(high), low=jnp.tanh(high) + 0.3 * error, **{name: maps[name] for name in method.config.maps})


def weights(method):
    """Random weights without compiling the initialisers."""
    rng = np.random.default_rng(0)
    shapes = abstract_variables(method, slices(method))
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape) * 0.6, jnp.float32), shapes)


def keys_of(n):
    return jax.random.split(jax.random.key(7), n)


def encoded(method, variables, batch, dtype=np.float32):
    """The batch as a set that was encoded holds it: what the method asks for, and nothing else of the images."""
    side = method.config.image_encoder.side if method.config.image_encoder else 0
    params = {"autoencoder": variables["frozen"]["autoencoder"]["encoder"]}
    if image_encoder := variables["frozen"].get("image_encoder"):
        params["image_encoder"] = image_encoder
    network = method.image_encoder if image_encoder else None
    encoders = Encoders(method.autoencoder, network, params, {}, side, None)
    make = functools.partial(encoders.make, keys=None, settings=SimpleNamespace(tokens="patches"))
    made = jax.jit(make)(params, {"high": batch.high, "low": batch.low})
    made = {name: np.asarray(x).astype(dtype).astype(np.float32) for name, x in made.items()} | {"high": batch.high, "low": batch.low}
    return batch._replace(**{"high": None, "low": None} | {name: made[name] for name in method.precomputed(SIDE).shapes})


def stored_shapes(method):
    shapes = {name: jax.ShapeDtypeStruct((SLICES, *shape), jnp.float32) for name, shape in method.precomputed(SIDE).shapes.items()}
    return slices(method)._replace(**{"high": None, "low": None, **shapes})


def loss_of(method, variables, batch):
    """With no more of what is frozen than the method says that it needs."""
    needed = abstract_variables(method, batch)["frozen"]
    frozen = {name: {part: variables["frozen"][name][part] for part in parts} for name, parts in needed.items()}
    return jax.jit(method.loss)({**variables, "frozen": frozen}, batch, keys_of(SLICES), 0).loss


@pytest.mark.parametrize("kind", ["tokens", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("pooled", *MORE))])
def test_the_loss_of_stored_encodings_is_that_of_the_slices(kind):
    method = named(kind)
    variables, given = weights(method), slices(method)
    stored = encoded(method, variables, given)
    assert (stored.high is None, stored.low is None) == (kind != "pooled", kind != "trained")
    np.testing.assert_allclose(loss_of(method, variables, stored), loss_of(method, variables, given), rtol=1e-5)
    # And not by deafness: with what is stored of another slice it is another.
    for name in method.precomputed(SIDE).shapes:
        other = stored._replace(**{name: getattr(stored, name)[::-1]})
        assert abs(loss_of(method, variables, other) / loss_of(method, variables, stored) - 1) > 1e-4, name


def test_in_half_precision_the_loss_is_the_same_to_a_thousandth():
    method = named("pooled")
    variables, given = weights(method), slices(method)
    loss = loss_of(method, variables, encoded(method, variables, given, np.float16))
    np.testing.assert_allclose(loss, loss_of(method, variables, given), rtol=1e-3)


def test_the_range_of_log_variances_is_within_half_precision():
    """exp(½ log σ²) is then off by less than one part in a hundred, at either end."""
    ends = np.array([-30.0, 20.0]) * 0.9999
    np.testing.assert_allclose(np.exp(0.5 * ends.astype(np.float16).astype(np.float64)), np.exp(0.5 * ends), rtol=1e-2)


def test_neither_encoder_is_computed_and_the_decoder_only_with_lambda():
    """In multiply-adds: what is spared is two slices through E_1, and one through E_2, for each slice."""
    work = {}
    for rec in (0.0, 1.0):
        method = recipe(lambda_rec=rec)
        given = slices(method)
        for name, batch in (("images", given), ("encoded", stored_shapes(method))):
            work[name, rec] = multiply_adds(method.loss, abstract_variables(method, batch), batch, keys_of(SLICES), 0)
    parts = recipe().autoencoder.parts(SIDE)
    decoder, encoder = (count_part(parts[name], [])["multiply_adds"] for name in ("decoder", "encoder"))
    image_encoder = count_part(recipe().parts(SIDE)["image encoder"], [])["multiply_adds"]
    resizing = multiply_adds(lambda low: jax.image.resize(low, (1, 16, 16, 1), "bicubic"), jnp.zeros((1, SIDE, SIDE, 1)))
    assert work["images", 0.0] - work["encoded", 0.0] == SLICES * (2 * encoder + image_encoder + resizing)
    assert work["encoded", 1.0] - work["encoded", 0.0] == SLICES * decoder


@pytest.mark.parametrize("rec, needed", [(0.0, {}), (1.0, {"autoencoder": {"decoder"}})])
def test_of_what_is_frozen_only_the_decoder_is_asked_for_and_that_with_lambda(rec, needed):
    method = recipe(lambda_rec=rec)
    assert {name: set(parts) for name, parts in method.frozen(stored_shapes(method)).items()} == needed
    assert method.frozen().keys() == {"autoencoder", "image_encoder"}


@pytest.mark.parametrize("settings", [*KINDS.values(), *MORE.values()], ids=[*KINDS, *MORE])
def test_parameters_do_not_depend_on_whether_slices_are_encoded(settings):
    method = recipe(**settings)
    one, other = (abstract_variables(method, batch)["params"] for batch in (slices(method), stored_shapes(method)))
    assert one == other


def test_moments_are_a_gaussian_and_back():
    mean, log_variance = jax.random.normal(jax.random.key(3), (2, 1, 2, 2, 3))
    there = Gaussian(mean, log_variance)
    assert there.moments.shape == (1, 2, 2, 6)
    jax.tree.map(np.testing.assert_array_equal, Gaussian.of(there.moments), there)
