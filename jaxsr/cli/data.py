"""Commands that make data sets: prepare, generate."""

import json
import math
from pathlib import Path
from typing import Annotated, Any

import typer

from jaxsr.cli.encoding import check_options
from jaxsr.cli.encoding import encode as encode_set
from jaxsr.cli.options import AsJson, Device, bare, choice, choices, select_device
from jaxsr.cli.output import open_console, print_table, progress
from jaxsr.cli.status import Exit


def prepare(
    context: typer.Context,
    root: Annotated[Path, typer.Argument(help="The data set, as it was downloaded; with --encode a prepared set.", show_default=False)],
    out: Annotated[Path, typer.Argument(help="A folder for the prepared set.", show_default=False)],
    layout: Annotated[
        str | None, bare("--layout", "-l", help="folder, bids, openneuro, hcp, ixi, fastmri, dhcp or brats (docs/datasets.md).")
    ] = None,
    high: Annotated[str | None, bare(help="Contrast of the truth, as in T1w. [default: the layout's]")] = None,
    low: Annotated[str | None, bare(help="Contrast of the real low-resolution scan. [default: none, one is simulated]")] = None,
    reference: Annotated[str | None, bare(help="Contrast of a second scan to register to the truth. [default: none]")] = None,
    high_in: Annotated[str | None, bare(help="What else tells the truth: an entity (acq-highres, ses-7T) or a folder.")] = None,
    low_in: Annotated[str | None, bare(help="The same of the low-resolution scan.")] = None,
    voxel_size: Annotated[float, typer.Option("--voxel-size", min=0.1, max=10, help="Millimetres of the target.")] = 1.0,
    axes: Annotated[str, typer.Option(help="all, or some of sagittal,coronal,axial: what slices are cut across.")] = "all",
    acquisition: Annotated[
        str, typer.Option("--acquisition", "-a", help="Simulated where no low scan is real: 1.5T, 3T, 64mT, thick-slice or a .yaml file.")
    ] = "1.5T",
    visits: Annotated[int, typer.Option(min=1, max=1000, help="Simulated acquisitions of each scan.")] = 1,
    interpolation: Annotated[str, typer.Option(help="linear, cubic or kspace: from the low grid to the target's.")] = "cubic",
    register: Annotated[str, typer.Option(help="rigid, affine, or off: other scans to the truth.")] = "rigid",
    bias: Annotated[str, typer.Option(help="correct (N4, and keep the map), map (keep the map only), or off.")] = "correct",
    gradient: Annotated[Path | None, bare(help="The coil's coefficients (text) or a displacement volume: adds a map.")] = None,
    convention: Annotated[str, typer.Option("--gradient-convention", help="ras, lps, fsl or fsl-absolute.")] = "ras",
    isocentre: Annotated[str, typer.Option(help="Of the magnet, in scanner mm, for --gradient with coefficients.")] = "0,0,0",
    extra: Annotated[str | None, bare("--with", help="Maps of the data set to keep: some of labels,mask,gradient,jacobian.")] = None,
    least_tissue: Annotated[float, typer.Option(min=0, max=1, help="Share of a slice that must be tissue.")] = 0.05,
    dtype: Annotated[str, typer.Option(help="float16 or float32.")] = "float16",
    nan: Annotated[str, typer.Option(help="refuse, or zero: what to do with NaN and Inf.")] = "refuse",
    split: Annotated[
        str, typer.Option(help="stable (adding people moves nobody) or exact (8:1:1 of the people that there are).")
    ] = "stable",
    splits: Annotated[Path | None, bare(help="A table (participant, split) of people whose split is settled.")] = None,
    families: Annotated[Path | None, bare(help="A table (subject, family): relatives stay in one split.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the simulation; with --encode of crops and augmentation.")] = 0,
    split_seed: Annotated[int, typer.Option("--split-seed", min=0, help="Of the split.")] = 0,
    workers: Annotated[int | None, bare(min=1, help="Processes. [default: one a core, as memory allows]")] = None,
    encode: Annotated[Path | None, bare(help="Encode a prepared set: a run directory, exported file or imported autoencoder.")] = None,
    image_encoder: Annotated[Path | None, bare("--image-encoder", help="With --encode: imported weights of CLIP.")] = None,
    tokens: Annotated[str, typer.Option(help="With --image-encoder: pooled, or patches: all tokens too.")] = "pooled",
    crop: Annotated[int | None, bare(min=8, help="With --encode: side of the squares. [default: the autoencoder's, or 256]")] = None,
    copies: Annotated[int, typer.Option(min=1, max=1000, help="With --encode: of each slice, each cropped and varied anew.")] = 1,
    augment: Annotated[str, typer.Option(help="With --encode: flip, off, or as in rotation=5,scale=0.1 (as data.augment).")] = "flip",
    keep: Annotated[str | None, bare(help="With --encode: keep images: high (lambda_rec > 0), low (a trained image encoder).")] = None,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="With --encode: slices at a time.")] = 16,
    precision: Annotated[str, typer.Option(help="With --encode: f32 or bf16, of the computation.")] = "f32",
    device: Device = "auto",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what was found and what would be done.")] = False,
    as_json: AsJson = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Only errors.")] = False,
) -> None:
    """Make a training-ready set: corrected, registered, resampled, cut into slices, split by person; or encode one for a teacher.

    Writes shards, manifest.json, summary.html and contact_sheet.png. The same command goes on where it was stopped; the result is the same,
    byte for byte. Exit status 1 if a scan was rejected.

    Examples:

        jaxsr prepare /data/ds000001 prepared/t1w --layout bids --high T1w --reference T2w

        jaxsr prepare /data/hcp prepared/hcp --layout hcp --voxel-size 0.7 --acquisition 3T

        jaxsr train configs/sr3.yaml data.manifest=prepared/hcp

        jaxsr prepare prepared/hcp encoded/hcp --encode runs/autoencoder --copies 4
    """
    check_options(context, encode is not None)
    if encode:
        choice("--dtype", dtype, ("float16", "float32"))
        how: dict[str, Any] = {"image_encoder": image_encoder, "tokens": tokens, "crop": crop, "copies": copies, "augment": augment}
        how |= {"keep": keep, "dtype": dtype, "precision": precision, "batch_size": batch_size, "seed": seed, "device": device}
        return encode_set(root, out, encode, **how, dry_run=dry_run, as_json=as_json, quiet=quiet)
    if layout is None:
        raise typer.BadParameter("how is the data set laid out? docs/datasets.md says which layouts there are", param_hint="--layout")
    for option, value, known in (
        ("--interpolation", interpolation, ("linear", "cubic", "kspace")),
        ("--register", register, ("rigid", "affine", "off")),
        ("--bias", bias, ("correct", "map", "off")),
        ("--dtype", dtype, ("float16", "float32")),
        ("--nan", nan, ("refuse", "zero")),
        ("--split", split, ("stable", "exact")),
        ("--gradient-convention", convention, ("ras", "lps", "fsl", "fsl-absolute")),
    ):
        choice(option, value, known)
    kept = tuple(part.strip() for part in extra.split(",")) if extra else ()
    for part in kept:
        choice("--with", part, ("labels", "mask", "gradient", "jacobian"))
    if gradient and "gradient" in kept:
        raise typer.BadParameter("the displacement comes from --gradient or from the data set: leave one out", param_hint="--with")

    from jaxsr.data.layouts import Wanted, problems_report
    from jaxsr.data.splits import read_splits
    from jaxsr.files import shown
    from jaxsr.physics.protocol import load_acquisition
    from jaxsr.prepare import job
    from jaxsr.prepare.settings import PrepareSettings
    from jaxsr.prepare.summary import split_counts

    settings = PrepareSettings(
        layout=layout,
        wanted=Wanted(high=high, low=low, reference=reference, high_in=high_in, low_in=low_in, families=families),
        voxel_size=voxel_size,
        axes=choices("--axes", axes, ("sagittal", "coronal", "axial")),  # type: ignore[arg-type]
        acquisition=load_acquisition(acquisition, []),
        visits=visits,
        interpolation=interpolation,  # type: ignore[arg-type]
        registration=register,  # type: ignore[arg-type]
        bias=bias,  # type: ignore[arg-type]
        gradient=job.sha256_of(gradient) if gradient else None,
        extra=kept,  # type: ignore[arg-type]
        least_tissue=least_tissue,
        dtype=dtype,  # type: ignore[arg-type]
        nan=nan,  # type: ignore[arg-type]
        convention=convention,  # type: ignore[arg-type]
        isocentre=_point(isocentre),
        seed=seed,
        split=split,  # type: ignore[arg-type]
        split_seed=split_seed,
    )
    terminal = open_console(quiet=quiet or as_json)
    plan = job.plan(root, out, settings, gradient=gradient, splits=read_splits(splits) if splits else None)
    terminal.print(problems_report(plan.found))
    if plan.done:
        terminal.print(f"{plan.done} of {len(plan.tasks)} are there already; kept if their files have not changed since")
    if not plan.tasks:
        raise Exit(3, f"{shown(root)}: nothing to prepare for --layout {layout}; docs/datasets.md says what it looks for")
    if any("low" not in scan.files for scan in plan.found.scans) and (said := job.degradation_note(settings)):
        terminal.print(f"note: {said}")
    if dry_run:
        if as_json:
            print(json.dumps(job.describe(plan), indent=2))
        else:
            terminal.print("\n".join(job.scan_lines(plan)))
            terminal.print("names only so far: whether a file can be used is seen when it is read")
        return
    with progress(terminal, "preparing", len(plan.tasks)) as (advance, note):
        manifest = job.prepare(plan, workers=workers, advance=advance, note=note)
    counts = split_counts(manifest)
    if as_json:
        print(json.dumps({"manifest": str(out / "manifest.json"), "splits": counts, "rejected": len(manifest.rejected)}))
    else:
        names = ("people", "scans", "slices")
        rows = [{"split": split, **dict(zip(names, map(str, numbers), strict=True))} for split, numbers in counts.items()]
        print_table(terminal, rows)
        if empty := [name for name, (people, _, _) in counts.items() if not people]:
            terminal.print(f"note: nobody is in {' and '.join(empty)}: few people need --splits TABLE, or from 10 on --split exact")
        terminal.print(f"Look at {shown(out / 'summary.html')}; train with data.manifest={shown(out)}")
    if failed := len(plan.tasks) - len(manifest.shards):
        raise Exit(1, f"{failed} of {len(plan.tasks)} scans were rejected; {shown(out / 'summary.html')} says why")


def _point(text: str) -> tuple[float, float, float]:
    try:
        x, y, z = (float(part) for part in text.split(","))
    except ValueError:
        raise typer.BadParameter(f"'{text}' is not a point X,Y,Z in mm, as in 0,0,-12.5", param_hint="--isocentre") from None
    if not all(map(math.isfinite, (x, y, z))):
        raise typer.BadParameter(f"'{text}' is not a point in mm", param_hint="--isocentre")
    return x, y, z


def generate(
    out: Annotated[Path, bare("--out", "-o", help="A folder for the heads.")],
    count: Annotated[int, typer.Option("--count", "-n", min=1, help="How many.")] = 16,
    labels: Annotated[Path | None, bare(help="A folder of label maps. [default: the embedded tissue maps]")] = None,
    voxel_size: Annotated[float, typer.Option("--voxel-size", min=0.3, max=10, help="Millimetres.")] = 1.0,
    contrast: Annotated[str, typer.Option(help="random, T1w, T2w or PDw; with --labels FLAIR too.")] = "random",
    extra: Annotated[
        str | None,
        bare(
            "--with",
            help="Maps to write too: some of reference,bias,gradient,labels,mask, or all of these; or plain: without what is carried.",
        ),
    ] = None,
    carry: Annotated[
        str | None, bare("--carry", help="What of the target scanner shows in the heads: bias,gradient. [default: bias, if it is written]")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of everything that is drawn.")] = 0,
    device: Device = "auto",
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Only errors.")] = False,
) -> None:
    """Write synthetic heads as NIfTI files, as `prepare --layout folder` reads them. Heads that are there already stay.

    Examples:

        jaxsr generate -o heads -n 32

        jaxsr generate -o heads --labels label_maps/ --with labels,reference && jaxsr prepare heads set --layout folder --with labels
    """
    choice("--contrast", contrast, ("random", "T1w", "T2w", "PDw", *(["FLAIR"] if labels else [])))
    usual = ("reference", "bias", "gradient", "labels", "mask")
    maps = () if not extra else usual if extra == "all" else choices("--with", extra, (*usual, "plain"))
    carries = None if carry is None else choices("--carry", carry, ("bias", "gradient"))
    select_device(device)
    from jaxsr.files import shown
    from jaxsr.generate import generate as run

    terminal = open_console(quiet=quiet)
    with progress(terminal, "rendering", count) as (advance, note):
        how = {"labels": labels, "voxel_size": voxel_size, "contrast": contrast, "maps": maps, "carries": carries, "seed": seed}
        written = run(out, count, **how, advance=advance, note=note)  # type: ignore[arg-type]
    beside = [name for name in maps if name in ("labels", "mask", "gradient")]
    options = "".join(
        [
            f" --voxel-size {voxel_size:g}" if voxel_size != 1 else "",
            " --reference reference" if "reference" in maps else "",
            f" --with {','.join(beside)}" if beside else "",
        ]
    )
    terminal.print(f"{len(written)} heads in {shown(out)}/high; next: jaxsr prepare {shown(out)} SET --layout folder{options}")
