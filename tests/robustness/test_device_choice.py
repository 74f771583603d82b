"""`--device` is obeyed or refused, never silently changed."""

import os
import subprocess
import sys

import pytest

CHOOSE = """
import sys
from jaxsr.cli.options import device_in_use, select_device
from jaxsr.cli.status import run
sys.exit(run(lambda: select_device(sys.argv[1]) or print(device_in_use(), __import__("os").environ.get("CUDA_VISIBLE_DEVICES"))))
"""


@pytest.fixture
def choose(tmp_path):
    """What choosing a device does in a process of its own, whose machine shows as many GPUs as asked; JAX has no plugin for them."""

    def choose(device, gpus=0, before="", **environment):
        if gpus:
            shown = tmp_path / "nvidia-smi"
            shown.write_text("#!/bin/sh\n" + "".join(f"echo 'GPU {i}: NVIDIA H200'\n" for i in range(gpus)))
            shown.chmod(0o755)
        kept = {name: value for name, value in os.environ.items() if name not in ("JAX_PLATFORMS", "CUDA_VISIBLE_DEVICES")}
        kept |= {"PATH": f"{tmp_path}:{os.environ['PATH']}", "HOME": str(tmp_path), **environment}
        done = subprocess.run([sys.executable, "-c", before + CHOOSE, device], env=kept, capture_output=True, text=True, timeout=120)
        assert "Traceback" not in done.stderr
        return done

    return choose


@pytest.fixture(autouse=True)
def no_gpu():
    import jax

    if any(device.platform == "gpu" for device in jax.devices()):
        pytest.skip("about machines without a GPU that works")


@pytest.mark.parametrize("device", ["gpu", "gpu:0"])
def test_a_gpu_that_is_not_to_be_had_is_refused_also_where_the_environment_says_cpu(choose, device):
    done = choose(device, JAX_PLATFORMS="cpu")
    assert done.returncode == 2
    assert f"--device {device}: JAX finds no GPU" in done.stderr
    assert "jaxsr doctor" in done.stderr


def test_the_flag_counts_for_more_than_the_environment(choose):
    done = choose("cpu", JAX_PLATFORMS="cuda")
    assert (done.returncode, done.stdout) == (0, "1 × cpu None\n")


def test_a_platform_of_the_environment_that_does_not_start_is_told(choose):
    done = choose("auto", JAX_PLATFORMS="cuda")
    assert done.returncode == 2
    assert "JAX does not start" in done.stderr
    assert "JAX_PLATFORMS" in done.stderr


def test_a_device_other_than_the_ones_that_already_compute_is_refused(choose):
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=2"
    before = "import jax; jax.default_backend = lambda: 'tpu'"  # the nearest to an accelerator that there is here
    done = choose("cpu", before=before, JAX_PLATFORMS="cpu", XLA_FLAGS=flags)
    assert done.returncode == 2
    assert "in this process JAX computes on 2 × cpu already" in done.stderr
    assert choose("gpu", before="import jax; jax.numpy.ones(1)", JAX_PLATFORMS="cpu").returncode == 2


def test_jax_imported_but_not_started_still_obeys(choose):
    assert choose("cpu", before="import jax", JAX_PLATFORMS="cuda").stdout.startswith("1 × cpu")


@pytest.mark.parametrize("environment, gpus, said", [
    ({}, 2, True), ({}, 0, False), ({"JAX_PLATFORMS": "cpu"}, 2, False), ({"CUDA_VISIBLE_DEVICES": ""}, 2, False),
    ({"CUDA_VISIBLE_DEVICES": "-1"}, 2, False),
])  # fmt: skip
def test_auto_says_so_when_gpus_are_here_that_jax_cannot_use_and_nobody_hid_them(choose, environment, gpus, said):
    done = choose("auto", gpus, **environment)
    assert done.returncode == 0
    assert ("NVIDIA GPUs are here (2) but JAX finds none, so the CPU computes" in done.stderr) == said


@pytest.mark.parametrize("given, device, expected", [
    ("4,5", "gpu:1", "5"), ("GPU-a, GPU-b", "gpu:0", "GPU-a"), (None, "gpu:3", "3"),
    ("4,5", "gpu:2", "CUDA_VISIBLE_DEVICES=4,5 leaves 2 GPUs"), ("", "gpu:0", "leaves 0 GPUs"), ("1,-1,2", "gpu:1", "leaves 1 GPUs"),
])  # fmt: skip
def test_the_number_of_a_gpu_counts_among_the_visible_ones(given, device, expected, monkeypatch):
    from jaxsr.cli.options import _visible
    from jaxsr.cli.status import Exit

    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if given is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given)
    if "leaves" in expected:
        with pytest.raises(Exit, match=expected):
            _visible(int(device[-1]), device)
    else:
        assert _visible(int(device[-1]), device) == expected


@pytest.mark.parametrize("local, given, expected", [("1", None, "1"), ("1", "6,7", "7"), ("3", "5", "5")])
def test_processes_that_work_apart_take_a_gpu_each(choose, local, given, expected):
    """Under Slurm, whether tasks see all GPUs of their node or only their own."""
    environment = {"SLURM_PROCID": "9", "SLURM_STEP_NUM_TASKS": "16", "SLURM_LOCALID": local, "JAX_PLATFORMS": "cpu"}
    before = "import functools, jaxsr.cli.options as o; o.select_device = functools.partial(o.select_device, apart=True)\n"
    done = choose("auto", 4, before, **environment, **({} if given is None else {"CUDA_VISIBLE_DEVICES": given}))
    assert done.stdout.split()[-1] == expected
