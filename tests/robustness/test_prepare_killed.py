"""`jaxsr prepare`, killed on the way."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxsr.data.anatomy import render
from jaxsr.data.records import file_sha256
from jaxsr.volume.io import Volume, write_volume

PEOPLE = 4


def command(root: Path, out: Path, workers: int = 1) -> list[str]:
    options = ["--layout", "folder", "--voxel-size", "4", "--register", "off", "--bias", "off", "--workers", str(workers)]
    return [sys.executable, "-m", "jaxsr", "prepare", str(root), str(out), *options]


def tree(folder: Path) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): file_sha256(path) for path in sorted(folder.rglob("*")) if path.is_file()}


def children(pid: int) -> list[int]:
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True, check=False).stdout
    return [int(line) for line in found.split()]


@pytest.fixture(scope="module")
def heads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("heads")
    for person in range(PEOPLE):
        image = np.asarray(render(jax.random.key(person), (44, 52, 40), 4.0, "T1w").image) * 1000
        write_volume(folder / f"sub-{person:02d}_T1w.nii.gz", Volume(image, np.diag([4.0, 4.0, 4.0, 1.0])))
    return folder


@pytest.fixture(scope="module")
def whole(heads: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    out = tmp_path_factory.mktemp("whole") / "set"
    subprocess.run(command(heads, out), check=True, capture_output=True)
    return tree(out)


@pytest.mark.parametrize(
    "number, status",
    [(signal.SIGKILL, -9), *(pytest.param(*case, marks=pytest.mark.slow) for case in [(signal.SIGTERM, 143), (signal.SIGINT, 130)])],
)
def test_a_run_that_was_stopped_half_way_goes_on_to_the_same_bytes_and_leaves_no_process_behind(heads, whole, tmp_path, number, status):
    out = tmp_path / "set"
    process = subprocess.Popen(command(heads, out, workers=2), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    until = time.monotonic() + 120
    while not list((out / "parts").glob("*.json")):
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < until
        time.sleep(0.02)
    workers = children(process.pid)
    os.kill(process.pid, number)
    assert process.wait(60) == status
    until = time.monotonic() + 20
    while any(Path(f"/proc/{pid}").exists() for pid in workers):
        assert time.monotonic() < until, "a worker goes on after its parent"
        time.sleep(0.05)
    assert not (out / "manifest.json").exists()

    subprocess.run(command(heads, out), check=True, capture_output=True)
    assert tree(out) == whole
