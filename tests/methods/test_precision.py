"""Laws of what is held in bfloat16: nothing that is computed changes, and whatever is used in float32 stays so."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsr.bench.synthetic import synthetic_variables
from jaxsr.config import from_dict
from jaxsr.experiment import Experiment
from jaxsr.methods.condition import Batch, Condition
from jaxsr.methods.precision import held_to_train, held_to_upscale, rounded_ahead

AUTOENCODER = {"network": {"channels": 1, "width": 4, "multipliers": [1, 1], "blocks": 1, "latent": 2, "groups": 2}}
METHODS = {
    "autoencoder": AUTOENCODER,
    "sr3": {"network": {"width": 4, "multipliers": [1], "blocks": 1, "groups": 2, "attention_at": []}, "sampling_steps": 2},
    "teacher": {
        "autoencoder": AUTOENCODER,
        "unet": {"width": 4, "multipliers": [1], "blocks": 1, "attention_at": [1], "heads": 1, "context_width": 6, "groups": 2},
        "image_encoder": {"patch": 8, "width": 8, "layers": 1, "heads": 2, "projection": 6, "side": 16},
        "guidance": {"width": 4, "groups": 2, "gradient": False},
        "sampling_steps": 2,
    },
}


def built(kind, **settings):
    maps = {"maps": ["bias"]} if kind == "teacher" else {}
    experiment = from_dict({"method": {"kind": kind, **METHODS[kind], **settings}, "data": {"crop": 8, **maps}}, Experiment)
    return experiment.method.build(jnp.bfloat16)


def halved(tree):
    """Paths of the leaves that are in bfloat16."""
    return {jax.tree_util.keystr(path) for path, leaf in jax.tree_util.tree_leaves_with_path(tree) if leaf.dtype == jnp.bfloat16}


@pytest.mark.parametrize("kind", METHODS)
def test_from_what_is_held_comes_bit_for_bit_what_comes_from_float32(kind):
    """In a program whose compiler keeps to the roundings that are written; by default it may leave some out."""
    method, low = built(kind), jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (2, 8, 8, 1)), jnp.float32)
    variables = synthetic_variables(method, Batch(low, low), 0)
    held = held_to_upscale(method, variables, "bf16")
    given, keys = Condition(low, bias=low if kind == "teacher" else None), jax.random.split(jax.random.key(0), 2)
    program = jax.jit(partial(method.upscale, request=method.default_request))
    exact = {"xla_allow_excess_precision": False}
    one, other = (program.lower(v, given, keys).compile(exact)(v, given, keys).image for v in (variables, held))
    np.testing.assert_array_equal(one, other)
    assert jnp.isfinite(one).all()
    assert sum(leaf.nbytes for leaf in jax.tree.leaves(held)) < 0.7 * sum(leaf.nbytes for leaf in jax.tree.leaves(variables))
    assert any("conv1" in name for name in halved(held))
    assert not [name for name in halved(held) if "norm" in name or "time_in" in name or "moments" in name]


def test_in_float32_all_stays():
    variables = {"params": {"w": np.ones(3, np.float32)}}
    assert held_to_upscale(None, variables, "f32") is variables


def test_of_a_frozen_network_all_but_what_the_loss_uses_in_float32_is_halved():
    """Of the decoder all, where nothing is decoded."""
    image = jax.ShapeDtypeStruct((2, 8, 8, 1), jnp.float32)
    batch, held = Batch(high=image, low=image), {}
    for rec in (0.0, 1.0):
        method = built("teacher", lambda_rec=rec, image_encoder=None, guidance=None)
        held[rec] = halved(held_to_train(method, method.frozen(), batch, "bf16"))
    decoder = {name for name in held[0.0] if "decoder" in name}
    assert held[0.0] - decoder == {name for name in held[1.0] if "encoder']['" in name and "decoder" not in name}
    assert {name for name in decoder - held[1.0] if "norm" not in name and "['out']" not in name} == set()
    assert any("conv1" in name for name in decoder & held[1.0])


def test_a_leaf_is_rounded_ahead_exactly_where_every_use_of_it_rounds_it_first():
    """However deep in loops, branches and what is computed again."""

    def use(tree, x):
        half = {name: leaf.astype(jnp.bfloat16) for name, leaf in tree.items() if name not in ("unused", "whole", "carried", "looped")}
        x = x * jax.jit(lambda w: w.astype(jnp.bfloat16))(tree["jitted"]) + half["both"] + half["half"]
        x = jax.checkpoint(lambda w, x: x * w.astype(jnp.bfloat16))(tree["again"], x)
        x = jax.lax.cond(x.sum() > 0, lambda w: w.astype(jnp.bfloat16), lambda w: -w.astype(jnp.bfloat16), tree["branched"]) * x
        x, _ = jax.lax.scan(lambda x, _: (x * tree["looped"].astype(jnp.bfloat16), None), x, length=2)
        y, _ = jax.lax.scan(lambda w, _: (w * 2, None), tree["carried"], length=2)
        return x.astype(jnp.float32) * tree["whole"] + tree["both"] + y

    names = ("half", "jitted", "again", "branched", "looped", "both", "whole", "carried", "unused")
    tree = {name: jax.ShapeDtypeStruct((3,), jnp.float32) for name in names}
    x = jax.ShapeDtypeStruct((3,), jnp.bfloat16)
    expected = {f"['{name}']" for name in ("half", "jitted", "again", "branched", "looped")}
    assert halved(rounded_ahead(use, tree, x)) == expected
    assert halved(rounded_ahead(use, tree, x, unused=True)) == expected | {"['unused']"}
