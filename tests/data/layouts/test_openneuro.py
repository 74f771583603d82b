"""The layout openneuro: BIDS, two fields, and contents that were not fetched."""

from jaxsr.data.layouts import Wanted, find


def scan(subject, session, name):
    return f"sub-{subject}/ses-{session}/anat/sub-{subject}_ses-{session}_{name}.nii.gz"


def test_sessions_of_two_fields_are_pairs_where_they_are_asked_for_and_a_remark_where_not(plant, show):
    root = plant(scan("01", "3T", "T1w"), scan("01", "7T", "T1w"), scan("02", "7T", "T1w"))
    found = find("openneuro", root)
    assert len(found.scans) == 3
    assert "high_in=ses-7T with low_in=ses-3T" in show.reasons(found, "note")["."]
    found = find("openneuro", root, Wanted(high_in="ses-7T", low_in="ses-3T"))
    assert show.scans(found, root) == {"sub-01_ses-7T": {"high": scan("01", "7T", "T1w"), "low": scan("01", "3T", "T1w")}}
    assert "." not in show.reasons(found)


def test_mp2rage_is_its_uniform_image(plant, show):
    names = ("inv-1_MP2RAGE", "inv-2_MP2RAGE", "inv-1_part-phase_MP2RAGE", "UNIT1")
    root = plant(*(scan("01", "1", name) for name in names))
    found = find("openneuro", root)
    assert show.scans(found, root) == {"sub-01_ses-1": {"high": scan("01", "1", "UNIT1")}}
    assert "MP2RAGE has no part in pairs of UNIT1" in show.reasons(found)[scan("01", "1", "inv-1_MP2RAGE")]
    assert not show.unaccounted(found, root)


def test_contents_that_were_not_fetched_are_told_with_the_command_that_fetches_them(plant, annexed, show):
    root = plant(scan("01", "1", "T1w"))
    for subject in ("02", "03"):
        annexed(root / scan(subject, "1", "T1w"))
    show.write(root / scan("04", "1", "T1w"), b"/annex/objects/MD5E-s99--0.nii.gz\n")
    found = find("openneuro", root)
    assert [s.id for s in found.scans] == ["sub-01_ses-1"]
    for subject in ("02", "03", "04"):
        assert "datalad get" in show.reasons(found, "unreadable")[scan(subject, "1", "T1w")]
        assert show.reasons(found)[f"sub-{subject}"] == "has no volume that can be read"
    assert "3 files are links" in show.reasons(found, "note")["."]
    assert "`datalad get */*/anat`" in show.reasons(found)["."].replace("sub-", "").replace("ses-", "")
