"""The command that degrades volumes: simulate."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from jaxsr.cli.jobs import do_each, unfinished
from jaxsr.cli.options import Device, bare, choice, select_device
from jaxsr.cli.output import open_console
from jaxsr.cli.status import Exit

if TYPE_CHECKING:
    from jaxsr.upscale.inputs import Job


def simulate(
    source: Annotated[
        Path, bare("--input", "-i", help="A high-resolution volume (.nii, .nii.gz, .mgz), a folder of them, or a .txt list.")
    ],
    output: Annotated[Path, bare("--output", "-o", help="A file for a file, a folder for several.")],
    acquisition: Annotated[
        str, typer.Option("--acquisition", "-a", help="1.5T, 3T, 64mT, thick-slice, or a .yaml file with settings of your own.")
    ] = "1.5T",
    overrides: Annotated[list[str] | None, typer.Argument(help="a.b.c=value, on top of the acquisition", show_default=False)] = None,
    same_grid: Annotated[bool, typer.Option("--same-grid", help="Bring it back to the input's voxels by interpolation.")] = False,
    interpolation: Annotated[str, typer.Option(help="linear, cubic or kspace: with --same-grid.")] = "cubic",
    volume: Annotated[int | None, bare(help="Which volume of a 4-D file, from 0.")] = None,
    nan: Annotated[str, typer.Option(help="refuse, or zero: what to do with NaN and Inf.")] = "refuse",
    seed: Annotated[int, typer.Option(min=0, help="Of what is drawn, with the name of the file.")] = 0,
    device: Device = "auto",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Redo what is done already.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be drawn and written; nothing is.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Only errors.")] = False,
) -> None:
    """Degrade high-resolution volumes as a scanner would have: each output lies on the acquired grid, in the input's orientation.

    A JSON sidecar says that it is simulated, and what was drawn. Outputs that exist are skipped. What is drawn for a file depends on its
    name and the seed alone.

    Examples:

        jaxsr simulate -i head.nii.gz -o low.nii.gz --acquisition 64mT

        jaxsr simulate -i heads/ -o thick/ -a thick-slice voxel_size.2=5 snr=[10,20] --same-grid
    """
    choice("--interpolation", interpolation, ("linear", "cubic", "kspace"))
    choice("--nan", nan, ("refuse", "zero"))
    from jaxsr.files import shown
    from jaxsr.physics.protocol import load_acquisition
    from jaxsr.simulate import Settings, plan, read_truth, simulate_file
    from jaxsr.upscale.inputs import find_jobs
    from jaxsr.upscale.sidecar import check_sidecar

    settings = Settings(load_acquisition(acquisition, overrides or []), seed, same_grid, interpolation, volume, nan)  # type: ignore[arg-type]
    jobs = find_jobs(source, output)
    terminal = open_console(quiet=quiet)
    if not jobs:
        raise Exit(3, f"{shown(source)}: no volumes to simulate from (.nii, .nii.gz, .mgz, .mgh)")
    todo = unfinished(jobs, overwrite, terminal)
    if not todo:
        return
    single = None
    if len(todo) == 1:  # what cannot be used is said before JAX is loaded
        check_sidecar(todo[0].output)
        single = read_truth(todo[0].source, settings, terminal.print)
    select_device(device)

    def do(job: "Job") -> None:
        if dry_run:
            planned = plan(job, single or read_truth(job.source, settings, terminal.print), settings)
            size, sides = (" × ".join(f"{v:g}" for v in planned[name]) for name in ("VoxelSize", "Shape"))
            terminal.print(f"{shown(job.source)} → {shown(job.output)}: {sides} voxels of {size} mm; {planned['Drawn']}")
        else:
            simulate_file(job, settings, volume=single, note=terminal.print)
            terminal.print(f"wrote {shown(job.output)}")

    do_each(todo, do)
