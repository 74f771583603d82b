"""Commands that make models: demo, train, export."""

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from jaxsr.cli.options import Config, Device, Overrides, bare, choice, select_device
from jaxsr.cli.output import open_console, print_table, progress
from jaxsr.cli.status import Exit

if TYPE_CHECKING:
    from jaxsr.experiment import Experiment


def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="Where everything is written.")] = Path("demo"),
    train: Annotated[
        bool, typer.Option("--train", help="Train a small model first, on synthetic anatomy, and use that: some minutes more.")
    ] = False,
    steps: Annotated[int | None, bare(help="With --train: training steps; by default what fits into a few minutes.")] = None,
    device: Device = "auto",
) -> None:
    """Upscale heads that the model has never seen, and compare with the truth and with interpolations. Nothing is downloaded.

    Takes some minutes on two CPU cores. Writes volumes, a table and pictures under demo/.

    Examples:

        jaxsr demo

        jaxsr demo --train -o /scratch/demo --device gpu
    """
    if steps is not None and not train:
        raise typer.BadParameter("is for --train: ask for that, or leave it out", param_hint="--steps")
    select_device(device)
    from jaxsr.demo import gains, run_demo

    terminal = open_console()
    overrides = [] if steps is None else [f"train.steps={steps}"]
    found = run_demo(out, terminal.print, functools.partial(progress, terminal), train=train, overrides=overrides)
    of_template = "MNI T1 template" + (" (illustration: not held out)" if train else "")
    titles = {"Held-out synthetic heads": found.held_out, of_template: found.template}
    for title, comparison in titles.items():
        print_table(
            terminal, [{k: v for k, v in row.items() if k not in ("RMSE", "MAE")} for row in comparison.table()], title=f"\n{title}"
        )
        for region in ("foreground", "image"):
            by = gains(comparison, region, found.method)
            terminal.print(f"{found.method} against the best interpolation, {region}: PSNR {by['psnr']:+.2f} dB, SSIM {by['ssim']:+.4f}")
    pictures = [*found.held_out.montages, *found.template.montages]
    terminal.print(f"\nPictures: {', '.join(map(str, pictures))}")
    terminal.print(f"Volumes and tables: {out}/ ({found.seconds:.0f} s)")
    terminal.print(f"Next: jaxsr upscale -i YOUR_SCAN.nii.gz -o out.nii.gz{f' --model {found.model}' if train else ''}")


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
    from jaxsr.experiment import load_experiment

    experiment = load_experiment(config, overrides or [])
    select_device(device, join=True)
    train_run(experiment, run_dir or Path("runs") / config.stem)


def train_run(experiment: "Experiment", folder: Path) -> None:
    """Trains into `folder`, telling how far it is."""
    from jaxsr.runtime.distributed import is_first
    from jaxsr.train.loop import train as run

    terminal = open_console(quiet=not is_first())
    with progress(terminal, "training", experiment.train.steps) as (advance, note):
        run(experiment, folder, report=lambda step, values: advance(step, _show(values)), note=note)
    terminal.print(f"trained: {folder} (use it with `jaxsr upscale --model {folder} -i SCAN -o OUT`)")


def export(
    run_dir: Annotated[Path, typer.Argument(help="A run directory, or a file to be written in another dtype.", show_default=False)],
    output: Annotated[Path, typer.Argument(help="A .safetensors file.", show_default=False)],
    dtype: Annotated[str, typer.Option(help="Of the weights: float32, bfloat16 or float16, half the size.")] = "float32",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a file that is there.")] = False,
) -> None:
    """Write the model of a run as one file: weights (their moving average), configuration and a model card, which `jaxsr weights verify`
    prints. Nothing is run when it is read.

    Examples:

        jaxsr export demo/run demo.safetensors && jaxsr upscale --model demo.safetensors -i SCAN -o OUT

        jaxsr export runs/student student.safetensors --dtype bfloat16
    """
    choice("--dtype", dtype, ("float32", "bfloat16", "float16"))
    if output.exists() and not overwrite:
        raise Exit(2, f"{output} is there already: choose another OUTPUT, or --overwrite")
    select_device("cpu")
    from jaxsr.upscale.export import check_name, export_model
    from jaxsr.upscale.model import load_model
    from jaxsr.weights.file import read_about

    check_name(output)
    terminal = open_console()
    model = load_model(run_dir, note=terminal.print)
    export_model(model, output, dtype, read_about(run_dir) if run_dir.is_file() else {})  # type: ignore[arg-type]
    terminal.print(f"wrote {output} (step {model.step}, {output.stat().st_size / 1e6:.1f} MB)")


def _show(scalars: dict[str, float]) -> str:
    known = {"loss": "loss {:.4f}", "steps_per_second": "{:.2f} steps/s", "slices_per_second": "{:.0f} slices/s"}
    return ", ".join(text.format(scalars[name]) for name, text in known.items() if name in scalars)
