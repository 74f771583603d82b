"""The command that says what tissue is where: segment."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from jaxsr.cli.jobs import do_each, unfinished
from jaxsr.cli.options import BatchSize, Device, bare, choice, choices, select_device, slices_at_a_time
from jaxsr.cli.output import open_console, progress
from jaxsr.cli.status import Exit

if TYPE_CHECKING:
    from jaxsr.upscale.inputs import Job


def segment(
    source: Annotated[Path, bare("--input", "-i", help="A volume (.nii, .nii.gz, .mgz), a folder of them, or a .txt list.")],
    output: Annotated[Path, bare("--output", "-o", help="A file for a file, a folder for several.")],
    model: Annotated[
        Path | None,
        bare("--model", "-m", help="A run directory, or a file made by `jaxsr export`: of kind anatomy, or spcdd with a prior."),
    ] = None,
    masks: Annotated[bool, typer.Option("--masks", help="Write how likely each voxel is each tissue too, a volume a tissue.")] = False,
    axes: Annotated[str, typer.Option(help="all, or some of sagittal,coronal,axial: what is seen along each is averaged.")] = "all",
    volume: Annotated[int | None, bare(help="Which volume of a 4-D file, from 0.")] = None,
    nan: Annotated[str, typer.Option(help="refuse, or zero: what to do with NaN and Inf.")] = "refuse",
    batch_size: BatchSize = "auto",
    precision: Annotated[str | None, bare(help="f32 or bf16. [default: the model's]")] = None,
    device: Device = "auto",
    picture: Annotated[bool, typer.Option("--montage/--no-montage", help="Write a PNG beside each output.")] = True,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Redo what is done already.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Only errors.")] = False,
) -> None:
    """Say what tissue each voxel of a scan is: a label map on the scan's own grid, in its orientation, by a network.

    A JSON sidecar says which number is which tissue, how many millilitres each has, and how it was made. Outputs that exist are skipped.
    With --masks, OUT_mask-grey.nii.gz and the like lie beside it. Networks know voxels of the size that they were trained for.

    Examples:

        jaxsr train configs/anatomy.yaml --run-dir runs/anatomy

        jaxsr segment -i scan.nii.gz -o tissues.nii.gz --model runs/anatomy

        jaxsr segment -i scans/ -o tissues/ --model runs/spcdd --masks --axes axial
    """
    axis_names = choices("--axes", axes, ("sagittal", "coronal", "axial"))
    choice("--nan", nan, ("refuse", "zero"))
    if precision is not None:
        choice("--precision", precision, ("f32", "bf16"))
    size = slices_at_a_time(batch_size)
    if model is None:
        raise Exit(4, "no model named: pass --model RUN, a run directory made by `jaxsr train configs/anatomy.yaml`")
    from jaxsr.files import shown
    from jaxsr.upscale.inputs import find_jobs, read_scan
    from jaxsr.upscale.sidecar import check_maps, check_sidecar, mask_names

    terminal = open_console(quiet=quiet)
    jobs = find_jobs(source, output)
    if not jobs:
        raise Exit(3, f"{shown(source)}: no volumes to segment (.nii, .nii.gz, .mgz, .mgh)")
    todo = unfinished(jobs, overwrite, terminal)
    if not todo:
        return
    single = None
    if len(jobs) == 1:  # what cannot be used is said before JAX and the model are loaded
        check_sidecar(todo[0].output, picture=picture)
        single = read_scan(todo[0].source, axis_names, volume, nan, terminal.print)  # type: ignore[arg-type]

    select_device(device)
    from jaxsr.train.build import build_method
    from jaxsr.upscale.engine import tissues_of
    from jaxsr.upscale.model import load_model, read_experiment
    from jaxsr.upscale.segment import Settings, make_segmenter, segment_file

    experiment = read_experiment(model)
    tissues = tissues_of(build_method(experiment))
    if not tissues:
        without = " without a prior" if experiment.method.kind == "spcdd" else ""
        raise typer.BadParameter(
            f"{shown(model)} is of kind {experiment.method.kind}{without}, which tells no tissues apart: "
            "name one of kind anatomy, or of kind spcdd with a prior",
            param_hint="--model",
        )
    if masks:
        check_maps(jobs, mask_names(tissues))
    loaded = load_model(model, precision=precision, note=terminal.print, frozen=("anatomy",))  # no autoencoder is asked
    engine = make_segmenter(loaded, size)
    settings = Settings(axis_names, volume, nan, masks, picture)  # type: ignore[arg-type]

    def do(job: "Job") -> None:
        with progress(terminal, shown(job.source.name), None) as (advance, note):
            report = lambda n, total: advance(n, "slices", total)  # noqa: E731
            done = segment_file(engine, loaded, job, settings, volume=single, progress=report, note=note)
        for path in done.paths:
            terminal.print(f"wrote {shown(path)}")
        sizes = done.facts["JaxSR"]["Millilitres"]
        terminal.print(", ".join(f"{name} {sizes[name]:.0f} ml" for name in tissues[1:]))

    do_each(todo, do)
