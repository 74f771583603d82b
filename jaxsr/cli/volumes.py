"""Commands that compare volumes: evaluate."""

import datetime
import json
import platform
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jaxsr.cli.findings import list_metrics, significant
from jaxsr.cli.options import (
    AsJson,
    BatchSize,
    Device,
    bare,
    choice,
    device_in_use,
    select_device,
    slices_at_a_time,
)
from jaxsr.cli.output import open_console, print_table, progress
from jaxsr.cli.status import Exit
from jaxsr.weights.standard import named_model

if TYPE_CHECKING:
    from jaxsr.evaluate.lpips_weights import LpipsWeights
    from jaxsr.evaluate.scores import Rules
    from jaxsr.evaluate.tables import Comparison


def evaluate(
    outputs: Annotated[
        list[str] | None, bare("--input", "-i", help="Output file or folder; NAME=PATH to name a method; repeatable.")
    ] = None,
    reference: Annotated[
        Path | None,
        bare(
            "--reference",
            "-r",
            help="The truth: a file, or a folder with the same names; with --protocol the heads, or a .txt list, if it renders none.",
        ),
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Where tables and pictures go.")] = Path("evaluation"),
    low: Annotated[Path | None, bare("--low", "-l", help="The low-resolution input. [default: what the sidecar names]")] = None,
    mask: Annotated[Path | None, bare("--mask", help="Voxels that count. [default: the reference's foreground]")] = None,
    metrics: Annotated[
        str | None, bare(help="Names, the most important first, or list. [default: psnr,ssim,rmse,mae,resolution,coarsest_resolution,hfen]")
    ] = None,
    lpips_weights: Annotated[
        Path | None,
        bare(
            "--lpips-weights",
            help="LPIPS' published weights (`jaxsr weights import lpips` makes the file): lpips is a metric then, also by default.",
        ),
    ] = None,
    labels: Annotated[
        str | None,
        bare("--labels", help="Files are label maps, compared in all labels, in some (2,3,41) or in those of a table (…_dseg.tsv)."),
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
        list[str] | None, bare("--models", "--model", "-m", help="With --protocol: NAME=RUN, an exported file, or standard; repeatable.")
    ] = None,
    batch_size: BatchSize = "auto",
    device: Device = "auto",
    picture: Annotated[bool, typer.Option("--montage/--no-montage", help="Write a PNG for each subject.")] = True,
    report: Annotated[bool, typer.Option("--report", help="Write report.html, too, as `jaxsr report` does.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="With --protocol: say which heads enter, and why others do not.")] = False,
    as_json: AsJson = False,
) -> None:
    """Compare outputs, or their segmentations, with a reference, or run a benchmark: tables, intervals, paired tests, pictures.

    Four interpolations of the input stand beside images. Per-subject numbers are kept in metrics.csv and metrics.json. With --protocol,
    heads are degraded and upscaled by each model first; what an interrupted run has made is kept.

    Examples:

        jaxsr evaluate -i out.nii.gz -r truth.nii.gz

        jaxsr evaluate -i sr3=a/ -i student=b/ -r truth/ -l low/ -o comparison

        jaxsr evaluate -i sr3=a_seg/ -i tricubic=b_seg/ -r truth_seg/ --labels all -o segmented

        jaxsr evaluate --protocol configs/protocols/2mm-to-native.yaml -r heads/ --models sr3=runs/sr3 -o benchmark --report

        jaxsr evaluate --protocol configs/ablations/guidance.yaml --models teacher=runs/teacher -o table1 --report
    """
    if metrics == "list":
        list_metrics()
        return
    if resampling is not None:
        choice("--resample", resampling, ("linear", "cubic"))
    of_images = {"--protocol": protocol, "--low": low, "--mask": mask, "--metrics": metrics, "--resample": resampling}
    for option, image_only in (of_images | {"--lpips-weights": lpips_weights}).items():
        if labels is not None and image_only:
            raise typer.BadParameter(
                "is for images, and --labels for label maps, which are compared as they are: leave it out", param_hint=option
            )
    if reference is None and protocol is None:
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
    from jaxsr.evaluate.labels import compare_labels
    from jaxsr.evaluate.origin import origin
    from jaxsr.evaluate.scores import RULES
    from jaxsr.evaluate.written import check_page
    from jaxsr.files import shown

    if report and not dry_run:
        check_page(out / "report.html")  # before hours of work
    terminal = open_console(quiet=as_json)
    provenance = {
        "command": ["jaxsr", *sys.argv[1:]],
        "made": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "device": device_in_use(),
        "platform": platform.platform(),
        **origin(),
    }
    if protocol is not None:
        comparison = _benchmark(
            protocol, reference, _methods(models or [], "--models"), out, mask, lpips_weights, size, picture, dry_run, provenance, terminal
        )
        if comparison is None:
            return
    else:
        rules = RULES if labels is not None else _rules(metrics, lpips_weights)
        means = Means(rules, resampling, against, picture, provenance=provenance)  # type: ignore[arg-type]
        assert reference
        with progress(terminal, "scored", None) as (advance, _):
            told = lambda done, total: advance(done, "subjects", total) if total > 1 else None  # noqa: E731
            if labels is not None:
                comparison = compare_labels(methods, reference, out, labels, means=means, progress=told)
            else:
                comparison = compare_files(methods, reference, out, low=low, mask=mask, means=means, progress=told)
    files = list(comparison.files)
    if report:
        from jaxsr.evaluate.report import write_report

        done = write_report(out, out / "report.html")
        files.append(done.path)
    if as_json:
        print(json.dumps(comparison.table(), indent=2, ensure_ascii=False))
    else:
        print_table(terminal, comparison.table(interval=not comparison.labels))  # a line a label and method
        for sentence in (*comparison.all_notes, *significant(comparison)):
            terminal.print(f"note: {sentence}")
        for subject, why in comparison.left_out.items():
            terminal.print(f"{subject} {why}")
        terminal.print(f"wrote {', '.join(shown(path) for path in files)}")
    if comparison.failures:
        raise Exit(1, "\n".join(["some subjects failed:", *(f"  {name}: {why}" for name, why in comparison.failures.items())]))


def _benchmark(
    path: Path,
    source: Path | None,
    models: dict[str, Path],
    out: Path,
    masks: Path | None,
    lpips_weights: Path | None,
    batch_size: Any,
    picture: bool,
    dry_run: bool,
    provenance: dict[str, Any],
    terminal: Any,
) -> "Comparison | None":
    from jaxsr.evaluate.benchmark import run_protocol
    from jaxsr.evaluate.heads import NoHeads, find_heads
    from jaxsr.evaluate.protocol import load_protocol
    from jaxsr.evaluate.rendered import planned_heads, rendered_note
    from jaxsr.evaluate.runs import guidance_notes, runs_of

    file = load_protocol(path)
    if file.protocol.heads is not None and source is not None:
        raise typer.BadParameter(f"{file.protocol.name} renders its own heads: leave it out", param_hint="--reference")
    lpips = _lpips(file.protocol.metrics, lpips_weights, f"the protocol {file.protocol.name}")
    if source is not None:
        heads = find_heads(source, file.protocol, out)
    elif file.protocol.heads is not None:
        heads = planned_heads(file.protocol, out)
    else:
        raise typer.BadParameter(f"name the heads with -r: {file.protocol.name} renders none", param_hint="--reference")
    if dry_run:
        for sentence in filter(None, (rendered_note(file.protocol), *guidance_notes(runs_of(file.protocol, models)))):
            terminal.print(sentence)
        for subject in heads.entered:
            terminal.print(f"{subject} enters")
        for subject, why in heads.left_out.items():
            terminal.print(f"{subject} {why}")
        terminal.print(f"{len(heads.entered)} of {len(heads.entered) + len(heads.left_out)} heads enter {file.protocol.name}")
        if not heads.entered:
            raise NoHeads(f"no head enters {file.protocol.name}: the list above says why")
        return None
    with progress(terminal, file.protocol.name, None) as (advance, note):
        told = lambda done, total, text: advance(done, text, total)  # noqa: E731
        how: dict[str, Any] = {"masks": masks, "lpips": lpips, "batch_size": batch_size, "montage": picture, "provenance": provenance}
        return run_protocol(file, heads, models, out, progress=told, note=note, **how)


def _rules(metrics: str | None, lpips_weights: Path | None) -> "Rules":
    """What --metrics and --lpips-weights ask for."""
    from jaxsr.evaluate.lpips_weights import NAME
    from jaxsr.evaluate.scores import DEFAULT, RULES, check_metrics

    names = [*DEFAULT, *([NAME] if lpips_weights else [])] if metrics is None else [name.strip() for name in metrics.split(",")]
    try:
        known = check_metrics(names)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--metrics") from None
    return RULES._replace(metrics=known, lpips=_lpips(known, lpips_weights, "--metrics"))


def _lpips(metrics: Sequence[str], path: Path | None, where: str) -> "LpipsWeights | None":
    """The weights in the file, where metrics have lpips, and the file is named; usage errors where only one of it is so."""
    from jaxsr.evaluate.lpips_weights import check_lpips, read_lpips

    try:
        check_lpips(metrics, path, where)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--lpips-weights") from None
    return None if path is None else read_lpips(path)


def _methods(texts: list[str], option: str) -> dict[str, Path]:
    """Name → path of `NAME=PATH`, or of a path, which goes by the name 'output' or, if a model, its own."""
    methods: dict[str, Path] = {}
    for text in texts:
        name, equals, path = text.partition("=")
        if not equals or Path(text).exists():
            name, path = "output" if option == "--input" else Path(text).stem, text
        if name in methods:
            raise typer.BadParameter(f"several of the name {name}: give each its own, as in sr3=a/ student=b/", param_hint=option)
        methods[name] = named_model(Path(path)) if option == "--models" else Path(path)
    return methods
