"""The command that distils a teacher into a student: distill."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from jaxsr.cli.encoding import augmentation
from jaxsr.cli.models import train_run
from jaxsr.cli.options import Config, Device, Overrides, bare, choice, choices, select_device
from jaxsr.cli.output import open_console, progress
from jaxsr.cli.status import Exit


def distill(
    config: Config,
    overrides: Overrides = None,
    teacher: Annotated[Path | None, bare("--teacher", "-t", help="A trained teacher: a run directory or an exported file.")] = None,
    prepared: Annotated[Path | None, bare("--set", "-s", help="The prepared set whose training scans the teacher is shown.")] = None,
    cache: Annotated[Path | None, bare("--cache", "-c", help="A folder for what the teacher makes of it.")] = None,
    run_dir: Annotated[Path | None, bare("--run-dir", "-d", help="Of the student. [default: runs/NAME_OF_CONFIG]")] = None,
    steps: Annotated[int | None, bare(min=2, help="Sampling steps of the teacher. [default: 200, as in the paper]")] = None,
    eta: Annotated[float | None, bare(min=0, max=1, help="Its η. [default: the teacher's]")] = None,
    every: Annotated[int, typer.Option(min=1, help="Decode each so many-th of its images on the way: K of Eq. 9 is then less.")] = 1,
    crop: Annotated[int | None, bare(min=8, help="Side of the squares that it is shown. [default: that of its training]")] = None,
    flat: Annotated[
        str | None, bare("--flat", help="bias,gradient or one: tell the teacher that its target shows none; not told, it draws its own.")
    ] = None,
    copies: Annotated[int, typer.Option(min=1, max=1000, help="Of each slice, each cropped, varied and sampled anew.")] = 1,
    augment: Annotated[
        str, typer.Option(help="Before the teacher: flip, off, or as in rotation=5,scale=0.1; training flips what comes out.")
    ] = "off",
    dtype: Annotated[str, typer.Option(help="Of what is stored: float16 or float32.")] = "float16",
    precision: Annotated[str | None, bare(help="Of the teacher: f32 or bf16. [default: its own]")] = None,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Slices at a time, in the teacher.")] = 16,
    seed: Annotated[int, typer.Option(min=0, help="Of crops, augmentation and noise of the teacher.")] = 0,
    only_cache: Annotated[bool, typer.Option("--only-cache", help="Do not train: what several processes do first.")] = False,
    device: Device = "auto",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what the teacher would be shown, and what that takes.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="With --dry-run: for programs.")] = False,
) -> None:
    """Run the teacher over the training scans of a prepared set, once, then train the student that CONFIG describes on what it made.

    Both go on where they were stopped. A cache knows its teacher and how that sampled, and takes no other; it is a set that
    `jaxsr train CONFIG data.manifest=CACHE` trains on too.

    Examples:

        jaxsr distill configs/student-tiny.yaml --teacher runs/teacher --set prepared --cache cache --run-dir runs/student

        jaxsr distill configs/student.yaml -t runs/teacher -s prepared -c cache --steps 200 --every 4 --precision bf16 --only-cache
    """
    for option, path in (("--teacher", teacher), ("--set", prepared), ("--cache", cache)):
        if path is None:
            raise typer.BadParameter("is needed: see `jaxsr distill --help`", param_hint=option)
    assert teacher
    assert prepared
    assert cache
    choice("--dtype", dtype, ("float16", "float32"))
    if precision is not None:
        choice("--precision", precision, ("f32", "bf16"))
    varied = augmentation(augment)
    shows_none = choices("--flat", flat, ("bias", "gradient")) if flat else ()
    from jaxsr.experiment import load_experiment

    experiment = load_experiment(config, [*(overrides or []), f"data.manifest={cache}"])
    select_device(device, apart=True)
    from jaxsr.bench.count import quantity
    from jaxsr.config import from_dict
    from jaxsr.data.augmentation import AugmentConfig
    from jaxsr.files import shown
    from jaxsr.precompute.job import make_set
    from jaxsr.precompute.plan import describe
    from jaxsr.precompute.teacher_cache import DistillSettings, maps_seen, plan_distillation
    from jaxsr.runtime.distributed import place
    from jaxsr.train.build import fitted
    from jaxsr.train.loop import check_start
    from jaxsr.upscale.model import load_model

    terminal, here = open_console(quiet=as_json), place()
    model = load_model(teacher, precision=precision, note=terminal.print)
    how: dict[str, Any] = {"every": every, "copies": copies, "augment": from_dict(varied, AugmentConfig), "dtype": dtype, "seed": seed}
    shown_to: dict[str, Any] = {"steps": steps, "eta": eta, "crop": crop, "flat": shows_none, "precision": model.experiment.precision}
    plan = plan_distillation(prepared, cache, model, **shown_to, **how)
    run_dir = run_dir or Path("runs") / config.stem
    if only_cache:
        fitted(experiment, plan.preview())  # what the student cannot learn from is not made first
    else:
        check_start(experiment, plan.preview(), run_dir)
    what, settings = describe(plan), plan.settings
    assert isinstance(settings, DistillSettings)
    told = [*settings.guided, *(f"a flat {name}" for name in settings.flat)]
    said = f"guided by {' and '.join(told)}" if told else "without guidance"
    images = maps_seen(settings.steps, every)
    if unseen := [name for name in getattr(model.experiment.method, "maps", ()) if name not in (*settings.guided, *settings.flat)]:
        terminal.print(
            f"note: the set has no {' and no '.join(unseen)}, so the teacher draws what that would tell it: prepare it with them or, where "
            "there is nothing to show, say so with --flat"
        )
    terminal.print(
        f"{len(plan.tasks)} training scans, {what['slices']} squares of {what['crop']} × {what['crop']}: {model.name} samples each in "
        f"{settings.steps} steps, {said}, and decodes {images} images on the way; "
        f"{quantity(what['bytes'], 'B', 1024)} before compression"
    )
    if plan.done:
        terminal.print(f"{plan.done} of {len(plan.tasks)} are there already; kept if their files have not changed since")
    if dry_run:
        if as_json:
            print(json.dumps({**what, "steps": settings.steps, "images": images}, indent=2))
        return
    with progress(terminal, "teacher", plan.slices) as (advance, note):
        manifest = make_set(plan, batch_size=batch_size, place=here, advance=advance, note=note)
    if manifest is None:
        terminal.print(f"process {here.process} of {here.processes} has done its part; the last to end completes {shown(cache)}")
        return
    if failed := len(plan.tasks) - len(manifest.shards):
        raise Exit(1, f"the teacher could not be shown {failed} of {len(plan.tasks)} scans: prepare {shown(prepared)} again, then run this")
    if only_cache or here.processes > 1:
        terminal.print(f"{shown(cache)} is complete: train with `jaxsr train {shown(config)} data.manifest={shown(cache)}`")
        return
    train_run(experiment, run_dir)
