"""`jaxsr bench compile`, `links` and `scale`: what programs take on devices that need not be here."""

import json
import math
import os
from pathlib import Path
from typing import Annotated, Any

import typer

from jaxsr.cli.benching import Encoded
from jaxsr.cli.options import AsJson, Config, Device, Overrides, bare, select_device
from jaxsr.cli.output import print_result
from jaxsr.cli.status import Exit


def bench_compile(
    config: Config,
    overrides: Overrides = None,
    mesh: Annotated[str | None, bare(help="As in data=8,fsdp=4; of others data takes what is left. [default: the config's]")] = None,
    devices: Annotated[
        int | None,
        bare(min=1, help="CPU devices to simulate. [default: as many as --mesh names; without it, or with --device gpu, the real ones]"),
    ] = None,
    upscale: Annotated[
        int | None, bare("--upscale", min=1, help="A batch of so many slices in upscale, in place of the training step.")
    ] = None,
    distill: Annotated[int | None, bare("--distill", min=1, help="The same of a teacher in distill.")] = None,
    steps: Annotated[int | None, bare(min=2, help="With --distill: sampling steps. [default: 200]")] = None,
    size: Annotated[int | None, bare(help="Side of those slices in pixels. [default: data.crop]")] = None,
    encoded: Encoded = False,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Compile the training step of CONFIG for a mesh and say what each device needs and sends to others; nothing is allocated.

    Examples:

        jaxsr bench compile configs/teacher.yaml --mesh data=32,fsdp=8

        jaxsr bench compile configs/teacher.yaml --upscale 16 --device cpu

        jaxsr bench compile configs/teacher.yaml --distill 16 --steps 200 --device cpu
    """
    if upscale is not None and distill is not None:
        raise typer.BadParameter("and --upscale are two programs: ask for one of them", param_hint="--distill")
    if steps is not None and distill is None:
        raise typer.BadParameter("is for --distill: ask for that, or leave it out", param_hint="--steps")
    sizes = [part.strip() for part in mesh.split(",")] if mesh else []
    if sizes and devices is None and device in ("auto", "cpu"):
        devices = _named_devices(sizes)
    # What the program does is planned before machine code is made of it, and that is never run: so it need not be fast.
    flags = ["--xla_backend_optimization_level=0", *([f"--xla_force_host_platform_device_count={devices}"] if devices else [])]
    if devices or device == "cpu" or os.environ.get("JAX_PLATFORMS") == "cpu":
        device, os.environ["XLA_FLAGS"] = "cpu", " ".join([os.environ.get("XLA_FLAGS", ""), *flags]).strip()
    if sizes:  # whatever the config says of those that are not named
        sizes = ["mesh.data=-1", "mesh.fsdp=1", "mesh.tensor=1", "mesh.expert=1", *(f"mesh.{size}" for size in sizes)]
    select_device(device)
    from jaxsr.bench import compile as bench
    from jaxsr.experiment import load_experiment

    experiment = load_experiment(config, [*(overrides or []), *sizes])
    if encoded and (upscale is not None or distill is not None):
        raise typer.BadParameter("is for a training step", param_hint="--encoded")
    side = size or experiment.data.crop
    if distill is not None:
        result = bench.compile_distill(experiment, distill, side, steps or 200)
    elif upscale is not None:
        result = bench.compile_upscale(experiment, upscale, side)
    else:
        result = bench.compile_train(experiment, encoded)
    print_result(result, bench.describe(result), as_json)


def bench_scale(
    compiled: Annotated[Path, typer.Argument(help="What `jaxsr bench compile CONFIG --json` printed.", show_default=False)],
    machine: Annotated[str, typer.Option(help="a100, h100, h200, tpu-v4, tpu-v5e, tpu-v5p, or a YAML file like machines.yaml.")] = "h100",
    chips: Annotated[str, typer.Option(help="Numbers of chips.")] = "8,16,32,64,128,256,512,1024,2048,4096",
    trained: Annotated[Path | None, bare(help="What `jaxsr bench train CONFIG --json` printed, of one such device.")] = None,
    step_seconds: Annotated[float | None, bare(min=0, help="That a device computes in a step, in place of --trained.")] = None,
    share: Annotated[float, typer.Option(min=0.01, max=1, help="Of the peak, where there is neither.")] = 0.4,
    as_json: AsJson = False,
) -> None:
    """Predict how a training step scales to many chips: what a device computes, what is exchanged, and the machine's links.

    More chips are more of the mesh's data axis, each with as many slices as before. The model and what it leaves out are at the top of
    jaxsr/bench/scale.py.

    Example:

        jaxsr bench compile configs/teacher.yaml --devices 16 --mesh data=2,fsdp=8 --json > compiled.json

        jaxsr bench scale compiled.json --machine h100 --chips 8,64,512,4096
    """
    counts = [part.strip() for part in chips.split(",")]
    if not all(part.isascii() and part.isdigit() for part in counts):
        raise typer.BadParameter(f"'{chips}' is no list of numbers, as in 8,64,512", param_hint="--chips")
    from jaxsr.bench import scale as bench

    measured = _read_json(trained) if trained else None
    numbers = [int(part) for part in counts]
    result = bench.bench_scale(_read_json(compiled), machine, numbers, trained=measured, step_seconds=step_seconds, share=share)
    print_result(result, bench.describe(result), as_json)


def bench_links(
    repeats: Annotated[int, typer.Option(min=1, help="Of each size.")] = 20,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Time all-reduces over all devices, of all processes, and say what links `jaxsr bench scale` may take them for.

    Example:

        launch/local.sh 2 bench links
    """
    select_device(device, join=True)
    from jaxsr.bench import links as bench
    from jaxsr.runtime.distributed import is_first

    try:
        result = bench.bench_links(repeats=repeats)
    except ValueError as error:
        raise Exit(3, str(error)) from error
    if is_first():
        print_result(result, bench.describe(result), as_json)


def _named_devices(sizes: list[str]) -> int | None:
    """How many a mesh such as ['data=32', 'fsdp=8'] has; None where it does not say, or what it says is for the config to refuse."""
    counts = [value for _, _, value in (size.partition("=") for size in sizes)]
    return math.prod(map(int, counts)) if all(count.isascii() and count.isdigit() and int(count) for count in counts) else None


def _read_json(path: Path) -> dict[str, Any]:
    """An object that another command printed, last; with several processes gloo has said something before it."""
    from jaxsr.config import ConfigError

    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        found = json.loads(next((line for line in reversed(lines) if line.startswith("{")), ""))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read as what `jaxsr bench … --json` prints: {error}") from error
    if not isinstance(found, dict):
        raise ConfigError(f"{path} is not what `jaxsr bench … --json` prints: there is no object in it")
    return found
