"""What holds for every layout: nothing is dropped, ids are safe and unique, order is no matter, and nobody is in two splits."""

import os
import random
import re
from pathlib import Path

import pytest
from typer.main import get_command

from jaxsr.cli import app
from jaxsr.data.layouts import LAYOUTS, Wanted, find, problems_report
from jaxsr.data.splits import assign_splits
from jaxsr.volume.errors import VolumeError

SUFFIXES = (".nii.gz", ".nii.gz", ".nii", ".nii.gz", ".mgz", ".NII.GZ", ".mgh")
BIDS = [
    f"{top}sub-{subject}/{session}anat/sub-{subject}_{mark}{name}"
    for top in ("", "derivatives/fmriprep/", "sourcedata/")
    for subject in ("01", "02", "CC003")
    for session, mark in (("", ""), ("ses-3T/", "ses-3T_"), ("ses-7T/", "ses-7T_"))
    for name in (
        "T1w",
        "T2w",
        "run-1_T1w",
        "acq-high_run-2_T1w",
        "part-phase_T1w",
        "dseg",
        "desc-brain_mask",
        "desc-restore_T2w",
        "echo-2_T1w",
    )
]
NAMES = {
    "folder": ["a-T1", "a-T2", "A-T1", "b_hires", "b_lores", "c/1", "c/2", "T1", "é", "e\u0301", "x y", "ü" * 90, "deep/er/still/z"],
    "bids": BIDS,
    "openneuro": BIDS,
    "dhcp": BIDS,
    "hcp": [
        f"{subject}/{name}"
        for subject in ("100307", "100408", "100408_retest", "sub/101107")
        for name in (
            *(f"T1w/{c}_acpc_dc{s}" for c in ("T1w", "T2w") for s in ("", "_restore")),
            *("T1w/brainmask_fs", "T1w/aparc+aseg", "T1w/BiasField_acpc_dc", "MNINonLinear/T1w", "MNINonLinear/Results/r"),
            *(f"unprocessed/3T/{scan}/100307_3T_{scan}" for scan in ("T1w_MPR1", "T1w_MPR2", "T2w_SPC1")),
        )
    ],
    "ixi": [
        f"{folder}IXI{number}-{site}-08{number}-{c}"
        for folder in ("", "IXI-T1/")
        for number, site in (("002", "Guys"), ("012", "HH"))
        for c in ("T1", "T2", "PD", "DTI-00")
    ],
    "brats": [
        f"{case}/{case}{name}"
        for case in ("BraTS20_Training_001", "BraTS2021_00000", "BraTS-GLI-00005-000", "BraTS-GLI-00005-001")
        for name in ("_t1", "_t2", "_seg", "_flair", "-t1n", "-t2w", "-seg", "_x")
    ]
    + ["BraTS20_Training_001/W39_1998.09.19_Segm"],
    "fastmri": [f"{folder}/file_brain_AXT2_{i}" for folder in ("multicoil_train", "singlecoil_val") for i in range(4)],
}
WANTED = {
    "folder": [Wanted(), Wanted(high="T1", reference="T2"), Wanted(high="hires", low="lores")],
    "bids": [
        Wanted(),
        Wanted(high="T1w", reference="T2w"),
        Wanted(high_in="ses-7T", low_in="ses-3T"),
        Wanted(high_in="acq-high", low="T1w"),
        Wanted(high="T1w", high_in="fmriprep"),
    ],
    "hcp": [Wanted(), Wanted(reference="T2w", high_in="acpc_dc"), Wanted(reference="T2w", high_in="unprocessed")],
    "ixi": [Wanted(), Wanted(high="T2", reference="T1", high_in="HH")],
    "brats": [Wanted(), Wanted(high="t2", reference="t1")],
    "fastmri": [Wanted()],
}
JUNK = ["stray", ".hidden", "._a-T1", "__MACOSX/a", "func/x_bold", "a.b.c", "-dash", "con", "sub-01/notes", "sub-9/anat/sub-9_T1w copy"]


def grow(root, layout, dice, show):
    """A random tree of names that the layout knows and of others, some files of which are empty, broken or doubled."""
    suffixes = (".h5", ".hdf5") if layout == "fastmri" else SUFFIXES
    names = dice.sample(NAMES[layout], min(len(NAMES[layout]), dice.randint(3, 25))) + dice.sample(JUNK, 3)
    for name in names:
        for suffix in dice.sample(suffixes, dice.choice((1, 1, 1, 2))):
            path = root / f"{name}{suffix}"
            fate = dice.random()
            path.parent.mkdir(parents=True, exist_ok=True)
            if os.path.lexists(path):  # there already, or where upper and lower case are one
                continue
            if fate < 0.05:
                path.symlink_to("nowhere")
            elif layout == "fastmri" and fate < 0.7:
                show.write_fastmri(path, dice.choice(("AXT1", "AXT2")), dice.choice(("p", "q", None)))
            else:
                path.write_bytes(b"" if fate < 0.1 else b"\0" * 2000)


class Shuffled:
    """os.scandir in another order."""

    def __init__(self, path, dice, real):
        with real(path) as entries:
            self._entries = list(entries)
        dice.shuffle(self._entries)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def __iter__(self):
        return iter(self._entries)

    def close(self):
        pass


@pytest.mark.parametrize("layout", LAYOUTS)
def test_over_random_trees_every_file_is_in_a_scan_or_a_problem(tmp_path, layout, show, monkeypatch):
    for seed in range(12):
        dice = random.Random(f"{layout}/{seed}")
        root = tmp_path / str(seed)
        root.mkdir()
        grow(root, layout, dice, show)
        for wanted in WANTED.get(layout, WANTED["bids"]):
            found = find(layout, root, wanted)
            assert show.unaccounted(found, root, (".h5", ".hdf5") if layout == "fastmri" else (".nii", ".nii.gz", ".mgh", ".mgz")) == []
            ids = [scan.id for scan in found.scans]
            assert ids == sorted(ids)
            assert len({name.lower() for name in ids}) == len(ids)
            assert all(re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,150}", name) for name in ids)
            assert found.problems == sorted(found.problems, key=lambda p: (p.path, p.why))
            truths = [scan.files["high"] for scan in found.scans]
            assert len(set(truths)) == len(truths)
            for scan in found.scans:
                assert set(scan.files) >= {"high"} | ({"low"} if wanted.low or wanted.low_in else set())
                assert not wanted.reference or "reference" in scan.files
                assert all(path.is_file() for path in scan.files.values())
            with monkeypatch.context() as patch:
                patch.setattr(os, "scandir", lambda path=".", real=os.scandir, dice=dice: Shuffled(path, dice, real))
                assert find(layout, root, wanted) == found


@pytest.mark.parametrize("layout", LAYOUTS)
def test_nobody_is_in_two_splits_and_a_split_does_not_depend_on_other_files(tmp_path, layout, show):
    """Of a tree and of one that holds more, whoever is in both is in the same split."""
    splits = []
    for size, root in ((0, tmp_path / "small"), (1, tmp_path / "large")):
        root.mkdir()
        for seed in range(6 + 6 * size):
            grow(root, layout, random.Random(f"{layout}/split/{seed}"), show)
        found = find(layout, root)
        of = assign_splits((scan.person for scan in found.scans), 0)
        assert set(of) == {scan.person for scan in found.scans}
        splits.append(of)
    shared = set(splits[0]) & set(splits[1])
    assert shared
    assert all(splits[0][person] == splits[1][person] for person in shared)


def test_renaming_runs_sessions_and_folders_above_changes_no_split(plant):
    first = plant(*(f"sub-{i:02d}/anat/sub-{i:02d}_T1w.nii" for i in range(40)), at="one")
    second = plant(*(f"sub-{i:02d}/ses-2/anat/sub-{i:02d}_ses-2_run-{i + 1}_T1w.nii.gz" for i in reversed(range(40))), at="sub-99/two")
    one, two = ({scan.person for scan in find("bids", root).scans} for root in (first, second))
    assert one == two
    for stable in (True, False):
        assert assign_splits(one, 3, stable=stable) == assign_splits(sorted(two, reverse=True), 3, stable=stable)


def test_an_unknown_layout_and_a_root_that_is_no_folder_are_refused(tmp_path):
    with pytest.raises(VolumeError, match="there is no layout adni: the layouts are folder, bids"):
        find("adni", tmp_path)
    for layout in LAYOUTS:
        with pytest.raises(VolumeError, match="is not a folder"):
            find(layout, tmp_path / "absent")
        assert find(layout, tmp_path).scans == []


def test_the_report_counts_by_kind_and_is_cut_where_it_is_long(plant):
    found = find("folder", plant("high/a.nii", "low/a.nii", *(f"low/x{i:02d}.nii" for i in range(30)), ".b.nii", "c.nii", "c.nii.gz"))
    report = problems_report(found, 5)
    lines = report.splitlines()
    assert lines[0] == "1 scan of 1 person; 30 without a partner, 1 duplicates, 1 have no part, 1 ignored by name"
    assert lines[1:3] == ["without a partner:", "  low/x00.nii: there is no high/x00"]
    assert "  … and 25 more" in lines
    assert len(problems_report(found, None).splitlines()) == 1 + 4 + 33
    assert problems_report(find("folder", plant("a.nii", at="fine"))) == "1 scan of 1 person"


def test_the_docs_have_a_section_for_every_layout_and_its_commands_are_ones_that_exist():
    docs = Path(__file__).resolve().parents[3] / "docs"
    options = {option for parameter in get_command(app).commands["prepare"].params for option in parameter.opts}
    text = (docs / "datasets.md").read_text()
    sections = dict(section.split("\n", 1) for section in text.split("\n## ")[1:])
    assert set(LAYOUTS) < set(sections)
    assert set(re.findall(r"(?<=[ `])--[a-z][a-z-]*", text)) <= options
    for layout in LAYOUTS:
        assert f"--layout {layout}" in sections[layout]
