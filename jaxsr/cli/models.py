"""Commands that make models: demo, train."""

from pathlib import Path
from typing import Annotated

import typer

from jaxsr.cli.options import Config, Device, Overrides, bare, select_device
from jaxsr.cli.output import open_console, progress


def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="Where everything is written.")] = Path("demo"),
    steps: Annotated[int | None, bare(help="Training steps; by default what fits into a few minutes.")] = None,
    device: Device = "auto",
) -> None:
    """Train a small model on synthetic anatomy, upscale heads it has never seen, and compare. Nothing is downloaded.

    Takes about ten minutes on two CPU cores. Writes volumes, a table and pictures under demo/.

    Examples:

        jaxsr demo

        jaxsr demo -o /scratch/demo --device gpu
    """
    select_device(device)
    from jaxsr.demo import run_demo

    run_demo(out, steps=steps, console=open_console(), progress=progress)


def train(
    config: Config,
    overrides: Overrides = None,
    run_dir: Annotated[Path | None, bare("--run-dir", "-d", help="[default: runs/NAME_OF_CONFIG]")] = None,
    device: Device = "auto",
) -> None:
    """Train the model that CONFIG describes. A run directory that exists is resumed, as if it had never been stopped.

    SIGTERM and Ctrl-C save first; Ctrl-C twice quits at once. train.tensorboard=true writes scalars for TensorBoard.

    Examples:

        jaxsr train configs/demo.yaml --run-dir runs/first

        jaxsr train configs/sr3.yaml data.volumes=/data/heads optimizer.learning_rate=3e-5
    """
    select_device(device)
    from jaxsr.experiment import load_experiment

    experiment = load_experiment(config, overrides or [])
    from jaxsr.runtime.distributed import is_first, start
    from jaxsr.train.loop import train as run

    start()
    folder = run_dir or Path("runs") / config.stem
    terminal = open_console(quiet=not is_first())
    with progress(terminal, "training", experiment.train.steps) as (advance, note):
        run(experiment, folder, report=lambda step, values: advance(step, _show(values)), note=note)
    terminal.print(f"trained: {folder} (use it with `jaxsr upscale --model {folder} -i SCAN -o OUT`)")


def _show(scalars: dict[str, float]) -> str:
    known = {"loss": "loss {:.4f}", "steps_per_second": "{:.2f} steps/s", "slices_per_second": "{:.0f} slices/s"}
    return ", ".join(text.format(scalars[name]) for name, text in known.items() if name in scalars)
