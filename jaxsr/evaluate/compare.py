"""`jaxsr evaluate`: outputs against references, every interpolation of the same input beside them.

Before a number is formed, the grids are compared in scanner space, so the orientation a file was stored in does not matter and a shifted or
rescaled output is refused rather than scored. Intensities are compared as they are: nothing is rescaled, matched or clipped.

The data range R of PSNR and SSIM is that of the reference, robustly: its 99.9 % minus its 0.1 % percentile inside the mask or, without
one, inside the foreground of the reference (`jaxsr.volume.foreground`). Each method has two rows, over the whole 'image' and over the
mask or 'foreground', both with the same R, which stands in every row.
"""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from jaxsr.evaluate.files import Pairing, named_source, pair_files, sidecar_path
from jaxsr.evaluate.interpolation import INTERPOLATIONS, interpolate
from jaxsr.evaluate.metrics.pixel import mae, psnr, rmse
from jaxsr.evaluate.metrics.ssim import WINDOW, ssim_map
from jaxsr.evaluate.montage import save_montage
from jaxsr.evaluate.tables import Comparison, Row, write_tables
from jaxsr.files import shown
from jaxsr.volume.foreground import foreground
from jaxsr.volume.geometry import Grid
from jaxsr.volume.intensity import fit_window
from jaxsr.volume.io import Volume, VolumeError, read_volume

TOLERANCE = 1e-3  # mm


class EvaluationError(ValueError):
    """Volumes that cannot be compared: one sentence that says what differs and the way out."""


def compare_volumes(reference: Volume, candidates: Mapping[str, Volume], mask: np.ndarray | None = None, *, subject: str = "") -> list[Row]:
    """Two rows for each of `candidates` (method → volume): over the whole image, and over `mask` (by default the reference's foreground).

    Raises:
      EvaluationError: where a candidate does not lie on the reference's grid, or the mask is empty or of another shape.
    """
    for method, candidate in candidates.items():
        check_same_grid(reference.grid, candidate.grid, f"{method} {candidate.path or ''}".strip())
    return _rows(reference, candidates, _region(reference, mask), _named(mask), subject)


def compare_files(
    outputs: Mapping[str, Path],
    reference: Path,
    out_dir: Path,
    *,
    low: Path | None = None,
    mask: Path | None = None,
    montage: bool = True,
) -> Comparison:
    """Compares files, or folders matched by name (`jaxsr.evaluate.files.pair_files`), and writes metrics.csv, metrics.json and montages.

    Args:
      outputs: method → file or folder; several methods stand side by side.
      reference: file or folder.
      low: the low-resolution input, file or folder, whose interpolations are scored too. By default what the outputs' sidecar JSON
        files name first under Sources, where it can be found.
      mask: file or folder on the references' grids.

    A subject that fails among several is left out and reported in `Comparison.failures`; where all fail, the first error is raised.

    Raises:
      EvaluationError: where nothing can be compared. VolumeError: where a single input cannot be read.
    """
    pairings = {method: _paired(reference, path, method) for method, path in outputs.items()}
    inputs = {} if low is None else _paired(reference, low, "the input").matched
    masks = {} if mask is None else _paired(reference, mask, "the mask", masks=True).matched
    subjects = list(dict.fromkeys(s for pairing in pairings.values() for s in pairing.matched))
    notes = [note for method, pairing in pairings.items() for note in _pairing_notes(method, pairing)]
    rows: list[Row] = []
    pictures: list[Path] = []
    failures: dict[str, str] = {}
    for subject in subjects:
        files = {method: pairing.matched[subject] for method, pairing in pairings.items() if subject in pairing.matched}
        single = len(subjects) == 1
        picture = None if not montage else out_dir / ("montage.png" if single else f"montages/{subject.replace('/', '_')}.png")
        try:
            if low is not None and subject not in inputs:
                raise EvaluationError(f"{subject}: no input for it in {low}: add it, or leave --low out")
            if mask is not None and subject not in masks:
                raise EvaluationError(f"{subject}: no mask for it in {mask}: add it, or leave --mask out")
            done = _compare_subject(subject, files, inputs.get(subject), masks.get(subject), picture)
        except (EvaluationError, VolumeError) as error:
            if single:
                raise
            failures[subject] = str(error)
            continue
        rows += done[0]
        notes += done[1]
        pictures += [] if picture is None else [picture]
    if not rows:
        raise EvaluationError(next(iter(failures.values())))
    comparison = Comparison(tuple(rows), tuple(notes), failures, tuple(pictures))
    return replace(comparison, files=(*write_tables(comparison, out_dir), *pictures))


def check_same_grid(reference: Grid, candidate: Grid, name: str) -> None:
    """Raises EvaluationError unless shapes are equal and every corner lies within TOLERANCE mm of the reference's."""
    if candidate.shape != reference.shape:
        raise EvaluationError(
            f"{name}: {_described(candidate)} is compared with a reference of {_described(reference)}: "
            "bring both to one grid first, for instance by upscaling with --to-mm set to the reference's voxel size"
        )
    corners = np.array(list(np.ndindex(2, 2, 2))) * (np.array(reference.shape) - 1)
    index = np.concatenate([corners, np.ones((8, 1))], axis=1)
    apart = np.linalg.norm((index @ (candidate.affine - reference.affine).T)[:, :3], axis=1).max()
    if not apart <= TOLERANCE:
        raise EvaluationError(
            f"{name}: its voxels lie up to {apart:.3g} mm from the reference's ({_described(candidate)}; "
            f"reference {_described(reference)}): shifted, turned or scaled against each other; "
            "register or resample one to the other's grid first"
        )


def _compare_subject(
    subject: str,
    files: Mapping[str, tuple[Path, Path]],
    low: tuple[Path, Path] | None,
    mask: tuple[Path, Path] | None,
    picture: Path | None,
) -> tuple[list[Row], list[str]]:
    reference = read_volume(next(iter(files.values()))[0])
    candidates = {method: read_volume(output) for method, (_, output) in files.items()}
    for method, candidate in candidates.items():
        check_same_grid(reference.grid, candidate.grid, f"{method} {shown(candidate.path or '')}")
    inside = None
    if mask is not None:
        volume = read_volume(mask[1])
        check_same_grid(reference.grid, volume.grid, f"the mask {mask[1]}")
        inside = volume.data > 0.5
    source, notes = (low[1], []) if low is not None else _source_of([output for _, output in files.values()])
    if low is None and source is not None and source.samefile(next(iter(files.values()))[0]):
        source, notes = None, ["interpolations are left out, the outputs were made from the reference itself: name a scan of it with --low"]
    baselines: dict[str, Volume] = {}
    if source is not None:
        try:
            given = read_volume(source)
            baselines = {name: interpolate(given, reference.grid, name) for name in INTERPOLATIONS}
        except ValueError as error:  # VolumeError, or axes that are not parallel
            if low is not None:
                raise EvaluationError(f"{source} cannot be interpolated to the reference's grid: {error}") from error
            notes = [f"interpolations are left out, {error}"]

    everything = {**baselines, **candidates}
    region = _region(reference, inside)
    rows = _rows(reference, everything, region, _named(inside), subject)
    if picture is not None:
        _draw(picture, subject, reference, everything, region, rows)
    return rows, [f"{subject}: {note}" for note in notes]


def _rows(reference: Volume, candidates: Mapping[str, Volume], region: np.ndarray, name: str, subject: str) -> list[Row]:
    window = fit_window(reference.data, mask=region)
    data_range = window.high - window.low
    return [
        Row(subject, method, where, data_range, voxels, scores)
        for method, candidate in candidates.items()
        for where, voxels, scores in _scores(candidate.data, reference.data, region, name, data_range)
    ]


def _named(mask: np.ndarray | None) -> str:
    return "foreground" if mask is None else "mask"


def _region(reference: Volume, mask: np.ndarray | None) -> np.ndarray:
    if mask is None:
        return foreground(reference.data)
    if mask.shape != reference.data.shape:
        raise EvaluationError(f"the mask has shape {mask.shape}, the reference {reference.data.shape}: give a mask on the reference's grid")
    if not mask.any():
        raise EvaluationError("the mask is empty: give one that covers the head (voxels above 0.5 count), or none")
    return np.asarray(mask, bool)


def _scores(x: np.ndarray, y: np.ndarray, region: np.ndarray, name: str, data_range: float) -> list[tuple[str, int, dict[str, float]]]:
    """(region, voxels, metric → value) for the whole image and for `region`; SSIM is NaN where a side is shorter than its window."""
    ours, truth = jnp.asarray(x), jnp.asarray(y)  # moved to the device once
    similarity = np.asarray(ssim_map(ours, truth, data_range=data_range)) if min(x.shape) >= WINDOW else None
    rows = []
    for where, mask in (("image", None), (name, region)):
        scores = {
            "rmse": float(rmse(ours, truth, mask=mask)),
            "mae": float(mae(ours, truth, mask=mask)),
            "psnr": float(psnr(ours, truth, data_range=data_range, mask=mask)),
            "ssim": _mean_similarity(similarity, mask),
        }
        rows.append((where, y.size if mask is None else int(mask.sum()), scores))
    return rows


def _mean_similarity(similarity: np.ndarray | None, mask: np.ndarray | None) -> float:
    if similarity is None:
        return float("nan")
    if mask is not None:
        valid = slice(WINDOW // 2, -(WINDOW // 2))
        similarity = similarity[mask[valid, valid, valid]]
    return float(similarity.mean(dtype=np.float64)) if similarity.size else float("nan")


def _draw(picture: Path, subject: str, reference: Volume, volumes: Mapping[str, Volume], region: np.ndarray, rows: list[Row]) -> None:
    inside = {row.method: row for row in rows if row.region != "image"}
    size = " × ".join(f"{mm:.3g}" for mm in reference.voxel_size)
    save_montage(
        picture,
        {method: volume.data for method, volume in volumes.items()},
        reference.data,
        voxel_size=reference.voxel_size,
        foreground=region,
        captions={method: f"{row.values['psnr']:.2f} dB   SSIM {row.values['ssim']:.4f}" for method, row in inside.items()},
        title=f"{subject}   {size} mm   PSNR and SSIM inside the {rows[-1].region}",
    )


def _paired(reference: Path, other: Path, name: str, *, masks: bool = False) -> Pairing:
    for path in (reference, other):
        if not path.exists():
            raise EvaluationError(f"{shown(path)} does not exist: check the path")
    pairing = pair_files(reference, other, masks=masks)
    if not pairing.matched:
        raise EvaluationError(
            f"{name}: no file in {other} belongs to one in {reference} by its name "
            f"({len(pairing.extra)} and {len(pairing.missing)} volumes found): name them alike, or give two files"
        )
    return pairing


def _pairing_notes(method: str, pairing: Pairing) -> list[str]:
    """At most two sentences, whatever the number of files."""

    def listed(paths: tuple[Path, ...]) -> str:
        return ", ".join(shown(p.name) for p in paths[:5]) + (f" and {len(paths) - 5} more" if len(paths) > 5 else "")

    notes = [f"{method}: no output for {listed(pairing.missing)}"] if pairing.missing else []
    return notes + ([f"{method}: no reference for {listed(pairing.extra)}"] if pairing.extra else [])


def _source_of(outputs: list[Path]) -> tuple[Path | None, list[str]]:
    """The input that the first sidecar to name one names: Sources[0], a path from the sidecar's folder or an absolute one."""
    for output in outputs:
        try:
            sources = json.loads(sidecar_path(output).read_text("utf-8")).get("Sources", [])
        except (OSError, ValueError, AttributeError):
            continue
        if not sources:
            continue
        source = str(sources[0] if isinstance(sources, list) else sources)
        for path in (named_source(output, source), Path(source)):
            if path.is_file():
                return path, []
        return None, [
            f"interpolations are left out: the input {source}, named in {sidecar_path(output).name}, is not there; give it with --low"
        ]
    return None, ["interpolations are left out: no input is given or named in a sidecar JSON; give it with --low"]


def _described(grid: Grid) -> str:
    return f"{' × '.join(map(str, grid.shape))} voxels of {' × '.join(f'{mm:.4g}' for mm in grid.voxel_size)} mm"
