"""The training benchmark runs the trainer's step and counts its work."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxsr.bench import train as bench
from jaxsr.bench.count import count, multiply_adds
from jaxsr.bench.synthetic import synthetic_variables
from jaxsr.bench.train import bench_train, describe, step_multiply_adds, synthetic_state
from jaxsr.config import ConfigError
from jaxsr.experiment import DataConfig, Experiment, TrainConfig, load_experiment
from jaxsr.methods.sr3 import Sr3Config, Sr3NetworkConfig
from jaxsr.runtime.mesh import make_mesh
from jaxsr.train.build import abstract_batch, build_method
from jaxsr.train.loop import laid_out
from jaxsr.train.state import abstract_state, make_optimizer, shardings_of
from jaxsr.train.step import make_step

CONFIGS = Path(__file__).parents[2] / "configs"
NETWORK = Sr3NetworkConfig(width=8, multipliers=(1,), blocks=1, attention_at=(), groups=4, dropout=0.0, middle_attention=False)


def tiny(**train) -> Experiment:
    return Experiment(method=Sr3Config(network=NETWORK), data=DataConfig(crop=16), train=TrainConfig(**{"batch_size": 4, **train}))


@pytest.fixture(scope="module")
def result():
    return bench_train(tiny(), steps=2, warmup=1)


def test_the_result_is_json_and_has_a_table(result):
    assert json.loads(json.dumps(result)) == result
    assert dict(describe(result))["one step of"] == "4 slices of 16 × 16"


def test_rates_follow_from_the_median(result):
    assert result["seconds_per_step"] == result["step_seconds"]["median"] > 0
    assert result["slices_per_second"] == pytest.approx(4 * result["steps_per_second"])
    assert result["flops_per_second"] == pytest.approx(2 * result["multiply_adds"] / result["seconds_per_step"])


def test_a_step_is_three_forward_passes_over_the_batch_less_the_gradient_by_its_input(result):
    one = count(tiny())
    assert 2.9 * 4 * one["multiply_adds"] < result["multiply_adds"] < 3 * 4 * one["multiply_adds"]
    assert result["parameters"] == one["parameters"]


@pytest.mark.parametrize("accumulate", [1, 2])
def test_what_is_counted_is_what_the_step_multiplies(accumulate):
    experiment = tiny(accumulate=accumulate)
    method, optimizer, batch = build_method(experiment), make_optimizer(experiment.optimizer, 1), abstract_batch(experiment)
    step = make_step(method, optimizer, ema=0.9, steps=100, accumulate=accumulate)
    traced = multiply_adds(step, abstract_state(method, optimizer, batch, make_mesh()), batch, jax.random.key(0))
    assert traced == step_multiply_adds(method, batch)


def test_a_synthetic_state_is_the_trainers_but_for_its_values():
    experiment, mesh = tiny(), make_mesh()
    method, optimizer, batch = build_method(experiment), make_optimizer(experiment.optimizer, 1), abstract_batch(experiment)
    expected = abstract_state(method, optimizer, batch, mesh)
    state = synthetic_state(synthetic_variables(method, batch, seed=0), optimizer, shardings_of(expected))
    assert jax.tree.structure(state) == jax.tree.structure(expected)
    assert jax.tree.all(jax.tree.map(lambda a, b: (a.shape, a.dtype, a.sharding) == (b.shape, b.dtype, b.sharding), state, expected))


def test_slices_that_were_encoded_before_cost_no_encoder():
    """As a set of `jaxsr prepare --encode` would: what is left is the denoiser's."""
    settings = ["train.batch_size=2", "data.crop=16", "method.lambda_rec=0.0"]
    experiment = load_experiment(CONFIGS / "teacher-tiny.yaml", settings)
    whole, encoded = (step_multiply_adds(build_method(experiment), abstract_batch(experiment, encoded=of)) for of in (False, True))
    assert encoded < 0.9 * whole
    result = bench_train(experiment, 1, 0, encoded=True)
    assert result["multiply_adds"] == encoded
    assert "encoded" in dict(describe(result))["one step of"]
    with pytest.raises(ConfigError, match="trains on slices alone"):
        bench_train(load_experiment(CONFIGS / "demo.yaml"), 1, 0, encoded=True)


def test_fed_by_data_it_takes_as_many_batches_as_steps(monkeypatch):
    """One more than are timed and warm up, each another one."""
    seen = []
    monkeypatch.setattr(bench, "laid_out", lambda sample, *how: seen.append(sample["high"].copy()) or laid_out(sample, *how))
    experiment = tiny().model_copy(update={"data": DataConfig(crop=16, voxel_size=4.0, subjects=1)})
    found = bench_train(experiment, steps=2, warmup=1, fed=True)
    assert found["input"] == "the configured data"
    assert len(seen) == 4
    assert not np.array_equal(seen[0], seen[1])
