"""Where nothing more can be written: one sentence, no half file, and what was there stays."""

import contextlib
import json
import resource
import subprocess

import nibabel as nib
import numpy as np
import pytest

from jaxsr.files import FileError, write_together, write_whole


def scan(path, side=18):
    data = np.random.default_rng(0).normal(500, 100, (side, 17, 16)).astype(np.float32)
    nib.Nifti1Image(data, np.diag([6.0, 6, 6, 1])).to_filename(path)
    return path


@contextlib.contextmanager
def no_file_over(size):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))  # Python ignores the signal: writing fails
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def listing(folder):
    return sorted(p.name for p in folder.rglob("*"))


@pytest.mark.parametrize("size, missing", [(8000, "x.nii.gz"), (300, "x.json")], ids=["volume", "sidecar"])
def test_a_volume_and_its_sidecar_appear_together_or_not_at_all(size, missing, call, identity, tmp_path):
    source = scan(tmp_path / "v.nii")
    with no_file_over(size):
        done = call("upscale", "-i", source, "-o", tmp_path / "out" / "x.nii.gz", "-m", identity)
    assert done.status == 2, done.err
    assert f"{missing} cannot be written, the file is larger than this disk or `ulimit -f` allows" in done.err
    assert done.err.count("\n") == 1
    assert listing(tmp_path / "out") == []


def test_a_picture_that_cannot_be_written_leaves_the_volume_and_no_half_picture(call, identity, tmp_path):
    source = scan(tmp_path / "v.nii")
    with no_file_over(30_000):
        done = call("upscale", "-i", source, "-o", tmp_path / "out" / "x.nii.gz", "-m", identity)
    assert done.status == 2
    assert "x.png cannot be written" in done.err
    assert listing(tmp_path / "out") == ["x.json", "x.nii.gz"]


def test_of_several_those_that_fit_are_written_and_the_rest_is_listed_last(call, identity, tmp_path):
    (tmp_path / "in").mkdir()
    for name, side in (("a", 60), ("b", 16), ("c", 60)):
        scan(tmp_path / "in" / f"{name}.nii", side)
    with no_file_over(30_000):
        done = call("upscale", "-i", tmp_path / "in", "-o", tmp_path / "out", "-m", identity, "--no-montage")
    assert done.status == 1
    assert listing(tmp_path / "out") == ["b.json", "b.nii"]
    lines = done.err.splitlines()
    assert lines[0] == "jaxsr: 2 of 3 failed:"
    assert ["a.nii" in lines[1], "c.nii" in lines[2], len(lines)] == [True, True, 3]


def test_with_overwrite_an_older_result_stays_whole_and_keeps_its_own_sidecar(call, identity, tmp_path):
    source, out = scan(tmp_path / "v.nii"), tmp_path / "out"
    words = ["upscale", "-i", source, "-o", out / "x.nii.gz", "-m", identity, "--no-montage"]
    assert call(*words).status == 0
    before = {p.name: p.read_bytes() for p in out.iterdir()}
    with no_file_over(8000):
        assert call(*words, "--overwrite", "--seed", "1").status == 2
    assert {p.name: p.read_bytes() for p in out.iterdir()} == before
    assert json.loads(before["x.json"])["JaxSR"]["Seed"] == 0


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 64 kB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(folder)], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"a small disk cannot be mounted here ({mounted.stderr.strip()})")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_said_and_holds_no_half_file(small_disk, jaxsr, run_dir, tmp_path):
    """The real thing: a process of its own and a real disk."""
    source = scan(tmp_path / "v.nii")
    (small_disk / "others").write_bytes(bytes(56_000))
    done = jaxsr("upscale", "-i", source, "-o", small_disk / "x.nii.gz", "--model", run_dir)
    assert done.returncode == 2, done.stderr
    assert "x.nii.gz cannot be written, the disk is full: free some space and run again" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert listing(small_disk) == ["others"]


def test_tables_and_pictures_of_evaluate_appear_whole_or_not_at_all(call, monkeypatch, tmp_path):
    monkeypatch.setattr("jaxsr.cli.volumes.select_device", lambda device, **_: None)
    source = scan(tmp_path / "v.nii")
    with no_file_over(3000):
        done = call("evaluate", "-i", source, "-r", source, "-o", tmp_path / "out")
    assert done.status == 2
    assert "cannot be written" in done.err
    assert listing(tmp_path / "out") == []


@pytest.mark.parametrize("failure", [RuntimeError, KeyboardInterrupt, OSError(28, "No space left on device")])
def test_a_failed_write_leaves_what_was_there_and_nothing_else(failure, tmp_path):
    def fail(path):
        path.write_text("half")
        raise failure

    (tmp_path / "a.csv").write_text("old")
    with pytest.raises(FileError if isinstance(failure, OSError) else failure):
        write_together({tmp_path / "b.json": lambda path: path.write_text("whole"), tmp_path / "a.csv": fail})
    assert listing(tmp_path) == ["a.csv"]
    assert (tmp_path / "a.csv").read_text() == "old"


@pytest.mark.parametrize("name, ending", [("a.nii.gz", ".nii.gz"), ("a", ""), ("ü" * 120 + ".json", ".json"), ("a." + "x" * 250, "")])
def test_any_name_that_a_file_can_have_is_written(name, ending, tmp_path):
    def write(path):
        assert path.name.startswith(".")
        assert path.name.endswith(ending)
        path.write_text("whole")

    write_whole(tmp_path / "new" / name, write)
    assert listing(tmp_path / "new") == [name]


def test_a_shard_that_does_not_fit_is_the_disk_s_fault_and_leaves_nothing(tmp_path):
    from jaxsr.data.records import encode, write_shard

    noise = np.random.default_rng(0).normal(size=(20, 64, 64)).astype(np.float32)
    with no_file_over(50_000), pytest.raises(FileError, match=r"x\.array_record cannot be written, the file is larger than"):
        write_shard(tmp_path / "x.array_record", (encode({"high": plane}) for plane in noise))
    assert listing(tmp_path) == []
