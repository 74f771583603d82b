"""launch/local.sh for real: two processes of one training, one of which is killed in the midst of it."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import nibabel as nib
import numpy as np
import pytest

from jaxsr.experiment import load_experiment
from jaxsr.runtime.checkpoint import Checkpoints
from jaxsr.runtime.mesh import make_mesh
from jaxsr.train.build import abstract_batch, build_method
from jaxsr.train.state import abstract_state, make_optimizer, players_of

LAUNCH = Path(__file__).parents[2] / "launch" / "local.sh"
CONFIG = Path(__file__).with_name("many_devices.yaml")
STEPS = 120


def start(folder, run):
    environment = {**os.environ, "PYTHON": sys.executable, "JAX_PLATFORMS": "cpu", "TMPDIR": str(folder), "GRACE": "2"}
    words = ["2", "train", str(CONFIG), f"train.steps={STEPS}", "train.checkpoint_every=10", "--run-dir", run]
    log = (folder / f"{run}.log").open("a")
    return subprocess.Popen([LAUNCH, *words], cwd=folder, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)


def lines_of(run):
    """Without a last one that is half written."""
    path = run / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")] if path.exists() else []


def leaves_of(run):
    """The state after the last step, as bytes; two processes saved it, this one reads it."""
    experiment = load_experiment(CONFIG)
    method, shape = build_method(experiment), abstract_batch(experiment)
    optimizer = make_optimizer(experiment.optimizer, STEPS, players_of(method))
    with Checkpoints(run / "checkpoints") as checkpoints:
        state = checkpoints.restore(STEPS, abstract_state(method, optimizer, shape, make_mesh()))
    return {jax.tree_util.keystr(path): np.asarray(leaf).tobytes() for path, leaf in jax.tree_util.tree_leaves_with_path(state)}


def process_of(launcher, number):
    """The process that the launcher gave this number."""
    for child in Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split():
        if f"JAXSR_PROCESS={number}".encode() in Path(f"/proc/{child}/environ").read_bytes().split(b"\0"):
            return int(child)
    raise AssertionError(f"no process {number}")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="finds processes in /proc")
def test_of_two_processes_one_is_killed_both_end_and_the_run_goes_on_to_the_bit(tmp_path):
    """Steps after the last checkpoint are done again: parameters, averages, moments and losses are those of the run that was let be."""
    (tmp_path / "heads").mkdir()
    for i in range(3):
        data = np.random.default_rng(i).normal(100, 30, (28, 30, 32)).clip(0).astype(np.float32)
        nib.save(nib.Nifti1Image(data, np.eye(4)), tmp_path / "heads" / f"sub-{i:02d}_T1w.nii")
    straight, killed = start(tmp_path, "straight"), start(tmp_path, "killed")
    try:
        # The checkpoint is written in the background: steps can be well past it before it is whole.
        while len(lines_of(tmp_path / "killed")) < 12 or not (tmp_path / "killed" / "checkpoints" / "10").exists():
            assert killed.poll() is None, (tmp_path / "killed.log").read_text()[-3000:]
            time.sleep(0.01)
        began = time.monotonic()
        os.kill(process_of(killed, 1), signal.SIGKILL)
        assert killed.wait(timeout=90) == 128 + signal.SIGKILL
        assert time.monotonic() - began < 60, "the other waited for JAX to notice"
        assert len(lines_of(tmp_path / "killed")) < STEPS
        killed = start(tmp_path, "killed")
        assert [killed.wait(timeout=300), straight.wait(timeout=300)] == [0, 0], (tmp_path / "killed.log").read_text()[-3000:]
    finally:
        for process in (straight, killed):
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
    assert "resumed killed at step" in (tmp_path / "killed.log").read_text()
    ours, theirs = (leaves_of(tmp_path / run) for run in ("killed", "straight"))
    assert [name for name in theirs if ours[name] != theirs[name]] == []
    told = [[(line["step"], line["loss"]) for line in lines_of(tmp_path / run)] for run in ("killed", "straight")]
    assert told[0] == told[1]
    assert [step for step, _ in told[0]] == list(range(1, STEPS + 1))
