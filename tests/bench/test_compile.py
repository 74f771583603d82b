"""The memory of a program is known from shapes alone, and splits as the mesh says."""

import contextlib
import json

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractMesh, AxisType

from jaxsr.bench import compile as bench
from jaxsr.bench.compile import compile_distill, compile_train, compile_upscale, describe
from jaxsr.config import ConfigError, from_dict
from jaxsr.experiment import DataConfig, Experiment, TrainConfig
from jaxsr.methods.precision import held_to_train, held_to_upscale
from jaxsr.methods.teacher import TeacherConfig
from jaxsr.runtime.mesh import AXES
from jaxsr.train.build import abstract_batch
from jaxsr.train.state import abstract_variables

TEACHER = TeacherConfig(
    autoencoder={"network": {"channels": 1, "width": 4, "multipliers": (1, 1), "blocks": 1, "latent": 2, "groups": 2}},
    unet={"width": 8, "multipliers": (1,), "blocks": 1, "attention_at": (1,), "heads": 2, "context_width": 6, "groups": 4},
    image_encoder=None,
    guidance={"width": 4, "groups": 2, "gradient": False},
    sampling_steps=1,
)
EXPERIMENT = Experiment(
    method=TEACHER, data=DataConfig(crop=8, maps=("bias",)), train=TrainConfig(batch_size=jax.device_count()), precision="bf16"
)


def bytes_of(tree):
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


@pytest.fixture(scope="module")
def trained():
    return compile_train(EXPERIMENT)


def test_the_state_held_is_four_times_the_parameters_and_the_frozen_network_comes_on_top(trained):
    """Parameters, their average, both moments, in float32, and two counters; what is frozen as it is held."""
    assert json.loads(json.dumps(trained)) == trained
    shapes = abstract_variables(TEACHER.build(), abstract_batch(EXPERIMENT))
    count = {name: sum(leaf.size for leaf in jax.tree.leaves(shapes[name])) for name in ("params", "frozen")}
    assert 0 <= trained["held_bytes"]["state"] - 4 * 4 * count["params"] < 64
    held = held_to_train(TEACHER.build(jnp.bfloat16), shapes["frozen"], abstract_batch(EXPERIMENT), "bf16")
    assert trained["held_bytes"]["frozen"] == bytes_of(held) < 3 * count["frozen"]
    assert trained["device_bytes"] == sum(trained["held_bytes"].values()) + trained["temporary_bytes"]


@pytest.mark.slow
def test_what_is_estimated_is_called_so(trained):
    assert trained["estimated"] == (jax.default_backend() == "cpu")
    said = dict(describe(trained))["temporary"]
    assert ("estimate" in said) == trained["estimated"]
    exact = compile_train(EXPERIMENT.model_copy(update={"precision": "f32"}))
    assert not exact["estimated"]
    assert "estimate" not in dict(describe(exact))["temporary"]
    if trained["estimated"]:
        assert exact["temporary_bytes"] / 2 <= trained["temporary_bytes"] < exact["temporary_bytes"]


@pytest.mark.slow
def test_a_batch_of_upscale_holds_what_the_engine_is_given_and_all_maps():
    half, whole = (
        compile_upscale(EXPERIMENT.model_copy(update={"precision": precision}), 2 * jax.device_count(), 8) for precision in ("bf16", "f32")
    )
    shapes = abstract_variables(TEACHER.build(), abstract_batch(EXPERIMENT))
    held = held_to_upscale(TEACHER.build(jnp.bfloat16), shapes, "bf16")
    assert (whole["held_bytes"]["parameters"], half["held_bytes"]["parameters"]) == (bytes_of(shapes), bytes_of(held))
    assert whole["held_bytes"]["batch"] == 2 * 8 * 8 * (1 + 1) * 4


class Planless:
    """A program whose compiler says nothing of memory, nor what the program is."""

    def memory_analysis(self):
        return None

    def as_text(self):
        return None


@pytest.fixture
def two_devices(monkeypatch):
    """A mesh of shapes alone, for which nothing is compiled."""
    mesh = AbstractMesh((2, 1, 1, 1), AXES, axis_types=(AxisType.Auto,) * len(AXES))
    monkeypatch.setattr(bench, "make_mesh", lambda **sizes: mesh)
    monkeypatch.setattr(jax, "set_mesh", contextlib.nullcontext)
    monkeypatch.setattr(bench, "compiled", lambda function, *arguments: (Planless(), {"compile_seconds": 0.0, "trace_seconds": 0.0}))


@pytest.mark.parametrize("asked, accumulate, taken", [(3, 1, 4), (4, 1, 4), (4, 4, 8)])
def test_a_batch_that_training_would_refuse_is_rounded_up_to_the_devices_and_that_is_said(two_devices, asked, accumulate, taken):
    found = compile_train(EXPERIMENT.model_copy(update={"train": TrainConfig(batch_size=asked, accumulate=accumulate)}))
    assert (found["batch_size"], found["asked_batch_size"]) == (taken, asked)
    [(_, said), *_] = describe(found)
    assert (f"{asked} asked for" in said) == (asked != taken)


def test_a_batch_of_cubes_is_rounded_up_to_whole_ones_that_divide_over_the_devices(two_devices):
    network = {"width": 4, "multipliers": [1], "blocks": 1, "attention_at": [], "groups": 2, "middle_attention": False}
    method = {"kind": "sr3", "network": network, "fused": True, "terminal": 1.0}
    of = from_dict({"method": method, "data": {"crop": 9, "draws": 108}, "train": {"batch_size": 27}}, Experiment)
    assert compile_train(of)["batch_size"] == 54


@pytest.mark.parametrize("asked, taken", [(3, 4), (4, 4)])
def test_a_batch_of_upscale_is_rounded_up_to_the_devices_and_that_is_said(two_devices, asked, taken):
    found = compile_upscale(EXPERIMENT, asked, 8)
    assert (found["batch_size"], found["asked_batch_size"]) == (taken, asked)
    assert found["held_bytes"]["batch"] == taken // 2 * 8 * 8 * (1 + 1) * 4  # of one device
    [(_, said), *_] = describe(found)
    assert ("3 asked for" in said) == (asked == 3)


@pytest.mark.slow
def test_what_a_teacher_needs_to_distil_does_not_depend_on_the_number_of_images_on_the_way():
    few, many = (compile_distill(EXPERIMENT.model_copy(update={"precision": "f32"}), jax.device_count(), 8, steps) for steps in (3, 200))
    assert many["what"] == "distilling in 200 steps, 199 images on the way"
    assert abs(many["temporary_bytes"] - few["temporary_bytes"]) < 20 * 200  # coefficients of the steps


@pytest.mark.parametrize("method, size, steps, said", [
    ({"kind": "autoencoder"}, 256, 200, r"method.kind=autoencoder does not sample, and a student learns .*: name a teacher or an sr3"),
    ({"kind": "student"}, 128, 200, r"method.kind=student goes to its image in stages"),
    ({"kind": "sr3"}, 16, 5000, r"cannot sample in 5000 steps: choose --steps in 2…2000"),
    ({"kind": "sr3"}, 16, 1, r"cannot sample in 1 steps"),
])  # fmt: skip
def test_what_cannot_teach_is_refused(method, size, steps, said):
    with pytest.raises(ConfigError, match=said):
        compile_distill(from_dict({"method": method, "data": {"crop": size}}, Experiment), 1, size, steps)


@pytest.mark.parametrize(
    "compiled", [lambda e: compile_upscale(e, 1, 7), lambda e: compile_distill(e, 1, 7, 2)], ids=["upscale", "distill"]
)
def test_slices_that_the_network_does_not_take_are_refused_in_a_sentence(compiled):
    with pytest.raises(ConfigError, match="a positive multiple of"):
        compiled(EXPERIMENT)
