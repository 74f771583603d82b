"""`jaxsr report`: one HTML file that shows an evaluation, its pictures inside it, which opens without a network.

Reads metrics.json and the volumes that its "files" name. A volume that is not there leaves out its pictures, and the page says so. The same
evaluation gives the same bytes: no time and no machine is in the page but what metrics.json says.
"""

import base64
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
from markupsafe import Markup

from jaxsr.evaluate.grids import EvaluationError
from jaxsr.evaluate.interpolation import INTERPOLATIONS
from jaxsr.evaluate.report_figures import box_plot, label_boxes, shell_curves
from jaxsr.evaluate.report_labels import label_sentences, label_tables
from jaxsr.evaluate.report_subjects import Subject, chosen_subjects, show_subject
from jaxsr.evaluate.report_tables import metrics_of, regions, shown_as, summary_sentences, summary_tables, test_lines, text_of
from jaxsr.evaluate.report_viewer import error_colours, viewer_data, viewer_script
from jaxsr.evaluate.written import PAGE, check_page
from jaxsr.files import shown, write_text
from jaxsr.upscale.sidecar import read_sidecar

WARNING = "For research only, not for diagnosis. The methods' outputs were made by models: structures in them may be invented or lost."
LARGE = 30e6  # bytes
# of metrics.json beside 'rows', any of which may be absent
KEYS: dict[str, Any] = {"summary": [], "tests": [], "notes": []} | {
    key: {} for key in ("labels", "files", "maps", "curves", "conventions", "provenance", "versions", "failures")
}
# of a sidecar's JaxSR block, in this order
MODEL_KEYS = ["Model", "Method", "Checkpoint", "WeightsSHA256", "TrainedVoxelSize", "TrainedAcquisition"]
MODEL_KEYS += ["SamplingSteps", "Eta", "Passes", "Seed", "Samples", "Version", "Jax", "Device"]


class Report(NamedTuple):
    """The file, its bytes, and what is not shown in it, a sentence each."""

    path: Path
    size: int
    left_out: tuple[str, ...]


def write_report(
    evaluation: Path,
    out: Path,
    *,
    subjects: int = 3,
    viewers: int = 1,
    viewer_mm: float = 1.0,
    title: str = "Super-resolution of brain MRI",
) -> Report:
    """Writes the page.

    Args:
      evaluation: metrics.json, or the folder that it is in.
      subjects: montages of so many, evenly chosen, and of the one on which the best method is worst.
      viewers: so many of these, the worst first, can be looked at in the three-plane viewer.
      viewer_mm: finest voxel of the viewer; the file's size goes with its third power.

    Raises:
      EvaluationError: where there is no evaluation to report, or `out` is a folder. FileError: where it is a file that is no report.
    """
    document, folder = read_evaluation(evaluation)
    _check_place(out)
    script = viewer_script()
    outputs = _outputs(document)
    chosen = {} if document["labels"] else chosen_subjects(document, subjects, outputs)  # of label maps there is nothing to look at
    pages = [Subject(name, reason) for name, reason in chosen.items()]
    looks: dict[str, Any] = {}
    for subject in pages:
        head = show_subject(subject, document, folder)
        if head is not None and script and len(looks) < viewers:
            looks[subject.name] = viewer_data(head.columns, head.reference.data, head.reference.grid, head.region, head.window, viewer_mm)
    if viewers and pages and not script:
        pages[0].gaps.append("the viewer is left out: this version of nilearn comes without brainsprite")

    region = regions(document)[0]
    rows = [row for row in document["rows"] if row["region"] == region]
    metrics = metrics_of(document)
    if document["labels"]:
        boxes = [label_boxes(document["rows"], metric) for metric in ("dice", "relative_volume_error") if metric in metrics]
    else:
        boxes = [box_plot(rows, metric) for metric in ("psnr", "ssim") if metric in metrics]
    environment = jinja2.Environment(
        loader=(templates := jinja2.PackageLoader("jaxsr.evaluate", "templates")),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    scripts = [script] if script and looks else []
    scripts.append(templates.get_source(environment, "report.js")[0])
    page = environment.get_template("report.html").render(
        title=title,
        mark=Markup(PAGE),
        warning=WARNING,
        sentences=label_sentences(document) if document["labels"] else summary_sentences(document, outputs),
        points="a colour a method" if document["labels"] else f"region: {region}",
        tables=label_tables(document) if document["labels"] else summary_tables(document),
        tests=test_lines(document),
        boxes=boxes,
        curves=shell_curves(document["curves"]) if document["curves"] else "",
        subjects=pages,
        viewer={"subjects": looks, "errorColours": error_colours()} if looks else None,
        scripts=[Markup(text) for text in scripts],  # whole programs, neither of which has a closing tag in it
        policy=" ".join(_hashed(text) for text in scripts),
        headings=[shown_as(metric).heading for metric in metrics],
        rows=[
            (row, [(text_of(m, row["values"][m]), row["values"][m]) if m in row["values"] else ("", None) for m in metrics])
            for row in document["rows"]
        ],
        protocol=document.get("protocol"),
        models=_models(document, folder),
        provenance=_flat({**document["provenance"], "versions": document["versions"]}),
        conventions=document["conventions"],
        notes=document["notes"],
        failures={name: why.removeprefix(f"{name}: ") for name, why in document["failures"].items()},
    )
    write_text(out, page)
    left_out = tuple(f"{subject.name}: {gap}" for subject in pages for gap in subject.gaps)
    return Report(out, out.stat().st_size, left_out)


def _hashed(script: str) -> str:
    """What a content security policy calls a script: the page runs those that it was written with, and no other."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


def read_evaluation(path: Path) -> tuple[dict[str, Any], Path]:
    """What metrics.json holds, every key of KEYS at least empty, and its folder.

    Raises:
      EvaluationError: where it is not there, no JSON, or has no rows.
    """
    path = path / "metrics.json" if path.is_dir() else path
    try:
        document = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise EvaluationError(f"{shown(path)} cannot be read ({error.strerror}): name the folder that `jaxsr evaluate -o` wrote") from error
    except ValueError as error:
        raise EvaluationError(f"{shown(path)} is no JSON ({error}): run `jaxsr evaluate` again") from error
    needed = {"subject", "method", "region", "values"}
    rows = document.get("rows") if isinstance(document, dict) else None
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) and needed <= row.keys() for row in rows):
        raise EvaluationError(f"{shown(path)} has no rows of an evaluation: name the metrics.json that `jaxsr evaluate` wrote")
    return {**document, **{key: document.get(key) or empty for key, empty in KEYS.items()}}, path.parent


def _outputs(document: Mapping[str, Any]) -> list[str]:
    """Methods that are not interpolations."""
    return [m for m in dict.fromkeys(row["method"] for row in document["rows"]) if m not in INTERPOLATIONS]


def _models(document: Mapping[str, Any], folder: Path) -> list[tuple[str, list[tuple[str, str]]]]:
    """Method → what the sidecars of its outputs say of the model, where all agree; how many there are where they do not."""
    found: dict[str, dict[str, dict[str, None]]] = {}
    for files in document["files"].values():
        for method, path in files.get("outputs", {}).items():
            block = (read_sidecar(folder / path) or {"JaxSR": {}})["JaxSR"]
            for key in MODEL_KEYS:
                if key in block:
                    found.setdefault(method, {}).setdefault(key, {})[str(block[key])] = None
    return [
        (method, [(key, next(iter(values)) if len(values) == 1 else f"{len(values)} different values") for key, values in keys.items()])
        for method, keys in found.items()
    ]


def _flat(value: Any, prefix: str = "") -> list[tuple[str, str]]:
    """Keys with dots, and what they hold as text; lists of words on one line."""
    if isinstance(value, Mapping):
        return [line for key, part in value.items() for line in _flat(part, f"{prefix}.{key}" if prefix else str(key))]
    if isinstance(value, list):
        return [(prefix, " ".join(str(part) for part in value))]
    return [(prefix, "–" if value is None else str(value))]


def _check_place(out: Path) -> None:
    """Raises EvaluationError where `out` is a folder; FileError where it is a file that is no report."""
    if out.is_dir():
        raise EvaluationError(f"{shown(out)} is a folder: name a file, as in -o {shown(out / 'report.html')}")
    check_page(out)
