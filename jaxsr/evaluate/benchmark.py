"""`jaxsr evaluate --protocol`: heads in, a benchmark out.

Each head is degraded as the protocol says, upscaled to its own grid by each model, and scored beside the interpolations:

    OUT/heads/…                           the heads themselves, where the protocol has them rendered (rendered.py)
    OUT/reference/SUBJECT.nii.gz          the head as it was degraded: on right-angled axes, nothing below zero
    OUT/low/SUBJECT.nii.gz                its simulated acquisition
    OUT/upscaled/RUN/SUBJECT.nii.gz       what a model makes of that; RUN is the model's name, and in an ablation what guides it (runs.py)
    OUT/metrics.json, metrics.csv         what they are worth

A volume that is there, made by the same source from the same head in the same way, as its sidecar says, is not made again: what was
interrupted goes on where it was. What is made again is removed first, as a sidecar appears before its volume.
"""

import functools
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import jaxsr
from jaxsr.config import to_dict
from jaxsr.data.records import file_sha256
from jaxsr.evaluate.compare import Means, compare_subjects
from jaxsr.evaluate.degraded import check_place, degrade, made_so
from jaxsr.evaluate.files import sidecar_path, stem
from jaxsr.evaluate.grids import EvaluationError
from jaxsr.evaluate.heads import Heads, NoHeads, masks_of, people_note, voxel_size
from jaxsr.evaluate.lpips_weights import LpipsWeights, check_lpips
from jaxsr.evaluate.origin import origin, source_sha256
from jaxsr.evaluate.protocol import Protocol, ProtocolFile
from jaxsr.evaluate.rendered import render_heads, rendered_note
from jaxsr.evaluate.runs import Run, against_of, check_guided, guidance_notes, runs_of
from jaxsr.evaluate.seen import manifest_sha256, seen_heads, seen_note
from jaxsr.evaluate.tables import Comparison, Files
from jaxsr.evaluate.written import check_folder, picture_paths
from jaxsr.experiment import Experiment
from jaxsr.files import shown
from jaxsr.upscale.guide_maps import guidance_facts, read_guides
from jaxsr.upscale.guides import Guides, guided_by
from jaxsr.upscale.inputs import UNLIKE, Job, scale_notes
from jaxsr.upscale.sidecar import json_writer
from jaxsr.volume.io import Volume, VolumeError, read_volume, write_volume

if TYPE_CHECKING:
    from jaxsr.methods.base import Request
    from jaxsr.upscale.engine import Engine
    from jaxsr.upscale.model import Model

Progress = Callable[[int, int, str], None]  # steps done, steps in all, what of
Note = Callable[[str], None]


def run_protocol(
    file: ProtocolFile,
    heads: Heads,
    models: Mapping[str, Path],
    out: Path,
    *,
    masks: Path | None = None,
    lpips: LpipsWeights | None = None,
    batch_size: Any = "auto",
    montage: bool = True,
    provenance: Mapping[str, Any] | None = None,
    progress: Progress = lambda done, total, text: None,
    note: Note = lambda text: None,
) -> Comparison:
    """The benchmark of `file` over `heads.entered`; a head that fails is left out and named in `Comparison.failures`.

    Args:
      heads: found (`find_heads`), or planned by the protocol (`planned_heads`), which are rendered here.
      models: name → run directory or exported file.
      masks: file or folder, matched to the heads by name; needed where the protocol's regions have 'mask'.
      lpips: needed where the protocol's metrics have 'lpips', and only there.
      batch_size: slices at a time, a number or 'auto'.

    Raises:
      NoHeads: where no head enters; EvaluationError: where masks are asked for or given in vain; ValueError: where LPIPS' weights are;
      ModelError, WeightsError: for models.
    """
    protocol = file.protocol
    check_lpips(protocol.metrics, lpips, "the protocol")
    runs = runs_of(protocol, models)
    against = against_of(protocol, runs)
    if ("mask" in protocol.regions) != (masks is not None):
        raise EvaluationError("the protocol's regions and --mask go together: region 'mask' needs --mask, and --mask needs that region")
    if not heads.entered:
        subject, why = next(iter(heads.left_out.items()))
        raise NoHeads(f"no head enters {protocol.name}: {subject} {why}; --dry-run lists all")
    _check_outputs(heads, runs, out)
    check_folder(out, picture_paths(out, heads.entered, len(heads.entered) == 1).values() if montage else ())
    inside = {} if masks is None else masks_of(heads, masks)
    known, experiments = {}, {}
    kept: dict[str, Model] = {}
    said: list[str] = []
    for name, path in models.items():  # a model that cannot be used is not told after an hour
        kept[name] = _read(path, note)
        known[name], experiments[name] = _known(path, kept[name], _request(kept[name], protocol)), kept[name].experiment
        check_guided(name, experiments[name], protocol)
        if len(models) > 1:  # each is read again in its turn: memory need not hold them together
            kept.clear()
        if protocol.steps and (taken := known[name]["request"]["SamplingSteps"]) < protocol.steps:
            said.append(f"{name} took {taken} sampling steps, as many as it can, and not the protocol's {protocol.steps}")
    failures: dict[str, str] = {}
    cases: dict[str, Files] = {}
    made: dict[str, dict[str, Any]] = {}
    before, each = len(heads.entered) if protocol.heads else 0, len(heads.entered)
    total = before + each * (2 + len(runs))
    if protocol.heads:
        render_heads(protocol, out, lambda done, name: progress(done, total, f"{name}: rendered"))
    for done, (subject, path) in enumerate(heads.entered.items()):
        progress(before + done, total, f"{subject}: acquisition")
        reference, low = (out / kind / f"{subject}.nii.gz" for kind in ("reference", "low"))
        try:
            if masks is not None and path not in inside:
                raise EvaluationError(f"{subject}: no mask for it in {masks}")
            acquired = heads.acquired.get(subject, path)
            made[subject] = _made_of(path, acquired, protocol)
            degrade(path, acquired, reference, low, protocol, made[subject], note)
            cases[subject] = Files(reference, {}, low, inside.get(path))
        except (VolumeError, EvaluationError) as error:
            failures[subject] = str(error)
    engines: dict[str, tuple[Model, Engine]] = {}

    def ready(model: str) -> "tuple[Model, Engine]":
        """What the runs of one model share, read where the first of them needs it, and kept until another model's do."""
        if model not in engines:
            engines.clear()
            engines[model] = _engine(kept.pop(model) if model in kept else _read(models[model]), batch_size)
        return engines[model]

    for number, (name, run) in enumerate(runs.items(), 1):
        report = lambda done, text: progress(before + number * each + done, total, f"{name}: {text}")  # noqa: B023, E731
        facts, experiment = known[run.model], experiments[run.model]
        flat = [name for name in protocol.flat if name in guided_by(experiment)]
        guides = {subject: run.guides(heads.guides.get(subject, Guides()), flat) for subject in cases}
        shared = {**facts["request"], "WeightsSHA256": facts["sha256"], "AxesAsked": list(protocol.axes)}
        made_by = {subject: {**made[subject], **shared, "Guidance": guidance_facts(experiment, guides[subject])} for subject in cases}
        engine = functools.partial(ready, run.model)
        said += _upscale_all(
            name, run, engine, experiment, cases, made_by, guides, failures, out / "upscaled" / name, protocol, report, note
        )
    if not cases:
        raise EvaluationError(next(iter(failures.values())))
    digests = {subject: made[subject]["HeadSHA256"] for subject in cases}
    for name, model in models.items():
        known[name]["heads_seen"] = seen_heads(model, experiments[name], heads.entered, digests)
        said.append(seen_note(name, known[name]["heads_seen"], len(cases)) or "")
    said.append(people_note(heads, list(cases)) or "")
    said += [*guidance_notes(runs), rendered_note(protocol) or ""]
    of_runs = {name: known[run.model] | ({"guidance": run.cell} if run.cell is not None else {}) for name, run in runs.items()}
    provenance = {**(provenance or {}), **origin(), "models": of_runs, "seed": protocol.seed, "heads": digests}
    means = Means(protocol.rules._replace(lpips=lpips), None, against, montage, file.facts(), provenance)
    start = before + each * (1 + len(runs))
    told = lambda done, of: progress(start + done if done < of else total, total, "scores")  # noqa: E731
    notes = [sentence for sentence in dict.fromkeys(said) if sentence]
    return compare_subjects(cases, out, means, notes=notes, failures=failures, left_out=heads.left_out, progress=told)


def _check_outputs(heads: Heads, runs: Iterable[str], out: Path) -> None:
    """Raises EvaluationError where a volume would lie outside `out`, on a head, or where another does."""
    taken = {os.path.abspath(path): subject for subject, path in heads.entered.items()}
    for kind in ("reference", "low", *(f"upscaled/{name}" for name in runs)):
        for subject in heads.entered:
            path = os.path.abspath(out / kind / f"{subject}.nii.gz")
            if not Path(path).is_relative_to(os.path.abspath(out / kind)):
                raise EvaluationError(f"{shown(subject)}: {shown(path)} lies outside {shown(out / kind)}: rename the head")
            if path in taken:
                raise EvaluationError(
                    f"{shown(subject)}: {shown(path)} is that of {shown(taken[path])}, too: rename one, or choose another -o"
                )
            taken[path] = subject


def _made_of(path: Path, acquired: Path, protocol: Protocol) -> dict[str, Any]:
    """What a volume made of this head is known by, in its sidecar's JaxSR block."""
    return {
        "Version": jaxsr.__version__,
        "SourceSHA256": source_sha256(),
        "Acquisition": to_dict(protocol.acquisition),
        "ProtocolSeed": protocol.seed,
        "DrawnBy": stem(path),
        "HeadSHA256": file_sha256(path),
        "AcquiredOfSHA256": file_sha256(acquired),
    }


def _read(source: Path, note: Note = lambda text: None) -> "Model":
    from jaxsr.upscale.model import load_model

    return load_model(source, note=note)


def _request(model: "Model", protocol: Protocol) -> "Request":
    """How a model samples: as it does by itself, or in as many steps as the protocol says, if it can."""
    request, most = model.method.default_request, model.method.most_steps
    return request if protocol.steps is None else request._replace(steps=min(protocol.steps, most))


def _known(source: Path, model: "Model", request: "Request") -> dict[str, Any]:
    """Of a model, for metrics.json; `request` as its outputs' sidecars say it."""
    return {
        "path": str(source),
        "sha256": model.sha256,
        "method": model.experiment.method.kind,
        "step": model.step,
        "manifest_sha256": manifest_sha256(source),
        "request": {"SamplingSteps": request.steps, "Eta": request.eta},
    }


def _engine(model: "Model", batch_size: Any) -> "tuple[Model, Engine]":
    from jaxsr.upscale.files import make_engine

    return model, make_engine(model, batch_size=batch_size)


def _upscale_all(
    name: str,
    run: Run,
    ready: Callable[[], "tuple[Model, Engine]"],
    experiment: Experiment,
    cases: dict[str, Files],
    made: Mapping[str, Mapping[str, Any]],
    guides: Mapping[str, Guides],
    failures: dict[str, str],
    folder: Path,
    protocol: Protocol,
    progress: Callable[[int, str], None],
    note: Note,
) -> list[str]:
    """Adds the run's outputs to `cases`, made where `made` is not what is there, or takes a head out of them into `failures`.

    Returns sentences on heads unlike those of the model's training.
    """
    from jaxsr.upscale.settings import training_scans
    from jaxsr.upscale.sidecar import describe

    target = None if hasattr(experiment.method, "between_mm") else experiment.data.voxel_size
    unlike: dict[str, list[str]] = {}  # in what → sentences, one a head
    for done, (subject, case) in enumerate(list(cases.items())):
        progress(done, subject)
        output = folder / f"{subject}.nii.gz"
        assert case.low
        try:
            low, mm = read_volume(case.low), voxel_size(case.reference)
        except VolumeError as error:
            failures[subject] = str(error)
            del cases[subject]
            continue
        if not made_so(output, made[subject]):
            model, engine = ready()
            # Rounded, as the request is a static argument: heads of one voxel size but for its last digits share a program.
            request = _request(model, protocol)._replace(to_mm=round(min(mm), 3))
            try:
                check_place(output)
                grid = read_volume(case.reference).grid
                slices = lambda n, of: progress(done, f"{subject}, {n} of {of} slices")  # noqa: B023, E731
                maps = read_guides(experiment, guides[subject], grid, low)
                result = engine.upscale(
                    low, request, to_mm=grid, maps=maps, axes=protocol.axes, seed=protocol.seed, progress=slices, note=note
                )
                if not np.isfinite(result.volume.data).all():
                    raise VolumeError(f"{name} made NaN or Inf of {subject}")
            except VolumeError as error:
                failures[subject] = f"{name}: {error}"
                del cases[subject]
                continue
            said = describe(model, Job(case.low, output), result, request, Seed=protocol.seed, BatchSize=engine.batch_size, **made[subject])
            output.unlink(missing_ok=True)
            write_volume(output, result.volume, description="jaxsr: synthetic", before={sidecar_path(output): json_writer(said)})
        cases[subject] = case._replace(outputs={**case.outputs, name: output})
        for what, sentence in _unlike(low, mm, training_scans(experiment, low.voxel_size), target).items():
            unlike.setdefault(what, []).append(f"{subject}, {sentence}")
    return [f"{run.model}: {len(said)} of {len(cases)} heads are unlike its training: {said[0]}" for said in unlike.values()]


def _unlike(low: Volume, mm: tuple[float, float, float], scans: tuple[float, float, float], target: float | None) -> dict[str, str]:
    """How a head differs from those that a model learnt on: its acquisition from `scans`, its voxels, `mm`, from `target` (None: any)."""
    notes = scale_notes(low, None, scans)
    said = {"acquisition": notes[0]} if notes else {}
    if target and any(max(side / target, target / side) > UNLIKE for side in mm):
        size = " × ".join(f"{side:.3g}" for side in mm)
        said["voxels"] = f"the model was trained to make voxels of {target:.3g} mm, this head has {size} mm"
    return said
