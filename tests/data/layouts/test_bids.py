"""The layout bids: who belongs to whom, by the names of the Brain Imaging Data Structure."""

import json

import pytest

from jaxsr.data.layouts import Wanted, find
from jaxsr.data.layouts.entities import parse_filter
from jaxsr.volume.errors import VolumeError


def anat(subject, *names, session=None):
    """As in 'sub-01/ses-1/anat/sub-01_ses-1_T1w.nii.gz'."""
    folder = f"sub-{subject}/" + (f"ses-{session}/" if session else "") + "anat/"
    head = f"sub-{subject}_" + (f"ses-{session}_" if session else "")
    return [f"{folder}{head}{name}.nii.gz" for name in names]


def described(root, **said):
    (root / "dataset_description.json").write_text(json.dumps({"Name": "x", "BIDSVersion": "1.9.0", **said}))
    return root


def test_every_session_and_run_is_a_scan_and_a_person_is_the_subject(plant, show):
    root = described(plant(*anat("01", "run-1_T1w", "run-2_T1w", session="a"), *anat("01", "T1w", session="b"), *anat("02", "T1w")))
    found = find("bids", root)
    assert [scan.id for scan in found.scans] == ["sub-01_ses-a_run-1", "sub-01_ses-a_run-2", "sub-01_ses-b", "sub-02"]
    assert [scan.person for scan in found.scans] == ["sub-01", "sub-01", "sub-01", "sub-02"]
    assert not found.problems


def test_the_default_truth_is_the_first_contrast_that_the_set_has(plant):
    root = plant(*anat("01", "T2w", "FLAIR"))
    assert find("bids", root).scans[0].files["high"].name == "sub-01_T2w.nii.gz"


def test_a_reference_is_of_the_same_session_and_the_nearest_run(plant, show):
    root = plant(*anat("01", "run-1_T1w", "run-3_T1w", "run-1_T2w", "run-2_T2w", "run-4_T2w", session="1"), *anat("01", "T1w", session="2"))
    found = find("bids", root, Wanted(high="T1w", reference="T2w"))
    pairs = {scan.files["high"].name[13:18]: scan.files["reference"].name[13:18] for scan in found.scans}
    assert pairs == {"run-1": "run-1", "run-3": "run-2"}
    why = show.reasons(found)
    assert "only in ses-1" in why["sub-01/ses-2/anat/sub-01_ses-2_T1w.nii.gz"]
    assert "another is nearer" in why["sub-01/ses-1/anat/sub-01_ses-1_run-4_T2w.nii.gz"]


def test_entities_tell_the_sides_apart(plant, show):
    root = plant(*anat("01", "acq-highres_T1w", "acq-lowres_T1w"), *anat("02", "acq-highres_T1w"), *anat("03", "acq-lowres_T1w"))
    for wanted in (
        Wanted(high="T1w", high_in="acq-highres", low_in="acq-lowres"),
        Wanted(high="T1w", low="T1w", high_in="acq-highres"),
        Wanted(low_in="acq-low*"),
    ):
        found = find("bids", root, wanted)
        assert show.scans(found, root) == {
            "sub-01_acq-highres": {
                "high": "sub-01/anat/sub-01_acq-highres_T1w.nii.gz",
                "low": "sub-01/anat/sub-01_acq-lowres_T1w.nii.gz",
            }
        }
        why = show.reasons(found, "partner")
        assert "no T1w for the low side" in why["sub-02/anat/sub-02_acq-highres_T1w.nii.gz"]
        assert "sub-03 has no truth" in why["sub-03/anat/sub-03_acq-lowres_T1w.nii.gz"]
    with pytest.raises(VolumeError, match="tell them apart by high_in or low_in"):
        find("bids", root, Wanted(high="T1w", low="T1w"))


def test_sessions_tell_the_sides_apart_and_the_reference_stays_with_the_truth(plant, show):
    root = plant(*anat("01", "T1w", "T2w", session="7T"), *anat("01", "T1w", "T2w", session="3T"))
    found = find("bids", root, Wanted(high_in="ses-7T", low_in="ses-3T", reference="T2w"))
    assert show.scans(found, root)["sub-01_ses-7T"] == {
        "high": "sub-01/ses-7T/anat/sub-01_ses-7T_T1w.nii.gz",
        "low": "sub-01/ses-3T/anat/sub-01_ses-3T_T1w.nii.gz",
        "reference": "sub-01/ses-7T/anat/sub-01_ses-7T_T2w.nii.gz",
    }


def test_the_nearest_low_side_shares_most_entities_then_the_run(plant):
    names = ["acq-high_run-2_T1w", "acq-low_run-1_T1w", "acq-low_run-2_T1w", "acq-low_rec-norm_run-2_T1w"]
    found = find("bids", plant(*anat("01", *names)), Wanted(high_in="acq-high", low_in="acq-low"))
    assert [scan.files["low"].name for scan in found.scans] == ["sub-01_acq-low_run-2_T1w.nii.gz"]


def test_the_low_side_of_the_same_session_is_nearer_than_any_other(plant):
    root = plant(*anat("01", "acq-high_T1w", "acq-low_rec-x_T1w", session="7T"), *anat("01", "acq-low_T1w", session="3T"))
    found = find("bids", root, Wanted(high_in="ses-7T_acq-high", low_in="acq-low"))
    assert [scan.files["low"].name for scan in found.scans] == ["sub-01_ses-7T_acq-low_rec-x_T1w.nii.gz"]


def test_partners_of_a_truth_that_lacks_one_are_told_so(plant, show):
    root = plant(*anat("01", "acq-high_T1w", "acq-low_T1w"))
    found = find("bids", root, Wanted(high_in="acq-high", low_in="acq-low", reference="T2w"))
    assert not found.scans
    assert show.reasons(found, "partner") == {
        "sub-01/anat/sub-01_acq-high_T1w.nii.gz": "there is no T2w for reference in the same session",
        "sub-01/anat/sub-01_acq-low_T1w.nii.gz": "T1w for the low side, and the truth of sub-01 lacks another partner",
    }


def test_masks_and_labels_of_the_same_space_come_from_derivatives(plant, show):
    root = plant(
        *anat("01", "T1w"),
        *(
            f"derivatives/fmriprep/sub-01/anat/sub-01_{name}.nii.gz"
            for name in (
                "desc-brain_mask",
                "dseg",
                "desc-aseg_dseg",
                "desc-preproc_T1w",
                "space-MNI152NLin2009cAsym_desc-brain_mask",
                "space-MNI152NLin2009cAsym_dseg",
                "label-lesion_mask",
            )
        ),
    )
    found = find("bids", root)
    at = "derivatives/fmriprep/sub-01/anat/sub-01_"
    assert show.scans(found, root)["sub-01"] == {
        "high": "sub-01/anat/sub-01_T1w.nii.gz",
        "mask": f"{at}desc-brain_mask.nii.gz",
        "labels": f"{at}dseg.nii.gz",
    }
    assert "high_in=fmriprep would" in show.reasons(found)[f"{at}desc-preproc_T1w.nii.gz"]
    assert not show.unaccounted(found, root)
    derived = find("bids", root, Wanted(high="T1w", high_in="fmriprep"))
    assert show.scans(derived, root)["sub-01_desc-preproc"]["high"] == f"{at}desc-preproc_T1w.nii.gz"
    assert derived.scans == find("bids", root, Wanted(high="T1w", high_in="derivatives/fmriprep_desc-preproc")).scans


@pytest.mark.parametrize("name, taken", [
    ("desc-brain_mask", True),
    ("mask", True),
    ("run-1_desc-brain_mask", False),  # of a run that the truth is not
    ("space-MNI152NLin2009cAsym_desc-brain_mask", False),
    ("space-orig_desc-brain_mask", True),
    ("space-T1w_desc-brain_mask", True),
    ("label-lesion_mask", False),
    ("desc-preproc_mask", False),
])  # fmt: skip
def test_a_mask_is_of_the_brain_and_of_the_truths_own_space(plant, show, name, taken):
    mask = f"derivatives/p/sub-01/anat/sub-01_{name}.nii.gz"
    root = plant(*anat("01", "T1w"), mask)
    assert show.scans(find("bids", root), root)["sub-01"].get("mask") == (mask if taken else None)


def test_a_derivative_set_by_itself_is_a_set(plant, show):
    root = described(plant(*anat("01", "desc-preproc_T1w", "space-MNI_desc-preproc_T1w", "desc-brain_mask")), DatasetType="derivative")
    found = find("bids", root)
    assert show.scans(found, root) == {
        "sub-01_desc-preproc": {
            "high": "sub-01/anat/sub-01_desc-preproc_T1w.nii.gz",
            "mask": "sub-01/anat/sub-01_desc-brain_mask.nii.gz",
        }
    }
    assert "another echo or form" in show.reasons(found, "duplicate")["sub-01/anat/sub-01_space-MNI_desc-preproc_T1w.nii.gz"]


def test_phases_later_echoes_and_defacing_masks_are_told_and_not_taken(plant, show):
    root = plant(
        *anat("01", "part-mag_T1w", "part-phase_T1w", "mod-T1w_defacemask"),
        *anat("02", "echo-1_T1w", "echo-2_T1w", "echo-10_T1w"),
    )
    found = find("bids", root)
    assert [scan.files["high"].name for scan in found.scans] == ["sub-01_part-mag_T1w.nii.gz", "sub-02_echo-1_T1w.nii.gz"]
    why = show.reasons(found)
    assert "part-phase is no magnitude" in why["sub-01/anat/sub-01_part-phase_T1w.nii.gz"]
    assert "removed with the face" in why["sub-01/anat/sub-01_mod-T1w_defacemask.nii.gz"]
    assert {"sub-02/anat/sub-02_echo-2_T1w.nii.gz", "sub-02/anat/sub-02_echo-10_T1w.nii.gz"} <= set(show.reasons(found, "duplicate"))


def test_a_truth_that_was_not_taken_is_told_why(plant, show):
    root = plant(*anat("01", "T1w", "acq-x_T1w"), "sourcedata/sub-01/anat/sub-01_T1w.nii.gz", "sub-02/func/sub-02_T1w.nii.gz")
    why = show.reasons(find("bids", root, Wanted(high_in="acq-x")), "unused")
    assert why == {
        "sub-01/anat/sub-01_T1w.nii.gz": "high_in=acq-x does not take it",
        "sourcedata/sub-01/anat/sub-01_T1w.nii.gz": "sourcedata is no part of the set",
        "sub-02/func/sub-02_T1w.nii.gz": "it lies in func/, not in anat/",
    }


def test_other_modalities_are_told_once_for_each_folder(plant, show):
    root = plant(*anat("01", "T1w"), "sub-01/func/sub-01_task-rest_bold.nii.gz", "sub-01/func/sub-01_task-rest_sbref.nii.gz")
    found = find("bids", root)
    assert show.reasons(found, "unused") == {
        "sub-01/func/": "2 volumes: bold has no part in pairs of T1w; sbref has no part in pairs of T1w"
    }


def test_participants_and_folders_are_compared(plant, show):
    root = described(plant(*anat("01", "T1w"), *anat("02", "T1w"), *anat("04", "T2w")))
    (root / "participants.tsv").write_text("participant_id\tage\nsub-01\t30\nsub-03\t40\nsub-04\t50\n")
    (root / "sub-05").mkdir()
    why = show.reasons(find("bids", root))
    assert "participants.tsv lists it" in why["sub-03"]
    assert "does not list it" in why["sub-02"]
    assert why["sub-04"] == "has no T1w, only T2w"
    assert {p.why for p in find("bids", root).problems if p.path == "sub-05"} == {
        "has no volume that can be read",
        "participants.tsv does not list it",
    }


def test_a_missing_description_is_a_note_and_no_error(plant, show):
    assert "is missing" in show.reasons(find("bids", plant(*anat("01", "T1w"))), "note")["dataset_description.json"]


@pytest.mark.parametrize(
    "pattern", ["*_acq-bad_*", "**/sub-01_acq-bad_T1w*", "sub-01/anat/*bad*", "/sub-01/anat/sub-01_acq-bad_T1w.nii.gz", "**/*bad*"]
)
def test_what_bidsignore_names_is_ignored_and_told(plant, show, pattern):
    root = plant(*anat("01", "T1w", "acq-bad_T1w"))
    (root / ".bidsignore").write_text(f"# a comment\n{pattern}\n")
    found = find("bids", root)
    assert [scan.id for scan in found.scans] == ["sub-01"]
    assert ".bidsignore names it" in show.reasons(found, "ignored")["sub-01/anat/sub-01_acq-bad_T1w.nii.gz"]


@pytest.mark.parametrize("pattern", ["sub-02/", "/sub-02", "sub-02/anat/", "sub-02/**", "!sub-01/\nsub-02"])
def test_a_folder_in_bidsignore_goes_with_all_that_is_in_it(plant, pattern):
    root = plant(*anat("01", "T1w"), *anat("02", "T1w"))
    (root / ".bidsignore").write_text(f"{pattern}\n/anat\n")  # there is no such folder at the root
    assert [scan.id for scan in find("bids", root).scans] == ["sub-01"]


def test_names_that_are_none_of_bids_are_told(plant, show):
    root = plant(*anat("01", "T1w"), "sub-01/anat/T1 copy.nii.gz", "sub-01/anat/sub-01_T1w_backup-x.nii.gz", "scan.nii")
    assert sum("none of BIDS" in why for why in show.reasons(find("bids", root)).values()) == 3


def test_a_filter_names_entities_and_perhaps_a_pipeline():
    assert parse_filter("ses-7T_acq-mp2rage", "high_in") == ({"ses": "7T", "acq": "mp2rage"}, None)
    assert parse_filter("derivatives/fmriprep, desc-preproc", "high_in") == ({"desc": "preproc"}, "fmriprep")
    assert parse_filter(None, "high_in") == ({}, None)
    with pytest.raises(VolumeError, match="acq is given twice"):
        parse_filter("acq-a_acq-b", "high_in")
