"""Laws of BIDS derivatives: which scans are taken, what outputs are called, what is refused. The validator's word is in robustness/."""

import json
from pathlib import Path, PurePosixPath

import numpy as np
import pytest

from jaxsr.data.layouts.entities import parse
from jaxsr.evaluate.files import named_source, volume_files
from jaxsr.upscale.derivatives import derivative_jobs, find_scans, output_name, start_derivative
from jaxsr.upscale.sidecar import check_maps, map_path, write_json
from jaxsr.volume.io import Volume, VolumeError, write_volume

SMALL = Volume(np.random.default_rng(0).normal(size=(5, 5, 5)).astype(np.float32), np.eye(4))
SCANS = ("sub-01/ses-1/anat/sub-01_ses-1_run-1_T1w", "sub-01/ses-2/anat/sub-01_ses-2_T1w", "sub-02/ses-1/anat/sub-02_ses-1_T2w")
OTHERS = (
    "sub-01/ses-1/anat/sub-01_ses-1_part-phase_T1w", "derivatives/other/sub-01/ses-1/anat/sub-01_ses-1_desc-preproc_T1w",
    "sub-01/ses-1/func/sub-01_ses-1_task-rest_T1w",
)  # fmt: skip


@pytest.fixture
def bids(tmp_path):
    root = tmp_path / "set"
    for name in (*SCANS, *OTHERS):
        write_volume(root / f"{name}.nii.gz", SMALL)
    write_json(root / "dataset_description.json", {"Name": "a set", "BIDSVersion": "1.10.0", "License": "CC0"})
    return root


def jobs_of(root, out, suffixes=("T1w",), to_mm=0.7, participants=(), sessions=()):
    return derivative_jobs(root, out, find_scans(root, out, participants, sessions, suffixes), to_mm)


@pytest.mark.parametrize("name, to_mm, expected", [
    ("sub-01_T1w", 1.0, "sub-01_res-1mm_desc-sr_T1w"),
    ("sub-01_ses-2_acq-x_run-1_T2w", 0.75, "sub-01_ses-2_acq-x_run-1_res-0p75mm_desc-sr_T2w"),
    ("sub-01_space-MNI_res-2_label-brain_desc-preproc_T1w", 1.0, "sub-01_space-MNI_res-1mm_label-brain_desc-preprocsr_T1w"),
])  # fmt: skip
def test_an_output_keeps_entities_in_their_order_and_is_told_by_res_and_desc(name, to_mm, expected):
    assert output_name(parse(PurePosixPath("anat") / f"{name}.nii.gz"), to_mm) == f"{expected}.nii.gz"


@pytest.mark.parametrize("output, name, expected", [
    ("scan_sr.nii.gz", "std", "scan_sr_std.nii.gz"),
    ("a.v2.mgz", "sample-3", "a.v2_sample-3.mgz"),
    ("sub-1_res-1mm_desc-sr_T1w.nii.gz", "std", "sub-1_res-1mm_desc-srstd_T1w.nii.gz"),
    ("sub-1_res-1mm_desc-sr_T1w.nii.gz", "sample-11", "sub-1_res-1mm_desc-srsample11_T1w.nii.gz"),
    ("sub-1_res-1mm_desc-sr_T1w.nii.gz", "consistency", "sub-1_desc-srconsistency_T1w.nii.gz"),  # on the input's grid
    ("sub-1_T1w.nii", "std", "sub-1_desc-std_T1w.nii"),
])  # fmt: skip
def test_a_map_is_named_after_its_output(output, name, expected):
    assert map_path(Path("x") / output, name) == Path("x") / expected


def test_scans_of_the_set_itself_are_taken_by_participant_session_and_suffix(bids, tmp_path):
    def found(**how):
        return [job.source.relative_to(bids).as_posix().removesuffix(".nii.gz") for job in jobs_of(bids, tmp_path / "out", **how)]

    assert found() == list(SCANS[:2])
    assert found(suffixes=("T1w", "T2w")) == list(SCANS)
    assert found(participants=("sub-01",), sessions=("2",)) == [SCANS[1]]
    assert found(suffixes=("PDw",)) == []


def test_what_bidsignore_names_is_not_taken(bids, tmp_path):
    (bids / ".bidsignore").write_text("sub-01/ses-1/\n")
    assert [job.source.name for job in jobs_of(bids, tmp_path / "out")] == ["sub-01_ses-2_T1w.nii.gz"]


def test_a_sidecar_says_where_the_source_is_as_bids_does_and_evaluate_finds_it(bids):
    out = bids / "derivatives" / "jaxsr"
    start_derivative(bids, out)
    job = jobs_of(bids, out)[0]
    assert job.derivative.uri == f"bids:raw:{SCANS[0]}.nii.gz"
    assert named_source(job.output, job.derivative.uri).samefile(job.source)
    own = f"bids::{job.output.relative_to(out).as_posix()}"
    assert named_source(job.output, own) == job.output.resolve()


def test_what_a_raw_sidecar_says_that_is_true_of_the_output_too_is_kept_and_no_more(bids, tmp_path):
    (bids / f"{SCANS[0]}.json").write_text(json.dumps({"MagneticFieldStrength": 1.5, "EchoTime": 0.003}))
    write_json(bids / f"{SCANS[1]}.json", {"SkullStripped": True})
    assert [job.derivative.keys for job in jobs_of(bids, tmp_path / "out")] == [{"SkullStripped": False}, {"SkullStripped": True}]


def test_a_derivative_describes_itself_and_what_it_was_made_of(bids):
    out = bids / "derivatives" / "jaxsr"
    start_derivative(bids, out)
    facts = json.loads((out / "dataset_description.json").read_text())
    assert facts["DatasetType"] == "derivative"
    assert facts["GeneratedBy"][0]["Name"] == "jaxsr"
    assert facts["DatasetLinks"] == {"raw": "../.."}
    assert facts["License"] == "CC0"
    assert (out / ".bidsignore").read_text() == "*.png\n"
    (out / "README").write_text("mine")
    start_derivative(bids, out)  # a second run changes nothing
    assert (out / "README").read_text() == "mine"


@pytest.mark.parametrize("out, sentence", [
    ("set", "the output is the input"),
    ("set/sub-03", "lies in the set itself: choose .*set/derivatives/jaxsr"),
    ("set/derivatives/better", "BIDS wants the pipeline's name .*jaxsr-better"),
])  # fmt: skip
def test_a_place_that_would_make_one_of_the_sets_invalid_is_refused(bids, tmp_path, out, sentence):
    with pytest.raises(VolumeError, match=sentence):
        jobs_of(bids, tmp_path / out)


def test_another_pipelines_place_is_refused_and_so_is_that_of_another_set(bids, tmp_path):
    write_json(tmp_path / "out" / "dataset_description.json", {"GeneratedBy": [{"Name": "fMRIPrep"}]})
    with pytest.raises(VolumeError, match="was not written by jaxsr"):
        jobs_of(bids, tmp_path / "out")
    write_json(tmp_path / "out" / "dataset_description.json", {"GeneratedBy": [{"Name": "jaxsr"}], "DatasetLinks": {"raw": "../elsewhere"}})
    with pytest.raises(VolumeError, match=r"names another set \(\.\./elsewhere\) as its source"):
        jobs_of(bids, tmp_path / "out")


def test_what_is_not_there_is_said_with_what_is(bids, tmp_path):
    with pytest.raises(VolumeError, match="no sub-03 with T1w in anat/; there is sub-01"):
        jobs_of(bids, tmp_path / "out", participants=("01", "03"))
    with pytest.raises(VolumeError, match="no ses-9 with T1w in anat/; there is ses-1, ses-2"):
        jobs_of(bids, tmp_path / "out", sessions=("ses-9",))
    with pytest.raises(VolumeError, match=r"is no BIDS set, it has no dataset_description\.json"):
        jobs_of(tmp_path, tmp_path / "out")


def test_two_forms_of_one_image_that_would_share_a_name_are_refused(bids, tmp_path):
    for res in "12":
        write_volume(bids / f"sub-03/anat/sub-03_res-{res}_T1w.nii.gz", SMALL)
    with pytest.raises(VolumeError, match="would both be written to"):
        jobs_of(bids, tmp_path / "out")


def test_a_file_that_was_not_fetched_is_a_scan_that_fails_and_not_one_that_is_missing(bids, tmp_path):
    (bids / f"{SCANS[0]}.nii.gz").write_bytes(b"")
    assert len(jobs_of(bids, tmp_path / "out")) == 2


def test_evaluate_does_not_take_maps_for_outputs(tmp_path):
    for name, facts in (("a.nii", {"JaxSR": {}}), ("a_std.nii", {"JaxSR": {"Map": "std"}}), ("b_std.nii", None)):
        write_volume(tmp_path / name, SMALL)
        if facts:
            write_json((tmp_path / name).with_suffix(".json"), facts)
    assert [path.name for path in volume_files(tmp_path)] == ["a.nii", "b_std.nii"]


def test_a_map_in_another_outputs_place_is_refused(tmp_path):
    from jaxsr.upscale.inputs import find_jobs

    for name in ("a.nii", "a_std.nii"):
        write_volume(tmp_path / name, SMALL)
    jobs = find_jobs(tmp_path, tmp_path / "out")
    check_maps(jobs, ["consistency"])
    with pytest.raises(VolumeError, match=r"a_std\.nii, a map of .*a\.nii, is another volume's place"):
        check_maps(jobs, ["std"])
