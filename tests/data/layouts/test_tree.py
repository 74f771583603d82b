"""Files as a file system has them: links, leftovers, names."""

import os

import pytest

from jaxsr.data.layouts import Wanted, find
from jaxsr.data.layouts.tree import safe_id, unique_ids


def test_what_cannot_be_a_volume_is_told_with_the_way_out(plant, annexed, show):
    root = plant("fine.nii")
    (root / "empty.nii").write_bytes(b"")
    (root / "broken.nii").symlink_to("elsewhere.nii")
    (root / "loop.nii").symlink_to("loop.nii")
    annexed(root / "annexed.nii.gz")
    (root / "unlocked.nii.gz").write_bytes(b"/annex/objects/MD5E-s99--0.nii.gz\n")
    (root / "lfs.nii").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    os.mkfifo(root / "pipe.nii")
    found = find("folder", root)
    assert [scan.id for scan in found.scans] == ["fine"]
    why = show.reasons(found, "unreadable")
    for name, word in {
        "empty.nii": "is empty",
        "broken.nii": "a link to elsewhere.nii, which is not there",
        "loop.nii": "a link to loop.nii",
        "annexed.nii.gz": "datalad get",
        "unlocked.nii.gz": "git annex get",
        "lfs.nii": "git lfs pull",
        "pipe.nii": "not a regular file",
    }.items():
        assert word in why[name]


def test_what_may_not_be_read_is_told(plant, show, monkeypatch):
    """As for somebody without permission; nobody can take it from root."""
    root, scandir = plant("a.nii", "b/c.nii", "d.nii"), os.scandir

    def refuse(path):
        if os.fspath(path).endswith("b"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    monkeypatch.setattr(os, "access", lambda path, mode: path.name != "a.nii")
    found = find("folder", root)
    assert [scan.id for scan in found.scans] == ["d"]
    assert set(show.reasons(found, "unreadable")) == {"a.nii", "b/"}


def test_a_name_that_is_no_text_is_told_and_other_names_are_kept(plant, show):
    root = plant("x y.nii", "two\nlines.nii")
    try:
        show.write(root / os.fsdecode(b"\xff\xfe.nii"))
    except OSError:
        pytest.skip("this file system holds text only")
    found = find("folder", root)
    assert len(found.scans) == 2
    assert list(show.reasons(found, "unreadable").values()) == ["the name is no text in UTF-8: rename the file"]


def test_hidden_files_and_what_macos_leaves_are_ignored_and_counted(plant, show):
    root = plant("a.nii", "._a.nii", ".hidden.nii.gz", "__MACOSX/a.nii", ".cache/b.nii", ".git/annex/objects/c.nii", ".DS_Store")
    found = find("folder", root)
    assert [scan.id for scan in found.scans] == ["a"]
    assert show.reasons(found) == {".": "4 hidden volumes or folders are ignored (._a.nii, .cache/, .hidden.nii.gz, …)"}


def test_formats_that_are_not_read_are_told_once_for_each_folder(plant, show):
    root = plant("a.nii", "dicom/1.dcm", "dicom/2.dcm", "b.nrrd")
    assert show.reasons(find("folder", root), "ignored") == {
        "dicom/1.dcm": "2 files in .dcm are not read as volumes here: run dcm2niix on the folder",
        "b.nrrd": "1 file in .nrrd is not read as volumes here: convert them to .nii.gz",
    }


def test_linked_folders_are_followed_once_and_never_round_in_circles(plant, tmp_path, show):
    root = plant("a/1.nii")
    plant("2.nii", at="elsewhere")
    (root / "b").symlink_to(tmp_path / "elsewhere")
    (root / "a" / "up").symlink_to(root)
    (tmp_path / "elsewhere" / "back").symlink_to(root / "a")
    found = find("folder", root)
    assert sorted(path.relative_to(root).as_posix() for scan in found.scans for path in scan.files.values()) == ["a/1.nii", "b/2.nii"]
    assert "leads back" in show.reasons(found, "ignored")["a/up/"]
    assert not show.unaccounted(found, root)


def test_a_folder_is_told_as_a_whole_only_where_one_thing_is_true_of_it(plant, show):
    root = plant("a/high/x.nii", "b/y.nii", "b/z.nii", "b/y.nii.gz", "c/d/1.nii", "c/e/2.nii")
    found = find("folder", root, Wanted(high="x"))
    assert [scan.id for scan in found.scans] == ["a_high"]
    assert show.reasons(found, "unused") == {
        "b/y.nii.gz": "its name does not end in x",
        "b/z.nii": "its name does not end in x",
        "c/": "2 volumes: its name does not end in x",
    }


def test_one_file_under_two_names_is_one_scan(plant, show):
    """As links it would be two people, perhaps in two splits."""
    root = plant("a.nii", "b.nii")
    (root / "c.nii").symlink_to("a.nii")
    os.link(root / "b.nii", root / "d.nii")
    found = find("folder", root)
    assert [scan.id for scan in found.scans] == ["a", "b"]
    assert show.reasons(found, "duplicate") == {
        "c.nii": "the same file as a.nii, which was taken",
        "d.nii": "the same file as b.nii, which was taken",
    }


def test_an_id_is_a_file_name_everywhere_and_stays_what_it_was_where_it_can():
    assert safe_id("sub-01_ses-2_run-1") == "sub-01_ses-2_run-1"
    changed = ["x y", "x/y", "x:y", "é", "e\u0301x", "..", "-rf", ".hidden", "con\n", "a" * 101, "a" * 102, ""]
    for name in changed:
        assert safe_id(name) != name
        assert safe_id(name).isascii()
        assert len(safe_id(name)) <= 110
        assert safe_id(name)[0].isalnum()
        assert not set(safe_id(name)) & set(' /\\:*?"<>|\n')
    assert len({safe_id(name) for name in changed}) == len(changed)


def test_ids_differ_where_upper_and_lower_case_are_the_same():
    ids = unique_ids([("a", "1"), ("A", "2"), ("b", "3"), ("a", "4")])
    assert len({name.lower() for name in ids}) == 4
    assert ids[2] == "b"
    assert unique_ids([("a", "4"), ("b", "3"), ("A", "2"), ("a", "1")]) == ids[3:] + ids[2:3] + ids[1:2] + ids[:1]
