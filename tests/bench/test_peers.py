"""The peer's place: it comes before JAX takes the device, is measured on the same one, and is refused before anything is timed."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from jaxsr.bench.peer import check_same_device, run_peer, why_no_peer
from jaxsr.cli import app
from jaxsr.cli.scaling import _named_devices
from jaxsr.cli.status import run
from jaxsr.config import ConfigError
from jaxsr.experiment import load_experiment

ROOT = Path(__file__).parents[2]
NONE_STARTED = """
import sys
from jax._src import xla_bridge
from jaxsr.bench import peer
from jaxsr.cli import app

def run_peer(words, device, script=peer.NETWORKS):
    print(f"backends: {len(xla_bridge._backends)}")
    raise SystemExit(0)

peer.run_peer = run_peer
app(sys.argv[1:], standalone_mode=False)
"""


@pytest.mark.parametrize("words", [
    ["upscale", "configs/demo.yaml", "--batch-size", "8"], ["train", "configs/demo.yaml"], ["layers"],
    ["upscale", "configs/teacher-tiny.yaml", "--batch-size", "8", "--device", "cpu"],
])  # fmt: skip
def test_nothing_has_started_when_the_peer_takes_the_device(words):
    answer = subprocess.run([sys.executable, "-c", NONE_STARTED, "bench", *words, "--peer"], cwd=ROOT, capture_output=True, text=True)
    assert answer.stdout == "backends: 0\n", answer.stderr


@pytest.mark.parametrize("words, sentence", [
    (["upscale", "configs/demo.yaml", "--peer"], "with --peer give a number"),
    (["upscale", "configs/demo.yaml", "--peer", "--batch-size", "8", "-i", "scan.nii"], "leave out one of them"),
    (["train", "configs/demo.yaml", "--peer", "--data"], "leave out one of them"),
    (["train", "configs/demo.yaml", "--data", "--encoded"], "name it with data.manifest"),
    (["train", "configs/moediff-tiny.yaml", "--peer"], "is of kind moediff"),
    (["layers", "--peer", "--device", "gpux"], "'gpux' is none of auto, cpu, gpu, gpu:N"),
])  # fmt: skip
def test_what_cannot_be_compared_is_refused_before_anything_is_timed(words, sentence, monkeypatch, capsys):
    monkeypatch.setattr("jaxsr.bench.peer.run_peer", lambda *_: pytest.fail("the peer was run"))
    monkeypatch.chdir(ROOT)
    assert run(lambda: app(["bench", *words], standalone_mode=False)) == 2
    assert sentence in " ".join(capsys.readouterr().err.replace("│", " ").split())


def test_of_several_processes_none_has_a_peer(monkeypatch, capsys):
    monkeypatch.setenv("JAXSR_PROCESS", "0")
    monkeypatch.setenv("JAXSR_PROCESSES", "2")
    monkeypatch.chdir(ROOT)
    assert run(lambda: app(["bench", "train", "configs/demo.yaml", "--peer"], standalone_mode=False)) == 2
    assert "is for one process" in " ".join(capsys.readouterr().err.replace("│", " ").split())


@pytest.mark.parametrize("device, count, peer, said", [
    ("cpu", 1, "NVIDIA H200", "is PyTorch built for this GPU"), ("NVIDIA H200", 1, "cpu", "is PyTorch built for this GPU"),
    ("NVIDIA H200", 8, "NVIDIA H200", "choose one with --device gpu:0"), ("NVIDIA H200", 1, "NVIDIA H200", None), ("cpu", 1, "cpu", None),
])  # fmt: skip
def test_a_ratio_is_of_one_device(device, count, peer, said):
    if said is None:
        return check_same_device({"device": peer}, device, count)
    with pytest.raises(ConfigError, match=said):
        check_same_device({"device": peer}, device, count)


@pytest.mark.parametrize("device, platforms, expected", [
    ("auto", None, "auto"), ("auto", "cpu", "cpu"), ("cpu", "cpu", "cpu"), ("gpu:1", "cuda,cpu", "cuda"),
])  # fmt: skip
def test_the_peer_is_told_the_device_that_jax_is(device, platforms, expected, monkeypatch):
    seen = []
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    if platforms:
        monkeypatch.setenv("JAX_PLATFORMS", platforms)
    monkeypatch.setattr("jaxsr.bench.peer._check_peer", lambda script: None)
    monkeypatch.setattr(
        "jaxsr.bench.peer.subprocess.run", lambda words, **_: seen.append(words[-1]) or SimpleNamespace(returncode=0, stdout='{"a": 1}')
    )
    assert run_peer(["train"], device) == {"a": 1}
    assert seen == [expected]


PASSES = ["method.passes=2", "method.fused=true", "method.terminal=1.0", "method.residual_std=0.1", "data.crop=16", "data.draws=192"]
PASSES += ["train.batch_size=48"]


@pytest.mark.parametrize("settings, said", [
    ([], ""), (["method.context=1"], "shown slices"), (["method.scale_conditioning=true"], "told of the scan"),
    (PASSES, "made of a volume before"),
    (["method.network={width: 8, multipliers: [1], attention_at: [], groups: null, middle_attention: false}"], "without norms"),
    (["method.network={width: 8, multipliers: [1], attention_at: [], groups: 4, skips: false}"], "without skips"),
])  # fmt: skip
def test_no_peer_stands_in_for_a_network_that_it_is_not(settings, said):
    why = why_no_peer(load_experiment(ROOT / "configs" / "sr3.yaml", settings).method)
    assert said in why
    assert bool(said) == bool(why)


@pytest.mark.parametrize("sizes, expected", [
    (["data=32", "fsdp=8"], 256), (["fsdp=8"], 8), (["data=-1", "fsdp=8"], None), (["fsdp=0"], None), (["fsdp"], None), (["fsdp=²"], None),
])  # fmt: skip
def test_a_mesh_has_as_many_devices_as_it_names(sizes, expected):
    assert _named_devices(sizes) == expected


def test_a_mesh_that_is_named_is_simulated():
    words = ["bench", "compile", "configs/sr3-tiny.yaml", "--mesh", "data=2,fsdp=2", "train.batch_size=2", "data.crop=16"]
    answer = subprocess.run([sys.executable, "-m", "jaxsr", *words], cwd=ROOT, capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr
    assert "4 slices of 16 × 16 over data 2, fsdp 2 (2 asked for: rounded up to the devices)" in answer.stdout
