"""`jaxsr evaluate --protocol`: heads in, a benchmark out.

Each head is degraded as the protocol says, upscaled to its own grid by each model, and scored beside the interpolations:

    OUT/reference/SUBJECT.nii.gz          the head as it was degraded: on right-angled axes, nothing below zero
    OUT/low/SUBJECT.nii.gz                its simulated acquisition
    OUT/upscaled/MODEL/SUBJECT.nii.gz     what a model makes of that
    OUT/metrics.json, metrics.csv         what they are worth

A volume that is there, made by the same version from the same head in the same way, as its sidecar says, is not made again: what was
interrupted goes on where it was.
"""

import datetime
import hashlib
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import jaxsr
from jaxsr.config import to_dict
from jaxsr.evaluate.compare import EvaluationError, Means, compare_subjects
from jaxsr.evaluate.files import pair_files, sidecar_path, subjects_of, volume_files
from jaxsr.evaluate.interpolation import INTERPOLATIONS
from jaxsr.evaluate.protocol import Protocol, ProtocolFile
from jaxsr.evaluate.tables import Comparison, Files
from jaxsr.evaluate.written import check_folder, picture_paths
from jaxsr.files import shown
from jaxsr.simulate import WARNING as SIMULATED
from jaxsr.simulate import Settings, key_of, plan, read_truth
from jaxsr.upscale.inputs import Job
from jaxsr.upscale.sidecar import check_sidecar, json_writer, read_sidecar
from jaxsr.volume.decode import open_image
from jaxsr.volume.header import place
from jaxsr.volume.io import VolumeError, read_volume, write_volume
from jaxsr.volume.orientation import turn_of

Progress = Callable[[int, int, str], None]  # steps done, steps in all, what of
Note = Callable[[str], None]


class Heads(NamedTuple):
    """`source`: file or folder; `entered`: subject → file; `left_out`: subject → why it does not enter."""

    source: Path
    entered: dict[str, Path]
    left_out: dict[str, str]


def find_heads(source: Path, protocol: Protocol, out: Path | None = None) -> Heads:
    """The head in a file, or those in a folder and its subfolders (no masks, segmentations or maps), by their headers alone.

    What lies below `out`, where an earlier run put it, is none.

    Raises:
      EvaluationError: where there is none.
    """
    paths = volume_files(source) if source.exists() else []
    paths = [path for path in paths if out is None or not path.resolve().is_relative_to(out.resolve())]
    if not paths:
        raise EvaluationError(f"{shown(source)}: no heads there (.nii, .nii.gz, .mgz, .mgh): name a volume or a folder of them, not in -o")
    heads = Heads(source, {}, {})
    for path, subject in subjects_of(paths, source).items():
        try:
            image = open_image(path)
            affine = place(image).affine
            sizes = np.linalg.norm(affine[:3, :3], axis=0)[list(turn_of(affine).order)].tolist()
            why = protocol.refusal((sizes[0], sizes[1], sizes[2]))
            if len(image.shape) < 3 or np.prod(image.shape[3:]) != 1:
                why = f"an array of {' × '.join(map(str, image.shape))} is not one volume"
        except VolumeError as error:
            why = str(error)
        if why:
            heads.left_out[subject] = f"does not enter: {why}"
        else:
            heads.entered[subject] = path
    return heads


def check_models(models: Mapping[str, Path]) -> None:
    """Raises EvaluationError for a name that could not be a folder's, or is an interpolation's."""
    for name in models:
        if name in INTERPOLATIONS or not name.replace("-", "").replace("_", "").replace(".", "").isalnum():
            raise EvaluationError(
                f"a model cannot go by the name {shown(name)!r}: use letters, digits, -, _ and ., and no interpolation's name"
            )


def run_protocol(
    file: ProtocolFile,
    heads: Heads,
    models: Mapping[str, Path],
    out: Path,
    *,
    masks: Path | None = None,
    batch_size: Any = "auto",
    montage: bool = True,
    provenance: Mapping[str, Any] | None = None,
    progress: Progress = lambda done, total, text: None,
    note: Note = lambda text: None,
) -> Comparison:
    """The benchmark of `file` over `heads.entered`; a head that fails is left out and named in `Comparison.failures`.

    Args:
      models: name → run directory or exported file.
      masks: file or folder, matched to the heads by name; needed where the protocol's regions have 'mask'.
      batch_size: slices at a time, a number or 'auto'.

    Raises:
      EvaluationError: where no head enters, or masks are asked for or given in vain; ModelError, WeightsError: for models.
    """
    protocol = file.protocol
    check_models(models)
    if ("mask" in protocol.regions) != (masks is not None):
        raise EvaluationError("the protocol's regions and --mask go together: region 'mask' needs --mask, and --mask needs that region")
    if protocol.against not in (*INTERPOLATIONS, *models):
        raise EvaluationError(
            f"the protocol tests against {protocol.against!r}, which is no interpolation and no name of a model given here"
        )
    if not heads.entered:
        subject, why = next(iter(heads.left_out.items()))
        raise EvaluationError(f"no head enters {protocol.name}: {subject} {why}; --dry-run lists all")
    _check_outputs(heads, models, out)
    check_folder(out, picture_paths(out, heads.entered, len(heads.entered) == 1).values() if montage else ())
    inside = {} if masks is None else dict(pair_files(heads.source, masks, masks=True).matched.values())
    known = {name: _known(path, note) for name, path in models.items()}  # a model that cannot be used is not told after an hour
    failures: dict[str, str] = {}
    cases: dict[str, Files] = {}
    made: dict[str, dict[str, Any]] = {}
    total = len(heads.entered) * (2 + len(models))
    for done, (subject, path) in enumerate(heads.entered.items()):
        progress(done, total, f"{subject}: acquisition")
        reference, low = (out / kind / f"{subject}.nii.gz" for kind in ("reference", "low"))
        try:
            if masks is not None and path not in inside:
                raise EvaluationError(f"{subject}: no mask for it in {masks}")
            made[subject] = _made_of(path, protocol)
            _degrade(path, reference, low, protocol, made[subject], note)
            cases[subject] = Files(reference, {}, low, inside.get(path))
        except (VolumeError, EvaluationError) as error:
            failures[subject] = str(error)
    for number, (name, model) in enumerate(models.items(), 1):
        report = lambda done, text: progress(number * len(heads.entered) + done, total, f"{name}: {text}")  # noqa: B023, E731
        made_by = {subject: {**made[subject], **known[name]["request"], "WeightsSHA256": known[name]["sha256"]} for subject in cases}
        _upscale_all(name, model, cases, made_by, failures, out / "upscaled" / name, protocol, batch_size, report, note)
    if not cases:
        raise EvaluationError(next(iter(failures.values())))
    facts = {**(provenance or {}), "models": known, "seed": protocol.seed, "heads": {s: made[s]["HeadSHA256"] for s in cases}}
    means = Means(protocol.rules, None, protocol.against, montage, file.facts(), facts)
    start = len(heads.entered) * (1 + len(models))
    told = lambda done, of: progress(start + done if done < of else total, total, "scores")  # noqa: E731
    return compare_subjects(cases, out, means, failures=failures, left_out=heads.left_out, progress=told)


def _check_outputs(heads: Heads, models: Mapping[str, Path], out: Path) -> None:
    """Raises EvaluationError where a volume would lie outside `out`, on a head, or where another does."""
    taken = {os.path.abspath(path): subject for subject, path in heads.entered.items()}
    for kind in ("reference", "low", *(f"upscaled/{name}" for name in models)):
        for subject in heads.entered:
            path = os.path.abspath(out / kind / f"{subject}.nii.gz")
            if not Path(path).is_relative_to(os.path.abspath(out / kind)):
                raise EvaluationError(f"{shown(subject)}: {shown(path)} lies outside {shown(out / kind)}: rename the head")
            if path in taken:
                raise EvaluationError(
                    f"{shown(subject)}: {shown(path)} is that of {shown(taken[path])}, too: rename one, or choose another -o"
                )
            taken[path] = subject


def _made_of(path: Path, protocol: Protocol) -> dict[str, Any]:
    """What a volume made of this head is known by, in its sidecar's JaxSR block."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"Version": jaxsr.__version__, "Acquisition": to_dict(protocol.acquisition), "ProtocolSeed": protocol.seed, "HeadSHA256": digest}


def _degrade(path: Path, reference: Path, low: Path, protocol: Protocol, made: Mapping[str, Any], note: Note) -> None:
    if _same(reference, made) and _same(low, made):
        return
    from jaxsr.data.subjects import simulate

    for output in (reference, low):
        _check_place(output)
    settings = Settings(protocol.acquisition, protocol.seed)
    truth = read_truth(path, settings, note)
    planned = plan(Job(path, low), truth, settings)
    acquired = simulate(truth, protocol.acquisition, key_of(path, protocol.seed))
    if not np.isfinite(acquired.data).all():
        raise VolumeError(f"{shown(path)}: the simulated volume is not finite; scale the intensities to a scanner's, below a million")
    sources = [os.path.relpath(path.resolve(), low.resolve().parent)]  # one folder up and down: the same from the reference's
    block = {**made, "Notes": list(truth.notes), "Made": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")}
    whole = {"Description": "The head as it was degraded for a benchmark; nothing else was done to it.", "Sources": sources, "JaxSR": block}
    facts = {
        "Description": SIMULATED,
        "Sources": sources,
        "JaxSR": {**block, "Simulated": True, "Drawn": planned["Drawn"], "AcquiredShape": planned["Shape"]},
    }
    write_volume(reference, truth, description="jaxsr: reference", before={sidecar_path(reference): json_writer(whole)})
    result = replace(truth, data=acquired.data, affine=acquired.affine)
    write_volume(low, result, description="jaxsr: simulated", before={sidecar_path(low): json_writer(facts)})


def _check_place(output: Path) -> None:
    """Raises VolumeError where a volume or a sidecar would be replaced that is not ours."""
    check_sidecar(output)
    if output.exists() and read_sidecar(output) is None:
        raise VolumeError(f"{shown(output)} exists and was not written by jaxsr: choose another -o")


def _same(output: Path, facts: Mapping[str, Any]) -> bool:
    """The volume is there, and its sidecar says `facts` of it."""
    block = (read_sidecar(output) or {"JaxSR": {}})["JaxSR"]
    return output.is_file() and all(block.get(key) == value for key, value in facts.items())


def _known(source: Path, note: Note) -> dict[str, Any]:
    """Of a model, for metrics.json; `request` as its outputs' sidecars say it."""
    from jaxsr.upscale.model import load_model

    model = load_model(source, note=note)
    request = model.method.default_request
    return {
        "path": str(source),
        "sha256": model.sha256,
        "method": model.experiment.method.kind,
        "step": model.step,
        "request": {"SamplingSteps": request.steps, "Eta": request.eta},
    }


def _upscale_all(
    name: str,
    source: Path,
    cases: dict[str, Files],
    made: Mapping[str, Mapping[str, Any]],
    failures: dict[str, str],
    folder: Path,
    protocol: Protocol,
    batch_size: Any,
    progress: Callable[[int, str], None],
    note: Note,
) -> None:
    """Adds the model's outputs to `cases`, made where `made` is not what is there, or takes a head out of them into `failures`."""
    from jaxsr.upscale.files import make_engine
    from jaxsr.upscale.inputs import Job
    from jaxsr.upscale.model import load_model
    from jaxsr.upscale.sidecar import describe

    model = engine = None
    for done, (subject, case) in enumerate(list(cases.items())):
        progress(done, subject)
        output = folder / f"{subject}.nii.gz"
        if not _same(output, made[subject]):
            assert case.low
            model = model or load_model(source)
            engine = engine or make_engine(model, batch_size=batch_size)
            request = model.method.default_request
            try:
                _check_place(output)
                low, grid = read_volume(case.low), read_volume(case.reference).grid
                slices = lambda n, of: progress(done, f"{subject}, {n} of {of} slices")  # noqa: B023, E731
                result = engine.upscale(low, request, to_mm=grid, seed=protocol.seed, progress=slices, note=note)
                if not np.isfinite(result.volume.data).all():
                    raise VolumeError(f"{name} made NaN or Inf of {subject}")
            except VolumeError as error:
                failures[subject] = f"{name}: {error}"
                del cases[subject]
                continue
            said = describe(model, Job(case.low, output), result, request, Seed=protocol.seed, BatchSize=engine.batch_size, **made[subject])
            write_volume(output, result.volume, description="jaxsr: synthetic", before={sidecar_path(output): json_writer(said)})
        cases[subject] = case._replace(outputs={**case.outputs, name: output})
