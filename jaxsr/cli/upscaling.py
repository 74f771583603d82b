"""The command that upscales volumes: upscale."""

import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jaxsr.cli.jobs import unfinished
from jaxsr.cli.options import (
    BatchSize,
    Device,
    bare,
    check_mixture,
    check_sampling,
    check_voxel_size,
    choice,
    choices,
    device_in_use,
    failed,
    select_device,
    slices_at_a_time,
    words,
)
from jaxsr.cli.output import open_console, progress
from jaxsr.cli.status import Exit, status_of
from jaxsr.cli.targets import bids_jobs, check_places, declared_scanner, resolved_sizes, steps_of_mode, target_of
from jaxsr.weights.standard import STANDARD, named_model

if TYPE_CHECKING:
    from jaxsr.upscale.files import Made
    from jaxsr.upscale.inputs import Job
    from jaxsr.volume.io import Volume


def upscale(
    source: Annotated[Path | None, bare("--input", "-i", help="A volume (.nii, .nii.gz, .mgz), a folder of them, or a .txt list.")] = None,
    output: Annotated[Path | None, bare("--output", "-o", help="A file for a file, a folder for several.")] = None,
    bids: Annotated[
        tuple[Path, Path, str] | None,
        bare("--bids", metavar="IN OUT participant", help="A BIDS set and a folder for its derivative, in place of -i and -o."),
    ] = None,
    participants: Annotated[
        list[str] | None, bare("--participant-label", help="With --bids: these participants only; repeatable, or 01,02.")
    ] = None,
    sessions: Annotated[list[str] | None, bare("--session-label", help="With --bids: these sessions only; repeatable, or 1,2.")] = None,
    suffixes: Annotated[str, typer.Option("--suffix", help="With --bids: which images, as in T1w or T1w,T2w.")] = "T1w",
    model: Annotated[
        Path, typer.Option("--model", "-m", help="A run directory, a file made by `jaxsr export`, or standard, which comes with jaxsr.")
    ] = STANDARD,
    to_mm: Annotated[
        float | None, bare(help="Voxel size of the output. [default: what the model is for, which may go by the scan]")
    ] = None,
    from_mm: Annotated[
        str,
        bare(
            "--from-mm",
            metavar="auto|found|MM|MM,MM,MM",
            help="What the scan resolves: right, front, top. auto: its voxels; found: as its k-space ends.",
        ),
    ] = "auto",
    mode: Annotated[
        str | None,
        bare(help="For the standard model: faithful, the middle of what is plausible, or sharp, a draw from it. [default: faithful]"),
    ] = None,
    steps: Annotated[int | None, bare(min=1, help="Sampling steps. [default: the model's]")] = None,
    eta: Annotated[float | None, bare(min=0, max=1, help="0 deterministic … 1 ancestral. [default: the model's]")] = None,
    samples: Annotated[
        int, typer.Option("--samples", min=1, max=1000, help="Posterior samples: the output is their mean, a std map lies beside it.")
    ] = 1,
    keep_samples: Annotated[bool, typer.Option("--keep-samples", help="Write each sample too.")] = False,
    consistency: Annotated[
        bool, typer.Option("--consistency", help="Write a map beside each output: degraded again, less the input, in units of noise.")
    ] = False,
    acquisition: Annotated[
        str | None, bare(help="For --consistency: 1.5T, 3T, 64mT, thick-slice or a .yaml file. [default: what the model was trained on]")
    ] = None,
    noise: Annotated[
        float | None, bare(help="For --consistency: the input's noise σ, in its units. [default: estimated from its air or tissue]")
    ] = None,
    bias_field: Annotated[
        Path | None,
        bare("--bias-field", help="For a guided model: the target's bias field, as N4 writes it, a folder of such, or flat: it has none."),
    ] = None,
    gradient_map: Annotated[
        Path | None,
        bare(
            "--gradient-map",
            help="The same of displacement by gradient nonlinearity: a volume in mm, a coil's coefficients, or flat.",
        ),
    ] = None,
    convention: Annotated[
        str, typer.Option("--gradient-convention", help="Axes of a displacement volume: ras, lps (ITK, ANTs), fsl or fsl-absolute.")
    ] = "ras",
    isocentre: Annotated[
        tuple[float, float, float], typer.Option("--isocentre", metavar="R A S", help="Of the magnet in scanner mm, for coefficients.")
    ] = (0.0, 0.0, 0.0),
    experts: Annotated[
        str | None,
        bare(
            help="For a mixture: all, weighed; top1, the best of each slice alone; parallel, on three devices; or one, by its name: "
            "smooth, cortex or junction. [default: the model's]"
        ),
    ] = None,
    explain: Annotated[
        bool,
        typer.Option(
            "--explain",
            help="For a mixture: write gate weights, attention maps and, with --reference, errors; draw what each expert makes alone.",
        ),
    ] = False,
    reference: Annotated[Path | None, bare(help="With --explain: the truth of one scan; each expert's error map is written too.")] = None,
    axes: Annotated[str, typer.Option(help="all, or some of sagittal,coronal,axial: results are averaged.")] = "all",
    slice_map: Annotated[
        str, typer.Option("--slices", help="pad keeps voxels; resize brings slices to 256 × 256, as the papers do.")
    ] = "pad",
    volume: Annotated[int | None, bare(help="Which volume of a 4-D file, from 0.")] = None,
    nan: Annotated[str, typer.Option(help="refuse, or zero: what to do with NaN and Inf.")] = "refuse",
    batch_size: BatchSize = "auto",
    precision: Annotated[str | None, bare(help="f32 or bf16. [default: the model's]")] = None,
    seed: Annotated[int, typer.Option(help="Of the noise.")] = 0,
    device: Device = "auto",
    picture: Annotated[bool, typer.Option("--montage/--no-montage", help="Write a PNG beside each output.")] = True,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Redo what is done already.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and what it takes; weights are not read.")] = False,
    run_json: Annotated[Path | None, bare("--run-json", help="A JSON file for what was done, or with --dry-run planned.")] = None,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="More to read.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Only errors.")] = False,
) -> None:
    """Upscale volumes. Each output gets a JSON sidecar that says it is synthetic and how it was made.

    Outputs that exist are skipped. Orientation, units of intensity and the place in the scanner stay as they were. How far to trust an
    output, --samples and --consistency help to tell (docs/trust.md).

    Examples:

        jaxsr upscale -i scan.nii.gz -o scan_sr.nii.gz

        jaxsr upscale -i scan.nii.gz -o scan_sr.nii.gz --to-mm 0.7 --mode sharp --samples 8

        jaxsr upscale -i scans/ -o upscaled/ --model runs/sr3 --to-mm 0.7 --steps 50 --device gpu

        jaxsr upscale --bids study study/derivatives/jaxsr participant --participant-label 01,02 --model runs/sr3
    """
    axis_names = choices("--axes", axes, ("sagittal", "coronal", "axial"))
    choice("--slices", slice_map, ("pad", "resize"))
    choice("--nan", nan, ("refuse", "zero"))
    choice("--gradient-convention", convention, ("ras", "lps", "fsl", "fsl-absolute"))
    if reference is not None and not explain:
        raise typer.BadParameter("is for --explain: ask for that, or leave it out", param_hint="--reference")
    if precision is not None:
        choice("--precision", precision, ("f32", "bf16"))
    size = slices_at_a_time(batch_size)
    check_voxel_size(to_mm)
    resolved = resolved_sizes(from_mm)
    if gradient_map is None and (convention != "ras" or isocentre != (0.0, 0.0, 0.0)):
        option = "--gradient-convention" if convention != "ras" else "--isocentre"
        raise typer.BadParameter("is for --gradient-map: name one, or leave it out", param_hint=option)
    check_places(source, output, bids, participants, sessions)
    declared = declared_scanner(acquisition, noise, consistency)
    model = named_model(model)
    if mode is not None:
        choice("--mode", mode, ("faithful", "sharp"))
        if steps is not None:
            raise typer.BadParameter("says what --steps would: leave out one or the other", param_hint="--mode")

    from jaxsr.files import shown
    from jaxsr.upscale.guides import check_guides, guides_of
    from jaxsr.upscale.inputs import find_jobs, is_done, read_input
    from jaxsr.upscale.sidecar import EXPERTS, check_maps, check_record, check_sidecar, map_names, picture_path, write_json

    terminal = open_console(quiet=quiet)
    if experts is not None:
        choice("--experts", experts, ("all", "top1", "parallel", *EXPERTS))
    maps = map_names(samples, keep=keep_samples, consistency=consistency, explain=explain, errors=reference is not None)
    if bids:
        jobs = bids_jobs(bids, words(participants), words(sessions), words([suffixes]), model, to_mm, device)
    else:
        assert source
        assert output
        jobs = find_jobs(source, output)
    if not jobs:
        raise Exit(
            3, f"{shown(bids[0] if bids else source or '')}: no volumes to upscale ({suffixes if bids else '.nii, .nii.gz, .mgz, .mgh'})"
        )
    if reference is not None and len(jobs) > 1:
        raise typer.BadParameter(f"is the truth of one scan, and there are {len(jobs)}: name one with -i", param_hint="--reference")
    if run_json:
        check_record(run_json, jobs, maps)
    check_maps(jobs, maps)
    guides = guides_of(jobs, bids[0] if bids else source or Path(), bias_field, gradient_map, convention, isocentre)  # type: ignore[arg-type]
    single = None
    # What cannot be used is said before JAX and the model are loaded; but with --run-json where failures are recorded.
    if len(jobs) == 1 and not run_json and (overwrite or not is_done(jobs[0])):
        check_sidecar(jobs[0].output, picture=picture, explain=explain)
        how = {"axes": axis_names, "volume": volume, "nan": nan, "picture": picture, "samples": samples}
        how |= {"consistency": consistency, "explain": explain}
        single = read_input(jobs[0].source, to_mm=to_mm, note=terminal.print, **how)  # type: ignore[arg-type]

    if not bids:
        select_device(device, apart=True)
    from jaxsr.runtime.distributed import place
    from jaxsr.upscale.files import make_engine, make_file, montage, read_job, room_beside, share, told_of
    from jaxsr.upscale.line import in_line
    from jaxsr.upscale.settings import Settings, declared_acquisition
    from jaxsr.volume.errors import VolumeError

    here = place()
    mine = share(jobs, here)
    if here.processes > 1:
        if run_json:
            run_json = run_json if here.process == 0 else run_json.with_stem(f"{run_json.stem}.{here.process}")
            check_record(run_json, jobs, maps)
        terminal.print(f"process {here.process} of {here.processes}: {len(mine)} of {len(jobs)} volumes")
    todo = unfinished(mine, overwrite, terminal)
    if not todo:
        return

    from jaxsr.upscale.forecast import forecast, lines
    from jaxsr.upscale.model import load_model, read_recipe

    loaded = None if dry_run else load_model(model, precision=precision, note=terminal.print)
    recipe = read_recipe(model, precision=precision, note=terminal.print) if loaded is None else loaded.recipe
    check_sampling(recipe.method, recipe.experiment.method.kind, steps, eta)
    if experts is not None or explain:
        check_mixture(recipe.method, recipe.experiment.method.kind, "--experts" if experts else "--explain")
    for job in todo:
        check_guides(recipe.experiment, guides[job.source])
    default = recipe.method.default_request
    target, said = target_of(recipe, to_mm, resolved, derivative=bids is not None)
    for sentence in said:
        terminal.print(sentence)
    if mode is not None:
        steps = steps_of_mode(mode, recipe)
    request = default._replace(steps=steps or default.steps, eta=default.eta if eta is None else eta, to_mm=target)
    if experts is not None:
        alone = EXPERTS.index(experts) if experts in EXPERTS else None
        request = request._replace(routing="top1" if experts == "top1" else "all", expert=alone)
    if samples > 1 and request.steps == 1 < recipe.method.most_steps and not getattr(recipe.method, "one_step_draws", False):
        terminal.print("note: one sampling step estimates the middle of what is plausible, so samples differ too little: give --steps")
    compared = declared_acquisition(recipe.experiment, declared, noise) if consistency else None
    settings = Settings(
        target, request, axis_names, seed, volume, nan, picture, samples, keep_samples, compared, resolved,  # type: ignore[arg-type]
        explain, reference,
    )  # fmt: skip
    engine = make_engine(loaded, batch_size=size, slice_map=slice_map, apart=experts == "parallel") if loaded else None  # type: ignore[arg-type]
    if verbose:
        terminal.print(f"{recipe.name}, step {recipe.step}, on {device_in_use()}, {request.steps} sampling steps")
    if bids and not dry_run:
        from jaxsr.upscale.derivatives import start_derivative

        start_derivative(bids[0], bids[1])

    def read(job: "Job") -> "tuple[Volume, list[str]]":
        if why := guides[job.source].lacking:
            raise VolumeError(why)
        notes: list[str] = []
        return single or read_job(job, settings, notes.append), notes

    def room(job: "Job", given: "tuple[Volume, list[str]]") -> bool:
        return room_beside(recipe, given[0], settings)

    begun = 0

    def make(job: "Job", given: "tuple[Volume, list[str]]") -> "Made | dict[str, Any]":
        nonlocal begun
        begun = todo.index(job) + 1
        low, notes = given
        if not (engine and loaded):
            how: dict[str, Any] = {"batch_size": size, "slice_map": slice_map, "guides": guides[job.source]}
            facts = forecast(recipe, job, low, settings, **how)
            terminal.print("\n".join(lines(facts)))
            return facts
        with progress(terminal, shown(job.source.name), None) as (advance, note):
            for sentence in notes:
                note(sentence)
            report = lambda n, total: advance(n, "slices", total)  # noqa: E731
            return make_file(engine, loaded, job, settings, volume=low, guides=guides[job.source], progress=report, note=note)

    def write(job: "Job", made: "Made | dict[str, Any]") -> "tuple[dict[str, Any], tuple[Path, ...]]":
        if isinstance(made, dict):
            return made, ()
        made.write()
        done = made.result
        if picture:
            title = f"{shown(job.source.name)} at {min(done.output.voxel_size):.3g} mm (synthetic)"
            with told_of(job):
                montage(picture_path(job.output), done.low, done.output, title)
        return done.facts, (*done.maps, job.output)

    records: list[dict[str, Any]] = [{"Input": str(job.source), "Output": str(job.output)} for job in todo]
    failures: list[tuple[Path, str]] = []
    finished = 0
    try:
        for finished, (job, outcome) in enumerate(in_line(todo, read, make, write, room), 1):
            record = records[finished - 1]
            if outcome.done:
                facts, written = outcome.done
                record |= facts
                for path in written:
                    terminal.print(f"wrote {shown(path)}")
            elif error := outcome.error:
                status = status_of(error)
                why = str(error) if status else f"{type(error).__name__}: {error}"
                record |= {"Error": why, "Status": status or 1}
                failures.append((job.source, why))
                if len(todo) == here.processes == 1:
                    raise error
                if status is None:  # a mistake of ours: that the other volumes go on is no reason to hide it
                    traceback.print_exception(error)
    finally:
        if run_json:
            done = records[: max(begun, finished)]
            write_json(run_json, {"DryRun": dry_run, "Process": here.process, "Processes": here.processes, "Volumes": done})
    if failures:
        raise Exit(5 if all(record.get("Status") == 5 for record in records) else 1, failed(failures, len(todo)))
