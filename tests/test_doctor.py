"""The doctor sees what is there, says so in JSON, and names each fault with a way out."""

import copy
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from jaxsr import doctor

PROJECT = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]


@pytest.fixture(scope="module")
def report():
    return doctor.report()


def test_the_report_is_json_and_names_machine_packages_and_devices(report):
    assert json.loads(json.dumps(report)) == report
    assert report["packages"]["jax"] == __import__("jax").__version__
    assert report["jax"]["devices"]
    assert report["jax"]["process_count"] == 1
    assert report["memory_gib"] > 0
    assert report["cpus"] >= 1


def test_the_sums_are_right_on_every_platform_here(report):
    assert "cpu" in report["jax"]["checks"]
    for checks in report["jax"]["checks"].values():
        assert checks == {"matmul": "ok", "convolution": "ok"}


def test_the_packages_and_extras_looked_for_are_those_of_the_project():
    def names(requirements: list[str]) -> set[str]:
        return {re.match(r"[\w.-]+", requirement)[0] for requirement in requirements}

    assert names(PROJECT["dependencies"]) | {"jaxlib"} == set(doctor.PACKAGES)
    extras = PROJECT["optional-dependencies"]
    assert set(extras) == set(doctor.EXTRAS)
    for extra in set(extras) - {"cuda", "tpu"}:  # these two are jax's own extras
        assert set(doctor.EXTRAS[extra]) <= names(extras[extra])


@pytest.fixture
def healthy():
    return {
        "memory_gib": 16.0,
        "disk_free_gib": 100.0,
        "nvidia_gpus": 0,
        "packages": {"jax": "0.10.2"},
        "jax": {"backend": "cpu", "compilation_cache_dir": None, "checks": {"cpu": {"matmul": "ok"}}},
    }


def test_a_healthy_machine_has_no_problems(healthy):
    assert doctor.problems(healthy) == []


@pytest.mark.parametrize("path, value, told", [
    ("packages.grain", None, "grain is not installed: pip install jaxsr"),
    ("nvidia_gpus", 2, "2 NVIDIA GPUs are here but JAX computes on the CPU: pip install 'jaxsr[cuda]'"),
    ("jax", {"error": "no CUDA driver"}, "JAX does not start (no CUDA driver): check JAX_PLATFORMS"),
    ("jax.checks.gpu", {"matmul": "ok", "convolution": "failed: CUDNN_STATUS"}, "the convolution check on gpu gave: failed: CUDNN_STATUS"),
    ("jax.compilation_cache_dir", __file__ + "/cache", "set JAX_COMPILATION_CACHE_DIR"),
    ("memory_gib", 1.0, "1.0 GiB of memory is little"),
    ("disk_free_gib", 0.1, "0.1 GiB are free on this disk"),
])  # fmt: skip
def test_each_fault_is_told_with_the_way_out(healthy, path, value, told):
    sick = copy.deepcopy(healthy)
    *way, last = path.split(".")
    place = sick
    for key in way:
        place = place[key]
    place[last] = value
    [problem] = doctor.problems(sick)
    assert told in problem


def test_jax_that_does_not_start_is_reported_not_raised():
    program = "import json; from jaxsr import doctor; print(json.dumps(doctor.report()['jax']))"
    answer = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, env={"JAX_PLATFORMS": "nonesuch", "PATH": ""}
    )
    assert "nonesuch" in json.loads(answer.stdout)["error"]


def test_jax_platforms_may_leave_out_the_cpu(monkeypatch):
    """As JAX_PLATFORMS=cuda does: the accelerators are checked, and nothing is wrong."""
    jax = pytest.importorskip("jax")
    [device, *_] = jax.local_devices()

    def local_devices(backend=None):
        if backend == "cpu":
            raise RuntimeError("Unknown backend cpu")
        return [device]

    monkeypatch.setattr(jax, "local_devices", local_devices)
    report = doctor._jax_report()
    assert "error" not in report
    assert set(report["checks"]) == {device.platform}


def test_the_commit_is_that_of_the_checkout(tmp_path):
    package = tmp_path / "package"
    package.mkdir()
    assert doctor._commit(package) is None
    (tmp_path / "pyproject.toml").touch()
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "first"]):
        subprocess.run([*git, *command], check=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout
    assert head.startswith(doctor._commit(package))
    (tmp_path / "pyproject.toml").write_text("changed")
    assert doctor._commit(package).endswith("-dirty")


def test_importing_the_doctor_imports_no_jax():
    program = "import sys, jaxsr.doctor; print('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.strip() == "False"
