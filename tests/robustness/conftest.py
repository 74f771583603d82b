"""The command line as users meet it, and one tiny model for all."""

import os
import subprocess
import sys

import pytest

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


@pytest.fixture(scope="session")
def jaxsr():
    """`jaxsr(*words)` runs the command in a process of its own."""

    def command(*words, timeout=300, **options):
        environment = {**os.environ, "JAX_PLATFORMS": "cpu", "COLUMNS": "200", **options.pop("env", {})}
        words = [sys.executable, "-m", "jaxsr", *map(str, words)]
        return subprocess.run(words, capture_output=True, text=True, env=environment, timeout=timeout, **options)

    return command


@pytest.fixture(scope="session")
def run_dir(tmp_path_factory, jaxsr):
    """A model trained for one step, whose target is 6 mm."""
    folder = tmp_path_factory.mktemp("model")
    (folder / "tiny.yaml").write_text(TINY)
    done = jaxsr("train", "tiny.yaml", "--run-dir", "run", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder / "run"
