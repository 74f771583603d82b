"""The command line: the only door. One function a subcommand; nothing heavy is imported before a command runs.

0 done    1 some inputs failed    2 usage, config or input    3 nothing to do    4 no model    5 out of memory    6 diverged
130 interrupted    143 stopped by SIGTERM
"""

import signal
import sys
from typing import Annotated

import typer

from jaxsr import __version__
from jaxsr.cli import benching, data, distilling, inspect, models, report, scaling, segmenting, simulation, upscaling, volumes, weights
from jaxsr.cli.status import run, terminate

app = typer.Typer(
    name="jaxsr",
    help="Brain MRI super-resolution by diffusion models. Research use only: outputs are synthetic.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)
config_app = typer.Typer(name="config", help="Look at configurations, and check them.", no_args_is_help=True)
bench_app = typer.Typer(
    name="bench", help="Measure: parameters and multiply-adds, training, its input, upscaling, memory, exchange.", no_args_is_help=True
)
weights_app = typer.Typer(name="weights", help="Weights that others have published: list, download, import, verify.", no_args_is_help=True)

for command in (
    models.demo,
    data.prepare,
    data.generate,
    models.train,
    distilling.distill,
    models.export,
    upscaling.upscale,
    segmenting.segment,
    simulation.simulate,
    volumes.evaluate,
    report.report,
    inspect.inspect,
    inspect.doctor,
):
    app.command()(command)
app.add_typer(config_app)
config_app.command("show")(inspect.config_show)
config_app.command("validate")(inspect.config_validate)
app.add_typer(bench_app)
bench_app.command("count")(benching.bench_count)
bench_app.command("train")(benching.bench_train)
bench_app.command("data")(benching.bench_data)
bench_app.command("upscale")(benching.bench_upscale)
bench_app.command("compile")(scaling.bench_compile)
bench_app.command("layers")(benching.bench_layers)
bench_app.command("links")(scaling.bench_links)
bench_app.command("scale")(scaling.bench_scale)
app.add_typer(weights_app)
weights_app.command("list")(weights.weights_list)
weights_app.command("download")(weights.weights_download)
weights_app.command("import")(weights.weights_import)
weights_app.command("verify")(weights.weights_verify)

CITATION = """\
jaxsr {version}, software, 2026.
Wang et al. Distillation-Driven Diffusion Model for Multi-Scale MRI Super-Resolution: Make 1.5T MRI Great Again. 2025.
Saharia et al. Image Super-Resolution via Iterative Refinement. IEEE TPAMI, 2023.
van den Oord et al. Neural Discrete Representation Learning. NeurIPS, 2017 (method vqvae).
Wang et al. MoEDiff-SR: Mixture of Experts-Guided Diffusion Model for Region-Adaptive MRI Super-Resolution. 2025 (method moediff).
Anonymous. Structure-Guided Prior-Conditioned Distilled Diffusion for Multi-Scale MRI Super-Resolution. Under review (method spcdd).
Song et al. Consistency Models. ICML, 2023 (method consistency).
Song and Dhariwal. Improved Techniques for Training Consistency Models. ICLR, 2024 (method consistency)."""


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
    cite: Annotated[bool, typer.Option("--cite", help="Print what to cite.")] = False,
) -> None:
    if version:
        print(f"jaxsr {__version__}")
        raise typer.Exit
    if cite:
        print(CITATION.format(version=__version__))
        raise typer.Exit


def main() -> None:
    """The console script: runs a command, turns errors that are the user's into one sentence and an exit status."""
    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, terminate)
    sys.exit(run(lambda: app(standalone_mode=False)))
