"""`jaxsr distill`, killed while the teacher runs and again while the student trains, ends as if it had not been."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxsr.bench.synthetic import synthetic_set
from jaxsr.config import from_dict
from jaxsr.data.records import file_sha256
from jaxsr.experiment import Experiment
from jaxsr.train.loop import train
from jaxsr.upscale.model import load_model

NETWORK = {"width": 8, "multipliers": [1], "blocks": 1, "attention_at": [], "groups": 4, "middle_attention": False}
TRAIN = {"batch_size": 2, "log_every": 1, "checkpoint_every": 1}
STEPS = 300


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A set, a teacher, a student's config."""
    folder = tmp_path_factory.mktemp("distill")
    synthetic_set(folder / "set", 4, side=24, slices=24)
    data = {"voxel_size": 1.0, "crop": 16, "manifest": str(folder / "set"), "threads": 1}
    method = {"kind": "sr3", "network": {**NETWORK, "dropout": 0.0}, "prediction": "v", "residual_std": 0.1, "sampling_steps": 4}
    train(from_dict({"method": method, "data": data, "train": {**TRAIN, "steps": 1}}, Experiment), folder / "teacher")
    stages = {"count": 3, "low_mm": 2.0, "high_mm": 1.0}
    method = {"kind": "student", "network": NETWORK, "stages": stages, "prediction": "v", "residual_std": 0.1, "rollout": 0.5}
    student = {"method": method, "data": {"crop": 8, "threads": 1}, "train": {**TRAIN, "steps": STEPS, "checkpoint_every": 50}}
    (folder / "student.yaml").write_text(json.dumps(student))
    return folder


def start(folder: Path, where: str) -> subprocess.Popen[bytes]:
    words = ["distill", "student.yaml", "-t", "teacher", "-s", "set", "-c", f"{where}/cache", "-d", f"{where}/run", "--steps", "100"]
    words += ["--batch-size", "2", "--device", "cpu"]
    return subprocess.Popen([sys.executable, "-m", "jaxsr", *words], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def killed_once(process: subprocess.Popen[bytes], there: Path, pattern: str) -> None:
    until = time.monotonic() + 180
    while not list(there.glob(pattern)):
        assert process.poll() is None, process.stdout.read().decode()  # type: ignore[union-attr]
        assert time.monotonic() < until
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait(60) == -signal.SIGKILL


def finished(process: subprocess.Popen[bytes]) -> str:
    said = process.communicate(timeout=300)[0].decode()
    assert process.returncode == 0, said
    return said


def test_what_was_killed_in_both_halves_has_the_same_cache_and_the_same_student(folder):
    finished(start(folder, "straight"))
    killed_once(start(folder, "killed"), folder / "killed/cache/parts", "*.json")
    assert not (folder / "killed/cache/manifest.json").exists()
    assert not (folder / "killed/run").exists()
    killed_once(start(folder, "killed"), folder / "killed/run/checkpoints", "50")
    assert (folder / "killed/cache/manifest.json").exists()
    assert not (folder / f"killed/run/checkpoints/{STEPS}").exists()
    said = finished(start(folder, "killed"))
    assert "4 of 4 are there already" in said
    assert "resumed killed/run at step" in " ".join(said.split())

    caches = [
        {p.relative_to(c): file_sha256(p) for p in c.rglob("*") if p.is_file()}
        for c in (folder / "straight/cache", folder / "killed/cache")
    ]
    assert len(caches[0]) == 4 * 2 + 2
    assert caches[0] == caches[1]
    ours, theirs = (load_model(folder / name / "run").variables["params"] for name in ("killed", "straight"))
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)
