"""`prepare`: its set is a function of the files and the settings, whatever happened on the way."""

import functools
import json
import operator
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from jaxsr.config import ConfigError
from jaxsr.data.layouts.base import Wanted
from jaxsr.data.pairs import cut
from jaxsr.data.records import decode, file_sha256, read_manifest
from jaxsr.physics.protocol import named_acquisition
from jaxsr.prepare import job
from jaxsr.prepare.scan import prepare_scan
from jaxsr.prepare.settings import PrepareSettings
from jaxsr.prepare.slices import kept_slices
from jaxsr.volume.errors import VolumeError

SETTINGS = PrepareSettings(layout="folder", voxel_size=4.0, registration="off", bias="off")


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


def test_a_scan_more_leaves_the_shards_of_the_others_as_they_are(prepared, heads, tmp_path):
    out = shutil.copytree(prepared, tmp_path / "set")
    more = shutil.copytree(heads, tmp_path / "more")
    shutil.copy(more / "sub-00_T1w.nii.gz", more / "sub-07_T1w.nii.gz")
    before = {path: path.stat().st_mtime_ns for path in (out / "shards").iterdir()}
    manifest = job.prepare(job.plan(more, out, SETTINGS), workers=1)
    assert len(manifest.shards) == 4
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_a_changed_file_is_prepared_again(prepared, heads, tmp_path):
    out = shutil.copytree(prepared, tmp_path / "set")
    changed = shutil.copytree(heads, tmp_path / "changed")
    shutil.copy(changed / "sub-00_T1w.nii.gz", changed / "sub-01_T1w.nii.gz")
    before, after = tree(out), None
    job.prepare(job.plan(changed, out, SETTINGS), workers=1)
    after = tree(out)
    differ = {name for name in before if name.startswith("shards/") and before[name] != after[name]}
    assert len(differ) == 1


def test_a_bad_scan_is_listed_with_its_reason_and_stops_nobody(heads, tmp_path):
    bad = shutil.copytree(heads, tmp_path / "bad")
    whole = (bad / "sub-01_T1w.nii.gz").read_bytes()
    (bad / "sub-01_T1w.nii.gz").write_bytes(whole[: len(whole) // 2])
    said: list[str] = []
    manifest = job.prepare(job.plan(bad, tmp_path / "out", SETTINGS), workers=1, note=said.append)
    assert len(manifest.shards) == 2
    assert len(said) == 1
    [rejected] = manifest.rejected
    assert "sub-01" in rejected.what
    assert rejected.why in (tmp_path / "out" / "summary.html").read_text().replace("&#39;", "'")


def test_where_no_scan_can_be_prepared_the_error_says_why(heads, tmp_path):
    settings = SETTINGS.model_copy(update={"voxel_size": 1.0})
    with pytest.raises(VolumeError, match=r"no truth at 1 mm.*--voxel-size 4"):
        job.prepare(job.plan(heads, tmp_path / "out", settings), workers=1)


def test_a_set_made_with_other_settings_is_not_mixed_with_this_one(prepared, heads):
    with pytest.raises(ConfigError, match="3T"):
        job.plan(heads, prepared, SETTINGS.model_copy(update={"acquisition": named_acquisition("3T")}))


def test_a_folder_of_something_else_is_not_written_into(heads, tmp_path):
    (tmp_path / "thesis.tex").write_text("dear diary")
    with pytest.raises(ConfigError, match="holds no prepared set"):
        job.plan(heads, tmp_path, SETTINGS)
    with pytest.raises(ConfigError, match="lies in the data set"):
        job.plan(heads, heads / "out", SETTINGS)


def test_a_missing_contrast_rejects_the_scan_and_names_the_option(heads, tmp_path):
    settings = SETTINGS.model_copy(update={"extra": ("labels",)})
    with pytest.raises(VolumeError, match="--with labels"):
        job.prepare(job.plan(heads, tmp_path / "out", settings), workers=1)


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
    ended = {tasks.index(task): result for task, result in job._run(tasks, 2, operator.call)}
    assert sorted(ended) == list(range(6))
    assert "died" in ended.pop(3)
    assert ended == {i: str(i) for i in (0, 1, 2, 4, 5)}


def test_the_summary_shows_names_as_text_and_links_to_every_picture(heads, tmp_path):
    odd = tmp_path / "odd"
    odd.mkdir()
    shutil.copy(heads / "sub-00_T1w.nii.gz", odd / "a&b <i>.nii.gz")
    manifest = job.prepare(job.plan(odd, tmp_path / "out", SETTINGS), workers=1)
    page = (tmp_path / "out" / "summary.html").read_text()
    assert "<i>.nii" not in page
    for shard in manifest.shards:
        assert (tmp_path / "out" / "pictures" / f"{shard.subject}.png").is_file()
    assert json.loads((tmp_path / "out" / "settings.json").read_text())["layout"] == "folder"
    assert Wanted.model_validate(json.loads((tmp_path / "out" / "settings.json").read_text())["wanted"]) == SETTINGS.wanted
