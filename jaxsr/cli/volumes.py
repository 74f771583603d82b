"""Commands that work on volumes: upscale, evaluate."""

import json
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jaxsr.cli.options import (
    AsJson,
    BatchSize,
    Device,
    bare,
    check_sampling,
    check_voxel_size,
    choice,
    choices,
    device_in_use,
    failed,
    select_device,
    slices_at_a_time,
)
from jaxsr.cli.output import open_console, print_table, progress
from jaxsr.cli.status import Exit, status_of

if TYPE_CHECKING:
    from jaxsr.upscale.inputs import Job


def upscale(
    source: Annotated[Path, bare("--input", "-i", help="A volume (.nii, .nii.gz, .mgz), a folder of them, or a .txt list.")],
    output: Annotated[Path, bare("--output", "-o", help="A file for a file, a folder for several.")],
    model: Annotated[Path | None, bare("--model", "-m", help="A run directory, or a file made by `jaxsr export`.")] = None,
    to_mm: Annotated[float | None, bare(help="Voxel size of the output. [default: what the model was trained for]")] = None,
    steps: Annotated[int | None, bare(min=1, help="Sampling steps. [default: the model's]")] = None,
    eta: Annotated[float | None, bare(min=0, max=1, help="0 deterministic … 1 ancestral. [default: the model's]")] = None,
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

    Outputs that exist are skipped. Orientation, units of intensity and the place in the scanner stay as they were.

    Examples:

        jaxsr upscale -i scan.nii.gz -o scan_sr.nii.gz --model demo/run

        jaxsr upscale -i scans/ -o upscaled/ --model runs/sr3 --to-mm 0.7 --steps 50 --device gpu
    """
    axis_names = choices("--axes", axes, ("sagittal", "coronal", "axial"))
    choice("--slices", slice_map, ("pad", "resize"))
    choice("--nan", nan, ("refuse", "zero"))
    if precision is not None:
        choice("--precision", precision, ("f32", "bf16"))
    size = slices_at_a_time(batch_size)
    check_voxel_size(to_mm)
    if model is None:
        raise Exit(4, "no model named: pass --model RUN, a run directory made by `jaxsr demo` (demo/run) or `jaxsr train`")

    from jaxsr.files import shown
    from jaxsr.upscale.inputs import find_jobs, is_done, read_input
    from jaxsr.upscale.sidecar import check_record, check_sidecar, picture_path, write_json

    jobs = find_jobs(source, output)
    terminal = open_console(quiet=quiet)
    if not jobs:
        raise Exit(3, f"{shown(source)}: no volumes to upscale (.nii, .nii.gz, .mgz, .mgh)")
    if run_json:
        check_record(run_json, jobs)
    single = None
    # What cannot be used is said before JAX and the model are loaded; but with --run-json where failures are recorded.
    if len(jobs) == 1 and not run_json and (overwrite or not is_done(jobs[0])):
        check_sidecar(jobs[0].output, picture=picture)
        how = {"axes": axis_names, "volume": volume, "nan": nan, "picture": picture}
        single = read_input(jobs[0].source, to_mm=to_mm, note=terminal.print, **how)  # type: ignore[arg-type]

    select_device(device, apart=True)
    from jaxsr.runtime.distributed import place
    from jaxsr.upscale.files import Settings, make_engine, montage, read_source, share, upscale_file

    here = place()
    mine = share(jobs, here)
    if here.processes > 1:
        if run_json:
            run_json = run_json if here.process == 0 else run_json.with_stem(f"{run_json.stem}.{here.process}")
            check_record(run_json, jobs)
        terminal.print(f"process {here.process} of {here.processes}: {len(mine)} of {len(jobs)} volumes")
    todo = mine if overwrite else [job for job in mine if not is_done(job)]
    if len(todo) < len(mine):
        terminal.print(f"{len(mine) - len(todo)} done already, whatever made them (redo with --overwrite)")
    if not todo:
        return

    from jaxsr.upscale.forecast import forecast, lines
    from jaxsr.upscale.model import load_model, read_recipe

    loaded = None if dry_run else load_model(model, precision=precision, note=terminal.print)
    recipe = read_recipe(model, precision=precision, note=terminal.print) if loaded is None else loaded.recipe
    check_sampling(recipe.method, recipe.experiment.method.kind, steps, eta)
    default, trained = recipe.method.default_request, recipe.experiment.data.voxel_size
    target = to_mm or trained
    if abs(target - trained) > 1e-6:
        terminal.print(f"note: the model was trained for {trained:g} mm, not {target:g} mm")
    request = default._replace(steps=steps or default.steps, eta=default.eta if eta is None else eta, to_mm=target)
    settings = Settings(target, request, axis_names, seed, volume, nan, picture)  # type: ignore[arg-type]
    engine = make_engine(loaded, batch_size=size, slice_map=slice_map) if loaded else None  # type: ignore[arg-type]
    if verbose:
        terminal.print(f"{recipe.name}, step {recipe.step}, on {device_in_use()}, {request.steps} sampling steps")

    def plan(job: "Job") -> dict[str, Any]:
        low = single or read_source(job.source, settings)
        facts = forecast(recipe, job, low, settings, batch_size=size, slice_map=slice_map)  # type: ignore[arg-type]
        terminal.print("\n".join(lines(facts)))
        return facts

    def do(job: "Job") -> dict[str, Any]:
        assert engine
        assert loaded
        with progress(terminal, shown(job.source.name), None) as (advance, note):
            report = lambda n, total: advance(n, "slices", total)  # noqa: E731
            done = upscale_file(engine, loaded, job, settings, volume=single, progress=report, note=note)
        if picture:
            title = f"{shown(job.source.name)} at {target:g} mm (synthetic)"
            montage(picture_path(job.output), done.low, done.output, title)
        terminal.print(f"wrote {shown(job.output)}")
        return done.facts

    records: list[dict[str, Any]] = []
    failures: list[tuple[Path, str]] = []
    try:
        for job in todo:
            record: dict[str, Any] = {"Input": str(job.source), "Output": str(job.output)}
            records.append(record)
            try:
                record |= (plan if dry_run else do)(job)
            except Exception as error:
                status = status_of(error)
                why = str(error) if status else f"{type(error).__name__}: {error}"
                record |= {"Error": why, "Status": status or 1}
                failures.append((job.source, why))
                if len(todo) == here.processes == 1:
                    raise
                if status is None:  # a mistake of ours: that the other volumes go on is no reason to hide it
                    traceback.print_exception(error)
    finally:
        if run_json:
            write_json(run_json, {"DryRun": dry_run, "Process": here.process, "Processes": here.processes, "Volumes": records})
    if failures:
        raise Exit(5 if all(record.get("Status") == 5 for record in records) else 1, failed(failures, len(todo)))


def evaluate(
    outputs: Annotated[list[str], bare("--input", "-i", help="Output file or folder; NAME=PATH to name a method; repeatable.")],
    reference: Annotated[Path, bare("--reference", "-r", help="The truth: a file, or a folder with the same names.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Where tables and pictures go.")] = Path("evaluation"),
    low: Annotated[Path | None, bare("--low", "-l", help="The low-resolution input. [default: what the sidecar names]")] = None,
    mask: Annotated[Path | None, bare("--mask", help="Voxels that count. [default: the reference's foreground]")] = None,
    as_json: AsJson = False,
) -> None:
    """Compare outputs with a reference: RMSE, PSNR, SSIM beside four interpolations, as CSV, JSON and a picture.

    Examples:

        jaxsr evaluate -i out.nii.gz -r truth.nii.gz

        jaxsr evaluate -i sr3=a/ -i student=b/ -r truth/ -l low/ -o comparison
    """
    select_device("cpu")
    from jaxsr.evaluate.compare import compare_files
    from jaxsr.files import shown

    named = [_named(text) for text in outputs]
    methods = dict(named)
    if len(methods) < len(named):
        raise typer.BadParameter("several inputs of one name: give each its own, as in -i sr3=a/ -i student=b/", param_hint="--input")
    comparison = compare_files(methods, reference, out, low=low, mask=mask)
    if as_json:
        print(json.dumps(comparison.table(), indent=2, ensure_ascii=False))
    else:
        terminal = open_console()
        print_table(terminal, comparison.table())
        for sentence in comparison.notes:
            terminal.print(f"note: {sentence}")
        terminal.print(f"wrote {', '.join(shown(path) for path in comparison.files)}")
    if comparison.failures:
        raise Exit(1, "\n".join(["some subjects failed:", *(f"  {name}: {why}" for name, why in comparison.failures.items())]))


def _named(text: str) -> tuple[str, Path]:
    """`NAME=PATH`, or a path that goes by the name 'output'."""
    name, equals, path = text.partition("=")
    return (name, Path(path)) if equals and not Path(text).exists() else ("output", Path(text))
