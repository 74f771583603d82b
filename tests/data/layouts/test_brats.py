"""The layout brats: three ways of naming, and one odd segmentation."""

import pytest

from jaxsr.data.layouts import Wanted, find
from jaxsr.volume.errors import VolumeError


def old(case, suffix):
    return [f"{case}/{case}_{kind}{suffix}" for kind in ("t1", "t1ce", "t2", "flair", "seg")]


def new(case):
    return [f"{case}/{case}-{kind}.nii.gz" for kind in ("t1n", "t1c", "t2w", "t2f", "seg")]


def test_cases_of_2020_and_2021(plant, show):
    root = plant(*old("BraTS20_Training_001", ".nii"), *old("BraTS2021_00000", ".nii.gz"))
    found = find("brats", root, Wanted(reference="t2"))
    assert show.scans(found, root) == {
        case: {"high": f"{case}/{case}_t1{suffix}", "reference": f"{case}/{case}_t2{suffix}", "labels": f"{case}/{case}_seg{suffix}"}
        for case, suffix in (("BraTS20_Training_001", ".nii"), ("BraTS2021_00000", ".nii.gz"))
    }
    assert all(scan.person == scan.id for scan in found.scans)
    assert show.reasons(found)["BraTS2021_00000/BraTS2021_00000_flair.nii.gz"] == "neither t1 nor t2"
    assert not show.unaccounted(found, root)


def test_time_points_since_2023_are_one_person(plant, show):
    root = plant(*new("BraTS-GLI-00005-000"), *new("BraTS-GLI-00005-001"), *new("BraTS-MET-00005-000"))
    found = find("brats", root, Wanted(high="t2f", reference="t1c"))
    assert {scan.id: scan.person for scan in found.scans} == {
        "BraTS-GLI-00005-000": "BraTS-GLI-00005",
        "BraTS-GLI-00005-001": "BraTS-GLI-00005",
        "BraTS-MET-00005-000": "BraTS-MET-00005",
    }
    assert show.scans(found, root)["BraTS-GLI-00005-001"]["high"] == "BraTS-GLI-00005-001/BraTS-GLI-00005-001-t2f.nii.gz"
    assert show.scans(found, root)["BraTS-GLI-00005-001"]["reference"] == "BraTS-GLI-00005-001/BraTS-GLI-00005-001-t1c.nii.gz"


def test_case_355_of_2020_has_its_segmentation_under_another_name(plant, show):
    case = "BraTS20_Training_355"
    root = plant(*old(case, ".nii")[:-1], f"{case}/W39_1998.09.19_Segm.nii")
    found = find("brats", root)
    assert show.scans(found, root)[case]["labels"] == f"{case}/W39_1998.09.19_Segm.nii"
    show.write(root / f"{case}/{case}_seg.nii")
    assert show.scans(find("brats", root), root)[case]["labels"] == f"{case}/{case}_seg.nii"


def test_a_case_without_the_truth_is_told_and_one_without_labels_is_taken(plant, show):
    root = plant("BraTS2021_00001/BraTS2021_00001_t2.nii.gz", "BraTS2021_00002/BraTS2021_00002_t1.nii.gz", "BraTS2021_00002/mean.nii.gz")
    found = find("brats", root, Wanted(reference=None))
    assert show.scans(found, root) == {"BraTS2021_00002": {"high": "BraTS2021_00002/BraTS2021_00002_t1.nii.gz"}}
    assert "no t1 of BraTS2021_00001" in show.reasons(found, "partner")["BraTS2021_00001/BraTS2021_00001_t2.nii.gz"]
    assert "none of BraTS" in show.reasons(found)["BraTS2021_00002/mean.nii.gz"]
    with pytest.raises(VolumeError, match="BraTS has no low side"):
        find("brats", root, Wanted(low="t1"))
