"""The input benchmark takes the trainer's own batches, and memory does not grow with the set."""

import json
import subprocess
import sys

import numpy as np
import pytest

from jaxsr.bench.data import PARTS, _rates, bench_data, describe
from jaxsr.bench.synthetic import synthetic_set
from jaxsr.data.augmentation import AugmentConfig
from jaxsr.data.pairs import OPTIONAL
from jaxsr.data.records import read_manifest, verify
from jaxsr.experiment import DataConfig, Experiment, TrainConfig
from jaxsr.methods.sr3 import Sr3Config


def experiment(**data) -> Experiment:
    return Experiment(method=Sr3Config(), data=DataConfig(crop=16, **data), train=TrainConfig(batch_size=4))


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    manifest = synthetic_set(tmp_path_factory.mktemp("set"), 2, side=16, slices=6, maps=("labels",))
    config = experiment(manifest=manifest, maps=("labels",), augment=AugmentConfig(rotation=5.0))
    return bench_data(config, workers=(0, 2), seconds=0.2, cold=sys.platform == "linux")


def test_the_result_is_json_and_has_a_table(result):
    assert json.loads(json.dumps(result)) == result
    rows = dict(describe(result))
    assert rows["slices of"] == "16 × 16: high, low, labels, 4 a batch"
    assert "slices/s" in rows["2 workers"]
    assert result["augment"] == {"flip": True, "transpose": False, "rotation": 5.0, "scale": 0.0, "elastic": 0.0, "gamma": 0.0}


def test_rates_follow_from_the_slices_and_the_set(result):
    for run in result["runs"]:
        decoded = 16 * 16 * (4 + 4 + 1) + 4 * 8  # bytes of a slice's maps and of its origin
        assert run["bytes_per_second"] == pytest.approx(decoded * run["slices_per_second"])
        assert run["stored_bytes_per_second"] == pytest.approx(result["stored_bytes"] / 12 * run["slices_per_second"])
        assert run["cpu_seconds_per_slice"] * run["slices_per_second"] == pytest.approx(run["cpu_share"])
        assert run["seconds"] >= 0.2


def test_without_shards_it_measures_the_generator():
    made = bench_data(experiment(voxel_size=6.0, subjects=2, draws=8), workers=(1,), seconds=0.1)
    assert made["source"] == "anatomy"
    assert made["slices"] is made["stored_bytes"] is made["page_cache"] is None
    assert made["runs"][0]["slices_per_second"] > 0
    describe(made)


def test_a_synthetic_set_is_the_same_bytes_each_time_and_as_its_manifest_says(tmp_path):
    for name in ("a", "b"):
        verify(synthetic_set(tmp_path / name, 2, side=16, slices=4, maps=OPTIONAL))
    first, second = (read_manifest(tmp_path / name) for name in ("a", "b"))
    assert first == second
    assert len({shard.sha256 for shard in first.shards}) == 2


def test_the_command_writes_a_set_measures_it_and_deletes_it(tmp_path, monkeypatch):
    config = tmp_path / "tiny.yaml"
    config.write_text("method: {kind: sr3}\ndata: {crop: 16}\ntrain: {batch_size: 4}\n")
    options = ["--synthetic", "2", "--seconds", "0.1", "--workers", "1", "--json"]
    command = [sys.executable, "-m", "jaxsr", "bench", "data", str(config), *options]
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert [run["workers"] for run in json.loads(done.stdout)["runs"]] == [1]
    assert [path.name for path in tmp_path.iterdir() if "jaxsr" in path.name] == []
    refused = subprocess.run([*command, "--workers", "1,x"], capture_output=True, text=True)
    assert refused.returncode == 2
    assert "'1,x' is no list of numbers" in refused.stderr


MEMORY = """
import sys
from pathlib import Path
from jaxsr.bench.data import resident_memory
from jaxsr.data.pipeline import batches
from jaxsr.data.prepared import PreparedSet
from jaxsr.data.record_stream import RecordStream

def held(folder, epochs):
    records = PreparedSet(Path(folder), "train")
    iterator = batches(RecordStream(records, (128, 128)), 4, threads=2)
    most = 0
    for _ in range(epochs * len(records) // 4):
        next(iterator)
        most = max(most, resident_memory())
    iterator.close()
    return most

print(held(sys.argv[1], 5), held(sys.argv[2], 1))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the memory of a process as Linux tells it")
def test_memory_stays_flat_over_a_set_ten_times_larger(tmp_path):
    """High-water marks of the first set, read five times, and of one epoch of the second, which holds 47 MB more in the smallest dtype.

    In a process of its own: nothing of other tests is given back, and nothing is inherited.
    """
    for name, scans in (("one", 4), ("ten", 40)):
        synthetic_set(tmp_path / name, scans, side=128, slices=20)
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, str(tmp_path / "one"), str(tmp_path / "ten")], capture_output=True, text=True, check=True
    )
    one, ten = np.array(done.stdout.split(), np.int64)
    assert ten - one < 10e6


def test_a_stream_that_pauses_shows_in_the_spread_and_not_in_the_rate():
    """Ten seconds in which a batch of 4 came every half second, but none in the fifth."""
    ends = [0.0, *(0.5 * i for i in range(1, 21) if not 4 <= 0.5 * i < 5)]
    rates = _rates(ends, 4)
    assert len(rates) == PARTS
    assert sorted(rates)[0] == 0
    assert np.median(rates) == 8
    assert sum(rates) / PARTS == pytest.approx(4 * (len(ends) - 1) / 10)
