"""Pictures to judge a prepared set by: a strip for each scan, and a contact sheet of many.

A strip shows every map in three planes through the middle of the head, at one scale, as a radiologist reads them. Chequers of two volumes
show whether they lie on each other: edges run on from one field to the next.
"""

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import imread, imsave

from jaxsr.evaluate.montage import picture
from jaxsr.files import write_whole
from jaxsr.prepare.scan import TISSUE, Prepared
from jaxsr.volume.geometry import interpolation_matrix
from jaxsr.volume.slices import AXES

SIDE = 128  # pixels of a panel
PLANES = ("axial", "coronal", "sagittal")
FIELDS = 8  # of a chequer, along a side
MOST_BIAS, MOST_SHIFT, MOST_STRETCH = 0.5, 5.0, 0.1  # of the colour scales: log units, mm, log units
SCALES = {  # what heads say of their colours
    "bias": f"log bias ±{MOST_BIAS:g}",
    "gradient": f"gradient 0–{MOST_SHIFT:g} mm",
    "jacobian": f"log-Jacobian ±{MOST_STRETCH:g}",
}
WIDEST, ROWS = 1600, 4  # of a contact sheet: pixels, scans below each other

_DPI, _GAP, _HEAD = 100, 12, 36  # pixels between scans, and above one
_BACKGROUND, _TEXT = "#0d0d0f", "#ececec"


def columns(names: Sequence[str]) -> list[str]:
    """What a strip of a scan with the maps `names` shows in each plane."""
    chequers = {"low": "high | low", "reference": "high | reference"}
    return [column for name in names for column in ((name, chequers[name]) if name in chequers else (name,))]


def save_strip(prepared: Prepared, path: Path) -> None:
    """Writes one scan's strip as a PNG: a row for each plane, a column for each of `columns`."""
    maps = prepared.pair.maps()
    tissue = maps["high"] > TISSUE
    middle = [round(float(x.mean())) if len(x) else n // 2 for x, n in zip(np.nonzero(tissue), tissue.shape, strict=True)]
    size = prepared.pair.grid.voxel_size
    most = max(n * mm for n, mm in zip(tissue.shape, size, strict=True))
    rows = []
    for plane in PLANES:
        column, row = (size[axis] * SIDE / most for axis in range(3) if axis != AXES[plane])  # pixels a voxel
        views = {name: picture(x, plane, middle[AXES[plane]]) if x.ndim == 3 else _length(x, plane, middle) for name, x in maps.items()}
        rows.append(np.concatenate([_panel(head, views, (row, column)) for head in columns(list(maps))], axis=1))
    imsave(path, np.concatenate(rows), format="png")


def save_contact_sheet(path: Path, strips: Mapping[str, Path], names: Sequence[str]) -> Path:
    """Writes the strips of several scans, evenly chosen where there are more than fit, side by side and below each other."""
    heads = [SCALES.get(column, column) for column in columns(names)]
    width, height = SIDE * len(heads), SIDE * len(PLANES)
    across = max(1, min(len(strips), (WIDEST + _GAP) // (width + _GAP)))
    count = min(len(strips), across * ROWS)
    chosen = [list(strips)[i] for i in np.linspace(0, len(strips) - 1, count).round().astype(int)]
    down = -(-count // across)
    sheet = (across * (width + _GAP) - _GAP, down * (height + _HEAD))
    figure = Figure(figsize=(sheet[0] / _DPI, sheet[1] / _DPI), dpi=_DPI, facecolor=_BACKGROUND)
    FigureCanvasAgg(figure)
    for place, name in enumerate(chosen):
        left, top = (place % across) * (width + _GAP), (place // across) * (height + _HEAD)
        axes = figure.add_axes((left / sheet[0], 1 - (top + _HEAD + height) / sheet[1], width / sheet[0], height / sheet[1]))
        axes.imshow(imread(strips[name]), aspect="auto", interpolation="nearest")
        axes.set_axis_off()
        write = functools.partial(figure.text, color=_TEXT, va="center")
        write((left + 4) / sheet[0], 1 - (top + 10) / sheet[1], _short(name, width // 7), fontsize=8)
        for i, head in enumerate(heads):
            write((left + (i + 0.5) * SIDE) / sheet[0], 1 - (top + 26) / sheet[1], head, fontsize=7, ha="center", alpha=0.7)
    return write_whole(path, lambda part: figure.savefig(part, format="png", dpi=_DPI, facecolor=_BACKGROUND))


def _length(vectors: np.ndarray, plane: str, middle: Sequence[int]) -> np.ndarray:
    """Length of each vector of a slice of `[X, Y, Z, 3]`."""
    return np.linalg.norm(np.stack([picture(vectors[..., c], plane, middle[AXES[plane]]) for c in range(3)]), axis=0)


def _panel(head: str, views: Mapping[str, np.ndarray], scale: tuple[float, float]) -> np.ndarray:
    """One panel, uint8 `[SIDE, SIDE, 3]`; `scale` is pixels a voxel along rows and columns."""
    first, _, second = head.partition(" | ")
    match first:
        case "bias" | "jacobian":
            most = MOST_BIAS if first == "bias" else MOST_STRETCH
            colours = colormaps["RdBu_r"]((_fit(views[first], scale, 0.0) / most + 1) / 2)[..., :3]
        case "gradient":
            colours = colormaps["viridis"](_fit(views["gradient"], scale, 0.0) / MOST_SHIFT)[..., :3]
        case "mask":
            colours = np.repeat(_fit(views["mask"], scale, 0.0, "nearest")[..., None], 3, axis=-1)
        case "labels":
            values = _fit(views["labels"], scale, 0.0, "nearest").astype(int)
            colours = colormaps["tab20"](values * 7 % 20)[..., :3] * (values > 0)[..., None]
        case _:
            grey = _fit(views[first], scale, -1.0)
            if second:
                rows, cols = (np.arange(SIDE) * FIELDS // SIDE for _ in range(2))
                grey = np.where((rows[:, None] + cols) % 2 == 0, grey, _fit(views[second], scale, -1.0))
            colours = np.repeat((np.clip(grey, -1, 1)[..., None] + 1) / 2, 3, axis=-1)
    inside = _fit(np.ones(views[first].shape), scale, 0.0, "nearest") > 0
    return (np.where(inside[..., None], colours, 0) * 255).round().astype(np.uint8)


def _fit(view: np.ndarray, scale: tuple[float, float], fill: float, kind: str = "linear") -> np.ndarray:
    """`view` scaled and centred in a square of `SIDE` pixels."""
    view = np.asarray(view, np.float32)
    for axis in range(2):
        n = view.shape[axis]
        m = min(SIDE, max(1, round(n * scale[axis])))
        positions = (np.arange(m) + 0.5) * n / m - 0.5
        matrix = interpolation_matrix(n, positions, kind, n / m)  # type: ignore[arg-type]
        view = np.moveaxis(np.tensordot(matrix, view, (1, axis)), 0, axis)
    result = np.full((SIDE, SIDE), fill, np.float32)
    top, left = (SIDE - view.shape[0]) // 2, (SIDE - view.shape[1]) // 2
    result[top : top + view.shape[0], left : left + view.shape[1]] = view
    return result


def _short(name: str, most: int) -> str:
    return name if len(name) <= most else f"{name[: most - 1]}…"
