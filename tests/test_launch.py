"""Launch scripts: what they set is accepted, and what fails is told."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from jaxsr.runtime.cache import cache_folder

LAUNCH = Path(__file__).parents[1] / "launch"


@pytest.mark.parametrize("deterministic", ["0", "1"])
def test_every_variable_and_flag_that_is_set_is_accepted_by_jax(deterministic, tmp_path, monkeypatch):
    """An unknown XLA flag aborts the process; an unknown JAX_ variable is silently ignored, so its value is read back."""
    program = "import jax; jax.numpy.ones(3) + 1; print(jax.config.jax_optimization_level, jax.config.jax_compilation_cache_dir)"
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "JAX_PLATFORMS": "cpu", "JAXSR_DETERMINISTIC": deterministic}
    answer = subprocess.run(
        ["bash", "-c", f"source {LAUNCH}/environment.sh && exec {sys.executable} -c '{program}'"],
        capture_output=True, text=True, env=environment, check=True,
    )  # fmt: skip
    for name in ("JAX_COMPILATION_CACHE_DIR", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert answer.stdout.split() == ["O1", str(cache_folder())]


@pytest.fixture
def stub(tmp_path):
    """A stand-in for the python that the scripts start, running `body` in place of `-m …`."""

    def stub(body: str) -> dict[str, str]:
        path = tmp_path / "python"
        path.write_text(f'#!/usr/bin/env bash\n[[ $1 == -c ]] && exec {sys.executable} "$@"\n{body}\n')
        path.chmod(0o755)
        return {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "TMPDIR": str(tmp_path), "PYTHON": str(path)}

    return stub


def test_local_processes_get_their_number_and_share_a_coordinator_and_the_gpus(stub):
    environment = stub('for i in 1 2 3; do echo "$JAXSR_PROCESS/$JAXSR_PROCESSES $JAXSR_COORDINATOR gpu $CUDA_VISIBLE_DEVICES"; done')
    answer = subprocess.run(
        [LAUNCH / "local.sh", "2", "train"], capture_output=True, text=True, env={**environment, "CUDA_VISIBLE_DEVICES": "4,5"}, timeout=120
    )
    assert answer.returncode == 0
    assert re.fullmatch(r"(0/2 localhost:\d+ gpu 4\n){3}", answer.stdout)


def test_a_local_process_that_fails_takes_the_others_with_it(stub):
    environment = stub("[[ $JAXSR_PROCESS == 1 ]] && exit 6; exec sleep 60")
    answer = subprocess.run([LAUNCH / "local.sh", "3", "train"], capture_output=True, text=True, env=environment, timeout=120)
    assert answer.returncode == 6
    assert "ended with status 6" in answer.stderr


def test_local_processes_that_upscale_go_on_without_one_that_fails(stub):
    environment = stub('[[ $JAXSR_PROCESS == 1 ]] && echo "why it failed" && exit 5; sleep 1; echo "went on"')
    answer = subprocess.run([LAUNCH / "local.sh", "3", "upscale"], capture_output=True, text=True, env=environment, timeout=120)
    assert (answer.returncode, answer.stdout) == (5, "went on\n")
    assert "why it failed" in answer.stderr


def test_a_failing_step_of_the_gpu_check_is_told_and_does_not_stop_the_others(stub, tmp_path):
    environment = stub('case "$*" in *pytest*) exit 1;; *upscale*) echo words;; *) echo \'{"seconds": 0.25}\';; esac')
    answer = subprocess.run([LAUNCH / "gpu_check.sh", tmp_path / "out"], capture_output=True, text=True, env=environment, timeout=120)
    assert answer.returncode == 1
    assert answer.stdout.count("not a JSON object") == 8
    assert "GPU tests: status 1" in answer.stdout
    assert "| train, small | 0.25 |" in (tmp_path / "out/table.md").read_text()
    assert len((tmp_path / "out/results.jsonl").read_text().splitlines()) == 10


def test_the_gpu_check_ends_in_its_time_and_tells_what_it_left_out(stub, tmp_path):
    """A step gets what is left of the time for all, and is not begun where that is nearly nothing."""
    text = (LAUNCH / "gpu_check.sh").read_text()
    assert int(re.search(r"CHECK_SECONDS:-(\d+)", text)[1]) + 5 < 480  # and 5 s for a step that has to be killed
    steps = re.findall(r'^ *(?:step|benchmark) "([^"]+)" (\d+) ', text, re.MULTILINE)
    assert len(steps) == 20
    environment = {**stub("sleep 1.5; echo '{}'"), "CHECK_SECONDS": "6"}
    answer = subprocess.run(
        [LAUNCH / "gpu_check.sh", tmp_path / "out", "teacher"], capture_output=True, text=True, env=environment, timeout=60
    )
    assert answer.returncode == 1
    began = re.findall(r"^== (.*): python", answer.stdout, re.MULTILINE)
    left_out = re.findall(r"^  (.*): left out, as 6 s are over$", answer.stdout, re.MULTILINE)
    assert began + left_out == [name for name, _ in steps if "teacher" in name]
    assert began
    assert left_out


def test_the_gpu_check_knows_its_parts(stub, tmp_path):
    answer = subprocess.run([LAUNCH / "gpu_check.sh", tmp_path / "out", "moediff"], capture_output=True, text=True, env=stub("exit 1"))
    assert answer.returncode == 2
    assert "[tests] [sr3] [teacher] [student]" in answer.stderr
    assert not (tmp_path / "out").exists()
