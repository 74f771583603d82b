"""A run that is killed, again and again, ends as if it had not been: bit for bit, from outside, by the command that people run."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals as POSIX has them")

CONFIG = """
method:
  kind: sr3
  network: {{width: 8, multipliers: [1], blocks: 1, groups: 4, attention_at: [], dropout: 0.1, middle_attention: false}}
  prediction: v
  residual_std: 0.2
data: {{voxel_size: 6.0, crop: 16, subjects: 3, draws: 8, window: 2, threads: 1}}
train: {{steps: {steps}, batch_size: 2, log_every: 1, checkpoint_every: 3}}
"""
PATIENCE = 300  # seconds that anything may take


def start(folder: Path, run: str) -> subprocess.Popen:
    words = [sys.executable, "-m", "jaxsr", "train", "tiny.yaml", "--run-dir", run]
    return subprocess.Popen(words, cwd=folder, stdout=subprocess.DEVNULL, stderr=(folder / f"{run}.err").open("a"))


def finish(folder: Path, run: str) -> None:
    assert start(folder, run).wait(PATIENCE) == 0, (folder / f"{run}.err").read_text()[-3000:]


def wait_until(condition, process) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert process.poll() is None, "the process ended before it could be killed"
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.001)


def lines_of(run: Path) -> list[dict]:
    """Without a last one that is half written."""
    path = run / "metrics.jsonl"
    text = path.read_text() if path.exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def newest_step(run: Path) -> int:
    return max((int(p.name) for p in (run / "checkpoints").glob("*") if p.name.isdigit()), default=0)


def unfinished(run: Path) -> list[Path]:
    return list((run / "checkpoints").glob("*.orbax-checkpoint-tmp"))


def kill_at_step(process, run: Path, step: int) -> None:
    wait_until(lambda: any(line["step"] >= step for line in lines_of(run)), process)
    process.kill()
    process.wait()


def kill_while_saving(process, run: Path) -> None:
    """Frozen as soon as a save is seen, so that it can be looked whether it is unfinished still."""
    left_before = {p.name for p in unfinished(run)}
    while True:
        wait_until(lambda: {p.name for p in unfinished(run)} - left_before, process)
        process.send_signal(signal.SIGSTOP)
        time.sleep(0.02)
        if unfinished(run):
            process.kill()
            process.wait()
            return
        process.send_signal(signal.SIGCONT)


def arrays(run: Path, step: int) -> dict[str, np.ndarray]:
    with ocp.StandardCheckpointer() as checkpointer:
        tree = checkpointer.restore((run / "checkpoints" / str(step) / "state").resolve())
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]}


def assert_same_runs(killed: Path, straight: Path, steps: int) -> None:
    ours, theirs = arrays(killed, steps), arrays(straight, steps)
    assert ours.keys() == theirs.keys()
    for part in ("step", "params", "ema", "opt"):
        assert any(part in name for name in ours), f"no {part} among {sorted(ours)[:9]}"
    for name in ours:
        assert ours[name].dtype == theirs[name].dtype
        assert ours[name].tobytes() == theirs[name].tobytes(), f"{name} differs"
    about = [json.loads((run / "checkpoints" / str(steps) / "about" / "metadata").read_text()) for run in (killed, straight)]
    assert about[0] == about[1]
    assert about[0]["next_batch"] == steps
    measured = [[(x["step"], x["loss"], x["gradient_norm"], x["parameter_norm"]) for x in lines_of(run)] for run in (killed, straight)]
    assert [step for step, *_ in measured[0]] == list(range(1, steps + 1))
    assert measured[0] == measured[1]


def kill_again_and_again(folder: Path, steps: int, kills: list[str], seed: int) -> None:
    (folder / "tiny.yaml").write_text(CONFIG.format(steps=steps))
    killed, rng = folder / "killed", np.random.default_rng(seed)
    for kind in kills:
        process, before = start(folder, "killed"), newest_step(killed)
        if kind == "saving":
            kill_while_saving(process, killed)
            assert unfinished(killed)
        elif kind == "starting":  # imports, reading the checkpoint, compiling: whatever it is at by then
            time.sleep(rng.uniform(0.5, 6))
            process.kill()
            process.wait()
        else:
            kill_at_step(process, killed, before + int(rng.integers(1, 5)))
        assert process.returncode == -signal.SIGKILL
    finish(folder, "killed")
    finish(folder, "straight")
    assert_same_runs(killed, folder / "straight", steps)
    assert not unfinished(killed)


def test_a_run_killed_three_times_also_while_saving_ends_as_the_uninterrupted_one(tmp_path):
    """Parameters, EMA, optimiser, data position, and every step's metrics, each step once."""
    kill_again_and_again(tmp_path, steps=15, kills=["step", "saving", "step"], seed=1)


@pytest.mark.slow
def test_a_run_killed_twenty_times_ends_as_the_uninterrupted_one(tmp_path):
    kill_again_and_again(tmp_path, steps=90, kills=["step", "saving", "step", "starting"] * 5, seed=2)
