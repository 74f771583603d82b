"""The layout dhcp: the structural pipeline's output."""

from jaxsr.data.layouts import Wanted, find

AT = "sub-CC00050XX01/ses-7201/anat/sub-CC00050XX01_ses-7201_"
NAMES = (
    "T2w", "desc-restore_T2w", "T1w", "desc-restore_T1w", "desc-restore_space-T2w_T1w", "desc-brain_mask", "desc-drawem9_dseg",
    "desc-drawem87_dseg", "desc-ribbon_dseg",
)  # fmt: skip


def test_the_truth_is_the_t2w_with_the_tissues_and_the_mask(plant, show):
    root = plant(*(f"{AT}{name}.nii.gz" for name in NAMES))
    found = find("dhcp", root)
    assert [scan.person for scan in found.scans] == ["sub-CC00050XX01"]
    assert show.scans(found, root)["sub-CC00050XX01_ses-7201"] == {
        "high": f"{AT}T2w.nii.gz",
        "mask": f"{AT}desc-brain_mask.nii.gz",
        "labels": f"{AT}desc-drawem9_dseg.nii.gz",
    }
    assert not show.unaccounted(found, root)


def test_the_restored_form_is_taken_where_it_is_asked_for(plant, show):
    root = plant(*(f"{AT}{name}.nii.gz" for name in NAMES))
    found = find("dhcp", root, Wanted(high_in="desc-restore", reference="T1w"))
    assert show.scans(found, root) == {
        "sub-CC00050XX01_ses-7201_desc-restore": {
            "high": f"{AT}desc-restore_T2w.nii.gz",
            "reference": f"{AT}desc-restore_T1w.nii.gz",
            "mask": f"{AT}desc-brain_mask.nii.gz",
            "labels": f"{AT}desc-drawem9_dseg.nii.gz",
        }
    }
