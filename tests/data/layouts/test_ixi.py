"""The layout ixi."""

import pytest

from jaxsr.data.layouts import Wanted, find
from jaxsr.volume.errors import VolumeError

PEOPLE = ("IXI002-Guys-0828", "IXI012-HH-1211", "IXI035-IOP-0873")


def test_a_scan_is_a_visit_and_the_person_its_number(plant, show):
    root = plant(*(f"{person}-{contrast}.nii.gz" for person in PEOPLE for contrast in ("T1", "T2", "PD")))
    found = find("ixi", root, Wanted(reference="T2"))
    assert [scan.person for scan in found.scans] == ["IXI002", "IXI012", "IXI035"]
    assert show.scans(found, root)["IXI002-Guys-0828-T1"] == {
        "high": "IXI002-Guys-0828-T1.nii.gz",
        "reference": "IXI002-Guys-0828-T2.nii.gz",
    }
    assert show.reasons(found) == {f"{person}-PD.nii.gz": "neither T1 nor T2" for person in PEOPLE}


def test_folders_of_the_archives_and_a_site(plant, show):
    root = plant(*(f"IXI-{c}/{person}-{c}.nii.gz" for person in PEOPLE for c in ("T1", "T2")), "IXI-DTI/IXI002-Guys-0828-DTI-00.nii.gz")
    found = find("ixi", root, Wanted(high="T2w", reference="T1w", high_in="HH"))
    assert show.scans(found, root) == {
        "IXI012-HH-1211-T2": {"high": "IXI-T2/IXI012-HH-1211-T2.nii.gz", "reference": "IXI-T1/IXI012-HH-1211-T1.nii.gz"}
    }
    assert "of Guys, and HH is wanted" in show.reasons(found)["IXI-T2/IXI002-Guys-0828-T2.nii.gz"]
    assert not show.unaccounted(found, root)


def test_missing_contrasts_copies_and_strange_names_are_told(plant, show):
    root = plant("IXI002-Guys-0828-T1.nii.gz", "IXI012-HH-1211-T2.nii.gz", "copy/IXI012-HH-1211-T2.nii.gz", "mean.nii.gz")
    found = find("ixi", root, Wanted(reference="T2"))
    assert not found.scans
    assert "no T2 of IXI002-Guys-0828" in show.reasons(found, "partner")["IXI002-Guys-0828-T1.nii.gz"]
    assert "no T1 of IXI012-HH-1211" in show.reasons(found, "partner")["IXI012-HH-1211-T2.nii.gz"]
    assert "was taken" in show.reasons(found, "duplicate")["copy/IXI012-HH-1211-T2.nii.gz"]
    assert "none of IXI" in show.reasons(found)["mean.nii.gz"]
    with pytest.raises(VolumeError, match="IXI has no low side"):
        find("ixi", root, Wanted(low="T2"))
