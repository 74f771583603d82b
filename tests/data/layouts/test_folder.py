"""The layout folder: volumes by themselves, and folders of matching names."""

import pytest

from jaxsr.data.layouts import Wanted, find
from jaxsr.data.splits import settle
from jaxsr.volume.errors import VolumeError


def test_every_volume_is_a_truth_and_a_subfolder_is_a_person(plant, show):
    root = plant("a.nii", "b.nii.gz", "c/1.mgz", "c/2.mgh", "sub-07/anat/sub-07_T1w.nii")
    found = find("folder", root)
    assert {scan.id: scan.person for scan in found.scans} == {
        "a": "a",
        "b": "b",
        "c_1": "c",
        "c_2": "c",
        "sub-07_anat_sub-07_T1w": "sub-07",
    }
    assert not found.problems


def notes(plant, *names, at):
    found = find("folder", plant(*names, at=at))
    return {problem.path: problem.why for problem in found.problems if problem.kind == "note"}


def test_visits_are_of_one_person_and_that_is_told(plant):
    root = plant("baseline/p01.nii", "followup/p01.nii", "baseline/p02.nii")
    assert {scan.id: scan.person for scan in find("folder", root).scans} == {
        "baseline_p01": "p01",
        "followup_p01": "p01",
        "baseline_p02": "p02",
    }
    told = notes(plant, at="set")
    assert "counts as another visit of p01, as followup/p01.nii does" in told["baseline/p01.nii"]
    assert "of ctl, as ctl_m02/a.nii" in notes(plant, "ctl_m01/a.nii", "ctl_m02/a.nii", at="males")["ctl_m01/a.nii"]
    assert "of ctl, as ctl_m02.nii" in notes(plant, "ctl_m01.nii", "ctl_m02.nii", at="flat")["ctl_m01.nii"]


@pytest.mark.parametrize("side", ["", "high/"])
def test_one_name_in_several_subfolders_is_told(plant, side):
    told = notes(plant, f"{side}siteA/p01.nii", f"{side}siteB/p01.nii", at="set")
    assert f"{side}siteB/p01.nii is called the same, and siteA and siteB count as two people" in told[f"{side}siteA/p01.nii"]
    told = notes(plant, *(f"{side}{site}/{name}.nii" for site in ("u", "v") for name in ("ann", "bob", "eve")), at="letters")
    assert "likewise 2 other names" in told[f"{side}u/ann.nii"]


def test_a_subfolder_of_more_names_than_there_are_people_is_told(plant):
    assert (
        "the 2 names in its subfolder count as one person, images" in notes(plant, "images/a.nii", "images/b.nii", at="a")["images/a.nii"]
    )
    told = notes(plant, "patients/p1.nii", "patients/p2.nii", "controls/c1.nii", at="b")
    assert "likewise 1 other subfolder" in told["patients/p1.nii"]


@pytest.mark.parametrize("names", [
    [f"p{i}/{name}.nii" for i in range(4) for name in ("brain", "scan1", "T1")],
    [f"p{i}/p{i}_{name}.nii" for i in range(4) for name in "abcdef"],
    [f"IXI-{name}/x{i}-{name}.nii" for i in range(4) for name in ("T1", "T2")],
    [f"site{i % 2}/sub-{i:02d}_ses-{v}.nii" for i in range(4) for v in (1, 2)],
    [f"p{i}.nii" for i in range(4)],
])  # fmt: skip
def test_of_people_who_are_named_plainly_nothing_is_told(plant, names):
    assert not notes(plant, *names, at="set")


def test_a_split_given_to_a_member_finds_the_family_by_the_own_name(plant, tmp_path):
    (tmp_path / "families.tsv").write_text("subject\tfamily\nann\t7\nbob\t7\n")
    found = find("folder", plant("ann.nii", "bob.nii", "eve.nii"), Wanted(families=tmp_path / "families.tsv"))
    names = {scan.own or scan.person: scan.person for scan in found.scans}
    assert names == {"ann": "family-7", "bob": "family-7", "eve": "eve"}
    assert settle({"bob": "test", "Bob": "train"}, names) == ({"family-7": "test"}, ["Bob"])


def test_contrasts_of_a_flat_folder_are_one_person(plant, show):
    root = plant("x-T1.nii", "x-T2.nii", "y_t1w.nii", "y.FLAIR.nii.gz", "z.nii")
    assert {scan.person for scan in find("folder", root).scans} == {"x", "y", "z"}
    found = find("folder", root, Wanted(high="T1", reference="T2"))
    assert show.scans(found, root) == {"x": {"high": "x-T1.nii", "reference": "x-T2.nii"}}
    assert not show.unaccounted(found, root)


def test_any_word_at_the_end_of_a_name_tells_the_sides_apart(plant, show):
    root = plant("x_hires.nii", "x_lores.nii", "y_hires.nii", "z_lores.nii", "other.nii")
    found = find("folder", root, Wanted(high="hires", low="lores"))
    assert show.scans(found, root) == {"x": {"high": "x_hires.nii", "low": "x_lores.nii"}}
    why = show.reasons(found)
    assert "no lores of the same name" in why["y_hires.nii"]
    assert "no hires of the same name" in why["z_lores.nii"]
    assert "does not end in hires" in why["other.nii"]


@pytest.mark.parametrize("high, low", [("high", "low"), ("HR", "LR"), ("High", "LOW")])
def test_two_folders_of_matching_names_are_pairs_whatever_the_format(plant, show, high, low):
    root = plant(f"{high}/a.nii.gz", f"{low}/a.nii", f"{high}/deep/b.mgz", f"{low}/deep/b.nii.gz")
    found = find("folder", root)
    assert show.scans(found, root) == {
        "a": {"high": f"{high}/a.nii.gz", "low": f"{low}/a.nii"},
        "deep_b": {"high": f"{high}/deep/b.mgz", "low": f"{low}/deep/b.nii.gz"},
    }
    assert [scan.person for scan in found.scans] == ["a", "deep"]


def test_folders_may_be_named_and_other_maps_lie_beside(plant, show):
    maps = ("reference", "bias", "gradient", "labels", "mask")
    root = plant("7T/a.nii", "3T/a.nii", *(f"{role}/a.nii.gz" for role in maps))
    found = find("folder", root, Wanted(high_in="7T", low_in="3T"))
    assert show.scans(found, root)["a"] == {"high": "7T/a.nii", "low": "3T/a.nii"} | {role: f"{role}/a.nii.gz" for role in maps}
    assert not found.problems
    with pytest.raises(VolumeError, match="there is no subfolder 9T, only"):
        find("folder", root, Wanted(high_in="9T"))


def test_without_a_low_folder_the_low_side_is_left_to_be_simulated(plant, show):
    root = plant("high/a.nii", "mask/a.nii", "high/b.nii")
    found = find("folder", root)
    assert show.scans(found, root) == {"a": {"high": "high/a.nii", "mask": "mask/a.nii"}, "b": {"high": "high/b.nii"}}
    assert show.reasons(found) == {"high/b.nii": "goes without mask: there is no mask/b"}
    assert show.scans(find("folder", plant("reference/b.nii")), root)["a"] == {"high": "high/a.nii", "mask": "mask/a.nii"}
    assert list(show.scans(find("folder", root, Wanted(reference="T2")), root)) == ["b"]
    with pytest.raises(VolumeError, match="no folder low beside high"):
        find("folder", root, Wanted(low="T1"))
    with pytest.raises(VolumeError, match="none of truths"):
        find("folder", plant("low/a.nii", at="lows"))


@pytest.mark.parametrize("high, low", [("a.nii", "A.nii"), ("a_T1w.nii", "a.nii"), ("a.nii", "a_0000.nii.gz"), ("a-T1.nii", "a-T2.nii")])
def test_a_partner_of_nearly_the_same_name_is_named_on_both_sides(plant, show, high, low):
    root = plant(f"high/{high}", f"low/{low}", "high/b.nii", "low/b.nii")
    found = find("folder", root)
    assert [scan.id for scan in found.scans] == ["b"]
    why = show.reasons(found, "partner")
    assert f"but low/{low}: give both the same name" in why[f"high/{high}"]
    assert f"but high/{high}: give both the same name" in why[f"low/{low}"]


def test_who_lacks_a_partner_is_told_and_so_is_what_lies_beside(plant, show):
    root = plant("high/a.nii", "high/b.nii", "low/b.nii", "low/c.nii", "stray.nii", "mask/a.nii", "mask/zz.nii")
    found = find("folder", root)
    assert list(show.scans(found, root)) == ["b"]
    assert show.reasons(found) == {
        "high/a.nii": "there is no low/a",
        "high/b.nii": "goes without mask: there is no mask/b",
        "low/c.nii": "there is no high/c",
        "mask/a.nii": "its high/a lacks another partner",
        "mask/zz.nii": "there is no high/zz",
        "stray.nii": "outside of high, low, mask",
    }


def test_of_one_volume_in_two_formats_one_is_taken(plant, show):
    root = plant("high/a.nii", "high/a.nii.gz", "low/a.nii")
    found = find("folder", root)
    assert show.scans(found, root) == {"a": {"high": "high/a.nii.gz", "low": "low/a.nii"}}
    assert "keep one" in show.reasons(found, "duplicate")["high/a.nii"]


def test_asking_for_what_cannot_be_told_apart_is_refused(plant):
    root = plant("a.nii")
    with pytest.raises(VolumeError, match="do not tell the sides apart"):
        find("folder", root, Wanted(high="T1", low="t1"))
    with pytest.raises(VolumeError, match="say which volumes are truths"):
        find("folder", root, Wanted(reference="T2"))
    with pytest.raises(VolumeError, match="could both be the high side"):
        find("folder", plant("high/a.nii", "hr/a.nii", at="both"))
