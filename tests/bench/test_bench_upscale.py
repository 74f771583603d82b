"""The upscaling benchmark runs the engine and counts its work."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from jaxsr.bench import upscale
from jaxsr.bench.count import count
from jaxsr.bench.synthetic import smallest_side, synthetic_head
from jaxsr.bench.upscale import bench_upscale, describe
from jaxsr.cli import app
from jaxsr.cli.status import run
from jaxsr.config import dump
from jaxsr.experiment import DataConfig, Experiment
from jaxsr.methods.base import Request
from jaxsr.methods.sr3 import Sr3Config, Sr3NetworkConfig
from jaxsr.upscale.inputs import serving_axes
from jaxsr.upscale.plan import Plan
from jaxsr.volume.io import Volume, write_volume
from jaxsr.volume.slices import AXES

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


def test_what_devices_take_alone_is_that_of_as_many_batches(monkeypatch):
    """Of 32 and 40 slices in batches of 12 and 10: 3 and 4; an axis whose slices stay takes none. Two passes: another program."""
    plan = Plan(None, None, (), ("a", "a", None, "b"), ((8, 8), (8, 16), (8, 8), (8, 8)), (32, 40, 0, 20), ())
    of = lambda sides, request: SimpleNamespace(sides=sides, work=SimpleNamespace(request=request))  # noqa: E731
    programs = [(of((8, 8), "a"), 12, lambda: 2.0), (of((8, 16), "a"), 10, lambda: 10.0), (of((8, 8), "b"), 5, lambda: 7.0)]
    monkeypatch.setattr(upscale, "call_times", lambda call, repeats: [sum(call())] * repeats)
    assert upscale.device_seconds(SimpleNamespace(alone=lambda: iter(programs)), plan, 3) == 3 * 2 + 4 * 10 + 4 * 7
    plan = plan._replace(requests=tuple(of and Request(steps=ord(of)) for of in plan.requests), passes=2)
    first = [(of((8, 8), Request(1)), 10, lambda: 1.0), (of((8, 16), Request(1)), 10, lambda: 3.0)]
    again = [(of(key.sides, Request(ord(key.work.request))), size, call) for key, size, call in programs]
    seconds = upscale.device_seconds(SimpleNamespace(alone=lambda: iter(first + again)), plan, 3)
    assert seconds == (4 * 1 + 4 * 3 + 2 * 1) + (3 * 2 + 4 * 10 + 4 * 7)


def test_devices_take_no_longer_than_a_volume_by_much(result):
    assert 0 < result["device_share"] < 2
    assert result["device_seconds"] == pytest.approx(result["device_share"] * result["seconds_per_volume"])


def test_work_is_that_of_every_slice_and_step_with_the_last_batch_filled_up(result):
    """Three axes, 4 batches of 8 for 32 slices each, 3 sampling steps."""
    assert result["multiply_adds"] == 3 * 4 * 8 * 3 * count(TINY, 32)["multiply_adds"]


@pytest.mark.parametrize("words, sentence", [
    (["--sampling-steps", "5000"], "5000 is not in 1…2000"),
    (["--sampling-steps", "0"], "'--sampling-steps': Input should be greater than or equal to 1"),
    (["--shape", "96,x,96,96"], "is not three sides X,Y,Z"), (["--shape", "96,96,²"], "is not three sides X,Y,Z"),
    (["--shape", "16,16,16"], "at least 31 voxels"), (["--shape", "30,31,31"], "at least 31 voxels"),
])  # fmt: skip
def test_what_cannot_be_timed_is_refused_in_a_sentence(words, sentence, tmp_path, capsys):
    (tmp_path / "c.yaml").write_text(dump(TINY.model_copy(update={"data": DataConfig(crop=16, voxel_size=1.0)})))
    assert run(lambda: app(["bench", "upscale", str(tmp_path / "c.yaml"), *words], standalone_mode=False)) == 2
    assert sentence in " ".join(capsys.readouterr().err.replace("│", " ").split())


def test_the_smallest_volume_has_slices_along_every_axis():
    """31 × 1 mm is 15.5 voxels of 2 mm, which round to 16; 30 are 15."""
    experiment = TINY.model_copy(update={"data": DataConfig(crop=16, voxel_size=1.0)})
    side = smallest_side(experiment)
    assert serving_axes(synthetic_head((side,) * 3, experiment).data.shape, tuple(AXES))[1] == ()
    assert serving_axes(synthetic_head((side - 1, side, side), experiment).data.shape, tuple(AXES))[1]


def test_a_scan_is_timed_on_the_grid_that_upscale_brings_it_to_and_refused_where_that_is_nothing_new(tmp_path, capsys):
    method, data = TINY.method.model_copy(update={"pixels": (0.5, 3.0)}), DataConfig(crop=16, voxel_size=1.0)
    config = TINY.model_copy(update={"data": data, "method": method})
    (tmp_path / "c.yaml").write_text(dump(config))
    data = np.random.default_rng(0).uniform(100, 900, (20, 18, 16)).astype(np.float32)
    for name, size in (("coarse", 2.0), ("fine", 1.0)):
        write_volume(tmp_path / f"{name}.nii.gz", Volume(data, np.diag([size, size, size, 1.0])))
    words = ["bench", "upscale", str(tmp_path / "c.yaml"), "--sampling-steps", "1", "--repeats", "1", "--batch-size", "8", "-i"]
    assert run(lambda: app([*words, str(tmp_path / "coarse.nii.gz")], standalone_mode=False)) == 0
    assert "40 × 36 × 32, 108 slices, pad, of a scan" in capsys.readouterr().out
    assert run(lambda: app([*words, str(tmp_path / "fine.nii.gz")], standalone_mode=False)) == 3
    assert "as fine as 1 mm already: ask for a finer one with data.voxel_size" in " ".join(capsys.readouterr().err.split())
    assert run(lambda: app([*words, str(tmp_path / "none.nii.gz")], standalone_mode=False)) == 2
