"""Commands that look: doctor, config, bench."""

import json
from pathlib import Path
from typing import Annotated

import typer

from jaxsr.cli.options import AsJson, BatchSize, Config, Device, Overrides, bare, select_device, slices_at_a_time
from jaxsr.cli.output import open_console, print_result
from jaxsr.cli.status import Exit


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


def bench_upscale(
    config: Config,
    overrides: Overrides = None,
    shape: Annotated[str, typer.Option(help="Voxels of the volume.")] = "96,96,96",
    sampling_steps: Annotated[int | None, bare(help="[default: the model's]")] = None,
    batch_size: BatchSize = "auto",
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Time upscaling a synthetic volume with the network of CONFIG and random weights."""
    sides = tuple(int(n) for n in shape.split(",") if n.strip().isdigit())
    if len(sides) != 3 or min(sides) < 16:
        raise typer.BadParameter(f"'{shape}' is not three sides X,Y,Z of at least 16 voxels", param_hint="--shape")
    select_device(device)
    from jaxsr.bench import upscale as bench
    from jaxsr.experiment import load_experiment

    experiment = load_experiment(config, overrides or [])
    result = bench.bench_upscale(experiment, sides, sampling_steps, slices_at_a_time(batch_size))
    print_result(result, bench.describe(result), as_json)
