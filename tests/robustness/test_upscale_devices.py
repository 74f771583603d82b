"""Volumes on many devices: one volume is the same on any number, a folder is divided over processes."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from jaxsr.runtime.distributed import Place, place
from jaxsr.upscale.files import share
from jaxsr.upscale.inputs import Job

LAUNCH = Path(__file__).parents[2] / "launch" / "local.sh"

TINY = """
method:
  kind: sr3
  network: {width: 8, multipliers: [1], blocks: 1, groups: 4, attention_at: [], dropout: 0.0, middle_attention: false}
  prediction: v
  residual_std: 0.2
  sampling_steps: 1
  eta: 0.0
data: {voxel_size: 6.0, crop: 16, subjects: 1, draws: 32, window: 2, threads: 1}
train: {steps: 1, batch_size: 4}
"""


@pytest.fixture(scope="module")
def tiny_run(tmp_path_factory):
    """A run directory."""
    folder = tmp_path_factory.mktemp("tiny")
    (folder / "tiny.yaml").write_text(TINY)
    words = [sys.executable, "-m", "jaxsr", "train", "tiny.yaml", "--run-dir", "run"]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return folder / "run"


ON_SOME_OF_FOUR = """
import jax, numpy as np
from jaxsr.bench.synthetic import synthetic_variables
from jaxsr.methods.condition import Batch
from jaxsr.methods.sr3 import Sr3, Sr3Config
from jaxsr.runtime.mesh import make_mesh
from jaxsr.upscale.engine import Engine
from jaxsr.volume.io import Volume

network = dict(width=8, multipliers=(1,), blocks=1, attention_at=(), groups=4, dropout=0.0, middle_attention=False)
method = Sr3(Sr3Config(network=network, prediction="v", residual_std=0.2, sampling_steps=2, eta=0.5))
image = jax.ShapeDtypeStruct((1, 16, 16, 1), np.float32)
variables = synthetic_variables(method, Batch(image, image), 1)
points = np.stack(np.meshgrid(*[np.linspace(-1, 1, n) for n in (16, 18, 20)], indexing="ij"))
head = Volume(np.where((points**2).sum(0) < 0.7, 700 + 200 * np.sin(9 * points[0]), 20.0).astype(np.float32), np.diag([2.0, 2.0, 2.0, 1.0]))

results = {}
for devices, asked in [(1, 1), (1, 3), (1, 8), (2, 1), (2, 3), (4, 8)]:
    engine = Engine(method, variables, make_mesh(devices=jax.devices()[:devices]), batch_size=asked)
    results[f"{devices} devices, {asked} asked, {engine.batch_size} at a time"] = engine.upscale(head, method.default_request).volume.data
(_, expected), *others = results.items()
contrast = expected.max() - expected.min()
for name, data in others:
    np.testing.assert_allclose(data, expected, rtol=0, atol=1e-5 * contrast, err_msg=name)
print("; ".join(results))
"""


def test_a_volume_is_the_same_for_any_batch_size_and_number_of_devices():
    """To float32 rounding: networks add up in another order for another batch; noise is a slice's own, and the sum over axes is float64."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=4"
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
    done = subprocess.run([sys.executable, "-c", ON_SOME_OF_FOUR], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "2 devices, 3 asked, 4 at a time; 4 devices, 8 asked, 8 at a time" in done.stdout


@pytest.mark.parametrize("processes", [1, 2, 3, 5])
def test_every_volume_is_of_one_process(processes):
    jobs = [Job(Path(f"{i}.nii"), Path(f"out/{i}.nii")) for i in range(4)]
    shares = [share(jobs, Place(i, processes)) for i in range(processes)]
    assert sorted(job for mine in shares for job in mine) == jobs
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize(
    "environment, expected",
    [
        ({}, Place(0, 1)),
        ({"JAXSR_PROCESS": "1", "JAXSR_PROCESSES": "2"}, Place(1, 2)),
        ({"SLURM_PROCID": "9", "SLURM_STEP_NUM_TASKS": "16", "SLURM_LOCALID": "1"}, Place(9, 16, 1)),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "16", "SLURM_LOCALID": "0"}, Place(0, 1)),  # a batch script, which no other stands beside
        ({"OMPI_COMM_WORLD_RANK": "2", "OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_LOCAL_RANK": "0"}, Place(2, 4, 0)),
    ],
)
def test_the_launcher_says_which_process_this_is(environment, expected, monkeypatch):
    for name in [name for name in os.environ if name.startswith(("JAXSR_", "SLURM_", "OMPI_"))]:
        monkeypatch.delenv(name)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert place() == expected


def test_two_processes_divide_a_folder_and_a_bad_volume_of_one_leaves_the_other_alone(tiny_run, tmp_path):
    """Outputs are those of one process, bit for bit: the same program on the same slices. What failed is told with its status."""
    folder = tmp_path / "scans"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name in "abc":
        nib.save(
            nib.Nifti1Image(rng.normal(100, 30, (18, 16, 17)).astype(np.float32), np.diag([6.0, 6.0, 6.0, 1.0])), folder / f"{name}.nii"
        )
    (folder / "d.nii").write_bytes(b"this is no volume")
    words = ["upscale", "-i", folder, "--model", tiny_run, "--no-montage", "--batch-size", "4"]
    environment = {**os.environ, "PYTHON": sys.executable, "JAX_PLATFORMS": "cpu", "TMPDIR": str(tmp_path)}
    both = subprocess.Popen(
        [LAUNCH, "2", *words, "-o", tmp_path / "two"], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    one = subprocess.run([sys.executable, "-m", "jaxsr", *words, "-o", tmp_path / "one"], env=environment, capture_output=True, text=True)
    said, complained = both.communicate(timeout=300)
    assert (both.returncode, one.returncode) == (1, 1), complained + one.stderr
    assert "process 0 of 2: 2 of 4 volumes" in said
    assert "d.nii" in complained
    for name in "abc":
        ours, theirs = (np.asarray(nib.load(tmp_path / where / f"{name}.nii").dataobj) for where in ("two", "one"))
        np.testing.assert_array_equal(ours, theirs)
        assert json.loads((tmp_path / "two" / f"{name}.json").read_text())["JaxSR"]["BatchSize"] == 4


LIMITED = """
import resource, sys
import jax, jaxsr.upscale.files, jaxsr.upscale.forecast, jaxsr.upscale.model
from jaxsr.cli import main

jax.numpy.ones(3).block_until_ready()
taken = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (taken + 2**31,) * 2)
main()
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits of address space as Linux has them")
def test_a_batch_that_the_machine_has_no_memory_for_ends_with_status_5_and_a_way_out(tiny_run, tmp_path):
    """XLA asks for gigabytes within a limit of two, and is refused. (A small request that fails within XLA ends the process: docs.)"""
    data = np.random.default_rng(0).normal(100, 30, (40, 44, 36)).astype(np.float32)
    nib.save(nib.Nifti1Image(data, np.diag([2.0, 2.0, 2.0, 1.0])), tmp_path / "scan.nii")
    words = ["upscale", "-i", "scan.nii", "-o", "out.nii", "--model", tiny_run, "--to-mm", "0.25", "--no-montage", "--batch-size", "16384"]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, *words], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 5, done.stderr[-2000:]
    assert re.search(r"scan.nii: out of memory with \d{3} slices at a time: try --batch-size auto \(RESOURCE_EXHAUSTED", done.stderr)
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out.nii").exists()
