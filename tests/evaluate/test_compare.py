"""An evaluation compares like with like, keeps every number, and says why when it cannot."""

import csv
import json
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest

from jaxsr.evaluate.compare import Means, compare_files, compare_volumes
from jaxsr.evaluate.grids import EvaluationError
from jaxsr.evaluate.interpolation import INTERPOLATIONS
from jaxsr.evaluate.metrics.registry import METRICS
from jaxsr.evaluate.scores import CURVE, Rules, check_metrics
from jaxsr.evaluate.tables import Comparison, Row
from jaxsr.files import FileError
from jaxsr.volume.geometry import Grid, resample, resample_oblique, target_grid
from jaxsr.volume.intensity import fit_window
from jaxsr.volume.io import Volume, read_volume, write_volume


def head(seed=0, shape=(22, 24, 20)):
    """A textured ball at 1 mm in the dark, the field of view around scanner zero."""
    rng = np.random.default_rng(seed)
    radius = np.sqrt(sum(np.linspace(-1.2, 1.2, n).reshape([-1 if a == i else 1 for i in range(3)]) ** 2 for a, n in enumerate(shape)))
    affine = np.eye(4)
    affine[:3, 3] = -(np.array(shape) - 1) / 2
    return Volume((np.where(radius < 1, 100 + 20 * rng.random(shape), 0)).astype(np.float32), affine)


def shift(mm):
    affine = np.eye(4)
    affine[0, 3] = mm
    return affine


def noisy(volume, amount=2.0):
    return replace(volume, data=volume.data + amount * np.random.default_rng(9).standard_normal(volume.data.shape).astype(np.float32))


def lowered(volume):
    grid = target_grid(volume.grid, 2.0)
    return Volume(resample(volume.data, volume.grid, grid, "linear"), grid.affine)


@pytest.fixture
def study(tmp_path):
    """Two subjects: references, outputs and inputs."""
    for seed, subject in enumerate(("sub-01", "sub-02")):
        high = head(seed)
        write_volume(tmp_path / "ref" / f"{subject}_T1w.nii.gz", high)
        write_volume(tmp_path / "out" / f"{subject}_desc-sr_T1w.nii.gz", noisy(high))
        write_volume(tmp_path / "low" / f"{subject}_T1w.nii.gz", lowered(high))
    return tmp_path


def test_rows_hold_both_regions_at_one_data_range():
    reference = head()
    rows = compare_volumes(reference, {"a": noisy(reference), "b": noisy(reference, 4.0)}, subject="s")
    assert [(r.subject, r.method, r.region) for r in rows] == [("s", m, w) for m in "ab" for w in ("image", "foreground")]
    assert len({r.data_range for r in rows}) == 1
    assert rows[0].voxels == reference.data.size > rows[1].voxels
    assert rows[0].values["psnr"] == pytest.approx(20 * np.log10(rows[0].data_range / rows[0].values["rmse"]), rel=1e-5)
    assert rows[0].values["psnr"] > rows[2].values["psnr"]


def test_the_data_range_is_the_references_robust_range_inside_the_mask():
    reference = head()
    mask = reference.data > 110
    window = fit_window(reference.data, mask=mask)
    assert compare_volumes(reference, {"a": reference}, mask)[0].data_range == window.high - window.low


def test_intensities_are_not_rescaled():
    reference = head()
    twice = replace(reference, data=2 * reference.data)
    assert compare_volumes(reference, {"a": twice})[0].values["mae"] == pytest.approx(reference.data.mean(), rel=1e-5)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda v: replace(v, data=v.data[1:]), r"21 × 24 × 20 voxels.*22 × 24 × 20.*--to-mm"),
        (lambda v: replace(v, affine=shift(0.5) @ v.affine), "up to 0.5 mm"),
    ],
)
def test_another_grid_is_refused_before_anything_is_compared(change, message):
    with pytest.raises(EvaluationError, match=message):
        compare_volumes(head(), {"a": change(head())})


@pytest.mark.parametrize("mask, message", [(np.zeros((22, 24, 20), bool), "empty"), (np.ones((3, 3, 3), bool), r"\(3, 3, 3\)")])
def test_a_useless_mask_is_refused(mask, message):
    with pytest.raises(EvaluationError, match=message):
        compare_volumes(head(), {"a": head()}, mask)


def test_the_orientation_a_file_is_stored_in_does_not_matter(tmp_path):
    write_volume(tmp_path / "ref.nii.gz", head())
    write_volume(tmp_path / "out.nii.gz", replace(head(), orientation=("P", "S", "L")))
    assert nib.load(tmp_path / "out.nii.gz").shape == (24, 20, 22)
    comparison = compare_files({"out": tmp_path / "out.nii.gz"}, tmp_path / "ref.nii.gz", tmp_path / "e", means=Means(montage=False))
    assert comparison.rows[0].values["rmse"] == 0


def test_every_interpolation_stands_beside_the_result(study):
    comparison = compare_files({"sr3": study / "out"}, study / "ref", study / "e", low=study / "low", means=Means(montage=False))
    assert list(dict.fromkeys(r.method for r in comparison.rows)) == [*INTERPOLATIONS, "sr3"]
    assert {r.subject for r in comparison.rows} == {"sub-01", "sub-02"}
    assert not comparison.notes


def test_the_input_is_found_in_the_sidecar(study):
    (study / "out" / "sub-01_desc-sr_T1w.json").write_text(json.dumps({"Sources": ["../low/sub-01_T1w.nii.gz"]}))
    (study / "out" / "sub-02_desc-sr_T1w.json").write_text(json.dumps({"Sources": ["../low/gone.nii.gz"]}))
    comparison = compare_files({"sr3": study / "out"}, study / "ref", study / "e", means=Means(montage=False))
    assert {r.subject for r in comparison.rows if r.method == "tricubic"} == {"sub-01"}
    assert len(comparison.notes) == 1
    assert "gone.nii.gz" in comparison.notes[0]


def test_outputs_made_from_the_reference_itself_are_not_compared_with_its_interpolations(study):
    (study / "out" / "sub-01_desc-sr_T1w.json").write_text(json.dumps({"Sources": ["../ref/sub-01_T1w.nii.gz"]}))
    one = study / "out" / "sub-01_desc-sr_T1w.nii.gz", study / "ref" / "sub-01_T1w.nii.gz"
    comparison = compare_files({"sr3": one[0]}, one[1], study / "e", means=Means(montage=False))
    assert {r.method for r in comparison.rows} == {"sr3"}
    assert "made from the reference itself" in comparison.notes[0]


def test_methods_made_of_different_inputs_are_told_and_whose_the_interpolations_are(study):
    outputs = {method: study / method / "sub-01_T1w.nii.gz" for method in ("near", "far", "too")}
    for method, output in outputs.items():
        write_volume(output, noisy(head()))
        source = "../low/sub-01_T1w.nii.gz" if method != "far" else "../low/sub-02_T1w.nii.gz"
        output.with_name("sub-01_T1w.json").write_text(json.dumps({"Sources": [source]}))
    files = study / "ref" / "sub-01_T1w.nii.gz", study / "e"
    means = Means(Rules(("psnr",)), montage=False)
    notes = compare_files(outputs, *files, means=means).notes
    assert len(notes) == 1
    assert "near and too of sub-01_T1w.nii.gz, far of sub-02_T1w.nii.gz; the interpolations are of" in notes[0]
    assert "low/sub-01_T1w.nii.gz" in notes[0].partition(";")[2]
    del outputs["far"]
    assert not compare_files(outputs, *files, means=means).notes


def test_csv_and_json_hold_every_row_and_do_not_change_when_written_again(study):
    def run(folder):
        compare_files({"sr3": study / "out"}, study / "ref", folder, low=study / "low", means=Means(montage=False))
        return [(folder / name).read_bytes() for name in ("metrics.csv", "metrics.json")]

    first = run(study / "e")
    assert run(study / "f") == first
    table = list(csv.DictReader(first[0].decode().splitlines()))
    document = json.loads(first[1])
    assert len(table) == len(document["rows"]) == 2 * 5 * 2
    assert float(table[0]["psnr"]) == document["rows"][0]["values"]["psnr"]
    assert {"data_range", "ssim", "psnr"} <= set(document["conventions"])


def test_the_summary_is_that_of_the_subjects(study):
    comparison = compare_files({"sr3": study / "out"}, study / "ref", study / "e", means=Means(montage=False))
    values = [r.values["psnr"] for r in comparison.rows if r.region == "foreground"]
    found = next(s for s in comparison.summary if (s.region, s.metric) == ("foreground", "psnr"))
    assert (found.n, found.mean, found.sd, found.median) == pytest.approx((2, np.mean(values), np.std(values, ddof=1), np.median(values)))
    assert comparison.table("foreground")[0]["PSNR (dB)"] == f"{found.mean:.2f} ± {found.sd:.2f}"


def test_no_file_of_others_is_replaced_and_nothing_is_read_before_that_is_known(study, monkeypatch):
    def run():
        means = Means(Rules(("psnr",)))
        return compare_files({"sr3": study / "out"}, study / "ref", study / "e", low=study / "low", means=means).files

    files = run()
    assert run() == files  # its own it replaces
    assert {path.name for path in files} == {"metrics.csv", "metrics.json", "sub-01.png", "sub-02.png"}
    monkeypatch.setattr("jaxsr.evaluate.compare.read_volume", pytest.fail)
    for path in files:
        ours, theirs = path.read_bytes(), {"metrics.csv": b"epoch,loss\n", "metrics.json": b'{"rows": []}'}.get(path.name, b"\x89PNG")
        path.write_bytes(theirs)
        with pytest.raises(FileError, match=f"{path.name} exists and was not written by jaxsr"):
            run()
        assert path.read_bytes() == theirs
        path.write_bytes(ours)


def test_one_subject_without_a_finite_number_is_left_out_of_a_mean_and_told():
    values = {"ssim": [0.8, 0.9, np.nan, 0.7, 0.85, 0.75], "psnr": [30.0, np.inf, 32.0, 33.0, 34.0, 35.0], "vif": [np.nan] * 6}
    rows = [Row(f"s{i}", "a", "foreground", 1.0, 9, {m: v[i] for m, v in values.items()}) for i in range(6)]
    comparison = Comparison(tuple(rows))
    found = {s.metric: s for s in comparison.summary}
    assert (found["ssim"].n, found["ssim"].mean, found["ssim"].median) == pytest.approx((5, 0.8, 0.8))
    assert found["ssim"].sd == pytest.approx(np.std([0.8, 0.9, 0.7, 0.85, 0.75], ddof=1))
    assert found["ssim"].low < 0.8 < found["ssim"].high
    assert (found["psnr"].n, found["psnr"].mean, found["psnr"].median) == pytest.approx((5, 32.8, 33.5))  # the median knows of the sixth
    assert (found["vif"].n, np.isnan(found["vif"].mean)) == (0, True)
    assert comparison.table()[0]["subjects"] == "6"
    assert comparison.all_notes == (
        "values that are not finite are left out of means, deviations and intervals "
        "(1 of 6 in ssim, foreground: a; 1 of 6 in psnr, foreground: a)",
    )
    same = Comparison(tuple(row._replace(values={"psnr": np.inf}) for row in rows))
    assert (same.summary[0].n, same.summary[0].mean, same.all_notes) == (6, np.inf, ())


def test_equal_volumes_make_valid_json(tmp_path):
    write_volume(tmp_path / "ref.nii.gz", head())
    compare_files({"same": tmp_path / "ref.nii.gz"}, tmp_path / "ref.nii.gz", tmp_path / "e", means=Means(montage=False))
    row = json.loads((tmp_path / "e" / "metrics.json").read_text(), parse_constant=pytest.fail)["rows"][0]
    assert row["values"]["psnr"] == "inf"


def test_a_stack_too_thin_for_the_window_has_no_ssim():
    reference = head(shape=(22, 24, 6))
    row = compare_volumes(reference, {"a": noisy(reference)})[0]
    assert np.isnan(row.values["ssim"])
    assert np.isfinite(row.values["psnr"])


def test_one_bad_subject_does_not_stop_the_others(study):
    write_volume(study / "out" / "sub-02_desc-sr_T1w.nii.gz", lowered(head(1)))
    comparison = compare_files({"sr3": study / "out"}, study / "ref", study / "e", means=Means(montage=False))
    assert {r.subject for r in comparison.rows} == {"sub-01"}
    assert "11 × 12 × 10" in comparison.failures["sub-02"]


def test_missing_and_extra_files_are_told(study):
    (study / "out" / "sub-02_desc-sr_T1w.nii.gz").rename(study / "out" / "sub-03_desc-sr_T1w.nii.gz")
    comparison = compare_files({"sr3": study / "out"}, study / "ref", study / "e", means=Means(montage=False))
    assert any("no output for sub-02_T1w" in note for note in comparison.notes)
    assert any("no reference for sub-03_desc-sr" in note for note in comparison.notes)


def test_nothing_in_common_is_an_error_with_a_way_out(study):
    write_volume(study / "other" / "x.nii.gz", head())
    with pytest.raises(EvaluationError, match="name them alike"):
        compare_files({"sr3": study / "other"}, study / "ref", study / "e")


def test_a_mask_file_must_lie_on_the_reference(study):
    write_volume(study / "mask.nii.gz", lowered(head()))
    files = {"sr3": study / "out" / "sub-01_desc-sr_T1w.nii.gz"}, study / "ref" / "sub-01_T1w.nii.gz", study / "e"
    with pytest.raises(EvaluationError, match="the mask"):
        compare_files(*files, mask=study / "mask.nii.gz")


def test_an_image_is_no_mask(study):
    at = study / "ref" / "sub-01_T1w.nii.gz"
    files = {"sr3": study / "out" / "sub-01_desc-sr_T1w.nii.gz"}, at, study / "e"
    with pytest.raises(EvaluationError, match="the reference itself"):
        compare_files(*files, mask=at)
    with pytest.raises(EvaluationError, match="more than two values"):
        compare_files(*files, mask=study / "out" / "sub-01_desc-sr_T1w.nii.gz")


def test_a_mask_file_names_its_region_and_the_montage_is_written(study):
    write_volume(study / "mask.nii.gz", replace(head(), data=(head().data > 105).astype(np.float32)))
    files = {"sr3": study / "out" / "sub-01_desc-sr_T1w.nii.gz"}, study / "ref" / "sub-01_T1w.nii.gz", study / "e"
    comparison = compare_files(*files, mask=study / "mask.nii.gz")
    assert {r.region for r in comparison.rows} == {"image", "mask"}
    assert sorted(p.name for p in comparison.files) == ["metrics.csv", "metrics.json", "montage.png"]
    assert all(p.is_file() for p in comparison.files)


def rescaled(high, kind):
    grid = target_grid(high.grid, 1.25)
    return Volume(resample(high.data, high.grid, grid, kind), grid.affine)


def test_another_grid_is_resampled_only_where_that_is_asked_for(study):
    write_volume(study / "coarse.nii.gz", rescaled(head(), "linear"))
    paths = {"sr3": study / "coarse.nii.gz"}, study / "ref" / "sub-01_T1w.nii.gz", study / "e"
    with pytest.raises(EvaluationError, match="--resample"):
        compare_files(*paths, means=Means(montage=False))
    comparison = compare_files(*paths, means=Means(resampling="linear", montage=False))
    assert "resampled (linear)" in comparison.notes[0]
    document = json.loads((study / "e" / "metrics.json").read_text())
    assert document["provenance"]["resampling"] == "linear"
    assert comparison.rows[0].voxels == head().data.size


def test_an_output_at_an_angle_is_resampled_too(study):
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(0.2), -np.sin(0.2)], [np.sin(0.2), np.cos(0.2)]]
    high = head()
    grid = Grid(high.data.shape, turn @ high.affine)
    write_volume(study / "turned.nii.gz", Volume(resample_oblique(high.data, high.grid, grid, "linear"), grid.affine))
    paths = {"sr3": study / "turned.nii.gz"}, study / "ref" / "sub-01_T1w.nii.gz", study / "e"
    values = compare_files(*paths, means=Means(resampling="linear", montage=False)).rows[1].values
    assert values["psnr"] > 12  # a texture of noise, interpolated twice; unturned it is below
    assert (
        values["psnr"] > compare_volumes(head(), {"a": replace(read_volume(study / "turned.nii.gz"), affine=high.affine)})[1].values["psnr"]
    )


@pytest.mark.parametrize("names", [("rmse",), ("vif", "gmsd"), ("ms_ssim", "psnr")])
def test_metrics_are_those_asked_for_and_nan_where_the_image_is_too_small(names):
    reference = head()
    rows = compare_volumes(reference, {"a": noisy(reference)}, rules=Rules(names))
    for row in rows:
        assert tuple(row.values) == names
        small = {name for name in names if METRICS[name].least > 20}
        assert {name for name, value in row.values.items() if np.isnan(value)} == small


@pytest.mark.parametrize("names, message", [(["psnr", "beauty"], "beauty"), (["psnr", "psnr"], "twice"), ([], "none"), (["dice"], "dice")])
def test_metrics_that_cannot_be_taken_are_refused(names, message):
    with pytest.raises(ValueError, match=message):
        check_metrics(names)


def test_volumes_of_each_subject_and_their_curves_stand_in_the_json(study):
    compare_files({"sr3": study / "out"}, study / "ref", study / "e", low=study / "low", means=Means(montage=False))
    document = json.loads((study / "e" / "metrics.json").read_text())
    assert document["files"]["sub-01"] == {
        "reference": "../ref/sub-01_T1w.nii.gz",
        "low": "../low/sub-01_T1w.nii.gz",
        "mask": None,
        "outputs": {"sr3": "../out/sub-01_desc-sr_T1w.nii.gz"},
    }
    curve = document["curves"]["sub-02"]["sr3"]
    assert len(curve["frequency"]) == len(curve["correlation"]) <= CURVE
    assert curve["frequency"][-1] == pytest.approx(0.5)  # Nyquist's of 1 mm
    assert max(curve["correlation"]) > 0.95
    assert document["summary"][0]["low"] is None  # of two subjects


def test_methods_are_tested_against_tricubic_or_whom_one_names(study):
    for seed in range(2, 7):
        write_volume(study / "ref" / f"sub-0{seed + 1}_T1w.nii.gz", head(seed))
        write_volume(study / "out" / f"sub-0{seed + 1}_desc-sr_T1w.nii.gz", noisy(head(seed)))
        write_volume(study / "low" / f"sub-0{seed + 1}_T1w.nii.gz", lowered(head(seed)))
    how = {"low": study / "low", "means": Means(montage=False)}
    comparison = compare_files({"sr3": study / "out"}, study / "ref", study / "e", **how)
    found = next(t for t in comparison.tests if (t.region, t.metric, t.method) == ("foreground", "psnr", "sr3"))
    assert (found.against, found.n, found.p) == ("tricubic", 7, 2 / 2**7)
    assert found.median_difference > 0
    summary = comparison.summary[0]
    assert summary.low < summary.mean < summary.high
    assert f"{summary.low:.2f} … {summary.high:.2f}" in comparison.table("image", interval=True)[0]["PSNR (dB)"]
    family = [t for t in comparison.tests if t.region == "foreground"]
    assert len(family) == 4 * 7  # three interpolations and a method in seven metrics
    other = compare_files({"sr3": study / "out"}, study / "ref", study / "e", low=study / "low", means=Means(against="sr3", montage=False))
    assert {t.against for t in other.tests} == {"sr3"}
    with pytest.raises(EvaluationError, match="--against student"):
        compare_files({"sr3": study / "out"}, study / "ref", study / "e", means=Means(against="student"))


def test_two_subjects_are_too_few_for_a_test_and_a_note_says_so(study):
    comparison = compare_files({"sr3": study / "out"}, study / "ref", study / "e", low=study / "low", means=Means(montage=False))
    assert all(np.isnan(t.p) for t in comparison.tests)
    assert "cannot reach p < 0.05" in comparison.all_notes[-1]


def test_several_images_of_one_person_are_told(study):
    assert not compare_files({"sr3": study / "out"}, study / "ref", study / "e", low=study / "low", means=Means(montage=False)).notes
    for session in ("a", "b"):
        write_volume(study / "two" / f"sub-01_ses-{session}_T1w.nii.gz", head(1))
    comparison = compare_files({"same": study / "two"}, study / "two", study / "e", low=study / "two", means=Means(montage=False))
    assert "2 images are of one person" in comparison.notes[-1]
