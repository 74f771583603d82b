"""Commands that look: inspect, doctor, config, bench."""

import json
import os
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from jaxsr.cli.options import (
    AsJson,
    BatchSize,
    Config,
    Device,
    Overrides,
    bare,
    check_sampling,
    check_voxel_size,
    choice,
    failed,
    select_device,
    slices_at_a_time,
)
from jaxsr.cli.output import open_console, print_result
from jaxsr.cli.status import Exit


def inspect(
    files: Annotated[list[Path], typer.Argument(help="Volumes, folders of them, or .txt lists.", show_default=False)],
    to_mm: Annotated[float | None, bare(help="Voxel size of the output. [default: the model's, or as it is]")] = None,
    model: Annotated[Path | None, bare("--model", "-m", help="The run directory or exported file whose voxel size is meant.")] = None,
    volume: Annotated[int | None, bare(help="Which volume of a 4-D file, from 0.")] = None,
    nan: Annotated[str, typer.Option(help="refuse, or zero: what to do with NaN and Inf.")] = "refuse",
    as_json: AsJson = False,
) -> None:
    """Say what `upscale` would make of each file: how it is stored, what is odd, and whether it can be used. Nothing is computed.
    Of a folder that `prepare` wrote, whether its shards are as they were written, and what is in them.

    Exit status 0 where all can be used, 2 where the only one cannot, 1 where some of several cannot.

    Examples:

        jaxsr inspect scan.nii.gz --to-mm 0.7

        jaxsr inspect scans/ --json
    """
    choice("--nan", nan, ("refuse", "zero"))
    check_voxel_size(to_mm)
    if len(files) == 1 and (files[0].name == "manifest.json" or (files[0] / "manifest.json").is_file()):
        _inspect_set(files[0], as_json)
        return
    from jaxsr.upscale import inspect as job
    from jaxsr.upscale.inputs import find_sources

    paths = [path for given in files for path in find_sources(given)[0]]
    if not paths:
        raise Exit(3, "no volumes to inspect (.nii, .nii.gz, .mgz, .mgh)")
    target = to_mm or (_voxel_size_of(model) if model else None)
    reports = []
    for path in paths:
        report = job.inspect(path, to_mm=target, volume=volume, nan=nan)  # type: ignore[arg-type]
        reports.append(report)
        if not as_json:
            print(report["path"])
            print("\n".join(f"  {name:>14}  {value}" for name, value in job.lines(report)))
    if as_json:
        print(json.dumps(reports, indent=2, allow_nan=False))
    wrong = [(path, report["problem"]) for path, report in zip(paths, reports, strict=True) if not report["usable"]]
    if wrong:
        raise Exit(1, failed(wrong, len(paths))) if len(paths) > 1 else Exit(2, wrong[0][1])


def _inspect_set(path: Path, as_json: bool) -> None:
    """Reads a prepared set to its last byte and says what it is."""
    from jaxsr.data.records import verify
    from jaxsr.prepare.summary import split_counts

    manifest = verify(path)
    counts = split_counts(manifest)
    if as_json:
        facts = {"maps": manifest.maps, "voxel_size": manifest.voxel_size, "dtype": manifest.dtype, "made_by": manifest.made_by}
        print(json.dumps({**facts, "splits": counts, "shards": len(manifest.shards)}))
        return
    print(f"{path}: {len(manifest.shards)} shards as they were written, {manifest.voxel_size:g} mm, {', '.join(manifest.maps)}")
    for split, (people, scans, slices) in counts.items():
        print(f"  {split:>14}  {people} people, {scans} scans, {slices} slices")


def _voxel_size_of(model: Path) -> float:
    from jaxsr.upscale.model import read_experiment

    return read_experiment(model).data.voxel_size


def doctor(as_json: AsJson = False, device: Device = "auto") -> None:
    """Say what this machine offers, and what is wrong with it. Exit status 1 if something is."""
    select_device(device, check=device != "auto")
    from jaxsr.doctor import problems, report

    found = report()
    wrong = problems(found)
    if as_json:
        print(json.dumps({**found, "problems": wrong}, indent=2, default=str))
    else:
        terminal = open_console()
        for key, value in found.items():
            terminal.print(f"{key:>20}  {json.dumps(value, default=str) if isinstance(value, dict | list) else value}")
        for sentence in wrong:
            terminal.print(f"problem: {sentence}", style="red")
        if not wrong:
            terminal.print("no problems found")
    raise typer.Exit(1 if wrong else 0)


def config_show(config: Config, overrides: Overrides = None) -> None:
    """Print the whole configuration, with bases, overrides and defaults resolved."""
    from jaxsr.config import dump
    from jaxsr.experiment import load_experiment

    print(dump(load_experiment(config, overrides or [])), end="")


def config_validate(configs: Annotated[list[Path], typer.Argument(help="YAML files.", show_default=False)]) -> None:
    """Check configurations; every error at once, each with its path."""
    from jaxsr.config import ConfigError
    from jaxsr.experiment import load_experiment

    wrong = []
    for path in configs:
        try:
            load_experiment(path)
            print(f"{path}: fine")
        except ConfigError as error:
            wrong.append(f"{path}:\n{error}")
    if wrong:
        raise Exit(2, "\n".join(wrong))


def bench_count(
    config: Config,
    overrides: Overrides = None,
    size: Annotated[int | None, bare(help="Side of a slice in pixels. [default: data.crop]")] = None,
    as_json: AsJson = False,
) -> None:
    """Parameters and multiply-adds of every part, from shapes alone: nothing is allocated.

    Example:

        jaxsr bench count configs/sr3.yaml --size 128
    """
    select_device("cpu")
    from jaxsr.bench import count
    from jaxsr.experiment import load_experiment

    result = count.count(load_experiment(config, overrides or []), size)
    print_result(result, count.describe(result), as_json)


def bench_train(
    config: Config,
    overrides: Overrides = None,
    steps: Annotated[int, typer.Option(min=1, help="Steps measured.")] = 20,
    warmup: Annotated[int, typer.Option(min=0, help="Steps before.")] = 3,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Time the training step of CONFIG on synthetic slices."""
    select_device(device)
    from jaxsr.bench import train as bench
    from jaxsr.experiment import load_experiment

    result = bench.bench_train(load_experiment(config, overrides or []), steps, warmup)
    print_result(result, bench.describe(result), as_json)


def bench_data(
    config: Config,
    overrides: Overrides = None,
    workers: Annotated[str, typer.Option(help="Threads to measure with, one after the other.")] = "0,1,2,4",
    seconds: Annotated[float, typer.Option(min=0.1, help="For each of them.")] = 5.0,
    synthetic: Annotated[int | None, bare(min=1, help="Write a prepared set of so many scans for this, and delete it.")] = None,
    cold: Annotated[bool, typer.Option("--cold", help="Have the system forget the shards before each measurement (Linux).")] = False,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Count the slices that CONFIG's input gives a second: from data.manifest, data.volumes, data.labels or the embedded anatomy.

    Examples:

        jaxsr bench data configs/sr3-small.yaml data.manifest=prepared/ data.crop=256

        jaxsr bench data configs/sr3-small.yaml data.crop=256 data.augment.rotation=5 --synthetic 20
    """
    counts = [part.strip() for part in workers.split(",")]
    if not all(part.isascii() and part.isdigit() for part in counts):
        raise typer.BadParameter(f"'{workers}' is no list of numbers, as in 0,1,2,4", param_hint="--workers")
    if cold and not hasattr(os, "posix_fadvise"):
        raise typer.BadParameter("this system cannot be asked to forget files", param_hint="--cold")
    from jaxsr.experiment import load_experiment

    experiment = load_experiment(config, overrides or [])
    if synthetic and (experiment.data.manifest or experiment.data.volumes or experiment.data.labels):
        raise typer.BadParameter("the config names a set already", param_hint="--synthetic")
    select_device(device)
    from jaxsr.bench import data as bench
    from jaxsr.bench.synthetic import synthetic_set

    with tempfile.TemporaryDirectory(prefix="jaxsr-bench-") as folder:
        if synthetic:
            manifest = synthetic_set(Path(folder), synthetic, side=experiment.data.crop, maps=experiment.data.maps)
            data = experiment.data.model_copy(update={"manifest": manifest, "voxel_size": 1.0})
            experiment = experiment.model_copy(update={"data": data})
        result = bench.bench_data(experiment, [int(part) for part in counts], seconds, cold)
    print_result(result, bench.describe(result), as_json)


def bench_upscale(
    config: Config,
    overrides: Overrides = None,
    shape: Annotated[str, typer.Option(help="Voxels of the volume.")] = "96,96,96",
    sampling_steps: Annotated[int | None, bare(min=1, help="[default: the model's]")] = None,
    batch_size: BatchSize = "auto",
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Time upscaling a synthetic volume with the network of CONFIG and random weights."""
    parts = [part.strip() for part in shape.split(",")]
    if len(parts) != 3 or not all(part.isascii() and part.isdigit() for part in parts):
        raise typer.BadParameter(f"'{shape}' is not three sides X,Y,Z in voxels, as in 96,96,96", param_hint="--shape")
    sides = (int(parts[0]), int(parts[1]), int(parts[2]))
    size = slices_at_a_time(batch_size)
    select_device(device)
    from jaxsr.bench import upscale as bench
    from jaxsr.bench.synthetic import smallest_side
    from jaxsr.experiment import load_experiment
    from jaxsr.train.build import build_method

    experiment = load_experiment(config, overrides or [])
    check_sampling(build_method(experiment), experiment.method.kind, sampling_steps, option="--sampling-steps")
    if min(sides) < (least := smallest_side(experiment)):
        said = f"'{shape}' is too small: at {experiment.data.voxel_size:g} mm every side must have at least {least} voxels"
        raise typer.BadParameter(f"{said}, for the scan that it is upscaled from to have slices that serve", param_hint="--shape")
    result = bench.bench_upscale(experiment, sides, sampling_steps, size)
    print_result(result, bench.describe(result), as_json)


def bench_compile(
    config: Config,
    overrides: Overrides = None,
    mesh: Annotated[str | None, bare(help="As in data=8,fsdp=4; of others data takes what is left. [default: the config's]")] = None,
    devices: Annotated[int | None, bare(min=1, help="CPU devices to simulate. [default: the real ones]")] = None,
    upscale: Annotated[
        int | None, bare("--upscale", min=1, help="A batch of so many slices in upscale, in place of the training step.")
    ] = None,
    distill: Annotated[int | None, bare("--distill", min=1, help="The same of a teacher in distill.")] = None,
    steps: Annotated[int | None, bare(min=2, help="With --distill: sampling steps. [default: 200]")] = None,
    size: Annotated[int | None, bare(help="Side of those slices in pixels. [default: data.crop]")] = None,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Compile the training step of CONFIG for a mesh and say what memory each device needs; nothing is allocated.

    Examples:

        jaxsr bench compile configs/teacher.yaml --devices 8 --mesh fsdp=8

        jaxsr bench compile configs/teacher.yaml --upscale 16 --device cpu

        jaxsr bench compile configs/teacher.yaml --distill 16 --steps 200 --device cpu
    """
    if upscale is not None and distill is not None:
        raise typer.BadParameter("and --upscale are two programs: ask for one of them", param_hint="--distill")
    if steps is not None and distill is None:
        raise typer.BadParameter("is for --distill: ask for that, or leave it out", param_hint="--steps")
    # What the program does is planned before machine code is made of it, and that is never run: so it need not be fast.
    flags = ["--xla_backend_optimization_level=0", *([f"--xla_force_host_platform_device_count={devices}"] if devices else [])]
    if devices or device == "cpu" or os.environ.get("JAX_PLATFORMS") == "cpu":
        device, os.environ["XLA_FLAGS"] = "cpu", " ".join([os.environ.get("XLA_FLAGS", ""), *flags]).strip()
    sizes = [f"mesh.{part.strip()}" for part in mesh.split(",")] if mesh else []
    if sizes:  # whatever the config says of those that are not named
        sizes = ["mesh.data=-1", "mesh.fsdp=1", "mesh.tensor=1", "mesh.expert=1", *sizes]
    select_device(device)
    from jaxsr.bench import compile as bench
    from jaxsr.experiment import load_experiment

    experiment = load_experiment(config, [*(overrides or []), *sizes])
    side = size or experiment.data.crop
    if distill is not None:
        result = bench.compile_distill(experiment, distill, side, steps or 200)
    elif upscale is not None:
        result = bench.compile_upscale(experiment, upscale, side)
    else:
        result = bench.compile_train(experiment)
    print_result(result, bench.describe(result), as_json)
