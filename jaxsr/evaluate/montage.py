"""A picture to judge by: three planes of every method and of the target at one grey window, and the errors below at one scale.

Planes are shown as a radiologist reads them: the patient's right on the left of axial and coronal planes, the face on the left of the
sagittal one, head up. Millimetres are square whatever the voxels are, and every panel says where its sides point to.

Two zooms follow: into the cortex, and into the cerebellum, whose place is told from the head's shape alone (`_cerebellum_box`).

`save_montage` and `draw_montage` work on arrays `[X, Y, Z]` in RAS+ order, all on one grid. They use no global matplotlib state.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.gridspec import GridSpec, SubplotSpec
from matplotlib.image import AxesImage
from matplotlib.patheffects import withStroke

from jaxsr.evaluate.written import PICTURE
from jaxsr.files import write_whole
from jaxsr.volume.foreground import foreground as find_foreground
from jaxsr.volume.intensity import Window, fit_window
from jaxsr.volume.slices import AXES

# plane: (left, right, top, bottom) of the picture
EDGES = {"axial": ("R", "L", "A", "P"), "coronal": ("R", "L", "S", "I"), "sagittal": ("A", "P", "S", "I")}
ZOOM_MM = 44.0
SHOWN = (0.1, 99.5)  # percentiles of the foreground that are black and white
BRAIN_MM = 150.0  # from the vertex to below the cerebellum
UPPER_MM = 75.0  # from the vertex to above nose and neck
CEREBELLUM = (0.28, 0.60)  # its middle: in front of the hindmost point, and below the vertex, in lengths of the head
TARGET = "target"

DPI = 100
_COLUMN, _GAP, _MARGIN = 2.5, 0.06, 4.0  # inches, inches, mm
BACKGROUND, TEXT, _FAINT, MARK = "#0d0d0f", "#ececec", "#a8a8ad", "#ffd24a"
_OUTLINED = [withStroke(linewidth=2.5, foreground=BACKGROUND)]  # legible on bone and on air


class Box(NamedTuple):
    """Voxel ranges `[start, stop)` along the three axes."""

    start: tuple[int, int, int]
    stop: tuple[int, int, int]


def picture(data: np.ndarray, plane: str, index: int) -> np.ndarray:
    """Slice `index` of `data [X, Y, Z]` as rows from top to bottom and columns from left to right, its sides pointing to `EDGES[plane]`."""
    return np.take(data, index, AXES[plane]).T[::-1, ::-1]


def save_montage(path: Path, volumes: Mapping[str, np.ndarray], reference: np.ndarray | None = None, **how: Any) -> Path:
    """Writes `draw_montage` as a PNG; the arguments are its own."""
    figure = draw_montage(volumes, reference, **how)
    return write_whole(
        Path(path), lambda temporary: figure.savefig(temporary, format="png", dpi=DPI, facecolor=BACKGROUND, metadata=PICTURE)
    )


def draw_montage(
    volumes: Mapping[str, np.ndarray],
    reference: np.ndarray | None = None,
    *,
    voxel_size: Sequence[float] = (1.0, 1.0, 1.0),
    window: Window | None = None,
    foreground: np.ndarray | None = None,
    captions: Mapping[str, str] | None = None,
    title: str = "",
) -> Figure:
    """A column a volume, then the target; rows axial, coronal, sagittal and zooms on cortex and cerebellum, errors under each.

    Args:
      volumes: name → `[X, Y, Z]`, from left to right.
      reference: the target `[X, Y, Z]`; without it there are no errors to show.
      window: what is black and what is white; by default that of the target, or of the last volume.
      foreground: boolean `[X, Y, Z]`; planes go through its centre, and pictures are cropped to it. Found in the target by default.
      captions: name → one line below the name, such as its PSNR.

    Raises:
      ValueError: where the shapes differ; names them.
    """
    shapes = {name: v.shape for name, v in volumes.items()} | ({} if reference is None else {TARGET: reference.shape})
    if len(set(shapes.values())) != 1:
        raise ValueError(f"a montage shows volumes on one grid, got the shapes {shapes}")
    guide = list(volumes.values())[-1] if reference is None else reference
    foreground = find_foreground(guide) if foreground is None or not foreground.any() else foreground
    window = fit_window(guide, mask=foreground, percentiles=SHOWN) if window is None else window
    columns = dict(volumes) if reference is None else {**volumes, TARGET: reference}
    views = _views(foreground, voxel_size)

    figure, grid = _canvas([view.aspect for view in views], len(columns), errors=reference is not None, title=title)
    percent = 100 / (window.high - window.low)
    top = 0.0 if reference is None else percent * _error_scale(volumes, reference, views)
    error_image = None
    for row, view in enumerate(views):
        for column, (name, data) in enumerate(columns.items()):
            axes = figure.add_subplot(grid[2 * row if reference is not None else row, column])
            _show(axes, view.of(data), view, cmap="gray", vmin=window.low, vmax=window.high)
            if row == 0:
                _head(axes, name, (captions or {}).get(name, ""))
            if column == 0:
                _label_row(axes, view.name)
                label_edges(axes, view.plane)
            if name == next(reversed(columns)):
                for zoom in views:
                    if zoom.zoomed and not view.zoomed and zoom.plane == view.plane:
                        _outline(axes, zoom, view)
            if reference is None or name == TARGET:
                continue
            axes = figure.add_subplot(grid[2 * row + 1, column])
            error_image = _show(axes, percent * np.abs(view.of(data) - view.of(reference)), view, cmap="magma", vmin=0, vmax=top)
            if column == 0:
                _label_row(axes, "|error|")
    if error_image is not None:
        _colour_bar(figure, grid[1, len(columns) - 1], error_image)
    return figure


class View(NamedTuple):
    """One row of the montage: a plane, which slice of it, which part of the volume, and how large its voxels are."""

    name: str
    plane: str
    at: int
    box: Box
    voxel_size: tuple[float, float]  # mm of a row, mm of a column
    zoomed: bool = False

    def of(self, data: np.ndarray) -> np.ndarray:
        """This view of `data [X, Y, Z]`, float32 `[rows, columns]`."""
        cropped = data[tuple(slice(a, b) for a, b in zip(*self.box, strict=True))]
        return picture(cropped, self.plane, self.at - self.box.start[AXES[self.plane]])

    @property
    def sides(self) -> tuple[int, int]:
        """Axes of the volume along rows and columns."""
        column, row = (a for a in range(3) if a != AXES[self.plane])
        return row, column

    @property
    def extent(self) -> tuple[float, float]:
        """Height and width in mm."""
        height, width = ((self.box.stop[a] - self.box.start[a]) * mm for a, mm in zip(self.sides, self.voxel_size, strict=True))
        return height, width

    @property
    def aspect(self) -> float:
        return self.extent[0] / self.extent[1]


def _views(foreground: np.ndarray, voxel_size: Sequence[float]) -> list[View]:
    """Three planes through the centre of the foreground, cropped to it, and zooms: axial on the cortex, sagittal on the cerebellum."""
    centre, box = head_centre(foreground, voxel_size), bounding_box(foreground, voxel_size)
    views = [_view(plane, plane, centre, box, voxel_size) for plane in ("axial", "coronal", "sagittal")]
    boxes = {"cortex": ("axial", _cortex_box), "cerebellum": ("sagittal", _cerebellum_box)}
    zooms = [
        _view(name, plane, centre, box(foreground, centre, voxel_size), voxel_size, zoomed=True) for name, (plane, box) in boxes.items()
    ]
    return [*views, *zooms]


def _view(name: str, plane: str, centre: np.ndarray, box: Box, voxel_size: Sequence[float], *, zoomed: bool = False) -> View:
    column, row = (a for a in range(3) if a != AXES[plane])
    return View(name, plane, int(centre[AXES[plane]]), box, (float(voxel_size[row]), float(voxel_size[column])), zoomed)


def head_centre(foreground: np.ndarray, voxel_size: Sequence[float]) -> np.ndarray:
    """The median foreground voxel along each axis, `[3]`, of what lies at most BRAIN_MM below the vertex: necks do not count."""
    vertex = int(np.flatnonzero(foreground.any(axis=(0, 1)))[-1])
    lowest = max(0, vertex + 1 - round(BRAIN_MM / voxel_size[2]))
    brain = foreground[:, :, lowest : vertex + 1]
    counts = [brain.sum(axis=tuple(a for a in range(3) if a != axis)) for axis in range(3)]
    x, y, z = (int(np.searchsorted(np.cumsum(c), c.sum() / 2)) for c in counts)
    return np.array([x, y, lowest + z])


def bounding_box(foreground: np.ndarray, voxel_size: Sequence[float]) -> Box:
    start, stop = [], []
    for axis in range(3):
        inside = np.flatnonzero(foreground.any(axis=tuple(a for a in range(3) if a != axis)))
        margin = round(_MARGIN / voxel_size[axis])
        start.append(max(0, int(inside[0]) - margin))
        stop.append(min(foreground.shape[axis], int(inside[-1]) + 1 + margin))
    return Box((start[0], start[1], start[2]), (stop[0], stop[1], stop[2]))


def _cortex_box(foreground: np.ndarray, centre: np.ndarray, voxel_size: Sequence[float]) -> Box:
    """Half way from the centre to the left and as far to the back: lateral, posterior cortex."""
    inside = np.nonzero(foreground[:, :, centre[2]])
    back = [centre[axis] - 0.5 * (centre[axis] - inside[axis].min() if len(inside[axis]) else 0) for axis in (0, 1)]
    return _zoom_box(foreground.shape, (back[0], back[1], None), centre, voxel_size)


def _cerebellum_box(foreground: np.ndarray, centre: np.ndarray, voxel_size: Sequence[float]) -> Box:
    """Behind and below in the sagittal plane, by `CEREBELLUM` of the head's length from front to back above nose and neck.

    The two figures were chosen by eye on real heads, with skull and without: a rule for pictures, not a segmentation.
    """
    vertex = int(np.flatnonzero(foreground.any(axis=(0, 1)))[-1])
    upper = foreground[:, :, max(0, vertex + 1 - round(UPPER_MM / voxel_size[2])) : vertex + 1]
    rows = np.flatnonzero(upper.any(axis=(0, 2)))
    length = (rows[-1] + 1 - rows[0]) * voxel_size[1]  # mm
    y = rows[0] + CEREBELLUM[0] * length / voxel_size[1]
    z = vertex - CEREBELLUM[1] * length / voxel_size[2]
    return _zoom_box(foreground.shape, (None, y, z), centre, voxel_size)


def _zoom_box(shape: Sequence[int], middle: Sequence[float | None], centre: np.ndarray, voxel_size: Sequence[float]) -> Box:
    """ZOOM_MM square around `middle` in voxels, moved to lie within the volume; one slice, the centre's, of the axis that has None."""
    start, stop = [0, 0, 0], [0, 0, 0]
    for axis, at in enumerate(middle):
        side = 1 if at is None else min(shape[axis], max(4, round(ZOOM_MM / voxel_size[axis])))
        first = int(centre[axis]) if at is None else int(np.clip(at - side / 2, 0, shape[axis] - side))
        start[axis], stop[axis] = first, first + side
    return Box((start[0], start[1], start[2]), (stop[0], stop[1], stop[2]))


def _error_scale(volumes: Mapping[str, np.ndarray], reference: np.ndarray, views: list[View]) -> float:
    """The error shown brightest: 99.5 % of the errors in the three planes of all methods are below."""
    errors = [np.abs(view.of(v) - view.of(reference)).ravel() for v in volumes.values() for view in views[:3]]
    return max(float(np.percentile(np.concatenate(errors), 99.5)), float(np.finfo(np.float32).tiny))


def _canvas(aspects: list[float], columns: int, *, errors: bool, title: str) -> tuple[Figure, GridSpec]:
    heights = [_COLUMN * min(a, 1.6) for a in aspects for _ in range(2 if errors else 1)]
    left, right, bottom = 0.45, 0.15, 0.15
    head = 0.75 + (0.4 if title else 0)
    width = left + right + columns * _COLUMN + (columns - 1) * _GAP
    height = head + bottom + sum(heights) + (len(heights) - 1) * _GAP
    figure = Figure(figsize=(width, height), facecolor=BACKGROUND)
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(
        len(heights),
        columns,
        height_ratios=heights,
        left=left / width,
        right=1 - right / width,
        bottom=bottom / height,
        top=1 - head / height,
        wspace=_GAP / _COLUMN,
        hspace=_GAP / (sum(heights) / len(heights)),
    )
    if title:
        figure.text(left / width, 1 - 0.14 / height, title, color=TEXT, fontsize=14, va="top", ha="left", weight="bold", parse_math=False)
    return figure, grid


def _show(axes: Axes, image: np.ndarray, view: View, **colours: Any) -> AxesImage:
    height, width = view.extent
    shown = axes.imshow(image, extent=(0, width, height, 0), interpolation="nearest" if view.zoomed else "auto", **colours)
    axes.set_facecolor(BACKGROUND)
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)
    return shown


def _head(axes: Axes, name: str, caption: str) -> None:
    style: dict[str, Any] = {"transform": axes.transAxes, "ha": "center", "va": "bottom", "parse_math": False}  # a name may hold a dollar
    axes.text(0.5, 1, f"{name}\n", color=TEXT, fontsize=13, weight="bold", **style)
    axes.text(0.5, 1.015, caption, color=_FAINT, fontsize=11, **style)


def _label_row(axes: Axes, text: str) -> None:
    axes.text(-0.06, 0.5, text, transform=axes.transAxes, ha="center", va="center", rotation=90, color=TEXT, fontsize=12)


def label_edges(axes: Axes, plane: str) -> None:
    """Where the sides of a picture of `plane` point to."""
    places = (
        (0.015, 0.5, "left", "center"),
        (0.985, 0.5, "right", "center"),
        (0.5, 0.985, "center", "top"),
        (0.5, 0.015, "center", "bottom"),
    )
    for letter, (x, y, ha, va) in zip(EDGES[plane], places, strict=True):
        axes.text(x, y, letter, transform=axes.transAxes, ha=ha, va=va, color=MARK, fontsize=11, weight="bold", path_effects=_OUTLINED)


def _outline(axes: Axes, zoom: View, view: View) -> None:
    """Where the zoom lies, drawn on the whole plane. Rows and columns of a picture run against the volume's axes."""
    top, left = ((view.box.stop[a] - zoom.box.stop[a]) * mm for a, mm in zip(view.sides, view.voxel_size, strict=True))
    height, width = zoom.extent
    axes.plot([left, left + width, left + width, left, left], [top, top, top + height, top + height, top], color=MARK, linewidth=1.2)


def _colour_bar(figure: Figure, cell: SubplotSpec, image: AxesImage) -> None:
    place = cell.get_position(figure)
    axes = figure.add_axes((place.x0 + 0.3 * place.width, place.y0 + 0.1 * place.height, 0.08 * place.width, 0.8 * place.height))
    bar = figure.colorbar(image, cax=axes)
    bar.ax.tick_params(colors=TEXT, labelsize=11)
    for spine in bar.ax.spines.values():
        spine.set_edgecolor(_FAINT)
    bar.set_label("|error|, % of the grey window", color=TEXT, fontsize=11)
