"""What tissue each voxel of a scan is, by a method that sees it: what `jaxsr segment` does with a file once it is read.

    m = 1/|A| Σ_{a ∈ A} stack_d segment(slice_{a,d}(y)),        label = argmax_k m_k,        A ⊆ {sagittal, coronal, axial}

y is the scan in its intensity window, on its own grid: nothing is resampled but what is sheared. Where classes are equally likely the
first counts.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from jaxsr.evaluate.files import sidecar_path
from jaxsr.evaluate.montage import BACKGROUND, DPI, EDGES, SHOWN, TEXT, View, bounding_box, head_centre, label_edges
from jaxsr.evaluate.written import PICTURE
from jaxsr.files import Writer, shown, write_together
from jaxsr.runtime.memory import OutOfMemory
from jaxsr.runtime.mesh import make_mesh
from jaxsr.upscale.batches import BatchSize, Note
from jaxsr.upscale.engine import Engine, Progress, Upscaled, silent, tissues_of
from jaxsr.upscale.inputs import Job, read_scan, scale_notes
from jaxsr.upscale.model import Model
from jaxsr.upscale.sidecar import (
    check_maps,
    check_sidecar,
    describe,
    describe_map,
    json_writer,
    map_path,
    mask_names,
    picture_path,
    stale_maps,
)
from jaxsr.volume.foreground import foreground
from jaxsr.volume.intensity import fit_window
from jaxsr.volume.io import Volume, VolumeError, volume_writer
from jaxsr.volume.memory import free_memory
from jaxsr.volume.slices import AXES

DESCRIPTION = "Tissue of each voxel, as a network estimates it; nobody has checked it. For research only, not for diagnosis."
BYTES_A_VOXEL = 12  # of the host, beside the scan and its masks: measured, and held by a test

# One a tissue, told apart by the colour-blind too: Okabe and Ito's, https://jfly.uni-koeln.de/color/
COLOURS = ("#56b4e9", "#d55e00", "#f0e442", "#009e73", "#cc79a7", "#e69f00", "#0072b2")
_OPAQUE, _PANEL, _HEAD, _FOOT, _SIDE = 0.55, 3.4, 0.8, 0.5, 0.15  # of colours over the scan; inches


class Settings(NamedTuple):
    """The options of `jaxsr segment` that concern the result; see `jaxsr segment --help`."""

    axes: tuple[str, ...] = tuple(AXES)
    volume: int | None = None
    nan: Literal["refuse", "zero"] = "refuse"
    masks: bool = False
    picture: bool = True


class Written(NamedTuple):
    """What `segment_file` did: the volumes that it wrote, the label map last, and that one's sidecar."""

    paths: tuple[Path, ...]
    facts: dict[str, Any]


def make_segmenter(model: Model, batch_size: BatchSize) -> Engine:
    """Over all devices of this process. Of `model.variables` only what sees tissues need be there."""
    return Engine(model.method, model.variables, make_mesh(devices=jax.local_devices()), batch_size=batch_size)


def segment_file(
    engine: Engine,
    model: Model,
    job: Job,
    settings: Settings,
    *,
    volume: Volume | None = None,
    progress: Progress = lambda done, total: None,
    note: Note = silent,
) -> Written:
    """Reads (unless `volume` is what `read_scan` made of the source), segments, writes the label map and all that belongs to it.

    Raises:
      VolumeError: for what cannot be read, segmented or written.
      FloatingPointError: where the model returns NaN.
      OutOfMemory: of the host, or of the device after all retries.
    """
    tissues = tissues_of(model.method)
    names = mask_names(tissues) if settings.masks else []
    check_sidecar(job.output, picture=settings.picture)
    check_maps([job], names)
    if volume is None:
        volume = read_scan(job.source, settings.axes, settings.volume, settings.nan, note)
    odd = scale_notes(volume, None, (model.experiment.data.voxel_size,) * 3)
    for sentence in odd:
        note(f"{shown(job.source.name)}: {sentence}")
    volume = replace(volume, notes=(*volume.notes, *odd))
    check_memory(job.source, volume, len(tissues))
    started = time.monotonic()
    try:
        head = foreground(volume.data) if settings.picture else None  # now, as finding it takes as much memory as the masks
        result, masks = _segment(engine, volume, settings, progress, note)
    except MemoryError as error:  # OutOfMemory is one
        raise OutOfMemory(f"{shown(job.source)}: {str(error) or 'no memory left on the host'}") from error
    written = {tissue: replace(volume, data=mask) for tissue, mask in zip(tissues[1:], masks[1:], strict=True) if settings.masks}
    del masks  # which otherwise nobody needs any more
    sizes, seconds = millilitres(result.volume, tissues), round(time.monotonic() - started, 2)
    numbers = {str(number): name for number, name in enumerate(tissues)}
    facts = _facts(model, job, result, Labels=numbers, Millilitres=sizes, BatchSize=engine.batch_size, Seconds=seconds)

    writers = _mask_writers(job, facts, written)
    if head is not None:
        title = f"{shown(job.source.name)}: tissues, as {model.name} sees them"
        writers[picture_path(job.output)] = _png(draw_labels(volume, result.volume.data, sizes, head, title))
    writers[sidecar_path(job.output)] = json_writer(facts)
    writers[job.output] = volume_writer(job.output, result.volume, "jaxsr: labels by a network", labels=True)
    for path in stale_maps(job.output, names):
        path.unlink(missing_ok=True)
    write_together(writers)
    return Written((*(map_path(job.output, name) for name in names), job.output), facts)


def check_memory(path: Path, volume: Volume, classes: int) -> None:
    """Raises VolumeError where masks of so many classes would not fit on this machine beside `volume`, which is that in `path`."""
    needed, free = (4 * classes + BYTES_A_VOXEL) * volume.data.size, free_memory()
    if free is not None and needed > free:
        sides = " × ".join(map(str, volume.data.shape))
        raise VolumeError(
            f"{shown(path)}: masks of {classes} classes for {sides} voxels need {needed / 1e9:.1f} GB of memory, "
            f"and {free / 1e9:.1f} GB are free: take a larger machine, or cut the volume to the head"
        )


def likeliest(masks: np.ndarray) -> np.ndarray:
    """Which of `masks` `[K, X, Y, Z]` is the largest, uint8 `[X, Y, Z]`."""
    labels = np.empty(masks.shape[1:], np.uint8)
    for x, plane in enumerate(labels):  # all at once, indices of eight bytes would take more than the masks
        plane[...] = masks[:, x].argmax(0)
    return labels


def millilitres(labels: Volume, tissues: tuple[str, ...]) -> dict[str, float]:
    """Tissue → the volume of its voxels; of the first, what is left of the field of view."""
    each = float(np.prod(labels.voxel_size)) / 1000
    return {name: round(np.count_nonzero(labels.data == number) * each, 3) for number, name in enumerate(tissues)}


def draw_labels(scan: Volume, labels: np.ndarray, sizes: Mapping[str, float], head: np.ndarray, title: str) -> Figure:
    """Three planes through the head: the scan, beside it the scan under its tissues in colour, and which is which.

    Args:
      labels: `[X, Y, Z]`, indices of `sizes`, tissue → ml, of which the first is not shown.
      head: boolean `[X, Y, Z]`; planes go through its centre, and are cropped to it.
    """
    centre, box = head_centre(head, scan.voxel_size), bounding_box(head, scan.voxel_size)
    window = fit_window(scan.data, mask=head, percentiles=SHOWN)
    views = []
    for plane in EDGES:
        column, row = (scan.voxel_size[a] for a in range(3) if a != AXES[plane])
        views.append(View(plane, plane, int(centre[AXES[plane]]), box, (row, column)))
    colours = [COLOURS[i % len(COLOURS)] for i in range(len(sizes) - 1)]
    table = np.array([to_rgba(BACKGROUND, 0), *(to_rgba(colour, _OPAQUE) for colour in colours)])

    width, height = 2 * (_PANEL + _SIDE), _HEAD + _FOOT + sum(_PANEL * view.aspect for view in views)
    figure = Figure(figsize=(width, height), facecolor=BACKGROUND)
    FigureCanvasAgg(figure)
    edges = {"left": _SIDE / width, "right": 1 - _SIDE / width, "bottom": _FOOT / height, "top": 1 - _HEAD / height}
    grid = figure.add_gridspec(len(views), 2, height_ratios=[view.aspect for view in views], wspace=0.02, hspace=0.02, **edges)
    for row, view in enumerate(views):
        extent = (0, view.extent[1], view.extent[0], 0)  # mm, so that they are square whatever voxels are
        for column, name in enumerate(("scan", "tissues")):
            axes = figure.add_subplot(grid[row, column])
            axes.imshow(view.of(scan.data), cmap="gray", vmin=window.low, vmax=window.high, extent=extent)
            if column:
                axes.imshow(table[view.of(labels)], interpolation="nearest", extent=extent)
            axes.set_axis_off()
            if row == 0:
                axes.set_title(name, color=TEXT, fontsize=12)
        label_edges(figure.axes[-2], view.plane)
    figure.text(_SIDE / width, 1 - 0.12 / height, title, color=TEXT, fontsize=11, va="top", weight="bold", parse_math=False)
    patches = [Patch(color=colour, label=f"{name}, {sizes[name]:.0f} ml") for name, colour in zip([*sizes][1:], colours, strict=True)]
    figure.legend(handles=patches, loc="lower center", ncols=len(patches), frameon=False, labelcolor=TEXT, fontsize=11)
    return figure


def _segment(engine: Engine, volume: Volume, settings: Settings, progress: Progress, note: Note) -> tuple[Upscaled, np.ndarray]:
    """The label map, as if it were upscaled, and the masks `[K, X, Y, Z]`."""
    before, plan = engine.compilations, engine.plan(volume, None, settings.axes)
    window, low = engine.prepared(volume, plan)
    masks = engine.segment(low, plan.axes, lambda done: progress(done, plan.slices), note)
    if not all(np.isfinite(mask).all() for mask in masks):
        raise FloatingPointError(f"{shown(volume.path or 'the volume')}: the model returned NaN or Inf; try --precision f32")
    return Upscaled(replace(volume, data=likeliest(masks)), window, {}, plan, engine.compilations - before), masks


def _facts(model: Model, job: Job, result: Upscaled, **own: Any) -> dict[str, Any]:
    """The sidecar of a label map: that of an upscaled volume, but for what only those have."""
    facts = describe(model, job, result, model.method.default_request, **own, Compilations=result.compilations)
    ours = {key: value for key, value in facts["JaxSR"].items() if key not in ("SamplingSteps", "Eta")}
    return facts | {"Description": DESCRIPTION, "JaxSR": ours}


def _mask_writers(job: Job, facts: dict[str, Any], masks: Mapping[str, Volume]) -> dict[Path, Writer]:
    """What writes the mask of each tissue, and its sidecar; `facts`: that of the label map."""
    writers: dict[Path, Writer] = {}
    for tissue, name in zip(masks, mask_names(["", *masks]), strict=True):
        path = map_path(job.output, name)
        writers[sidecar_path(path)] = json_writer(describe_map(job, facts, name, masks[tissue], Tissue=tissue))
        writers[path] = volume_writer(path, masks[tissue], "jaxsr: mask by a network")
    return writers


def _png(figure: Figure) -> Callable[[Path], object]:
    return lambda path: figure.savefig(path, format="png", dpi=DPI, facecolor=BACKGROUND, metadata=PICTURE)
