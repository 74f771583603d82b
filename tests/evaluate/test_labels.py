"""Label maps are compared label by label, as they are, and everything an evaluation says of images it says of labels."""

import csv
import json
import re

import nibabel as nib
import numpy as np
import pytest

from jaxsr.cli import app
from jaxsr.cli.findings import significant
from jaxsr.cli.status import run
from jaxsr.evaluate.compare import Means
from jaxsr.evaluate.files import label_files, pair_files
from jaxsr.evaluate.grids import EvaluationError
from jaxsr.evaluate.labels import METRICS, compare_labels, parse_labels, read_labels, read_table
from jaxsr.evaluate.metrics.tissue import dice, relative_volume_error, volume_error
from jaxsr.evaluate.report import write_report
from jaxsr.evaluate.report_figures import label_boxes

SHAPE, MM = (14, 16, 12), (1.0, 1.5, 2.0)
EVIL = "</script><b>$x$"


def balls(seed, labels=(2, 3, 41), off=0):
    """A ball for each label, apart from the others, moved by `off` voxels."""
    random, grid = np.random.default_rng(seed), np.stack(np.meshgrid(*map(np.arange, SHAPE), indexing="ij"), -1)
    found = np.zeros(SHAPE, np.int16)
    for i, label in enumerate(labels):
        centre = np.array([4 + off, 2 + 5 * i, 5]) + random.random(3)
        found[((grid - centre) ** 2).sum(-1) < random.uniform(4, 5)] = label
    return found


def save(path, data, sizes=MM):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(data, np.diag([*sizes, 1.0])), path)
    return path


def study(folder, people=2, methods=("a", "b")):
    """References and outputs, the second method further off than the first."""
    for seed in range(people):
        save(folder / "truth" / f"sub-{seed}.nii.gz", balls(seed))
        for k, method in enumerate(methods):
            save(folder / method / f"sub-{seed}.nii.gz", balls(seed, off=1 + k))
    return {method: folder / method for method in methods}


def test_rows_are_the_metrics_of_each_label_and_have_no_data_range(tmp_path):
    comparison = compare_labels(study(tmp_path), tmp_path / "truth", tmp_path / "e")
    assert [(r.region, r.method) for r in comparison.rows[:4]] == [("2", "a"), ("2", "b"), ("3", "a"), ("3", "b")]
    assert [row["region"] for row in comparison.table()] == ["2", "2", "3", "3", "41", "41"]  # methods of a label side by side
    a, b, labels = balls(1, off=1), balls(1), [2, 3, 41]
    expected = {
        "dice": dice(a, b, labels=labels),
        "volume_error": volume_error(a, b, labels=labels, voxel_size=MM),
        "relative_volume_error": relative_volume_error(a, b, labels=labels),
    }
    mine = [row for row in comparison.rows if (row.subject, row.method) == ("sub-1", "a")]
    for i, row in enumerate(mine):
        assert tuple(row.values) == METRICS
        assert row.values == {name: pytest.approx(float(values[i])) for name, values in expected.items()}
        assert (row.voxels, row.data_range) == ((b == labels[i]).sum(), None)
    table = list(csv.DictReader((tmp_path / "e" / "metrics.csv").open()))
    assert (len(table), table[0]["data_range"], table[0]["region"]) == (12, "", "2")
    document = json.loads((tmp_path / "e" / "metrics.json").read_text())
    assert document["labels"] == {"2": 2, "3": 3, "41": 41}
    assert document["rows"][0]["data_range"] is None
    assert {"dice", "regions", "sd"} <= document["conventions"].keys()
    assert not {"data_range", "foreground", "intensities", "psnr"} & document["conventions"].keys()


def test_all_are_the_labels_of_any_reference_and_what_only_outputs_have_is_told(tmp_path):
    save(tmp_path / "truth" / "x.nii.gz", balls(0, (2, 5)))
    save(tmp_path / "truth" / "y.nii.gz", balls(1, (3,)))
    save(tmp_path / "a" / "x.nii.gz", balls(0, (2,)))
    save(tmp_path / "a" / "y.nii.gz", balls(1, (3, 7, 8)))
    comparison = compare_labels({"a": tmp_path / "a"}, tmp_path / "truth", tmp_path / "e")
    found = {(row.subject, row.region): row.values for row in comparison.rows}
    assert {region for _, region in found} == {"2", "3", "5"}
    assert found["x", "5"] == {"dice": 0, "volume_error": pytest.approx(-3e-3 * (balls(0, (2, 5)) == 5).sum()), "relative_volume_error": -1}
    assert np.isnan(found["y", "2"]["dice"])  # which neither has
    assert next(s for s in comparison.summary if (s.region, s.metric) == ("2", "dice")).n == 1
    assert "y: a has labels 7, 8, which no reference has: not compared" in comparison.notes
    assert any("1 of 2 in dice, 2: a" in note for note in comparison.all_notes)


def test_numbers_are_compared_in_their_order_also_where_no_reference_has_them(tmp_path):
    comparison = compare_labels(study(tmp_path), tmp_path / "truth", tmp_path / "e", "41, 99,2")
    assert list(comparison.labels) == ["41", "99", "2"]
    assert "no reference has label 99" in comparison.notes


def test_a_table_names_the_labels_and_chooses_them(tmp_path):
    (tmp_path / "dseg.tsv").write_text(f"index\tname\tcolor\n0\tBackground\t#0\n41\t{EVIL}\t#1\n2\tn/a\t#2\n77\tElsewhere\t#3\n")
    comparison = compare_labels(study(tmp_path), tmp_path / "truth", tmp_path / "e", str(tmp_path / "dseg.tsv"))
    assert dict(comparison.labels) == {EVIL: 41, "2": 2}
    assert "label 3 of the references: not in the table, not compared" in comparison.notes
    assert {row.region for row in comparison.rows} == {EVIL, "2"}


@pytest.mark.parametrize(
    "text, message",
    [
        ("index,name\n1,a\n", "no columns index and name"),
        ("index\tname\n1.5\ta\n", r"line 2: the index '1\.5'"),
        ("index\tname\n1\ta\n2\ta\n", "line 3: a or 2 stands there twice"),
        ("index\tname\n1\ta\n1\tb\n", "line 3: b or 1 stands there twice"),
        ("index\tname\n0\ta\n", "no label above 0"),
        ("", "no label above 0"),
    ],
)
def test_a_table_that_is_none_is_refused(tmp_path, text, message):
    (tmp_path / "t.tsv").write_text(text)
    with pytest.raises(EvaluationError, match=message):
        read_table(tmp_path / "t.tsv")


@pytest.mark.parametrize("text", ["", "al", "0", "2,0", "2,2", "2;3", "-1", "16777216", "nowhere_dseg.tsv"])
def test_labels_are_all_numbers_or_a_table(text):
    with pytest.raises(EvaluationError, match="--labels"):
        parse_labels(text)


def image():
    return np.random.default_rng(0).integers(0, 900, SHAPE).astype(np.int16)


@pytest.mark.parametrize(
    "data, message",
    [
        (balls(0) + np.float32(0.5), r"x\.nii\.gz is no label map: it holds 0\.5"),
        (balls(0) - 1, "holds -1"),
        (balls(0) * np.float32(2**24), "no label map"),
        (image(), r"x\.nii\.gz looks like an image"),
    ],
)
def test_what_is_no_label_map_is_refused_by_its_name(tmp_path, data, message):
    with pytest.raises(EvaluationError, match=message):
        read_labels(save(tmp_path / "x.nii.gz", data))


def test_an_empty_map_is_one(tmp_path):
    save(tmp_path / "a.nii.gz", np.zeros(SHAPE, np.int16))
    save(tmp_path / "truth.nii.gz", balls(0))
    comparison = compare_labels({"a": tmp_path / "a.nii.gz"}, tmp_path / "truth.nii.gz", tmp_path / "e")
    assert {row.values["dice"] for row in comparison.rows} == {0}
    with pytest.raises(EvaluationError, match="no reference has any of the labels"):
        compare_labels({"a": tmp_path / "truth.nii.gz"}, tmp_path / "a.nii.gz", tmp_path / "e")


def test_another_grid_is_refused_and_resampling_is_not_the_way_out(tmp_path):
    save(tmp_path / "truth.nii.gz", balls(0))
    for other in (save(tmp_path / "a.nii.gz", balls(0)[1:]), save(tmp_path / "b.nii.gz", balls(0), (1.0, 1.5, 2.1))):
        with pytest.raises(EvaluationError, match="nearest neighbours") as raised:
            compare_labels({"a": other}, tmp_path / "truth.nii.gz", tmp_path / "e")
        assert "--resample" not in str(raised.value)


def test_one_bad_map_does_not_stop_the_others(tmp_path):
    outputs = study(tmp_path)
    save(tmp_path / "b" / "sub-1.nii.gz", image())
    comparison = compare_labels(outputs, tmp_path / "truth", tmp_path / "e")
    assert {row.subject for row in comparison.rows} == {"sub-0"}
    assert "looks like an image" in comparison.failures["sub-1"]


def test_of_a_bids_tree_the_dsegs_are_matched_in_this_mode_only(tmp_path):
    for tree, more in (("truth", ""), ("a", "_desc-sr")):
        place = tmp_path / tree / "sub-1" / "anat"
        save(place / f"sub-1{more}_dseg.nii.gz", balls(0))
        save(place / f"sub-1{more}_T1w.nii.gz", image())
        save(place / f"sub-1{more}_mask.nii.gz", balls(0, (1,)))
        save(place / f"sub-1{more}_label-GM_probseg.nii.gz", image() / 900)
    for labels, suffix in ((True, "dseg"), (False, "T1w")):
        ((reference, output),) = pair_files(tmp_path / "truth", tmp_path / "a", labels=labels).matched.values()
        assert (reference.name, output.name) == (f"sub-1_{suffix}.nii.gz", f"sub-1_desc-sr_{suffix}.nii.gz")


@pytest.mark.parametrize(
    "names, taken", [(("a", "a_mask", "a_probseg"), {"a"}), (("a_mask", "b_mask"), {"a_mask", "b_mask"}), (("a_dseg", "a"), {"a_dseg"})]
)
def test_masks_are_label_maps_where_nothing_else_is(tmp_path, names, taken):
    for name in names:
        save(tmp_path / f"{name}.nii.gz", balls(0))
    assert {path.name.removesuffix(".nii.gz") for path in label_files(tmp_path)} == taken


@pytest.fixture(scope="module")
def tested(tmp_path_factory):
    """Seven people, three methods, their names and those of labels hostile; the folder and what was found."""
    folder = tmp_path_factory.mktemp("tested")
    outputs = study(folder, 7, ("a", "b", "c"))
    (folder / "dseg.tsv").write_text(f"index\tname\n2\tLeft-White\n3\t{EVIL}\n41\tRight-White\n")
    means = Means(against="c", provenance={"seed": 7})
    return folder, compare_labels({**outputs}, folder / "truth", folder / "e", str(folder / "dseg.tsv"), means=means)


def test_methods_are_tested_in_each_label_and_metric_by_itself(tested):
    _, comparison = tested
    found = [t for t in comparison.tests if (t.region, t.metric) == ("Left-White", "dice")]
    assert [(t.method, t.against, t.n) for t in found] == [("a", "c", 7), ("b", "c", 7)]
    assert found[0].p == 2 / 2**7
    assert found[0].p_holm == 2 * found[0].p  # of the family of two methods, whatever the number of labels
    assert any("over methods, not over labels" in note for note in comparison.notes)
    assert "a differs from c in dice (Holm p < 0.05) in all of 3 labels" in significant(comparison)


def test_what_is_to_be_said_of_many_labels_is_said_once(tmp_path):
    folder = tmp_path / "many"
    outputs = study(folder, 6, tuple("abcd"))
    notes = compare_labels(outputs, folder / "truth", folder / "e").all_notes
    powerless = [note for note in notes if "no difference can be significant" in note]
    assert len(powerless) == 1
    assert powerless[0].startswith("2, 3, 41: 3 methods on 6 subjects")


def test_the_report_has_tables_and_boxes_by_label_and_no_pictures(tested):
    folder, comparison = tested
    done = write_report(folder / "e", folder / "e" / "report.html")
    page = done.path.read_text("utf-8")
    assert done.left_out == ()
    assert EVIL not in page
    assert not re.search(r"<img|id=\"viewer\"|id=\"pictures\"|href=\"#pictures\"", page)
    shown = re.sub(r"<(script|style).*?</\1>|<[^>]*>", " ", page, flags=re.DOTALL)
    assert "Segmentations of 3 methods were compared on 7 subjects, in 3 labels." in shown
    assert "Mean Dice is highest for a in 3 of 3 labels." in shown
    assert "Dice is higher for a than for c in 3 of 3 labels, and lower in 0 (p &lt; 0.05)." in shown
    for heading in ("Over subjects, Dice, higher is better", "Over subjects, volume error (ml), nearer to zero is better", "Left-White"):
        assert heading in shown
    mean = next(s.mean for s in comparison.summary if (s.method, s.region, s.metric) == ("a", "Left-White", "dice"))
    assert f"★ {mean:.4f}" in re.sub(r"\s+", " ", shown)
    boxes = label_boxes(json.loads((folder / "e" / "metrics.json").read_text())["rows"], "dice")
    assert len(re.findall(r"<title>sub-\d, [abc], ", boxes)) == 7 * 3 * 3
    assert EVIL not in boxes


def test_boxes_of_nothing_are_none():
    row = {"subject": "s", "method": "a", "region": "2", "values": {"dice": None, "relative_volume_error": "inf"}}
    assert label_boxes([row], "dice") == label_boxes([row], "relative_volume_error") == ""


@pytest.mark.parametrize("option", ["--protocol", "--low", "--mask", "--metrics", "--resample", "--lpips-weights"])
def test_what_is_for_images_is_refused_with_labels(tmp_path, capsys, option):
    value = "linear" if option == "--resample" else "psnr" if option == "--metrics" else str(tmp_path)
    words = ["evaluate", "-i", str(tmp_path), "-r", str(tmp_path), "-o", str(tmp_path / "e"), "--labels", "all", option, value]
    assert run(lambda: app(words, standalone_mode=False)) == 2
    said = re.sub(r"[\s│]+", " ", capsys.readouterr().err)
    assert f"{option}: is for images" in said
    assert not (tmp_path / "e").exists()


def test_segmentations_are_compared_and_reported_by_one_command(tmp_path, capsys):
    study(tmp_path)
    words = [
        "evaluate",
        "-i",
        f"sr3={tmp_path / 'a'}",
        "-r",
        str(tmp_path / "truth"),
        "-o",
        str(tmp_path / "e"),
        "--labels",
        "all",
        "--report",
    ]
    assert run(lambda: app(words, standalone_mode=False)) == 0
    assert "Dice" in capsys.readouterr().out
    assert sorted(path.name for path in (tmp_path / "e").iterdir()) == ["metrics.csv", "metrics.json", "report.html"]
    assert run(lambda: app(["report", str(tmp_path / "e")], standalone_mode=False)) == 0
