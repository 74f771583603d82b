"""The command line as users meet it, and one tiny model for all."""

import contextlib
import io
import os
import signal
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest

from jaxsr.cli import app
from jaxsr.cli.status import run
from jaxsr.config import load
from jaxsr.experiment import Experiment
from jaxsr.upscale.model import Model

SECONDS = 60  # of one command in this process, the first of which imports and compiles, on a slow machine

TINY = """
method:
  kind: sr3
  network: {width: 8, multipliers: [1, 2], blocks: 1, groups: 4, attention_at: [], dropout: 0.0}
  prediction: v
  residual_std: 0.2
  sampling_steps: 1
  eta: 0.0
data: {voxel_size: 6.0, crop: 16, subjects: 2, draws: 8, window: 2, threads: 1}
train: {steps: 1, batch_size: 2, log_every: 1, checkpoint_every: 1}
"""


HERE = Path(__file__).parent
IN_PROCESS = "test_geometry.py"


@pytest.hookimpl(tryfirst=True)  # before `-m` chooses
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """All here but geometry run whole commands, and are in .ci/run but not in plain pytest."""
    for item in items:
        if item.path.parent == HERE and item.path.name != IN_PROCESS:
            item.add_marker(pytest.mark.robustness)


@pytest.fixture(scope="session")
def jaxsr():
    """`jaxsr(*words)` runs the command in a process of its own."""

    def command(*words, timeout=300, **options):
        environment = {**os.environ, "JAX_PLATFORMS": "cpu", "COLUMNS": "200", **options.pop("env", {})}
        words = [sys.executable, "-m", "jaxsr", *map(str, words)]
        return subprocess.run(words, capture_output=True, text=True, env=environment, timeout=timeout, **options)

    return command


@pytest.fixture(scope="session")
def call():
    """`call(*words)` runs the command in this process: status, stdout, stderr, warnings. A traceback would be raised; so is a hang."""

    def command(*words):
        out, err = io.StringIO(), io.StringIO()
        before = signal.signal(signal.SIGALRM, _hang)
        signal.setitimer(signal.ITIMER_REAL, SECONDS)
        try:
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), warnings.catch_warnings(record=True) as warned:
                warnings.simplefilter("always")
                status = run(lambda: app(list(map(str, words)), standalone_mode=False))
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
        seen = [str(w.message) for w in warned if w.category is not ResourceWarning]  # which Python does not show
        return SimpleNamespace(status=status, out=out.getvalue(), err=err.getvalue(), warned=seen)

    return command


class Hang(BaseException):
    """No `except Exception` in what hangs stops it."""


def _hang(*_):
    raise Hang(f"no end after {SECONDS} s")


@pytest.fixture
def identity(monkeypatch, tiny, identity_method):
    """A --model that changes nothing and is there at once, for `call`; its target is 6 mm."""
    model = Model("identity", 1, load(tiny, (), Experiment), identity_method, {}, "0" * 64)
    monkeypatch.setattr("jaxsr.upscale.model.load_model", lambda *_, **__: model)
    for module in ("upscaling", "volumes"):
        monkeypatch.setattr(f"jaxsr.cli.{module}.select_device", lambda device, **_: None)
    return "identity"


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    path = tmp_path_factory.mktemp("tiny") / "tiny.yaml"
    path.write_text(TINY)
    return path


@pytest.fixture(scope="session")
def run_dir(tiny, jaxsr):
    """A model trained for one step, whose target is 6 mm."""
    folder = tiny.parent
    done = jaxsr("train", "tiny.yaml", "--run-dir", "run", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder / "run"
