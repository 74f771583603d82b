"""The upscaling benchmark runs the engine and counts its work."""

import json

import pytest

from jaxsr.bench.count import count
from jaxsr.bench.upscale import bench_upscale, describe
from jaxsr.experiment import DataConfig, Experiment
from jaxsr.methods.sr3 import Sr3Config, Sr3NetworkConfig

NETWORK = Sr3NetworkConfig(width=8, multipliers=(1,), blocks=1, attention_at=(), groups=4, dropout=0.0, middle_attention=False)
TINY = Experiment(method=Sr3Config(network=NETWORK), data=DataConfig(crop=16))


@pytest.fixture(scope="module")
def result():
    return bench_upscale(TINY, (32, 32, 32), sampling_steps=3, batch_size=12, repeats=2)


def test_the_result_is_json_and_has_a_table(result):
    assert json.loads(json.dumps(result)) == result
    assert dict(describe(result))["volume"] == "32 × 32 × 32, 96 slices, pad"


def test_one_shape_is_compiled_once(result):
    assert (result["slices"], result["compilations"]) == (96, 1)


def test_work_is_that_of_every_slice_and_step_with_the_last_batch_filled_up(result):
    """Three axes, 3 batches of 12 for 32 slices each, 3 sampling steps."""
    assert result["multiply_adds"] == 3 * 3 * 12 * 3 * count(TINY, 32)["multiply_adds"]
