"""`upscale --bids`: the trees that it writes are valid, whole, and gone on with."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

SCANS = (
    "sub-01/ses-1/anat/sub-01_ses-1_run-1_T1w", "sub-01/ses-1/anat/sub-01_ses-1_run-2_T1w", "sub-01/ses-2/anat/sub-01_ses-2_acq-x_T1w",
    "sub-02/anat/sub-02_T1w", "sub-02/anat/sub-02_T2w",
)  # fmt: skip
# What cannot be known: who wrote the derivative.
KNOWN_WARNINGS = {("TOO_FEW_AUTHORS", None)}


@pytest.fixture
def bids(tmp_path):
    """A raw set of noisy balls of 12 mm, each another."""
    root, random = tmp_path / "set", np.random.default_rng(0)
    points = np.stack(np.meshgrid(*[np.linspace(-1, 1, n) for n in (18, 20, 16)], indexing="ij"))
    for name in SCANS:
        ball = 500 * ((points**2).sum(0) < 0.6) + 20 * random.normal(size=(2, 18, 20, 16))[0]
        image = nib.Nifti1Image(np.abs(ball).astype(np.int16), np.diag([-12.0, 12.0, 12.0, 1.0]))
        image.header.set_xyzt_units("mm")
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        nib.save(image, root / f"{name}.nii.gz")
        (root / f"{name}.json").write_text(json.dumps({"MagneticFieldStrength": 1.5}))
    (root / "dataset_description.json").write_text(json.dumps({"Name": "balls", "BIDSVersion": "1.10.0", "License": "CC0"}))
    (root / "README").write_text("Noisy balls.")
    return root


def issues(tree):
    """What the BIDS validator finds in `tree`: it needs no network, its schema comes with it."""
    beside = Path(sys.executable).with_name("bids-validator-deno")
    program = str(beside) if beside.exists() else shutil.which("bids-validator-deno")
    if program is None:
        pytest.skip("no bids-validator-deno: pip install 'jaxsr[dev]'")
    environment = {**os.environ, "DENO_NO_UPDATE_CHECK": "1"}
    done = subprocess.run([program, str(tree), "--format", "json"], capture_output=True, text=True, env=environment, timeout=120)
    return json.loads(done.stdout)["issues"]["issues"]


def found(tree):
    """Errors, and warnings by code."""
    said = issues(tree)
    errors = [issue for issue in said if issue["severity"] == "error"]
    return errors, {(issue["code"], issue.get("subCode")) for issue in said if issue["severity"] == "warning"}


def test_a_derivative_with_all_its_maps_passes_the_bids_validator(jaxsr, run_dir, bids):
    out = bids / "derivatives" / "jaxsr"
    done = jaxsr(
        "upscale", "--bids", bids, out, "participant", "--model", run_dir, "--suffix", "T1w,T2w", "--samples", 2, "--keep-samples",
        "--consistency", "--noise", 20, "--to-mm", 6.5,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    errors, warnings = found(out)
    assert errors == []
    assert warnings <= KNOWN_WARNINGS
    errors, _ = found(bids)  # with its derivatives/
    assert errors == []
    names = {path.relative_to(out).as_posix() for path in out.rglob("*.nii.gz")}
    forms = ("res-6p5mm_desc-sr", "res-6p5mm_desc-srstd", "res-6p5mm_desc-srsample0", "res-6p5mm_desc-srsample1", "desc-srconsistency")
    expected = {f"{name.rpartition('_')[0]}_{form}_{name.rpartition('_')[2]}.nii.gz" for name in SCANS for form in forms}
    assert names == expected
    assert {path.with_name(path.name.replace(".nii.gz", ".json")).exists() for path in out.rglob("*.nii.gz")} == {True}


def test_the_validator_would_find_a_name_or_a_key_that_is_wrong(call, identity, bids):
    """That its silence above means something."""
    out = bids.parent / "out"
    words = ("upscale", "--bids", bids, out, "participant", "--model", identity, "--to-mm", 6)
    assert call(*words, "--participant-label", "02").status == 0
    assert found(out)[0] == []
    (volume,) = out.rglob("*_desc-sr_T1w.nii.gz")
    sidecar = volume.with_name(volume.name.replace(".nii.gz", ".json"))
    facts = json.loads(sidecar.read_text())
    del facts["SkullStripped"]
    sidecar.write_text(json.dumps(facts))
    volume.with_name(volume.name.replace("_T1w", "_std")).write_bytes(volume.read_bytes())
    codes = {issue["code"] for issue in found(out)[0]}
    assert {"SIDECAR_KEY_REQUIRED", "NOT_INCLUDED"} <= codes


def test_participants_and_sessions_are_chosen_and_the_rest_is_added_later(call, identity, bids):
    out = bids.parent / "out"
    words = ("upscale", "--bids", bids, out, "participant", "--model", identity, "--to-mm", 6, "--no-montage")
    done = call(*words, "--participant-label", "sub-01", "--session-label", "1")
    assert done.status == 0, done.err
    first = {path: path.stat().st_mtime_ns for path in out.rglob("*.nii.gz")}
    assert {path.name.partition("_run")[0] for path in first} == {"sub-01_ses-1"}
    again = call(*words)
    assert again.status == 0, again.err
    assert "2 done already" in again.out
    later = {path: path.stat().st_mtime_ns for path in out.rglob("*.nii.gz")}
    assert len(later) == 4
    assert {path: later[path] for path in first} == first


def test_one_scan_that_cannot_be_read_fails_alone(call, identity, bids):
    (bids / f"{SCANS[3]}.nii.gz").write_bytes(b"version https://git-lfs.github.com/spec/v1")
    out = bids.parent / "out"
    done = call("upscale", "--bids", bids, out, "participant", "--model", identity, "--to-mm", 6, "--no-montage")
    assert done.status == 1
    assert "1 of 4 failed" in done.err
    assert "sub-02_T1w.nii.gz" in done.err
    assert len(list(out.rglob("*.nii.gz"))) == 3


@pytest.mark.parametrize("words, sentence", [
    (["--bids", "SET", "OUT", "group"], "'group' is none of participant"),
    (["--bids", "SET", "SET", "participant"], "the output is the input"),
    (["--bids", "nowhere", "OUT", "participant"], "is no BIDS set"),
    (["--bids", "SET", "OUT", "participant", "-i", "SET"], "leave out -i and -o"),
    (["--bids", "SET", "OUT", "participant", "--participant-label", "7"], "no sub-7 with T1w"),
    (["-i", "SET"], "or --bids IN OUT participant"),
    (["-i", "SET", "-o", "OUT", "--participant-label", "01"], "is for --bids"),
    (["-i", "SET", "-o", "OUT", "--acquisition", "3T"], "is for --consistency"),
    (["-i", "SET", "-o", "OUT", "--consistency", "--noise", "0"], "no standard deviation above 0"),
    (["-i", "SET", "-o", "OUT", "--consistency", "--acquisition", "9T"], "unknown acquisition '9T'; known: 1.5T"),
])  # fmt: skip
def test_words_that_do_not_fit_together_are_refused_and_nothing_is_written(call, identity, bids, words, sentence):
    out = bids.parent / "out"
    done = call("upscale", *[{"SET": bids, "OUT": out}.get(word, word) for word in words], "--model", identity)
    assert done.status == 2
    assert sentence in " ".join(done.err.replace("│", " ").split())
    assert not out.exists()


def test_a_plan_of_a_set_writes_nothing_and_has_the_voxel_size_of_the_model(jaxsr, bids, run_dir):
    out = bids.parent / "out"
    done = jaxsr("upscale", "--bids", bids, out, "participant", "--model", run_dir, "--samples", 3, "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "sub-02_res-6mm_desc-srstd_T1w.nii.gz" in done.stdout
    assert "for each of 3 samples" in done.stdout
    assert not out.exists()
