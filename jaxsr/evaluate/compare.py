"""`jaxsr evaluate`: outputs against references, every interpolation of the same input beside them.

Before a number is formed, the grids are compared in scanner space, so the orientation a file was stored in does not matter and a shifted or
rescaled output is refused rather than scored, or resampled where that is asked for. How volumes become numbers stands in scores.py, what
numbers of several subjects say in statistics.py.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from jaxsr.evaluate.files import Pairing, differing_sources, pair_files, source_of
from jaxsr.evaluate.interpolation import INTERPOLATIONS, interpolate
from jaxsr.evaluate.montage import save_montage
from jaxsr.evaluate.scores import RULES, Rules, score
from jaxsr.evaluate.tables import Comparison, Files, Row, write_tables
from jaxsr.evaluate.written import check_folder, picture_paths
from jaxsr.files import shown
from jaxsr.volume.foreground import foreground
from jaxsr.volume.geometry import Grid, resample, resample_oblique
from jaxsr.volume.io import Volume, VolumeError, read_volume

Resampling = Literal["linear", "cubic"]
Progress = Callable[[int, int], None]  # subjects done, subjects in all

TOLERANCE = 1e-3  # mm
AGAINST = "tricubic"  # whom others are tested against: one choice for all studies, made before their numbers are seen


class EvaluationError(ValueError):
    """Volumes that cannot be compared: one sentence that says what differs and the way out."""


class Means(NamedTuple):
    """What `compare_subjects` is told beside the files.

    Attributes:
      resampling: how an output, mask or grid that differs from the reference's is brought to it; None: it is refused.
      against: the method that others are tested against; None: AGAINST, or the first method where that is not scored.
      montage: pictures are drawn.
      protocol, provenance: for metrics.json, as they are.
    """

    rules: Rules = RULES
    resampling: Resampling | None = None
    against: str | None = None
    montage: bool = True
    protocol: Mapping[str, Any] | None = None
    provenance: Mapping[str, Any] = {}


def compare_volumes(
    reference: Volume, candidates: Mapping[str, Volume], mask: np.ndarray | None = None, *, subject: str = "", rules: Rules = RULES
) -> list[Row]:
    """Rows for each of `candidates` (method → volume): over the whole image, and over `mask` (by default the reference's foreground).

    Raises:
      EvaluationError: where a candidate does not lie on the reference's grid, or the mask is empty or of another shape.
    """
    for method, candidate in candidates.items():
        check_same_grid(reference.grid, candidate.grid, f"{method} {candidate.path or ''}".strip())
    return score(reference, candidates, _region(reference, mask), _named(mask), subject, rules)[0]


def compare_files(
    outputs: Mapping[str, Path],
    reference: Path,
    out_dir: Path,
    *,
    low: Path | None = None,
    mask: Path | None = None,
    montage: bool = True,
    means: Means | None = None,
    progress: Progress = lambda done, total: None,
) -> Comparison:
    """Compares files, or folders matched by name (`jaxsr.evaluate.files.pair_files`), and writes metrics.csv, metrics.json and montages.

    Args:
      outputs: method → file or folder; several methods stand side by side.
      reference: file or folder.
      low: the low-resolution input, file or folder, whose interpolations are scored too. By default what the outputs' sidecar JSON
        files name first under Sources, where it can be found.
      mask: file or folder on the references' grids.
      montage: pictures are drawn; where there are `means`, those say it.

    A subject that fails among several is left out and reported in `Comparison.failures`; where all fail, the first error is raised.

    Raises:
      EvaluationError: where nothing can be compared. VolumeError: where a single input cannot be read.
    """
    pairings = {method: paired(reference, path, method) for method, path in outputs.items()}
    inputs = {} if low is None else paired(reference, low, "the input").matched
    masks = {} if mask is None else paired(reference, mask, "the mask", masks=True).matched
    subjects = list(dict.fromkeys(s for pairing in pairings.values() for s in pairing.matched))
    notes = [note for method, pairing in pairings.items() for note in pairing.notes(method)]
    cases: dict[str, Files] = {}
    failures: dict[str, str] = {}
    for subject in subjects:
        found = {method: pairing.matched[subject] for method, pairing in pairings.items() if subject in pairing.matched}
        if low is not None and subject not in inputs:
            failures[subject] = f"{subject}: no input for it in {low}: add it, or leave --low out"
        elif mask is not None and subject not in masks:
            failures[subject] = f"{subject}: no mask for it in {mask}: add it, or leave --mask out"
        else:
            files = {method: output for method, (_, output) in found.items()}
            at = next(iter(found.values()))[0]
            cases[subject] = Files(at, files, inputs[subject][1] if low else None, masks[subject][1] if mask else None)
    if not cases:
        raise EvaluationError(next(iter(failures.values())))
    means = means or Means(montage=montage)
    return compare_subjects(cases, out_dir, means, notes=notes, failures=failures, progress=progress)


def compare_subjects(
    cases: Mapping[str, Files],
    out_dir: Path,
    means: Means = Means(),
    *,
    notes: Sequence[str] = (),
    failures: Mapping[str, str] | None = None,
    left_out: Mapping[str, str] | None = None,
    labels: Mapping[str, int] | None = None,
    one: Callable[[str, Files, Means, Path | None], "Scored"] | None = None,
    progress: Progress = lambda done, total: None,
) -> Comparison:
    """Scores subject → files, one subject in memory at a time, and writes the tables; `notes`, `failures` and `left_out` join its own.

    Args:
      labels: region → label, where the files are label maps; one: what scores a subject then (labels.py).

    Raises: as `compare_files`; FileError where a file in `out_dir` would be replaced that is no evaluation's;
    EvaluationError also where no method goes by the name `means.against`.
    """
    known = dict.fromkeys(method for case in cases.values() for method in case.outputs)
    if means.against and means.against not in (*INTERPOLATIONS, *known):
        raise EvaluationError(f"--against {means.against}: no such method; there are {', '.join((*INTERPOLATIONS, *known))}")
    single = len(cases) + len(failures or {}) == 1
    places = picture_paths(out_dir, cases, single) if means.montage else {}
    check_folder(out_dir, places.values())
    rows: list[Row] = []
    said, failed = list(notes), dict(failures or {})
    sources: dict[str, Files] = {}
    curves: dict[str, Any] = {}
    pictures: list[Path] = []
    for done, (subject, case) in enumerate(cases.items()):
        progress(done, len(cases))
        picture = places.get(subject)
        try:
            scored = (one or _compare_subject)(subject, case, means, picture)
        except (EvaluationError, VolumeError) as error:
            if single:
                raise
            failed[subject] = str(error)
            continue
        rows += scored.rows
        said += [f"{subject}: {note}" for note in scored.notes]
        sources[subject] = case._replace(low=scored.low)
        if scored.curves:
            curves[subject] = scored.curves
        pictures += [] if picture is None else [picture]
    progress(len(cases), len(cases))
    if not rows:
        raise EvaluationError(next(iter(failed.values())))
    said += _several_of_one(list(sources))
    methods = dict.fromkeys(row.method for row in rows)
    against = means.against or (AGAINST if AGAINST in methods else next(iter(methods)))
    lpips = {"lpips": means.rules.lpips.facts} if means.rules.lpips else {}
    provenance = {**means.provenance, **lpips, **({"resampling": means.resampling} if means.resampling else {}), "against": against}
    comparison = Comparison(
        tuple(rows),
        tuple(said),
        failed,
        tuple(pictures),
        against=against,
        data_range=None if labels else means.rules.data_range,
        labels=labels or {},
        left_out=left_out or {},
        sources=sources,
        curves=curves,
        protocol=means.protocol,
        provenance=provenance,
    )
    return replace(comparison, files=(*write_tables(comparison, out_dir), *pictures))


def check_same_grid(reference: Grid, candidate: Grid, name: str, way_out: str = "") -> None:
    """Raises EvaluationError, ending in `way_out`, unless shapes are equal and every corner lies within TOLERANCE mm of the reference's."""
    if candidate.shape != reference.shape:
        to_one = (
            "bring both to one grid first, for instance by upscaling with --to-mm set to the reference's voxel size, or ask for --resample"
        )
        raise EvaluationError(
            f"{name}: {_described(candidate)} is compared with a reference of {_described(reference)}: {way_out or to_one}"
        )
    corners = np.array(list(np.ndindex(2, 2, 2))) * (np.array(reference.shape) - 1)
    index = np.concatenate([corners, np.ones((8, 1))], axis=1)
    apart = np.linalg.norm((index @ (candidate.affine - reference.affine).T)[:, :3], axis=1).max()
    if not apart <= TOLERANCE:
        raise EvaluationError(
            f"{name}: its voxels lie up to {apart:.3g} mm from the reference's ({_described(candidate)}; "
            f"reference {_described(reference)}): shifted, turned or scaled against each other; "
            + (way_out or "register one to the other first, or ask for --resample where only the grids differ")
        )


def _several_of_one(subjects: list[str]) -> list[str]:
    """A sentence where names, by BIDS, say that several images are of one person."""
    people = {subject.split("_")[0] for subject in subjects}
    if len(people) == len(subjects) or not all(person.startswith("sub-") for person in people):
        return []
    return [dependence(len(subjects), len(people))]


def dependence(images: int, people: int) -> str:
    """What is to be said where several images are of one person."""
    said = "one person" if people == 1 else f"{people} people"
    return (
        f"{images} images are of {said}: intervals and tests take images for independent, which those of one person are not, "
        "so they look surer than they are; give one image of each"
    )


class Scored(NamedTuple):
    rows: list[Row]
    curves: dict[str, Any]
    low: Path | None
    notes: list[str]


def _compare_subject(subject: str, case: Files, means: Means, picture: Path | None) -> Scored:
    reference = read_volume(case.reference)
    notes: list[str] = []
    candidates = {method: _on_grid(reference, path, method, means.resampling, notes) for method, path in case.outputs.items()}
    inside = None
    if case.mask is not None:
        inside = _mask(case.mask, case.reference, reference, means.resampling, notes)
    source = case.low
    if source is None:
        source, why = source_of(list(case.outputs.values()))
        notes += why
        if source is not None and source.samefile(case.reference):
            source = None
            notes.append("interpolations are left out, the outputs were made from the reference itself: name a scan of it with --low")
    baselines: dict[str, Volume] = {}
    if source is not None:
        try:
            given = read_volume(source)
            baselines = {name: interpolate(given, reference.grid, name) for name in INTERPOLATIONS}
        except ValueError as error:  # VolumeError, or axes that are not parallel
            if case.low is not None:
                raise EvaluationError(f"{source} cannot be interpolated to the reference's grid: {error}") from error
            source = None
            notes.append(f"interpolations are left out, {error}")
    if made := differing_sources(case.outputs):
        whose = "" if source is None else f"; the interpolations are of {shown(source)}, so only methods made of that compare with them"
        notes.append(f"the outputs were made of different inputs, {made}{whose}")

    everything = {**baselines, **candidates}
    region = _region(reference, inside)
    rows, curves = score(reference, everything, region, _named(inside), subject, means.rules)
    if picture is not None:
        _draw(picture, subject, reference, everything, region, rows)
    return Scored(rows, curves, source, notes)


def _mask(path: Path, of: Path, reference: Volume, resampling: Resampling | None, notes: list[str]) -> np.ndarray:
    """Where `path` is above 0.5; refused where it is an image: a head above 0.5 is nearly everything, and nobody would notice."""
    check_mask(path, of)
    return _on_grid(reference, path, "the mask", resampling, notes, constant="allow").data > 0.5


def check_mask(path: Path, of: Path) -> None:
    """Raises EvaluationError where a mask is an image, or the volume `of` itself; VolumeError where it cannot be read."""
    if path.samefile(of):
        raise EvaluationError(f"the mask {shown(path)} is the reference itself: name masks with --mask, or leave it out")
    data = read_volume(path, constant="allow").data
    if np.any((data != data.min()) & (data != data.max())):
        raise EvaluationError(
            f"the mask {shown(path)} has more than two values, so it is an image, labels or probabilities: "
            "name a file of zeros and ones with --mask (in a folder, one called …_mask), or leave it out"
        )


def _on_grid(reference: Volume, path: Path, name: str, resampling: Resampling | None, notes: list[str], **how: Any) -> Volume:
    """The volume in `path` on the reference's grid: as it is, or resampled, of which `notes` then tells."""
    volume = read_volume(path, **how)
    try:
        check_same_grid(reference.grid, volume.grid, f"{name} {shown(path)}")
        return volume
    except EvaluationError:
        if resampling is None:
            raise
    try:
        data = resample(volume.data, volume.grid, reference.grid, resampling)
    except ValueError:  # axes that are not parallel
        data = resample_oblique(volume.data, volume.grid, reference.grid, resampling)
    notes.append(f"{name} was resampled ({resampling}) onto the reference's grid, from {_described(volume.grid)}")
    return replace(volume, data=data, affine=reference.grid.affine)


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


def _draw(picture: Path, subject: str, reference: Volume, volumes: Mapping[str, Volume], region: np.ndarray, rows: list[Row]) -> None:
    places = {row.region: {r.method: r for r in rows if r.region == row.region} for row in rows}
    place, inside = next((item for item in places.items() if item[0] != "image"), next(iter(places.items())))
    words = {"psnr": "{:.2f} dB", "ssim": "SSIM {:.4f}"}
    size = " × ".join(f"{mm:.3g}" for mm in reference.voxel_size)
    save_montage(
        picture,
        {method: volume.data for method, volume in volumes.items()},
        reference.data,
        voxel_size=reference.voxel_size,
        foreground=region,
        captions={
            method: "   ".join(text.format(row.values[metric]) for metric, text in words.items() if metric in row.values)
            for method, row in inside.items()
        },
        title=f"{subject}   {size} mm   {'whole image' if place == 'image' else f'inside the {place}'}",
    )


def paired(reference: Path, other: Path, name: str, *, masks: bool = False, labels: bool = False) -> Pairing:
    """`pair_files`, with names for errors. Raises EvaluationError where a path is not there, or nothing is a pair."""
    for path in (reference, other):
        if not path.exists():
            raise EvaluationError(f"{shown(path)} does not exist: check the path")
    pairing = pair_files(reference, other, masks=masks, labels=labels)
    if not pairing.matched:
        raise EvaluationError(
            f"{name}: no file in {other} belongs to one in {reference} by its name "
            f"({len(pairing.extra)} and {len(pairing.missing)} volumes found): name them alike, or give two files"
        )
    return pairing


def _described(grid: Grid) -> str:
    return f"{' × '.join(map(str, grid.shape))} voxels of {' × '.join(f'{mm:.4g}' for mm in grid.voxel_size)} mm"
