"""`jaxsr bench`: what things take on the devices that are here, and by another hand; scaling.py has what they would take on others."""

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from jaxsr.cli.options import (
    AsJson,
    BatchSize,
    Config,
    Device,
    Overrides,
    bare,
    check_sampling,
    name_device,
    select_device,
    slices_at_a_time,
)
from jaxsr.cli.output import print_result
from jaxsr.cli.status import Exit

if TYPE_CHECKING:
    from jaxsr.experiment import Experiment

Encoded = Annotated[bool, bare("--encoded", help="Of slices that were encoded before, as by `jaxsr prepare --encode`.")]
Peer = Annotated[
    bool,
    bare("--peer", help="The same by diffusers on PyTorch, and ratios: a teacher, a student or SR3, from a clone with [reference]."),
]


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
    encoded: Encoded = False,
    fed: Annotated[bool, bare("--data", help="Fed by CONFIG's data, as training is, in place of one batch that lies there.")] = False,
    peer: Peer = False,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Time the training step of CONFIG on synthetic slices; of several processes, as launchers start them, over the devices of all.

    Examples:

        jaxsr bench train configs/sr3-small.yaml --peer

        launch/local.sh 2 bench train configs/sr3-small.yaml
    """
    if fed and peer:
        raise typer.BadParameter("the peer is given one batch that lies there: leave out one of them", param_hint="--data")
    named = name_device(device)
    from jaxsr.experiment import load_experiment

    experiment = load_experiment(config, overrides or [])
    if fed and encoded and not experiment.data.manifest:
        raise typer.BadParameter("slices that are encoded come from a set: name it with data.manifest=…", param_hint="--encoded")
    theirs = None
    if peer:
        theirs = _peer(experiment, device, ["train", config, *(overrides or []), "--steps", steps, "--warmup", warmup])
    select_device(device, join=True, named=named)
    _check_same_device(theirs)
    from jaxsr.bench import train as bench
    from jaxsr.runtime.distributed import is_first

    result = bench.bench_train(experiment, steps, warmup, encoded, fed)
    if is_first():
        _print_beside(result, bench.describe(result), theirs, as_json)


def bench_layers(
    batch_size: Annotated[int, typer.Option(min=1, help="Feature maps at a time.")] = 8,
    side: Annotated[int, typer.Option(min=2, help="Of the first level's, in pixels.")] = 64,
    channels: Annotated[int, typer.Option(min=1, help="There; twice as many at half the side.")] = 64,
    levels: Annotated[int, typer.Option(min=1, help="Resolutions.")] = 3,
    precision: Annotated[Literal["f32", "bf16"], typer.Option(help="Of the computation.")] = "f32",
    peer: Annotated[bool, bare("--peer", help="PyTorch's before them, and ratios; from a clone with [reference].")] = False,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Time convolutions, norms and attention one by one: where a network's time goes, and which of them another library does faster.

    Example:

        jaxsr bench layers --channels 32 --peer
    """
    if side % 2**levels:
        raise typer.BadParameter(f"{side} is not halved {levels} times", param_hint="--side")
    named, theirs = name_device(device), None
    if peer:
        from jaxsr.bench import peer as other

        asked = {"--batch-size": batch_size, "--side": side, "--channels": channels, "--levels": levels, "--precision": precision}
        theirs = other.run_peer([str(word) for pair in asked.items() for word in pair], device, other.LAYERS)
    select_device(device, named=named)
    _check_same_device(theirs)
    from jaxsr.bench import layers as bench

    result = bench.bench_layers(batch_size, side, channels, levels, precision)
    if theirs:
        result = bench.compared(result, theirs)
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
    scan: Annotated[Path | None, bare("--input", "-i", help="A scan in place of a synthetic one; --shape does not count then.")] = None,
    sampling_steps: Annotated[int | None, bare(min=1, help="[default: the model's]")] = None,
    batch_size: BatchSize = "auto",
    slice_map: Annotated[Literal["pad", "resize"], bare("--slices", help="As of upscale: padded, or brought to 256².")] = "pad",
    repeats: Annotated[int, typer.Option(min=1, help="Volumes measured, after a first.")] = 3,
    peer: Peer = False,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Time upscaling a volume, a synthetic one or a scan, with the network of CONFIG and random weights.

    Example:

        jaxsr bench upscale configs/teacher-tiny.yaml --shape 96,96,96 --sampling-steps 10 --batch-size 16 --peer
    """
    parts = [part.strip() for part in shape.split(",")]
    if len(parts) != 3 or not all(part.isascii() and part.isdigit() for part in parts):
        raise typer.BadParameter(f"'{shape}' is not three sides X,Y,Z in voxels, as in 96,96,96", param_hint="--shape")
    sides = (int(parts[0]), int(parts[1]), int(parts[2]))
    size = slices_at_a_time(batch_size)
    if scan and peer:
        raise typer.BadParameter("the peer is given synthetic volumes: leave out one of them", param_hint="--input")
    named = name_device(device)
    from jaxsr.bench.synthetic import smallest_side
    from jaxsr.experiment import load_experiment
    from jaxsr.upscale.inputs import read_input
    from jaxsr.volume.io import Volume

    experiment = load_experiment(config, overrides or [])
    given: Volume | tuple[int, int, int] = read_input(scan, to_mm=experiment.data.voxel_size) if scan else sides
    if scan is None and min(sides) < (least := smallest_side(experiment)):
        said = f"'{shape}' is too small: at {experiment.data.voxel_size:g} mm every side must have at least {least} voxels"
        raise typer.BadParameter(f"{said}, for the scan that it is upscaled from to have slices that serve", param_hint="--shape")
    theirs = None
    if peer:
        if size == "auto":
            raise typer.BadParameter("both are to take as many slices at a time: with --peer give a number", param_hint="--batch-size")
        asked = {"--shape": shape, "--batch-size": size, "--slices": slice_map, "--repeats": repeats}
        if sampling_steps is not None:
            asked["--sampling-steps"] = sampling_steps
        words = [str(word) for pair in asked.items() for word in pair]
        theirs = _peer(experiment, device, ["upscale", config, *(overrides or []), *words])
    select_device(device, named=named)
    _check_same_device(theirs)
    from jaxsr.bench import upscale as bench
    from jaxsr.train.build import build_method
    from jaxsr.upscale.plan import NothingToDo

    check_sampling(build_method(experiment), experiment.method.kind, sampling_steps, option="--sampling-steps")
    try:
        result = bench.bench_upscale(experiment, given, sampling_steps, size, repeats=repeats, slice_map=slice_map)
    except NothingToDo as error:
        wanted = experiment.data.voxel_size
        raise Exit(3, f"the scan is as fine as {wanted:g} mm already: ask for a finer one with data.voxel_size=…") from error
    _print_beside(result, bench.describe(result), theirs, as_json)


def _peer(experiment: "Experiment", device: str, words: list[Any]) -> dict[str, Any]:
    """What the peer of `experiment` found, before JAX takes the device."""
    from jaxsr.bench import peer
    from jaxsr.runtime.distributed import place

    if why := peer.why_no_peer(experiment.method):
        raise typer.BadParameter(f"the model {why}", param_hint="--peer")
    if place().processes > 1:
        raise typer.BadParameter("is for one process", param_hint="--peer")
    return peer.run_peer([str(word) for word in words], device)


def _check_same_device(theirs: dict[str, Any] | None) -> None:
    """Before ours is measured: raises ConfigError where the peer was measured on another kind of device, or on fewer."""
    if theirs is not None:
        import jax

        from jaxsr.bench.peer import check_same_device

        check_same_device(theirs, jax.devices()[0].device_kind, 1 if jax.default_backend() == "cpu" else jax.device_count())


def _print_beside(result: dict[str, Any], rows: list[tuple[str, str]], theirs: dict[str, Any] | None, as_json: bool) -> None:
    """Ours, and the peer's figures with it where there are any."""
    if theirs is not None:
        from jaxsr.bench import peer

        result = peer.compared(result, theirs)
        rows = rows + peer.describe(result)
    print_result(result, rows, as_json)
