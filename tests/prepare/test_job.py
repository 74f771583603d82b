"""`prepare`: its set is a function of the files and the settings, whatever happened on the way."""

import functools
import html
import itertools
import operator
import os
import re
import shutil
import urllib.parse
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from jaxsr.config import ConfigError
from jaxsr.data.gradients import gradient_map, jacobian_map
from jaxsr.data.layouts.base import Scan
from jaxsr.data.pairs import cut
from jaxsr.data.records import Shard, Source, decode, file_sha256, read_manifest, verify
from jaxsr.physics.protocol import Acquisition, named_acquisition
from jaxsr.prepare import job, pool
from jaxsr.prepare.part import make_part
from jaxsr.prepare.people import check_nobody_moves, same_people, split_people
from jaxsr.prepare.picture import columns, save_contact_sheet
from jaxsr.prepare.scan import prepare_scan
from jaxsr.prepare.settings import PrepareSettings
from jaxsr.prepare.slices import kept_slices
from jaxsr.volume.errors import VolumeError
from jaxsr.volume.io import Volume, write_volume

COARSE = Acquisition(voxel_size=(8.0, 8.0, 8.0), snr=(20.0, 40.0))
SETTINGS = PrepareSettings(layout="folder", voxel_size=4.0, registration="off", bias="off", acquisition=COARSE)


def tree(folder: Path) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): file_sha256(path) for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def prepared(heads: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("prepared") / "set"
    job.prepare(job.plan(heads, out, SETTINGS), workers=2)
    return out


def records_of(shard: Path) -> list[dict[str, np.ndarray]]:
    from array_record.python.array_record_module import ArrayRecordReader

    return [decode(record) for record in ArrayRecordReader(str(shard)).read_all()]


def test_the_manifest_counts_what_the_shards_hold_and_names_what_they_were_made_of(prepared, heads):
    manifest = read_manifest(prepared)
    assert len(manifest.shards) == 3
    assert manifest.maps == ("high", "low")
    for shard in manifest.shards:
        records = records_of(prepared / shard.file)
        assert len(records) == shard.records == sum(shard.slices) > 0
        assert shard.sha256 == file_sha256(prepared / shard.file)
        assert [s.sha256 for s in shard.sources] == [file_sha256(heads / s.path) for s in shard.sources]


def test_a_record_is_the_slice_of_the_scan_s_maps_to_half_precision(prepared, heads):
    task = job.plan(heads, prepared, SETTINGS).tasks[1]
    made = prepare_scan(task.scan, SETTINGS)
    kept = kept_slices(made, SETTINGS.least_tissue)
    expected = [cut(made.pair.maps(), axis, index) for axis in range(3) for index in kept[axis]]
    found = records_of(task.shard)
    assert len(found) == len(expected)
    for record, slices in zip(found, expected, strict=True):
        for name in ("high", "low"):
            assert record[name].dtype == np.float16
            np.testing.assert_allclose(record[name], slices[name], rtol=1e-3, atol=2e-3)  # 11 bits, and the worker's single thread


def test_the_bytes_do_not_depend_on_workers_or_on_where_the_data_set_lies(prepared, heads, tmp_path):
    moved = shutil.copytree(heads, tmp_path / "elsewhere")
    job.prepare(job.plan(moved, tmp_path / "again", SETTINGS), workers=1)
    assert tree(tmp_path / "again") == tree(prepared)


def test_only_what_is_new_or_changed_is_prepared(prepared, heads, tmp_path):
    out = shutil.copytree(prepared, tmp_path / "set")
    folder = shutil.copytree(heads, tmp_path / "other")
    shutil.copy(folder / "sub-00_T1w.nii.gz", folder / "sub-01_T1w.nii.gz")
    shutil.copy(folder / "sub-00_T1w.nii.gz", folder / "sub-07_T1w.nii.gz")
    before = {path.stem: path.stat().st_mtime_ns for path in (out / "shards").iterdir()}
    manifest = job.prepare(job.plan(folder, out, SETTINGS), workers=2)
    after = {path.stem: path.stat().st_mtime_ns for path in (out / "shards").iterdir()}
    assert {name for name in after if after[name] != before.get(name)} == {"sub-01_T1w", "sub-07_T1w"}
    assert len(manifest.shards) == 4
    assert len({shard.split for shard in manifest.shards if shard.subject != "sub-02_T1w"}) == 1  # they share a truth


@pytest.fixture(scope="module")
def mixed(heads: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set of a good scan, one with an odd name, and one that is damaged."""
    folder = tmp_path_factory.mktemp("mixed")
    whole = (heads / "sub-01_T1w.nii.gz").read_bytes()
    shutil.copy(heads / "sub-00_T1w.nii.gz", folder / "good.nii.gz")
    (folder / "a&b <i>.nii.gz").write_bytes(whole)
    (folder / "damaged.nii.gz").write_bytes(whole[: len(whole) // 2])
    said: list[str] = []
    out = folder.parent / "mixed-out"
    job.prepare(job.plan(folder, out, SETTINGS), workers=1, note=said.append)
    assert len(said) == 1
    assert "damaged.nii.gz" in said[0]
    return out


def test_a_bad_scan_is_listed_with_its_reason_and_stops_nobody(mixed):
    manifest = read_manifest(mixed)
    assert len(manifest.shards) == 2
    [rejected] = manifest.rejected
    assert rejected.what == "damaged"
    assert rejected.why in html.unescape((mixed / "summary.html").read_text())
    assert str(mixed.parent) not in (mixed / "manifest.json").read_text()  # where the set lay is nobody's business


def test_the_summary_shows_names_as_text_and_links_to_every_picture(mixed):
    page = (mixed / "summary.html").read_text()
    assert "<i>" not in page
    linked = re.findall(r'src="(pictures/[^"]*)"', page)
    assert len(linked) == 2
    assert all((mixed / urllib.parse.unquote(html.unescape(link))).is_file() for link in linked)


def test_where_no_scan_can_be_prepared_the_error_says_why(heads, tmp_path):
    settings = SETTINGS.model_copy(update={"extra": ("labels",)})
    with pytest.raises(VolumeError, match=r"(?s)none of the 3 scans.*sub-02.*--with labels"):
        job.prepare(job.plan(heads, tmp_path / "out", settings), workers=1)


def test_a_truth_that_is_too_coarse_is_told_what_would_serve(heads):
    scan = job.plan(heads, heads.parent / "unused", SETTINGS).tasks[0].scan
    with pytest.raises(VolumeError, match=r"no truth at 1 mm.*--voxel-size 4"):
        prepare_scan(scan, SETTINGS.model_copy(update={"voxel_size": 1.0}))


def test_a_set_made_with_other_settings_is_not_mixed_with_this_one(prepared, heads):
    with pytest.raises(ConfigError, match="3T"):
        job.plan(heads, prepared, SETTINGS.model_copy(update={"acquisition": named_acquisition("3T")}))


def test_a_folder_of_something_else_is_not_written_into(heads, tmp_path):
    (tmp_path / "thesis.tex").write_text("dear diary")
    with pytest.raises(ConfigError, match="holds no prepared set"):
        job.plan(heads, tmp_path, SETTINGS)
    with pytest.raises(ConfigError, match="lies in the data set"):
        job.plan(heads, heads / "out", SETTINGS)


def test_every_visit_is_another_acquisition_of_the_same_truth(heads, tmp_path):
    settings = SETTINGS.model_copy(update={"visits": 2})
    one = job.plan(heads, tmp_path, settings).tasks[:2]
    first, second = (prepare_scan(task.scan, settings, task.visit) for task in one)
    assert first.window != second.window
    truth = [made.window.inverse(made.pair.high) for made in (first, second)]
    np.testing.assert_allclose(*truth, rtol=1e-4, atol=1e-2)
    assert np.abs(first.window.inverse(first.pair.low) - second.window.inverse(second.pair.low)).max() > 1


def test_a_worker_that_dies_takes_only_its_own_task_with_it():
    tasks = (
        [functools.partial(str, i) for i in range(3)] + [functools.partial(os._exit, 1)] + [functools.partial(str, i) for i in range(4, 6)]
    )
    ended = {tasks.index(task): result for task, result in pool.run(tasks, 2, operator.call)}
    assert sorted(ended) == list(range(6))
    assert "died" in ended.pop(3)
    assert ended == {i: str(i) for i in (0, 1, 2, 4, 5)}


def test_settings_on_the_disk_are_what_was_asked_for(prepared):
    assert PrepareSettings.model_validate_json((prepared / "settings.json").read_text()) == SETTINGS


def shard(person: str, truth: str, split: str = "train") -> Shard:
    source = Source(role="high", path=f"{person}-{truth}.nii.gz", sha256=truth)
    facts = {"file": "f", "sha256": "", "records": 1, "slices": (1, 0, 0), "shape": (4, 4, 4), "window": (0.0, 1.0)}
    return Shard(subject=f"{person}-{truth}", person=person, acquired=(2.0, 2.0, 2.0), sources=(source,), split=split, **facts)


def test_people_who_share_a_truth_byte_for_byte_are_one_whichever_scan_ended_first():
    shards = [shard("b", "2"), shard("a", "1"), shard("c", "1"), shard("c", "2"), shard("d", "3"), shard("e", "2")]
    for order in itertools.permutations(shards):
        names, said = same_people(order)
        assert names == {"a": "a", "b": "a", "c": "a", "e": "a", "d": "d"}
        assert [note.what for note in said] == ["b", "c", "e"]


def test_a_copy_whose_own_split_would_be_another_stays_where_it_is_in_the_next_run(heads, tmp_path):
    people = [f"sub-{i:02d}" for i in range(200)]
    own, _ = split_people({person: person for person in people}, {}, SETTINGS, {})
    other = next(person for person in people[10:] if own[person] != own["sub-00"])
    for person in ("sub-00", other):
        shutil.copy(heads / "sub-00_T1w.nii.gz", tmp_path / f"{person}_T1w.nii.gz")
    out = tmp_path.parent / f"{tmp_path.name}-set"
    job.prepare(job.plan(tmp_path, out, SETTINGS), workers=1)
    assert {shard.split for shard in read_manifest(out).shards} == {own["sub-00"]}
    before = tree(out)
    assert job.plan(tmp_path, out, SETTINGS).done == 2
    job.prepare(job.plan(tmp_path, out, SETTINGS), workers=1)
    assert tree(out) == before


def test_a_given_split_holds_for_relatives_and_for_copies():
    names = {"family-1": "family-1", "b": "b", "c": "b", "d": "d"}
    own = {"sub-00": "family-1", "sub-01": "family-1", "b": "b", "c": "c", "d": "d"}
    splits, said = split_people(names, own, SETTINGS, {"sub-01": "test", "c": "validation", "sub-9": "test"})
    assert splits["family-1"] == "test"
    assert splits["b"] == splits["c"] == "validation"
    assert [note.what for note in said] == ["sub-9"]
    with pytest.raises(VolumeError, match="sub-00"):
        split_people(names, own, SETTINGS, {"sub-01": "test", "sub-00": "train"})


def test_nobody_leaves_the_split_that_a_model_may_have_been_trained_on(prepared):
    before = read_manifest(prepared)
    before = before.model_copy(update={"shards": tuple(s.model_copy(update={"split": "train"}) for s in before.shards)})
    now = dict.fromkeys((s.person for s in before.shards), "train")
    check_nobody_moves(before, {**now, "new": "test"})
    with pytest.raises(ConfigError, match=r"sub-01: train → test"):
        check_nobody_moves(before, {**now, "sub-01": "test"})


def test_a_shard_that_was_damaged_is_made_again(prepared, heads, tmp_path):
    out = shutil.copytree(prepared, tmp_path / "set")
    victim = out / "shards" / "sub-01_T1w.array_record"
    whole = victim.read_bytes()
    victim.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(VolumeError, match=r"sub-01_T1w.*SHA-256 differs"):
        verify(out)
    plan = job.plan(heads, out, SETTINGS)
    job.prepare(plan._replace(tasks=plan.tasks[:2]), workers=1)
    assert victim.read_bytes() == whole
    assert not (out / "shards" / "sub-02_T1w.array_record").exists()  # of a scan that is no longer there
    verify(out)


def test_the_manifest_says_which_planes_of_which_grid_the_slices_are(prepared):
    for s in read_manifest(prepared).shards:
        counted = [sum(int(run.split("-")[-1]) - int(run.split("-")[0]) + 1 for run in axis.split(",")) for axis in s.planes]
        assert counted == list(s.slices)
        np.testing.assert_allclose(np.linalg.norm(np.array(s.affine)[:, :3], axis=0), 4.0, rtol=1e-5)


def test_a_stack_of_thick_slices_is_a_truth_within_its_slices_only(tmp_path):
    thick = Volume(np.random.default_rng(0).uniform(50, 100, (40, 40, 8)).astype(np.float32), np.diag([4.0, 4.0, 15.0, 1.0]))
    write_volume(tmp_path / "thick.nii.gz", thick)
    scan = Scan("thick", "thick", {"high": tmp_path / "thick.nii.gz"})
    with pytest.raises(VolumeError, match=r"--voxel-size 15, or --axes axial"):
        prepare_scan(scan, SETTINGS)
    made = prepare_scan(scan, SETTINGS.model_copy(update={"axes": ("axial",)}))
    assert made.pair.high.shape == (40, 40, 8)
    np.testing.assert_allclose(made.pair.grid.voxel_size, (4, 4, 15))


@pytest.fixture
def displaced(tmp_path):
    """A truth, a low scan that lacks its first planes, and where the scanner displaced the truth."""
    affine, data = np.diag([4.0, 4.0, 4.0, 1.0]), np.random.default_rng(0).uniform(50, 100, (20, 18, 16)).astype(np.float32)
    write_volume(tmp_path / "set/high/a.nii.gz", Volume(data, affine))
    at = np.moveaxis(np.indices(data.shape), 0, -1) / 10
    (tmp_path / "set/gradient").mkdir()
    nib.save(nib.Nifti1Image((at[..., ::-1] ** 3).astype(np.float32), affine), tmp_path / "set/gradient/a.nii.gz")
    affine = affine.copy()
    affine[0, 3] = 24.0
    write_volume(tmp_path / "low.nii.gz", Volume(data[6:], affine))
    return tmp_path


def test_the_jacobian_is_that_of_the_whole_displacement_and_needs_no_displacement_among_the_maps(displaced):
    """Derived before planes that a volume lacks are cut off: no slice of it is an edge that the scan has not."""
    files = {"high": displaced / "set/high/a.nii.gz", "gradient": displaced / "set/gradient/a.nii.gz", "low": displaced / "low.nii.gz"}
    made = prepare_scan(Scan("a", "a", files), SETTINGS.model_copy(update={"extra": ("jacobian",)}))
    assert made.pair.gradient is None
    assert made.pair.jacobian.shape == (14, 18, 16)
    truth = prepare_scan(Scan("a", "a", {"high": files["high"]}), SETTINGS).pair.grid
    np.testing.assert_array_equal(made.pair.jacobian, jacobian_map(truth, gradient_map(truth, files["gradient"]))[6:])
    with pytest.raises(VolumeError, match="there is no gradient beside it: add the file, or leave out --with gradient,jacobian"):
        prepare_scan(Scan("a", "a", {"high": files["high"]}), SETTINGS.model_copy(update={"extra": ("gradient", "jacobian")}))
    coil = displaced / "coil.grad"
    coil.write_text("0.250 m = R0\n1 A( 3, 0) -0.080 z\n")
    settings = SETTINGS.model_copy(update={"extra": ("jacobian",), "gradient": file_sha256(coil)})
    both = prepare_scan(Scan("a", "a", {"high": files["high"]}), settings, gradient=coil).pair
    np.testing.assert_array_equal(both.jacobian, jacobian_map(truth, both.gradient))


def test_a_record_has_the_jacobian_that_was_asked_for_and_pictures_show_it(displaced, tmp_path):
    settings = SETTINGS.model_copy(update={"extra": ("jacobian",)})
    [task] = job.plan(displaced / "set", tmp_path / "out", settings).tasks
    shard = make_part(task).shard
    record = records_of(task.shard)[shard.slices[0] + 3]  # the fourth coronal slice
    assert record.keys() == {"high", "low", "jacobian"} == {*settings.maps}
    made = prepare_scan(task.scan, settings).pair
    np.testing.assert_allclose(record["jacobian"], made.jacobian[:, 3], atol=1e-3 * np.abs(made.jacobian).max())
    assert columns(settings.maps)[-1] == "jacobian"
    assert save_contact_sheet(tmp_path / "sheet.png", {"a": task.picture}, settings.maps).is_file()
