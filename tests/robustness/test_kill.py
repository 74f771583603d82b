"""A run that is killed, again and again, ends as if it had not been: bit for bit, from outside, by the command that people run."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from jaxsr.bench.synthetic import synthetic_set
from jaxsr.runtime.checkpoint import Checkpoints

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
# `python -m jaxsr`, but for Ctrl-C, which children of a job in the background, as tests may be, ignore; and but for a shake of hands:
# RUN.steps gets each step whose metrics are written, and while RUN.pause is there, the run waits after the step that it names, or
# ("saving") before a save is renamed. So no machine is too slow to kill it in time.
JAXSR = """
import contextlib, runpy, signal, sys, time
from pathlib import Path

signal.signal(signal.SIGINT, signal.default_int_handler)
from jaxsr.runtime.checkpoint import Checkpoints
from jaxsr.train import metrics

pause, steps, record, sign = Path(sys.argv[-1] + ".pause"), Path(sys.argv[-1] + ".steps"), metrics.record, Checkpoints._sign
until = pause.read_text() if pause.exists() else ""

def wait():
    while pause.exists():
        time.sleep(0.005)

@contextlib.contextmanager
def record_and_wait(*args):
    with record(*args) as write:
        def write_and_wait(step, scalars):
            write(step, scalars)
            with steps.open("a") as file:
                file.write(f"{step}\\n")
            if until.isdigit() and step >= int(until):
                wait()
        yield write_and_wait

def sign_and_wait(self):
    sign(self)
    if until == "saving":
        wait()

metrics.record, Checkpoints._sign = record_and_wait, sign_and_wait
runpy.run_module("jaxsr", run_name="__main__")
"""
PATIENCE = 300  # seconds that anything may take


def start(folder: Path, run: str, pause: str | int = "") -> subprocess.Popen:
    (folder / f"{run}.steps").write_text("")
    (folder / f"{run}.pause").write_text(str(pause)) if pause else go_on(folder, run)
    words = [sys.executable, "-c", JAXSR, "train", "tiny.yaml", "--run-dir", run]
    with (folder / f"{run}.err").open("a") as said:
        return subprocess.Popen(words, cwd=folder, stdout=said, stderr=said)


def go_on(folder: Path, run: str) -> None:
    (folder / f"{run}.pause").unlink(missing_ok=True)


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


def wait_for_step(process, run: Path, step: int) -> None:
    """Of this process; metrics.jsonl has what those before it left, too."""
    wait_until(lambda: f"{step}\n" in run.with_suffix(".steps").read_text().splitlines(keepends=True), process)


def arrays(run: Path, step: int) -> dict[str, np.ndarray]:
    with ocp.StandardCheckpointer() as checkpointer:
        tree = checkpointer.restore((run / "checkpoints" / str(step) / "state").resolve())
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]}


def same_runs(killed: Path, straight: Path, steps: int) -> bool:
    """Asserts what makes two runs the same, one thing after the other, so that it is said which was not."""
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
    return not unfinished(killed)


def kill_again_and_again(folder: Path, kills: list[str], seed: int) -> Path:
    """The run that was killed so, and then went on to its end."""
    killed, rng = folder / "killed", np.random.default_rng(seed)
    for kind in kills:
        if kind == "saving":
            for left in unfinished(killed):  # which the one to come would not be told from
                shutil.rmtree(left)
            process = start(folder, "killed", pause="saving")
            wait_until(lambda: unfinished(killed), process)
        else:
            step = newest_step(killed) + int(rng.integers(1, 5))
            process = start(folder, "killed", pause=step + 1)  # not at `step`: in the midst of what comes after it, but no further
            if kind == "starting":  # imports, reading the checkpoint, compiling: whatever it is at by then
                time.sleep(rng.uniform(0.5, 6))
            else:
                wait_for_step(process, killed, step)
        process.kill()
        assert process.wait() == -signal.SIGKILL
        assert kind != "saving" or unfinished(killed)
    finish(folder, "killed")
    return killed


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """With a config of 15 steps and its uninterrupted run."""
    folder = tmp_path_factory.mktemp("runs")
    (folder / "tiny.yaml").write_text(CONFIG.format(steps=15))
    finish(folder, "straight")
    return folder


def test_a_run_killed_three_times_also_while_saving_ends_as_the_uninterrupted_one(folder):
    """Parameters, EMA, optimiser, data position, and every step's metrics, each step once."""
    assert same_runs(kill_again_and_again(folder, ["step", "saving", "step"], seed=1), folder / "straight", 15)


def test_a_run_on_a_prepared_set_killed_in_the_midst_of_an_epoch_ends_as_the_uninterrupted_one(tmp_path):
    """An epoch is 6 steps; every slice is turned, deformed and bent by a draw of its own."""
    synthetic_set(tmp_path / "set", 3, side=24, slices=4)
    data = "manifest: set, augment: {rotation: 5, elastic: 1, gamma: 0.1},"
    (tmp_path / "tiny.yaml").write_text(CONFIG.format(steps=11).replace("voxel_size: 6.0,", data))
    finish(tmp_path, "straight")
    assert same_runs(kill_again_and_again(tmp_path, ["step", "saving"], seed=3), tmp_path / "straight", 11)


@pytest.mark.slow
def test_a_run_killed_twenty_times_ends_as_the_uninterrupted_one(tmp_path):
    (tmp_path / "tiny.yaml").write_text(CONFIG.format(steps=90))
    finish(tmp_path, "straight")
    killed = kill_again_and_again(tmp_path, ["step", "saving", "step", "starting"] * 5, seed=2)
    assert same_runs(killed, tmp_path / "straight", 90)


def test_signals_save_the_step_and_end_with_their_own_status(folder):
    """SIGTERM before the first step is compiled, Ctrl-C while training: what is saved is the step that was stopped at, and it goes on."""
    run = folder / "stopped"
    process = start(folder, "stopped", pause=1)
    wait_until((run / "config.yaml").exists, process)
    process.terminate()
    go_on(folder, "stopped")
    assert process.wait(PATIENCE) == 128 + signal.SIGTERM

    process = start(folder, "stopped", pause=5)
    wait_for_step(process, run, 4)
    process.send_signal(signal.SIGINT)
    go_on(folder, "stopped")
    assert process.wait(PATIENCE) == 128 + signal.SIGINT
    stopped_at = lines_of(run)[-1]["step"]
    assert newest_step(run) == stopped_at < 15
    said = (folder / "stopped.err").read_text()
    assert "stopped by SIGTERM" in said or "stopped at step 0, before anything was to be saved" in said
    assert f"stopped at step {stopped_at}, which is saved; run the same command again" in said
    assert "Traceback" not in said

    finish(folder, "stopped")
    assert same_runs(run, folder / "straight", 15)


def test_a_checkpoint_of_another_dtype_is_refused_with_the_difference(folder):
    shutil.copytree(folder / "straight", folder / "halves")
    checkpoints = folder / "halves" / "checkpoints"
    with Checkpoints(checkpoints, keep=9) as manager:
        about = manager.about(15)
        state = ocp.StandardCheckpointer().restore(checkpoints / "15" / "state")
        name = next(iter(state["params"]))
        state["params"][name] = jax.tree.map(lambda x: x.astype(jnp.bfloat16), state["params"][name])
        manager.save(16, state, about)
    done = subprocess.run(
        [sys.executable, "-m", "jaxsr", "train", "tiny.yaml", "--run-dir", "halves"], cwd=folder, capture_output=True, text=True
    )
    assert done.returncode == 2, done.stderr
    assert re.search(rf"params/{name}/.*: bfloat16\[.*\] saved, float32\[.*\] expected", done.stderr)
    assert "Traceback" not in done.stderr
    assert newest_step(folder / "halves") == 16
