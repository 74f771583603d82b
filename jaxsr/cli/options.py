"""Options that commands share, and what they accept."""

import functools
import os
from pathlib import Path
from typing import Annotated

import typer

from jaxsr.cli.status import Exit

bare = functools.partial(typer.Option, show_default=False)  # the help text says what the default is

Config = Annotated[Path, typer.Argument(help="A YAML file, e.g. configs/sr3.yaml", show_default=False)]
Overrides = Annotated[list[str] | None, typer.Argument(help="a.b.c=value, on top of the file", show_default=False)]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for programs instead of text.")]
Device = Annotated[str, typer.Option(help="auto, cpu, gpu or gpu:N. Never changed behind your back.")]
BatchSize = Annotated[str, typer.Option(help="Slices at a time: auto or a number.")]


def select_device(device: str) -> None:
    """Before JAX is imported: which platform it will see, and where compiled programs are kept."""
    kind, _, index = device.partition(":")
    if kind not in ("auto", "cpu", "gpu") or (index and not (kind == "gpu" and index.isdigit())):
        raise typer.BadParameter(f"'{device}' is none of auto, cpu, gpu, gpu:N", param_hint="--device")
    if kind != "auto":
        os.environ["JAX_PLATFORMS"] = {"cpu": "cpu", "gpu": "cuda,cpu"}[kind]
    if index:
        os.environ["CUDA_VISIBLE_DEVICES"] = index
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    from jaxsr.runtime.cache import use_compilation_cache

    use_compilation_cache()
    if kind == "gpu":
        import jax

        try:
            jax.devices("gpu")
        except Exception as error:  # JAX raises whatever its plugins raise
            raise Exit(2, f"--device {device}: JAX finds no GPU ({str(error).splitlines()[0]}); `jaxsr doctor` says why") from error


def slices_at_a_time(text: str) -> int:
    """The number of `--batch-size`; 'auto' is 8 on a CPU and 64 on an accelerator."""
    if text.isdigit() and int(text) > 0:
        return int(text)
    if text != "auto":
        raise typer.BadParameter(f"'{text}' is neither auto nor a positive number", param_hint="--batch-size")
    import jax

    return 8 if jax.default_backend() == "cpu" else 64


def check_voxel_size(to_mm: float | None) -> None:
    if to_mm is not None and not 0.1 <= to_mm <= 10:
        raise typer.BadParameter(f"{to_mm:g} is not a voxel size between 0.1 and 10 mm", param_hint="--to-mm")


def failed(failures: list[tuple[Path, str]], total: int) -> str:
    """What a command that goes on after a failure says last."""
    from jaxsr.files import shown

    lines = [why if why.startswith(shown(path)) else f"{shown(path)}: {why}" for path, why in failures]
    return "\n".join([f"{len(failures)} of {total} failed:", *(f"  {line}" for line in lines)])


def choice(option: str, value: str, known: tuple[str, ...]) -> str:
    """`value`, if it is one of `known`."""
    if value not in known:
        raise typer.BadParameter(f"'{value}' is none of {', '.join(known)}", param_hint=option)
    return value


def choices(option: str, value: str, known: tuple[str, ...]) -> tuple[str, ...]:
    """The comma-separated parts of `value`, or all of `known`."""
    return known if value == "all" else tuple(choice(option, part.strip(), known) for part in value.split(","))
