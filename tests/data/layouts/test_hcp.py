"""The layout hcp: subjects of six digits, states of processing, no 7 T, families."""

import pytest

from jaxsr.data.layouts import Wanted, find
from jaxsr.volume.errors import VolumeError

STRUCTURAL = (
    "T1w_acpc_dc_restore", "T2w_acpc_dc_restore", "T1w_acpc_dc_restore_brain", "T2w_acpc_dc_restore_brain", "T1w_acpc_dc", "T2w_acpc_dc",
    "brainmask_fs", "aparc+aseg", "aparc.a2009s+aseg", "ribbon", "wmparc", "BiasField_acpc_dc", "T1wDividedByT2w",
)  # fmt: skip


def structural(subject):
    names = [f"{subject}/T1w/{name}.nii.gz" for name in STRUCTURAL]
    return [*names, f"{subject}/MNINonLinear/T1w_restore.nii.gz", f"{subject}/MNINonLinear/xfms/acpc_dc2standard.nii.gz"]


def unprocessed(subject, *scans):
    return [f"{subject}/unprocessed/3T/{scan}/{subject}_3T_{scan}.nii.gz" for scan in scans]


def test_the_default_is_the_restored_t1w_with_mask_and_labels(plant, show):
    root = plant(*structural("100307"), *structural("100408"))
    found = find("hcp", root)
    assert [(scan.id, scan.person) for scan in found.scans] == [("100307", "100307"), ("100408", "100408")]
    assert show.scans(found, root)["100307"] == {
        "high": "100307/T1w/T1w_acpc_dc_restore.nii.gz",
        "mask": "100307/T1w/brainmask_fs.nii.gz",
        "labels": "100307/T1w/aparc+aseg.nii.gz",
    }
    why = show.reasons(found, "unused")
    assert "divided by it already: high_in=acpc_dc" in why["100307/T1w/BiasField_acpc_dc.nii.gz"]
    assert why["100307/MNINonLinear/"].startswith("2 volumes: not of T1w (restore)")
    assert not show.unaccounted(found, root)


def test_the_bias_field_goes_with_the_images_that_it_multiplies(plant, show):
    root = plant(*structural("100307"))
    scans = show.scans(find("hcp", root, Wanted(high="T1w", reference="T2w", high_in="acpc_dc")), root)
    assert scans["100307"] == {
        "high": "100307/T1w/T1w_acpc_dc.nii.gz",
        "reference": "100307/T1w/T2w_acpc_dc.nii.gz",
        "bias": "100307/T1w/BiasField_acpc_dc.nii.gz",
        "mask": "100307/T1w/brainmask_fs.nii.gz",
        "labels": "100307/T1w/aparc+aseg.nii.gz",
    }


def test_runs_as_scanned_are_scans_with_the_nearest_reference_and_retests_are_the_same_person(plant, show):
    root = plant(
        *unprocessed("103818", "T1w_MPR1", "T1w_MPR2", "T2w_SPC1", "T2w_SPC2"), *unprocessed("103818_retest", "T1w_MPR1", "T2w_SPC1")
    )
    found = find("hcp", root, Wanted(reference="T2w", high_in="unprocessed"))
    assert [scan.id for scan in found.scans] == ["103818_T1w_MPR1", "103818_T1w_MPR2", "103818_retest_T1w_MPR1"]
    assert {scan.person for scan in found.scans} == {"103818"}
    assert [scan.files["reference"].parent.name for scan in found.scans] == ["T2w_SPC1", "T2w_SPC2", "T2w_SPC1"]
    assert not found.problems


def test_who_lacks_what_is_wanted_is_told(plant, show):
    root = plant(*structural("100307"), "100408/T1w/T1w_acpc_dc_restore.nii.gz", "stray.nii.gz")
    found = find("hcp", root, Wanted(reference="T2w"))
    assert [scan.id for scan in found.scans] == ["100307"]
    assert "no T1w/T2w_acpc_dc_restore.nii.gz" in show.reasons(found, "partner")["100408"]
    assert "six digits" in show.reasons(found)["stray.nii.gz"]
    assert not show.unaccounted(found, root)
    found = find("hcp", root, Wanted(high_in="unprocessed"))
    assert not found.scans
    assert "no unprocessed T1w" in show.reasons(found, "partner")["100408"]


@pytest.mark.parametrize("wanted", [Wanted(high="7T"), Wanted(high_in="7T"), Wanted(low_in="3T", high_in="ses-7T")])
def test_a_request_for_7_t_is_told_that_there_are_none(plant, wanted):
    with pytest.raises(VolumeError, match="HCP has no structural scans at 7 T"):
        find("hcp", plant(*structural("100307")), wanted)


def test_what_hcp_cannot_be_asked_for_is_refused(plant):
    root = plant(*structural("100307"))
    with pytest.raises(VolumeError, match="HCP has no low side"):
        find("hcp", root, Wanted(low="T1w"))
    with pytest.raises(VolumeError, match="high=PD is not known here"):
        find("hcp", root, Wanted(high="PD"))


def test_a_family_is_one_person(plant, show, tmp_path):
    root = plant(*structural("100307"), *structural("100408"), *structural("101107"))
    table = tmp_path / "restricted.csv"
    table.write_text("Subject,Age,Family_ID\n100307,27,51488_81149\n100408,33,51488_81149\n")
    found = find("hcp", root, Wanted(families=table))
    assert [scan.person for scan in found.scans] == ["family-51488_81149", "family-51488_81149", "101107"]
    assert "taken to have no relatives" in show.reasons(found, "note")["101107"]
