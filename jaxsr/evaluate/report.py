"""`jaxsr report`: one HTML file that shows an evaluation, its pictures inside it, which opens without a network.

Reads metrics.json and the volumes that its "files" name. A volume that is not there leaves out its pictures, and the page says so. The same
evaluation gives the same bytes: no time and no machine is in the page but what metrics.json says.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import numpy as np
from markupsafe import Markup

from jaxsr.evaluate.compare import EvaluationError, check_same_grid
from jaxsr.evaluate.files import sidecar_path
from jaxsr.evaluate.interpolation import INTERPOLATIONS, interpolate
from jaxsr.evaluate.montage import SHOWN, draw_montage
from jaxsr.evaluate.report_figures import COLOURS, box_plot, data_uri, figure_uri, shell_curves
from jaxsr.evaluate.report_tables import (
    metrics_of,
    ranking,
    regions,
    shown_as,
    summary_sentences,
    summary_tables,
    test_lines,
    text_of,
)
from jaxsr.evaluate.report_viewer import error_colours, viewer_data, viewer_script
from jaxsr.files import shown, write_text
from jaxsr.upscale.sidecar import read_sidecar
from jaxsr.volume.foreground import foreground
from jaxsr.volume.intensity import Window, fit_window
from jaxsr.volume.io import Volume, VolumeError, read_volume

WARNING = (
    "For research only, not for diagnosis. The methods' outputs are synthetic: upscaled by a model, in which structures may be invented or lost."
)
INPUT = "tricubic"  # the interpolation that stands for the input in pictures
LARGE = 30e6  # bytes
PICTURES = {".png": "png", ".webp": "webp", ".jpg": "jpeg", ".jpeg": "jpeg"}
MODEL_KEYS = (
    ("Model", "Method", "Checkpoint", "WeightsSHA256", "TrainedVoxelSize", "TrainedAcquisition", "SamplingSteps", "Eta", "Seed", "Samples")
    + ("Version", "Jax", "Device")
)


class Report(NamedTuple):
    """The file, its bytes, and what is not shown in it, a sentence each."""

    path: Path
    size: int
    left_out: tuple[str, ...]


@dataclass
class Subject:
    """One subject as the page shows it; `reason` says why this one."""

    name: str
    reason: str
    montage: str = ""
    alt: str = ""
    maps: str = ""
    map_names: tuple[str, ...] = ()
    stages: list[tuple[str, list[tuple[str, str]]]] = field(default_factory=list)  # method, (mm, picture or "")
    gaps: list[str] = field(default_factory=list)


class Head(NamedTuple):
    """The volumes of one subject, all on the target's grid."""

    reference: Volume
    volumes: dict[str, np.ndarray]  # the interpolated input, then the methods'
    region: np.ndarray
    window: Window


def write_report(
    evaluation: Path, out: Path, *, subjects: int = 3, viewers: int = 1, viewer_mm: float = 1.0, title: str = "Super-resolution of brain MRI"
) -> Report:
    """Writes the page.

    Args:
      evaluation: metrics.json, or the folder that it is in.
      subjects: montages of so many, evenly chosen, and of the one on which the best method is worst.
      viewers: so many of these, the worst first, can be looked at in the three-plane viewer.
      viewer_mm: finest voxel of the viewer; the file's size goes with its third power.

    Raises:
      EvaluationError: where there is no evaluation to report, or `out` is a file that is no page.
    """
    document, folder = read_evaluation(evaluation)
    _check_place(out)
    script = viewer_script()
    outputs = _outputs(document)
    pages: list[Subject] = []
    looks: dict[str, Any] = {}
    for name, reason in chosen_subjects(document, subjects, outputs).items():
        subject = Subject(name, reason)
        pages.append(subject)
        files = document["files"].get(name, {})
        head = _read_head(files, folder, subject.gaps)
        if head is not None:
            _show(subject, head, document)
            if script and len(looks) < viewers:
                volumes = {_column(method): data for method, data in head.volumes.items()}
                looks[name] = viewer_data(volumes, head.reference.data, head.reference.grid, head.region, head.window, viewer_mm)
        _add_stages(subject, files, folder)
        _add_maps(subject, document.get("maps", {}).get(name, {}), folder, head)
    if viewers and not script:
        pages[0].gaps.append("the viewer is left out: this version of nilearn comes without brainsprite")

    region = regions(document)[0]
    rows = [row for row in document["rows"] if row["region"] == region]
    metrics = metrics_of(document)
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("jaxsr.evaluate", "templates"), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.undefined = jinja2.StrictUndefined
    page = environment.get_template("report.html").render(
        title=title,
        warning=WARNING,
        sentences=summary_sentences(document, outputs),
        region=region,
        tables=summary_tables(document),
        tests=test_lines(document),
        boxes=[box_plot(rows, metric) for metric in ("psnr", "ssim") if metric in metrics],
        curves=shell_curves(document["curves"]) if document.get("curves") else "",
        colours=COLOURS,
        subjects=pages,
        viewer={"subjects": looks, "errorColours": error_colours()} if looks else None,
        brainsprite=Markup(script or ""),  # nilearn's own text, which has no closing tag in it
        headings=[shown_as(metric).heading for metric in metrics],
        rows=[(row, [(text_of(m, row["values"][m]), row["values"][m]) if m in row["values"] else ("", None) for m in metrics]) for row in document["rows"]],
        protocol=document.get("protocol"),
        models=_models(document, folder),
        provenance=_flat({key: document.get(key) or {} for key in ("provenance", "versions")}),
        conventions=document.get("conventions", {}),
        notes=document.get("notes", []),
        failures=document.get("failures", {}),
    )
    write_text(out, page)
    left_out = tuple(f"{subject.name}: {gap}" for subject in pages for gap in subject.gaps)
    return Report(out, out.stat().st_size, left_out)


def read_evaluation(path: Path) -> tuple[dict[str, Any], Path]:
    """What metrics.json holds, with 'summary', 'tests' and 'files' at least empty, and its folder.

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
    return {"summary": [], **document, "tests": document.get("tests") or [], "files": document.get("files") or {}}, path.parent


def chosen_subjects(document: Mapping[str, Any], count: int, outputs: Sequence[str]) -> dict[str, str]:
    """Name → why it is shown: the subject on which the best method is worst first, then `count` evenly chosen of those with volumes."""
    names = list(dict.fromkeys(row["subject"] for row in document["rows"]))
    names = [name for name in names if document["files"].get(name)] or names
    chosen = {}
    if found := _worst(document, names, outputs):
        chosen[found[0]] = found[1]
    for i in np.linspace(0, len(names) - 1, min(count, len(names))).round().astype(int):
        chosen.setdefault(names[i], "evenly chosen" if count < len(names) else "")
    return chosen


def _worst(document: Mapping[str, Any], names: Sequence[str], outputs: Sequence[str]) -> tuple[str, str] | None:
    region = regions(document)[0]
    for metric in ("ssim", "psnr"):
        ranked = [s for s in ranking(document, region, metric) if s["method"] in outputs]
        values = {
            row["subject"]: float(row["values"][metric])
            for row in document["rows"]
            if ranked and (row["method"], row["region"]) == (ranked[0]["method"], region) and row["values"].get(metric) is not None
        }
        values = {name: value for name, value in values.items() if name in names}
        if len(values) > 1:
            worst = min(values, key=lambda name: values[name])
            return worst, f"lowest {shown_as(metric).title} of {ranked[0]['method']}, the best method by its mean"
    return None


def _outputs(document: Mapping[str, Any]) -> list[str]:
    """Methods that are not interpolations."""
    return [m for m in dict.fromkeys(row["method"] for row in document["rows"]) if m not in INTERPOLATIONS]


def _read_head(files: Mapping[str, Any], folder: Path, gaps: list[str]) -> Head | None:
    """The volumes that are there; what is not, or cannot be used, is a sentence in `gaps`."""
    if not files.get("reference"):
        gaps.append("no pictures: the evaluation does not name its files")
        return None
    try:
        reference = read_volume(folder / files["reference"])
    except (VolumeError, OSError) as error:
        gaps.append(f"no pictures, since the target cannot be read: {error}")
        return None
    inside = _read(folder, files.get("mask"), "the mask", reference, gaps, constant="allow")
    region = foreground(reference.data) if inside is None or not (inside > 0.5).any() else inside > 0.5
    volumes: dict[str, np.ndarray] = {}
    if files.get("low"):
        try:
            volumes[INPUT] = interpolate(read_volume(folder / files["low"]), reference.grid, INPUT).data
        except (ValueError, OSError) as error:
            gaps.append(f"the input is not shown: {error}")
    else:
        gaps.append("the input is not shown: the evaluation does not name it")
    for method, path in files.get("outputs", {}).items():
        data = _read(folder, path, method, reference, gaps)
        if data is not None:
            volumes[method] = data
    return Head(reference, volumes, region, fit_window(reference.data, mask=region, percentiles=SHOWN))


def _read(folder: Path, path: str | None, name: str, reference: Volume, gaps: list[str], **how: Any) -> np.ndarray | None:
    if not path:
        return None
    try:
        volume = read_volume(folder / path, **how)
        check_same_grid(reference.grid, volume.grid, shown(path))
    except (VolumeError, EvaluationError, OSError) as error:
        gaps.append(f"{name} is not shown: {error}")
        return None
    return volume.data


def _show(subject: Subject, head: Head, document: Mapping[str, Any]) -> None:
    if not head.volumes:
        return
    region = regions(document)[0]
    values = {row["method"]: row["values"] for row in document["rows"] if (row["subject"], row["region"]) == (subject.name, region)}
    captions = {
        _column(method): "   ".join(f"{text_of(m, v[m])} dB" if m == "psnr" else f"SSIM {text_of(m, v[m])}" for m in ("psnr", "ssim") if m in v)
        for method, v in values.items()
    }
    columns = {_column(method): data for method, data in head.volumes.items()}
    figure = draw_montage(
        columns, head.reference.data, voxel_size=head.reference.voxel_size, window=head.window, foreground=head.region, captions=captions
    )
    subject.montage = figure_uri(figure)
    subject.alt = (
        f"{subject.name}: axial, coronal and sagittal planes and zooms on cortex and cerebellum of {', '.join(columns)} and target, "
        "with the absolute errors below each"
    )


def _column(method: str) -> str:
    return f"input ({INPUT})" if method == INPUT else method


def _add_stages(subject: Subject, files: Mapping[str, Any], folder: Path) -> None:
    """The voxel sizes that an output went through (`JaxSR.StagePath` of its sidecar: a list of {mm, picture?}), with pictures beside it."""
    for method, path in files.get("outputs", {}).items():
        output = folder / path
        facts = read_sidecar(output) or {"JaxSR": {}}
        stages = facts["JaxSR"].get("StagePath") or []
        found = [(str(stage["mm"]), _picture(sidecar_path(output).parent, stage.get("picture"), subject.gaps)) for stage in stages]
        if found:
            subject.stages.append((method, found))


def _picture(folder: Path, name: str | None, gaps: list[str]) -> str:
    """A picture file as a data URI; nothing, and a sentence, where it cannot be had."""
    if not name:
        return ""
    path = folder / name
    try:
        return data_uri(path.read_bytes(), PICTURES[path.suffix.lower()])
    except KeyError:
        gaps.append(f"a stage is not shown: {shown(name)} is none of {', '.join(PICTURES)}")
    except OSError as error:
        gaps.append(f"a stage is not shown: {shown(name)} cannot be read ({error.strerror})")
    return ""


def _add_maps(subject: Subject, maps: Mapping[str, str], folder: Path, head: Head | None) -> None:
    """Maps voxel by voxel, such as experts' weights, at one scale from 0 to the largest value."""
    if head is None or not maps:
        return
    read = {name: _read(folder, path, name, head.reference, subject.gaps, constant="allow") for name, path in maps.items()}
    volumes = {name: data for name, data in read.items() if data is not None}
    if volumes:
        top = max(float(data.max()) for data in volumes.values())
        window = Window(0.0, max(top, float(np.finfo(np.float32).tiny)))
        figure = draw_montage(volumes, voxel_size=head.reference.voxel_size, window=window, foreground=head.region)
        subject.maps, subject.map_names = figure_uri(figure), tuple(volumes)


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
    """Raises EvaluationError where `out` is a folder, or a file that is no page."""
    if out.is_dir():
        raise EvaluationError(f"{shown(out)} is a folder: name a file, as in -o {shown(out / 'report.html')}")
    if out.exists() and not out.read_bytes()[:15].lower().startswith(b"<!doctype html"):
        raise EvaluationError(f"{shown(out)} exists and is no HTML page: choose another -o, so that it is not replaced")
