"""A report holds all of its evaluation, nothing from outside, and says what it cannot show. How it looks is looked at."""

import base64
import hashlib
import html
import io
import json
import re
from dataclasses import replace

import matplotlib.image
import numpy as np
import pytest

import jaxsr.evaluate.report as report_module
from jaxsr.cli import app
from jaxsr.cli.status import run
from jaxsr.evaluate.grids import EvaluationError
from jaxsr.evaluate.report import write_report
from jaxsr.evaluate.report_figures import box_plot
from jaxsr.evaluate.report_subjects import chosen_subjects
from jaxsr.evaluate.report_tables import summary_sentences, summary_tables, text_of
from jaxsr.evaluate.report_viewer import viewer_data, viewer_script
from jaxsr.files import FileError
from jaxsr.volume.geometry import Grid, resample, target_grid
from jaxsr.volume.intensity import Window
from jaxsr.volume.io import Volume, write_volume

EVIL = "</script><script>alert(1)</script>"
SHAPE = (30, 34, 28)


def head(seed):
    rng = np.random.default_rng(seed)
    radius = np.sqrt(sum(np.linspace(-1.2, 1.2, n).reshape([-1 if a == i else 1 for i in range(3)]) ** 2 for a, n in enumerate(SHAPE)))
    affine = np.diag([4.0, 4.0, 4.0, 1.0])
    affine[:3, 3] = [-60, -70, -50]
    return Volume((np.where(radius < 1, 100 + 40 * rng.random(SHAPE), 0)).astype(np.float32), affine)


def summaries(rows):
    """As an evaluation writes them, with an interval that only has to be shown."""
    grouped = {}
    for row in rows:
        for metric, value in row["values"].items():
            grouped.setdefault((row["method"], row["region"], metric), []).append(float(value))
    return [
        {
            "method": m,
            "region": r,
            "metric": k,
            "n": len(v),
            "mean": np.mean(v),
            "sd": np.std(v),
            "median": np.median(v),
            "low": min(v),
            "high": max(v),
        }
        for (m, r, k), v in grouped.items()
    ]


def document(scores, *, metric="psnr", tests=(), **more):
    """An evaluation without volumes: method → a value for each subject."""
    rows = [
        {"subject": f"sub-{i:02}", "method": method, "region": "mask", "values": {metric: value}}
        for method, values in scores.items()
        for i, value in enumerate(values)
    ]
    return {"rows": rows, "summary": summaries(rows), "tests": list(tests), "files": {}, **more}


def outcome(method, against, p_holm, metric="psnr", n=8, median_difference=1.0):
    return {
        "region": "mask",
        "metric": metric,
        "method": method,
        "against": against,
        "n": n,
        "p": 0.01,
        "p_holm": p_holm,
        "median_difference": median_difference,
    }


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory):
    """Two subjects, one with a hostile name; two methods and an interpolation, volumes, sidecars, maps: all it can show."""
    folder = tmp_path_factory.mktemp("evaluation")
    names, files, rows = ["sub-01", f"sub-02{EVIL}"], {}, []
    for i, subject in enumerate(names):
        high = head(i)
        low = target_grid(high.grid, 8.0)
        write_volume(folder / f"ref/{i}.nii.gz", high)
        write_volume(folder / f"low/{i}.nii.gz", Volume(resample(high.data, high.grid, low, "linear"), low.affine))
        for k, method in enumerate(("student", "teacher")):
            noise = np.random.default_rng(9 + k).standard_normal(SHAPE).astype(np.float32)
            write_volume(folder / f"{method}/{i}.nii.gz", replace(high, data=high.data + (3 + 3 * k) * noise))
        write_volume(folder / f"maps/{i}.nii.gz", replace(high, data=high.data / 140))
        files[subject] = {
            "reference": f"ref/{i}.nii.gz",
            "low": f"low/{i}.nii.gz",
            "mask": None,
            "outputs": {method: f"{method}/{i}.nii.gz" for method in ("student", "teacher")},
        }
        rows += [
            {
                "subject": subject,
                "method": method,
                "region": region,
                "values": {"psnr": 40.0 - 5 * k - i, "ssim": 0.95 - 0.1 * k - 0.01 * i, "strange": None},
            }
            for k, method in enumerate(("student", "teacher", "tricubic"))
            for region in ("foreground", "image")
        ]
    matplotlib.image.imsave(folder / "student" / "stage.png", np.zeros((4, 4, 3)))
    block = {
        "Model": "tiny",
        "WeightsSHA256": "5eed" * 16,
        "StagePath": [{"mm": 2.0}, {"mm": 1.25, "picture": "stage.png"}, {"mm": 1.0, "picture": "gone.png"}],
    }
    (folder / "student" / "0.json").write_text(json.dumps({"JaxSR": block}))
    frequency = [0.02, 0.04, 0.06]
    content = {
        "rows": rows,
        "summary": summaries([{**row, "values": {k: v for k, v in row["values"].items() if v is not None}} for row in rows]),
        "tests": [{**outcome("student", "teacher", 1.0, n=2), "region": "foreground"}],
        "files": files,
        "maps": {"sub-01": {"expert 1": "maps/0.nii.gz", "expert 2": "maps/1.nii.gz"}},
        "curves": {name: {m: {"frequency": frequency, "correlation": [1, 0.5, 0.1]} for m in ("student", "teacher")} for name in names},
        "protocol": {"name": "2mm", "sha256": "c0ffee" * 10, "text": f"acquisition: 1.5T # {EVIL}"},
        "provenance": {"command": ["jaxsr", "evaluate", EVIL], "seed": 7, "commit": "feedbee"},
        "notes": [f"a note {EVIL}"],
        "failures": {"sub-03": "sub-03: no output for it"},
    }
    (folder / "metrics.json").write_text(json.dumps(content))
    return folder


@pytest.fixture(scope="module")
def page(evaluation):
    done = write_report(evaluation, evaluation / "report.html")
    assert done.size == done.path.stat().st_size
    return done.path.read_text("utf-8")


def visible(page):
    """Its text as a reader sees it: no pictures, no scripts."""
    return re.sub(r"<(script|style).*?</\1>|<[^>]*>", " ", page, flags=re.DOTALL)


def test_every_subject_method_note_failure_and_setting_is_in_the_page(page):
    text = visible(page)
    for word in (
        "sub-01",
        "sub-02",
        "student",
        "teacher",
        "tricubic",
        "a note",
        "sub-03",
        "no output for it",
        "c0ffee" * 10,
        "acquisition: 1.5T",
    ):
        assert word in text
    for word in ("feedbee", "5eed" * 16, "PSNR (dB)", "strange", "40.00", "1.25", "For research only", "Synthetic"):
        assert word in text


def test_foreign_text_never_becomes_markup(page):
    assert EVIL not in page
    assert "alert(1)" in visible(page)
    assert len(re.findall(r"<script", page)) == 3  # the viewer's data, brainsprite, and ours
    data = re.search(r'<script type="application/json" id="viewer-data">(.*?)</script>', page, re.DOTALL)
    assert list(json.loads(data[1])["subjects"]) == [f"sub-02{EVIL}"]  # the one with the lower score


def test_nothing_comes_from_a_network(page):
    found = set(re.findall(r"""\b(?:https?|ftp|file|wss?)://[^\s"'<>)]*|(?<=["'(])//[a-z][^\s"'<>)]*""", page))
    assert found <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
    assert not re.search(r"<(link|iframe|object|embed|base)\b|@import|url\((?!#)", page)
    assert all(source.startswith("data:") for source in re.findall(r'\bsrc="([^"]*)"', page))


def test_only_the_scripts_that_the_page_was_written_with_may_run(page):
    policy = html.unescape(re.search(r'Content-Security-Policy" content="([^"]*)"', page)[1])
    allowed = re.search(r"script-src ([^;]*)", policy)[1].split()
    hashes = [hashlib.sha256(text.encode()).digest() for text in re.findall(r"<script>(.*?)</script>", page, re.DOTALL)]
    assert allowed == [f"'sha256-{base64.b64encode(digest).decode()}'" for digest in hashes]
    assert policy.startswith("default-src 'none'; img-src data:;")
    assert policy.endswith("; base-uri 'none'; form-action 'none'")  # default-src does not stand in for these


def test_every_picture_has_words_for_who_cannot_see_it(page):
    images, drawings = re.findall(r"<img [^>]*>", page), re.findall(r"<svg [^>]*>", page)
    assert len(images) == 2 + 1 + 1  # montages, maps, the stage that has one
    assert len(drawings) == 3
    assert all(re.search(r'alt="[^"]{9,}"', image) for image in images)
    assert all('role="img"' in drawing and 'aria-label="' in drawing for drawing in drawings)


def test_no_two_parts_of_the_page_have_one_name_and_references_find_theirs(page):
    names = re.findall(r'\bid="([^"]*)"', page)
    assert len(names) == len(set(names))
    assert set(re.findall(r'(?:url\(|href=")#([^")]+)', page)) <= set(names)


def test_the_same_evaluation_gives_the_same_bytes_without_the_time(evaluation, page, tmp_path):
    again = write_report(evaluation / "metrics.json", tmp_path / "elsewhere" / "again.html")
    assert again.path.read_text("utf-8") == page


def test_a_volume_that_is_not_there_leaves_out_its_pictures_and_is_named(evaluation, tmp_path):
    content = json.loads((evaluation / "metrics.json").read_text())
    first, second = content["files"].values()
    for files in (first, second):
        files.update({key: str(evaluation / files[key]) for key in ("reference", "low")})
        files["outputs"] = {method: str(evaluation / path) for method, path in files["outputs"].items()}
    first["outputs"]["teacher"] = "gone.nii.gz"
    second["reference"] = "gone_too.nii.gz"
    (tmp_path / "metrics.json").write_text(json.dumps({**content, "maps": {}}))
    done = write_report(tmp_path, tmp_path / "report.html", viewers=2)
    said = " ".join(done.left_out)
    assert "teacher is not shown" in said
    assert "gone.nii.gz" in said
    assert "gone_too.nii.gz" in said
    text = done.path.read_text("utf-8")
    assert "gone.nii.gz" in visible(text)
    assert len(re.findall(r'<div class="scroll montage"', text)) == 1
    data = json.loads(re.search(r'id="viewer-data">(.*?)</script>', text, re.DOTALL)[1])
    assert [[v["name"] for v in one["volumes"]] for one in data["subjects"].values()] == [["target", "input (tricubic)", "student"]]


def test_an_evaluation_without_files_tests_and_intervals_is_a_report_of_numbers(tmp_path):
    content = document({"a": [30.0, 31.0], "b": [29.0, 28.0]})
    rows = [{k: v for k, v in s.items() if k not in ("low", "high")} for s in content["summary"]]
    (tmp_path / "metrics.json").write_text(json.dumps({"rows": content["rows"], "summary": rows}))
    done = write_report(tmp_path, tmp_path / "report.html")
    text = done.path.read_text("utf-8")
    assert "30.50" in visible(text)
    assert "does not name its files" in done.left_out[0]
    assert "viewer-data" not in text.split("<script>")[0]


def test_the_best_mean_of_each_metric_is_marked_whichever_way_is_better():
    up, down = document({"a": [30.0, 32.0], "b": [33.0, 31.0]}), document({"a": [3.0, 2.0], "b": [2.0, 1.0]}, metric="rmse")
    signed = document({"a": [-5.0, -5.0], "b": [1.0, 1.0]}, metric="volume_error")
    for one in (up, down, signed):
        (table,) = summary_tables(one)
        assert [(method, cells[0].best) for method, cells in table.lines] == [("a", False), ("b", True)]
    (unknown,) = summary_tables(document({"a": [1.0], "b": [2.0]}, metric="strange"))
    assert not any(cells[0].best for _, cells in unknown.lines)


@pytest.mark.parametrize(
    "scores, tests, words",
    [
        ({"a": [30.0] * 8, "b": [31.0] * 8}, [outcome("b", "a", 0.01)], "its difference from a is significant"),
        ({"a": [30.0] * 8, "b": [31.0] * 8}, [outcome("a", "b", 0.01, median_difference=-1.0)], "its difference from a is significant"),
        ({"a": [30.0] * 8, "b": [31.0] * 8}, [outcome("b", "a", 0.06)], "not significant .* may be chance"),
        ({"a": [30.0] * 8, "b": [31.0] * 8}, [outcome("a", "b", 0.01)], "in the middle subject a is better, significantly"),
        (
            {"a": [30.0] * 8, "b": [31.0] * 8, "c": [1.0] * 8},
            [outcome("b", "c", 0.01)],
            "no test compares it with a; its difference from c is significant",
        ),
        ({"a": [30.0] * 8, "b": [31.0] * 8}, [], "no test says"),
        ({"a": [30.0] * 8, "b": [31.0] * 8}, [outcome("a", "c", 0.01)], "no test says"),
        ({"a": [31.0] * 8, "b": [31.0] * 8}, [], "equal, 31.00 dB on average, for a and b"),
        ({"a": [30.0] * 3, "b": [31.0] * 3}, [], "smallest two-sided p a paired Wilcoxon test can give is 0.25"),
        ({"a": [30.0] * 8, "b": [31.0] * 7}, [], "n = 7 to 8"),
    ],
)
def test_the_words_claim_no_more_than_the_test_says(scores, tests, words):
    said = " ".join(summary_sentences(document(scores, tests=tests), list(scores)))
    assert re.search(words, said)
    assert ("is significant" in said) == ("is significant" in words)


def test_an_interpolation_that_is_best_is_called_one_and_a_small_resolution_fine():
    said = " ".join(summary_sentences(document({"a": [2.5] * 8, "tricubic": [2.0] * 8}, metric="resolution"), ["a"]))
    assert "finest for tricubic, an interpolation: 2.00 ± 0.00 mm" in said
    assert "an interpolation:" not in " ".join(summary_sentences(document({"a": [2.0] * 8, "tricubic": [1.0] * 8}), ["a"]))


def test_methods_scored_on_other_subjects_are_told_but_not_for_a_number_that_is_missing():
    said = "Not every method was scored on the same subjects"
    assert said in " ".join(summary_sentences(document({"a": [1.0] * 7, "b": [1.0] * 8}), ["a", "b"]))
    content = document({"a": [1.0] * 8, "b": [1.0] * 8})
    content["summary"][0]["n"] = 7
    assert said not in " ".join(summary_sentences(content, ["a", "b"]))


def test_infinite_and_missing_values_are_written_as_such():
    assert [text_of("psnr", v) for v in ("inf", None, -1.5)] == ["∞", "–", "−1.50"]


def test_montages_are_of_the_worst_subject_of_the_best_method_and_of_evenly_chosen_ones():
    content = document({"a": [30.0, 35, 28, 35, 35, 35], "b": [10.0, 1, 10, 10, 10, 10], "tricubic": [99.0] * 6})
    chosen = chosen_subjects(content, 3, ["a", "b"])
    assert list(chosen) == ["sub-02", "sub-00", "sub-05"]
    assert "a, the best" in chosen["sub-02"]
    assert len(chosen_subjects(content, 99, ["a", "b"])) == 6


def test_a_methods_name_is_text_in_a_figure_too():
    drawn = str(box_plot(document({f"<img src=x>{EVIL}": [1.0, 2.0]})["rows"], "psnr"))
    assert "<img" not in drawn
    assert "<script" not in drawn


def test_every_subject_is_a_point_of_the_box_plot_by_its_name():
    rows = document({"a": [1.0, 2, 3], "$b_1$": [2.0, 3, 4]})["rows"]
    drawn = str(box_plot(rows, "psnr"))
    assert re.findall(r"<title>(.*?)</title>", drawn)[0] == "sub-00, a: 1.00 dB"
    assert len(re.findall(r"<title>", drawn)) == 6
    assert "$b_1$" in drawn
    assert "#010203" not in drawn


def test_the_viewers_picture_holds_every_voxel_of_the_head_and_its_affine_their_places():
    grid = Grid((9, 11, 7), np.array([[2.0, 0, 0, -8], [0, 2.0, 0, -9], [0, 0, 2.0, -5], [0, 0, 0, 1]]))
    data = np.random.default_rng(0).integers(0, 256, grid.shape).astype(np.float32)
    found = viewer_data({"a": data}, data, grid, np.ones(grid.shape, bool), Window(0.0, 255.0), 1.0)
    pictures = [base64.b64decode(v["picture"].partition(",")[2]) for v in found["volumes"]]
    assert pictures[0] == pictures[1]
    sheet = matplotlib.image.imread(io.BytesIO(pictures[0]), format="webp")[..., 0]
    nx, ny, nz = found["shape"]
    across = sheet.shape[1] // ny
    for x in range(nx):  # brainsprite's own reading: slice x at column x % across, row x // across, top up
        tile = sheet[x // across * nz : (x // across + 1) * nz, x % across * ny : (x % across + 1) * ny]
        np.testing.assert_array_equal(tile[::-1].T, data[nx - 1 - x])
    np.testing.assert_allclose(np.array(found["affine"]) @ [nx - 1, 0, 0, 1], grid.affine @ [0, 0, 0, 1])


def test_the_viewer_has_cubes_no_finer_than_asked_for():
    grid = Grid((20, 20, 10), np.diag([0.5, 0.5, 3.0, 1.0]))
    found = viewer_data({}, np.zeros(grid.shape, np.float32), grid, np.ones(grid.shape, bool), Window(0.0, 1.0), 1.0)
    np.testing.assert_allclose(np.abs(np.diag(found["affine"])[:3]), 1.0)
    assert found["shape"] == [10, 10, 30]


def test_brainsprite_comes_with_nilearn_and_cannot_end_the_script_that_it_is_in():
    script = viewer_script()
    assert "function brainsprite" in script
    assert "</" not in script


@pytest.mark.parametrize(
    "content, message",
    [
        (None, "cannot be read"),
        ("{", "is no JSON"),
        ("[]", "no rows"),
        ('{"rows": []}', "no rows"),
        ('{"rows": [{"subject": 1}]}', "no rows"),
    ],
)
def test_what_is_no_evaluation_is_refused_in_a_sentence(tmp_path, content, message):
    if content is not None:
        (tmp_path / "metrics.json").write_text(content)
    with pytest.raises(EvaluationError, match=f"metrics.json.*{message}"):
        write_report(tmp_path, tmp_path / "report.html")


def test_only_a_page_is_replaced(tmp_path):
    (tmp_path / "metrics.json").write_text(json.dumps(document({"a": [1.0]})))
    (tmp_path / "other.html").write_text("<!doctype html><title>of somebody else</title>")
    for name in ("metrics.json", "other.html"):
        before = (tmp_path / name).read_bytes()
        with pytest.raises(FileError, match="not written by jaxsr"):
            write_report(tmp_path, tmp_path / name)
        assert (tmp_path / name).read_bytes() == before
    with pytest.raises(EvaluationError, match="is a folder"):
        write_report(tmp_path, tmp_path)
    write_report(tmp_path, tmp_path / "r.html")
    write_report(tmp_path, tmp_path / "r.html")


def test_a_page_of_others_is_found_before_anything_is_scored(tmp_path):
    write_volume(tmp_path / "a.nii.gz", head(0))
    (tmp_path / "e").mkdir()
    (tmp_path / "e" / "report.html").write_text("<!doctype html><title>of somebody else</title>")
    at = str(tmp_path / "a.nii.gz")
    assert run(lambda: app(["evaluate", "-i", at, "-r", at, "-o", str(tmp_path / "e"), "--report"], standalone_mode=False)) == 2
    assert [path.name for path in (tmp_path / "e").iterdir()] == ["report.html"]


def test_the_command_says_what_it_wrote_how_large_it_is_and_what_is_left_out(tmp_path, monkeypatch, capsys):
    (tmp_path / "metrics.json").write_text(json.dumps(document({"a": [1.0]})))
    monkeypatch.setattr(report_module, "LARGE", 1000.0)
    assert run(lambda: app(["report", str(tmp_path)], standalone_mode=False)) == 0
    said = capsys.readouterr().out
    assert f"wrote {tmp_path / 'report.html'}" in said
    assert "fewer --viewers" in said
    assert "does not name its files" in said
    assert run(lambda: app(["report", str(tmp_path / "nowhere")], standalone_mode=False)) == 2
