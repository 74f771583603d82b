"""`jaxsr inspect`: what `jaxsr upscale` would make of a file, by the same reading and the same checks, without a model."""

from pathlib import Path
from typing import Any, Literal

from jaxsr.files import shown
from jaxsr.upscale.inputs import check_target, memory_needed, read_input, resolution_notes, scale_notes, serving_axes
from jaxsr.volume.decode import open_image
from jaxsr.volume.header import describe
from jaxsr.volume.intensity import background_share, fit_window
from jaxsr.volume.io import STRAIGHTENED, VolumeError
from jaxsr.volume.orientation import from_ras, turn_from
from jaxsr.volume.resolution import resolved_mm
from jaxsr.volume.slices import AXES


def inspect(
    path: Path, *, to_mm: float | None = None, volume: int | None = None, nan: Literal["refuse", "zero"] = "refuse"
) -> dict[str, Any]:
    """The report on one file, as JSON holds it. Never raises for what it finds: `problem` is the sentence upscale would end with, or null.

    `stored` is what the header says (null where there is none to read), `notes` what upscale would warn of. Only of a usable file:
    `volume` (what is read: shape and voxel size in the order of the file, right-angled), `intensity`, `axes`, and `output` at `to_mm`.
    """
    report: dict[str, Any] = {"path": shown(path), "usable": False, "problem": None, "stored": None, "notes": []}
    try:
        report["stored"] = describe(open_image(path))
        read = read_input(path, to_mm=to_mm, volume=volume, nan=nan, note=lambda text: None)
    except VolumeError as error:
        prefix = f"{shown(path)}: "
        return {**report, "problem": prefix + str(error).removeprefix(prefix)}
    serving, left_out = serving_axes(read.data.shape, tuple(AXES))
    window, target = fit_window(read.data), check_target(read, to_mm)
    found = resolved_mm(read.data, read.voxel_size)
    data, affine = from_ras(read.data, read.affine, turn_from(read.orientation))
    voxel_size = [round(mm, 6) for mm in _as_stored(read.voxel_size, read.orientation)]
    return {
        **report,
        "usable": True,
        "notes": [*read.notes, *scale_notes(read, to_mm), *resolution_notes(read.voxel_size, found)],
        "volume": {
            "orientation": "".join(read.orientation),
            "shape": list(data.shape),
            "voxel_size_mm": voxel_size,
            "resolves_mm": [round(mm, 3) for mm in _as_stored(found, read.orientation)],
            "affine": affine.tolist(),
            "resampled": STRAIGHTENED in read.notes,
            "set_to_zero": read.zeroed,
        },
        "intensity": {
            "least": float(read.data.min()),
            "greatest": float(read.data.max()),
            "window": list(window),
            "background": round(background_share(read.data), 4),
        },
        "axes": list(serving),
        "left_out": list(left_out),
        "output": {
            "voxel_size_mm": [to_mm] * 3 if to_mm else voxel_size,
            "shape": _as_stored(target.shape, read.orientation),
            "bytes": 4 * target.shape[0] * target.shape[1] * target.shape[2],
            "memory_bytes": memory_needed(read, target),
        },
    }


def lines(report: dict[str, Any]) -> list[tuple[str, str]]:
    """The report for people: names and values."""
    rows = []
    if stored := report["stored"]:
        rows.append(
            (
                "stored as",
                f"{stored['format']}, {stored['type']} {stored['byte_order']}-endian, {_times(stored['shape'])}{_scaling(stored)}",
            )
        )
        if "sform_code" in stored:
            rows.append(("header", f"sform {stored['sform_code']}, qform {stored['qform_code']}, units {stored['units']}"))
    if report["usable"]:
        volume, intensity, output = report["volume"], report["intensity"], report["output"]
        rows += [
            ("volume", f"{_times(volume['shape'])} voxels of {_times(volume['voxel_size_mm'])} mm, axes to {volume['orientation']}"),
            ("intensities", f"{intensity['least']:g} to {intensity['greatest']:g}, {intensity['background']:.0%} background"),
            ("window", f"{intensity['window'][0]:g} to {intensity['window'][1]:g}"),
            ("slices", ", ".join(report["axes"])),
            ("output", f"{_times(output['shape'])} voxels of {_times(output['voxel_size_mm'])} mm, {output['bytes'] / 1e6:.1f} MB"),
            ("memory", f"{output['memory_bytes'] / 1e9:.2f} GB beside the model"),
        ]
    rows += [("note", sentence) for sentence in (*report["notes"], *report.get("left_out", ()))]
    return rows if report["usable"] else [*rows, ("cannot be used", report["problem"].removeprefix(f"{report['path']}: "))]


def _as_stored(along: Any, orientation: tuple[str, str, str]) -> list[Any]:
    """Values along right, anterior, superior → along the axes of the file."""
    return [along["RLAPSI".index(code) // 2] for code in orientation]


def _times(values: list[Any]) -> str:
    return " × ".join(f"{v:.6g}" for v in values)


def _scaling(stored: dict[str, Any]) -> str:
    slope, intercept = stored.get("slope"), stored.get("intercept")
    return "" if slope in (None, 1.0) and intercept in (None, 0.0) else f", slope {slope:g}, intercept {intercept or 0:g}"
