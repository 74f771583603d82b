"""The subjects of a report: which are shown, and what of them: montage, stages, maps. What cannot be shown is a sentence."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxsr.evaluate.files import sidecar_path
from jaxsr.evaluate.grids import EvaluationError, check_same_grid
from jaxsr.evaluate.interpolation import interpolate
from jaxsr.evaluate.montage import SHOWN, draw_montage
from jaxsr.evaluate.report_figures import data_uri, figure_uri
from jaxsr.evaluate.report_tables import ranking, regions, shown_as, text_of
from jaxsr.files import shown
from jaxsr.upscale.sidecar import read_sidecar
from jaxsr.volume.foreground import foreground
from jaxsr.volume.intensity import Window, fit_window
from jaxsr.volume.io import Volume, VolumeError, read_volume

INPUT = "tricubic"  # the interpolation that stands for the input in pictures
PICTURES = {".png": "png", ".webp": "webp", ".jpg": "jpeg", ".jpeg": "jpeg"}


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
    columns: dict[str, np.ndarray]  # the interpolated input, then the methods' outputs, by what stands above them
    region: np.ndarray
    window: Window


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


def show_subject(subject: Subject, document: Mapping[str, Any], folder: Path) -> Head | None:
    """Fills `subject` with what its files give; paths are taken from `folder`. Returns its volumes, where there is something to look at."""
    files = document["files"].get(subject.name, {})
    head = _read_head(files, folder, subject.gaps)
    if head is not None and head.columns:
        _draw(subject, head, document)
    _add_stages(subject, files, folder)
    _add_maps(subject, document["maps"].get(subject.name, {}), folder, head)
    return head


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
    columns: dict[str, np.ndarray] = {}
    if files.get("low"):
        try:
            columns[_column(INPUT)] = interpolate(read_volume(folder / files["low"]), reference.grid, INPUT).data
        except (ValueError, OSError) as error:
            gaps.append(f"the input is not shown: {error}")
    else:
        gaps.append("the input is not shown: the evaluation does not name it")
    for method, path in files.get("outputs", {}).items():
        data = _read(folder, path, method, reference, gaps)
        if data is not None:
            columns[_column(method)] = data
    return Head(reference, columns, region, fit_window(reference.data, mask=region, percentiles=SHOWN))


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


def _draw(subject: Subject, head: Head, document: Mapping[str, Any]) -> None:
    region = regions(document)[0]
    values = {row["method"]: row["values"] for row in document["rows"] if (row["subject"], row["region"]) == (subject.name, region)}
    captions = {
        _column(method): "   ".join(
            f"{text_of(m, v[m])} dB" if m == "psnr" else f"SSIM {text_of(m, v[m])}" for m in ("psnr", "ssim") if m in v
        )
        for method, v in values.items()
    }
    size = head.reference.voxel_size
    figure = draw_montage(head.columns, head.reference.data, voxel_size=size, window=head.window, foreground=head.region, captions=captions)
    subject.montage = figure_uri(figure)
    subject.alt = (
        f"{subject.name}: axial, coronal and sagittal planes and zooms on cortex and cerebellum of {', '.join(head.columns)} and target, "
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
