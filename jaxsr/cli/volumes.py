"""Commands that work on volumes: upscale, evaluate."""

import datetime
import json
import platform
import sys
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
    from jaxsr.evaluate.tables import Comparison
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
    outputs: Annotated[
        list[str] | None, bare("--input", "-i", help="Output file or folder; NAME=PATH to name a method; repeatable.")
    ] = None,
    reference: Annotated[
        Path | None, bare("--reference", "-r", help="The truth: a file, or a folder with the same names. With --protocol: the heads.")
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Where tables and pictures go.")] = Path("evaluation"),
    low: Annotated[Path | None, bare("--low", "-l", help="The low-resolution input. [default: what the sidecar names]")] = None,
    mask: Annotated[Path | None, bare("--mask", help="Voxels that count. [default: the reference's foreground]")] = None,
    metrics: Annotated[
        str | None, bare(help="Names, the most important first, or list. [default: psnr,ssim,rmse,mae,resolution,hfen,gradient_error]")
    ] = None,
    against: Annotated[str | None, bare(help="The method that others are tested against. [default: tricubic]")] = None,
    resampling: Annotated[
        str | None, bare("--resample", help="linear or cubic: outputs on other grids are brought to the reference's. [default: refused]")
    ] = None,
    protocol: Annotated[
        Path | None,
        bare("--protocol", help="A benchmark's file, e.g. configs/protocols/2mm-to-native.yaml: heads are degraded, upscaled, scored."),
    ] = None,
    models: Annotated[
        list[str] | None, bare("--models", "--model", "-m", help="With --protocol: NAME=RUN or an exported file; repeatable.")
    ] = None,
    batch_size: BatchSize = "auto",
    device: Device = "auto",
    picture: Annotated[bool, typer.Option("--montage/--no-montage", help="Write a PNG for each subject.")] = True,
    report: Annotated[bool, typer.Option("--report", help="Write report.html, too, as `jaxsr report` does.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="With --protocol: say which heads enter, and why others do not.")] = False,
    as_json: AsJson = False,
) -> None:
    """Compare outputs with a reference beside four interpolations, or run a benchmark: tables, intervals, paired tests, pictures.

    Per-subject numbers are kept in metrics.csv and metrics.json. With --protocol, heads are degraded and upscaled by each model first;
    what an interrupted run has made is kept.

    Examples:

        jaxsr evaluate -i out.nii.gz -r truth.nii.gz

        jaxsr evaluate -i sr3=a/ -i student=b/ -r truth/ -l low/ -o comparison

        jaxsr evaluate --protocol configs/protocols/2mm-to-native.yaml -r heads/ --models sr3=runs/sr3 -o benchmark --report
    """
    if metrics == "list":
        _list_metrics()
        return
    if resampling is not None:
        choice("--resample", resampling, ("linear", "cubic"))
    if reference is None:
        raise typer.BadParameter("name the truth with -r", param_hint="--reference")
    if protocol is None and not outputs:
        raise typer.BadParameter("name what is to be compared with -i, or a benchmark with --protocol", param_hint="--input")
    for option, given in (("--models", bool(models)), ("--dry-run", dry_run)):
        if protocol is None and given:
            raise typer.BadParameter("goes with --protocol only", param_hint=option)
    taken = {"--input": outputs, "--low": low, "--metrics": metrics, "--against": against, "--resample": resampling}
    for option, value in taken.items():
        if protocol is not None and value:
            raise typer.BadParameter("the protocol says it, or makes it: leave it out", param_hint=option)
    methods = _methods(outputs or [], "--input")
    size = slices_at_a_time(batch_size)
    select_device(device)
    from jaxsr.evaluate.compare import Means, compare_files
    from jaxsr.evaluate.scores import RULES, check_metrics
    from jaxsr.files import shown

    terminal = open_console(quiet=as_json)
    provenance = {
        "command": ["jaxsr", *sys.argv[1:]],
        "made": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "device": device_in_use(),
        "platform": platform.platform(),
    }
    if protocol is not None:
        comparison = _benchmark(
            protocol, reference, _methods(models or [], "--models"), out, mask, size, picture, dry_run, provenance, terminal
        )
        if comparison is None:
            return
    else:
        try:
            rules = RULES if metrics is None else RULES._replace(metrics=check_metrics([name.strip() for name in metrics.split(",")]))
        except ValueError as error:
            raise typer.BadParameter(str(error), param_hint="--metrics") from None
        means = Means(rules, resampling, against, picture, provenance=provenance)  # type: ignore[arg-type]
        with progress(terminal, "scored", None) as (advance, _):
            told = lambda done, total: advance(done, "subjects", total) if total > 1 else None  # noqa: E731
            comparison = compare_files(methods, reference, out, low=low, mask=mask, means=means, progress=told)
    files = list(comparison.files)
    if report:
        from jaxsr.evaluate.report import write_report

        done = write_report(out, out / "report.html")
        files.append(done.path)
    if as_json:
        print(json.dumps(comparison.table(), indent=2, ensure_ascii=False))
    else:
        print_table(terminal, comparison.table(interval=True))
        for sentence in (*comparison.all_notes, *_significant(comparison)):
            terminal.print(f"note: {sentence}")
        for subject, why in comparison.left_out.items():
            terminal.print(f"{subject} {why}")
        terminal.print(f"wrote {', '.join(shown(path) for path in files)}")
    if comparison.failures:
        raise Exit(1, "\n".join(["some subjects failed:", *(f"  {name}: {why}" for name, why in comparison.failures.items())]))


def _benchmark(
    path: Path,
    source: Path,
    models: dict[str, Path],
    out: Path,
    masks: Path | None,
    batch_size: Any,
    picture: bool,
    dry_run: bool,
    provenance: dict[str, Any],
    terminal: Any,
) -> "Comparison | None":
    from jaxsr.evaluate.benchmark import find_heads, run_protocol
    from jaxsr.evaluate.protocol import load_protocol

    file = load_protocol(path)
    heads = find_heads(source, file.protocol, out)
    if dry_run:
        for subject in heads.entered:
            terminal.print(f"{subject} enters")
        for subject, why in heads.left_out.items():
            terminal.print(f"{subject} {why}")
        terminal.print(f"{len(heads.entered)} of {len(heads.entered) + len(heads.left_out)} heads enter {file.protocol.name}")
        return None
    with progress(terminal, file.protocol.name, None) as (advance, note):
        told = lambda done, total, text: advance(done, text, total)  # noqa: E731
        how: dict[str, Any] = {"masks": masks, "batch_size": batch_size, "montage": picture, "provenance": provenance}
        return run_protocol(file, heads, models, out, progress=told, note=note, **how)


def _list_metrics() -> None:
    from jaxsr.evaluate.metrics.registry import METRICS
    from jaxsr.evaluate.scores import DEFAULT, KNOWN

    better = {"higher": "higher is better", "lower": "lower is better", "zero": "nearer to zero is better"}
    for name in KNOWN:
        metric = METRICS[name]
        unit = f", {metric.unit}" if metric.unit else ""
        least = f", {metric.least} voxels a side or more" if metric.least > 1 else ""
        print(f"{name:<22}{metric.title}{unit}: {better[metric.better]}{least}{' (default)' if name in DEFAULT else ''}")


def _significant(comparison: "Comparison") -> list[str]:
    """For the mask or foreground, a sentence a method: what it differs in. None where no difference could be significant."""
    tests = [t for t in comparison.tests if t.region == comparison.tests[0].region and t.p_holm == t.p_holm]
    if not tests or any(note.startswith(f"{tests[0].region}: ") for note in comparison.all_notes):
        return []
    said = []
    for method in dict.fromkeys(t.method for t in tests):
        mine = [t for t in tests if t.method == method]
        differs = ", ".join(t.metric for t in mine if t.p_holm < 0.05) or "no metric"
        said.append(f"{method} differs from {mine[0].against} ({mine[0].region}, Holm p < 0.05, n = {mine[0].n}) in {differs}")
    return said


def _methods(texts: list[str], option: str) -> dict[str, Path]:
    """Name → path of `NAME=PATH`, or of a path, which goes by the name 'output' or, if a model, its own."""
    methods: dict[str, Path] = {}
    for text in texts:
        name, equals, path = text.partition("=")
        if not equals or Path(text).exists():
            name, path = "output" if option == "--input" else Path(text).stem, text
        if name in methods:
            raise typer.BadParameter(f"several of the name {name}: give each its own, as in sr3=a/ student=b/", param_hint=option)
        methods[name] = Path(path)
    return methods
