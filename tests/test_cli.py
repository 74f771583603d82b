"""The command line from outside: what it prints, and what it exits with."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from jaxsr.cli import app
from jaxsr.cli.status import Exit, run

ROOT = Path(__file__).parents[1]
TINY = """
method:
  kind: sr3
  network: {width: 8, multipliers: [1, 2], blocks: 1, groups: 4, attention_at: [], dropout: 0.0}
  prediction: v
  residual_std: 0.2
  sampling_steps: 2
  eta: 0.0
data: {voxel_size: 6.0, crop: 16, subjects: 2, draws: 8, window: 2, threads: 1}
train: {steps: 2, batch_size: 4, log_every: 1, checkpoint_every: 2}
"""


def jaxsr(*words, cwd=None):
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "COLUMNS": "200"}
    command = [sys.executable, "-m", "jaxsr", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=cwd, timeout=300)


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A folder with a config, a run trained on it for two steps, and a small scan."""
    folder = tmp_path_factory.mktemp("work")
    (folder / "tiny.yaml").write_text(TINY)
    (folder / "bench.yaml").write_text("name: bench\nacquisition: {voxel_size: [12.0, 12.0, 12.0]}\nmetrics: [psnr, nrmse]\n")
    done = jaxsr("train", "tiny.yaml", "--run-dir", "run", cwd=folder)
    assert done.returncode == 0, done.stderr
    points = np.stack(np.meshgrid(*[np.linspace(-1, 1, n) for n in (18, 20, 16)], indexing="ij"))
    data = 500 * (np.sqrt((points**2).sum(0)) < 0.8) + 50 * np.abs(points[0])
    affine = np.diag([-6.0, 6.0, 6.0, 1.0])
    nib.save(nib.Nifti1Image(data.astype(np.int16), affine), folder / "scan.nii.gz")
    return folder


def test_help_imports_no_jax_and_no_numpy():
    words = [sys.executable, "-X", "importtime", "-m", "jaxsr", "--help"]
    lines = subprocess.run(words, capture_output=True, text=True, timeout=60).stderr.splitlines()
    names = {line.split("|")[-1].strip() for line in lines}
    assert "jaxsr.cli" in names
    assert not {n for n in names if n.split(".")[0] in ("jax", "jaxlib", "flax", "numpy", "nibabel", "scipy", "matplotlib")}


def test_train_upscale_evaluate_on_one_scan(work):
    """The walking skeleton: every later feature keeps this standing."""
    up = jaxsr("upscale", "-i", "scan.nii.gz", "-o", "out.nii.gz", "--model", "run", "--to-mm", "3", cwd=work)
    assert up.returncode == 0, up.stderr
    out, scan = nib.load(work / "out.nii.gz"), nib.load(work / "scan.nii.gz")
    assert out.shape == (36, 40, 32)
    assert nib.aff2axcodes(out.affine) == nib.aff2axcodes(scan.affine)
    facts = json.loads((work / "out.json").read_text())
    assert "Synthetic" in facts["Description"]
    assert facts["JaxSR"]["SamplingSteps"] == 2
    assert (work / "out.png").stat().st_size > 10_000

    again = jaxsr("upscale", "-i", "scan.nii.gz", "-o", "out.nii.gz", "--model", "run", "--to-mm", "3", cwd=work)
    assert again.returncode == 0
    assert "1 done already" in again.stdout

    table = jaxsr("evaluate", "-i", "out.nii.gz", "-r", "out.nii.gz", "--json", "-o", "same", cwd=work)
    assert table.returncode == 0, table.stderr
    rows = json.loads(table.stdout)
    assert {"output", "nearest", "trilinear", "tricubic", "zero-filled"} <= {row["method"] for row in rows}
    assert next(row for row in rows if row["method"] == "output")["SSIM"].startswith("1")


def test_a_benchmark_is_one_command(work):
    """With interpolations alone; models are tests/evaluate/test_protocol.py's."""
    scan = nib.load(work / "scan.nii.gz")
    noise = np.random.default_rng(0).integers(0, 200, scan.shape)  # the scan alone has as few values as a label map
    nib.save(nib.Nifti1Image((scan.get_fdata() + noise).astype(np.int16), scan.affine), work / "head.nii.gz")
    words = ["evaluate", "--protocol", "bench.yaml", "-r", "head.nii.gz", "-o", "bench"]
    plan = jaxsr(*words, "--dry-run", cwd=work)
    assert plan.returncode == 0, plan.stderr
    assert "1 of 1 heads enter bench" in plan.stdout
    assert not (work / "bench").exists()
    done = jaxsr(*words, "--report", cwd=work)
    assert done.returncode == 0, done.stderr
    assert all(word in done.stdout for word in ("PSNR (dB)", "NRMSE", "zero-filled"))
    document = json.loads((work / "bench" / "metrics.json").read_text())
    assert document["provenance"]["command"][:3] == ["jaxsr", "evaluate", "--protocol"]
    assert document["protocol"]["name"] in (work / "bench" / "report.html").read_text()


def test_without_a_model_the_one_that_comes_along_is_used(work):
    up = jaxsr("upscale", "-i", "scan.nii.gz", "-o", "standard.nii.gz", "--to-mm", "3", "--no-montage", cwd=work)
    assert up.returncode == 0, up.stderr
    facts = json.loads((work / "standard.json").read_text())["JaxSR"]
    assert (facts["Model"], facts["SamplingSteps"]) == ("standard", 1)


def test_metrics_are_listed_by_name():
    listed = jaxsr("evaluate", "--metrics", "list")
    assert listed.returncode == 0
    assert "effective resolution, mm: lower is better" in listed.stdout
    assert "LPIPS: lower is better, 16 voxels a side or more, needs --lpips-weights" in listed.stdout


def test_a_plan_is_shown_without_running(work):
    plan = jaxsr("upscale", "-i", "scan.nii.gz", "-o", "planned.nii.gz", "--model", "run", "--to-mm", "3", "--dry-run", cwd=work)
    assert plan.returncode == 0
    assert "108 slices" in plan.stdout
    assert not (work / "planned.nii.gz").exists()


@pytest.mark.parametrize(
    "words, status, sentence",
    [
        (["upscale", "-i", "scan.nii.gz", "-o", "x.nii.gz", "--mode", "sharp", "--steps", "2"], 2, "says what --steps would"),
        (["upscale", "-i", "scan.nii.gz", "-o", "x.nii.gz", "--model", "run", "--mode", "sharp"], 2, "this model has no modes"),
        (["upscale", "-i", "scan.nii.gz", "-o", "x.nii.gz", "--to-mm", "6"], 3, "already at the target resolution"),
        (["demo", "--steps", "2"], 2, "is for --train"),
        (["upscale", "-i", "scan.nii.gz", "-o", "x.nii.gz", "--model", "."], 4, "is not a run directory"),
        (["upscale", "-i", "missing.nii.gz", "-o", "x.nii.gz", "--model", "run"], 2, "missing.nii.gz"),
        (["upscale", "-i", "empty", "-o", "out", "--model", "run"], 3, "no volumes"),
        (["upscale", "-i", "scan.nii.gz", "-o", "scan.nii.gz", "--model", "run"], 2, "the output is the input"),
        (["upscale", "-i", "scan.nii.gz", "-o", "x.nii.gz", "--model", "run", "--to-mm", "0"], 2, "to-mm"),
        (["train", "tiny.yaml", "train.stepz=3"], 2, "did you mean"),
        (["train", "tiny.yaml", "train.steps=9", "seed=1", "--run-dir", "run"], 2, "seed: 0 → 1"),
        (["evaluate", "-i", "scan.nii.gz", "-r", "missing.nii.gz"], 2, "missing.nii.gz"),
        (["evaluate", "-i", "scan.nii.gz", "-r", "scan.nii.gz", "--metrics", "beauty"], 2, "unknown metric 'beauty'"),
        (["evaluate", "-r", "scan.nii.gz"], 2, "--protocol"),
        (["evaluate", "--protocol", "tiny.yaml", "-r", "scan.nii.gz"], 2, "unknown key"),
        (["evaluate", "--protocol", "bench.yaml", "-r", "empty"], 3, "no heads there"),
        (["evaluate", "--protocol", "bench.yaml", "-r", "scan.nii.gz"], 3, "no head enters bench"),
        (["evaluate", "--protocol", "bench.yaml", "-r", "scan.nii.gz", "--dry-run"], 3, "no head enters bench"),
        (["evaluate", "--protocol", "bench.yaml", "-r", "tiny.yaml"], 2, "tiny.yaml: not a volume"),
        (["evaluate", "--protocol", "bench.yaml", "-r", "scan.nii.gz", "--lpips-weights", "x"], 2, "does not name lpips"),
        (["evaluate", "-i", "scan.nii.gz", "-r", "scan.nii.gz", "--metrics", "psnr,lpips"], 2, "--lpips-weights"),
        (["evaluate", "-i", "scan.nii.gz", "-r", "scan.nii.gz", "--lpips-weights", "x"], 4, "x is not there"),
        (["config", "validate", "tiny.yaml", "nowhere.yaml"], 2, "nowhere.yaml"),
        (["nonsense"], 2, "nonsense"),
    ],
)
def test_what_cannot_be_done_is_said_in_a_sentence_with_its_status(work, words, status, sentence, monkeypatch, capsys):
    """In this process: each would take seconds to start, and what `main` adds to `run` is tested above and below."""
    (work / "empty").mkdir(exist_ok=True)
    monkeypatch.chdir(work)
    monkeypatch.setenv("COLUMNS", "200")
    assert run(lambda: app(words, standalone_mode=False)) == status
    said = capsys.readouterr().err
    assert sentence in said
    assert "Traceback" not in said
    assert not (work / "x.nii.gz").exists()


def test_a_batch_with_one_bad_file_finishes_the_others(work):
    folder = work / "batch"
    folder.mkdir()
    (folder / "a.nii.gz").write_bytes((work / "scan.nii.gz").read_bytes())
    (folder / "b.nii.gz").write_bytes(b"this is no volume")
    done = jaxsr("upscale", "-i", "batch", "-o", "batch_out", "--model", "run", "--no-montage", cwd=work)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-2] == "jaxsr: 1 of 2 failed:"
    assert done.stderr.splitlines()[-1].startswith("  batch/b.nii.gz: ")
    assert (work / "batch_out" / "a.nii.gz").exists()
    assert not (work / "batch_out" / "b.nii.gz").exists()


def test_count_prints_one_json_object():
    done = jaxsr("bench", "count", ROOT / "configs" / "sr3.yaml", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["parameters"] == 97_804_033


@pytest.mark.parametrize(
    "error, status",
    [(Exit(3, "nothing"), 3), (MemoryError("x"), 5), (RuntimeError("RESOURCE_EXHAUSTED: out"), 5), (KeyboardInterrupt(), 130)],
)
def test_errors_end_with_their_status(error, status, capsys):
    def fail():
        raise error

    assert run(fail) == status
    assert "Traceback" not in capsys.readouterr().err


def test_our_own_mistakes_keep_their_traceback():
    with pytest.raises(ZeroDivisionError):
        run(lambda: 1 / 0)


def test_the_page_of_the_command_line_is_true():
    spec = importlib.util.spec_from_file_location("make_cli_page", ROOT / "docs" / "make_cli_page.py")
    maker = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(maker)
    assert maker.PAGE.read_text(encoding="utf-8") == maker.page(), "run `python docs/make_cli_page.py`"
