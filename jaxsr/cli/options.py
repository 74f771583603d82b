"""Options that commands share, and what they accept."""

import functools
import itertools
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from jaxsr.cli.status import Exit

if TYPE_CHECKING:
    from jaxsr.methods.base import Method

bare = functools.partial(typer.Option, show_default=False)  # the help text says what the default is

Config = Annotated[Path, typer.Argument(help="A YAML file, e.g. configs/sr3.yaml", show_default=False)]
Overrides = Annotated[list[str] | None, typer.Argument(help="a.b.c=value, on top of the file", show_default=False)]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for programs instead of text.")]
Device = Annotated[str, typer.Option(help="auto, cpu, gpu or gpu:N. Never changed behind your back.")]
BatchSize = Annotated[str, typer.Option(help="Slices at a time, at most: a number, which is kept, or auto: fewer where memory is short.")]


def name_device(device: str, *, apart: bool = False) -> tuple[str, bool]:
    """Says which platform JAX will see, and other processes that are started from here; JAX is not. Once a process.

    The flag counts for more than JAX_PLATFORMS; the N of gpu:N counts among CUDA_VISIBLE_DEVICES where that is set.

    Args:
      apart: where this is one of several processes, each computes for itself, on a GPU of its own.

    Returns:
      auto, cpu or gpu, and whether it is a certain one of several.
    """
    kind, _, index = device.partition(":")
    if kind not in ("auto", "cpu", "gpu") or (index and not (kind == "gpu" and index.isdigit())):
        raise typer.BadParameter(f"'{device}' is none of auto, cpu, gpu, gpu:N", param_hint="--device")
    platforms = {"auto": None, "cpu": "cpu", "gpu": "cuda,cpu"}[kind]
    if platforms:
        os.environ["JAX_PLATFORMS"] = platforms
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    from jaxsr.runtime.cpu import choose_convolutions

    choose_convolutions()
    import jax

    from jaxsr.runtime.distributed import place

    if index:
        os.environ["CUDA_VISIBLE_DEVICES"] = _visible(int(index), device)
    elif apart and kind != "cpu" and (local := place().local) is not None and (gpus := _visible_gpus()):
        os.environ["CUDA_VISIBLE_DEVICES"] = gpus[local % len(gpus)]
    if platforms:
        jax.config.update("jax_platforms", platforms)  # where something has imported JAX before, which then has read its variables
    return kind, bool(index)


def select_device(
    device: str, *, join: bool = False, apart: bool = False, check: bool = True, named: tuple[str, bool] | None = None
) -> None:
    """As `name_device`, and says where compiled programs are kept; then sees that JAX finds the device that is asked for.

    Args:
      join: where this is one of several processes, they compute together.
      check: 'auto' is seen to find something, too.
      named: what `name_device` returned, where it has been called.

    Raises:
      Exit: where the device is not to be had.
    """
    kind, certain = named or name_device(device, apart=apart)
    from jaxsr.runtime.cache import use_compilation_cache
    from jaxsr.runtime.distributed import start

    use_compilation_cache()
    if join:
        start()
    if check or kind != "auto":
        _check_device(device, kind, one=certain)


def device_in_use() -> str:
    """As in '4 × NVIDIA H200'."""
    import jax

    return f"{jax.local_device_count()} × {jax.local_devices()[0].device_kind}"


def _check_device(device: str, kind: str, one: bool) -> None:
    import jax

    try:
        backend, count = jax.default_backend(), jax.local_device_count()
        if kind == "gpu":  # a list of platforms is gone through in silence
            jax.devices("gpu")
    except Exception as error:  # JAX raises whatever its plugins raise
        said = next(iter(str(error).splitlines()), type(error).__name__)
        if kind == "gpu":
            raise Exit(2, f"--device {device}: JAX finds no GPU ({said}); `jaxsr doctor` says why") from error
        raise Exit(2, f"JAX does not start ({said}): check JAX_PLATFORMS; `jaxsr doctor` says more") from error
    if (kind != "auto" and backend != kind) or (one and count != 1):
        raise Exit(2, f"--device {device}: in this process JAX computes on {device_in_use()} already; choose before anything is computed")
    hidden = os.environ.get("JAX_PLATFORMS") or not _visible_gpus()
    if kind == "auto" and backend == "cpu" and not hidden:
        print(
            f"jaxsr: NVIDIA GPUs are here ({len(_visible_gpus())}) but JAX finds none, so the CPU computes: `jaxsr doctor` says why; "
            "--device cpu silences this",
            file=sys.stderr,
        )


def _visible(index: int, device: str) -> str:
    """What names the GPU that is number `index` of those that are visible."""
    gpus = _visible_gpus()
    if "CUDA_VISIBLE_DEVICES" not in os.environ:
        return str(index)
    if index >= len(gpus):
        given = os.environ["CUDA_VISIBLE_DEVICES"]
        raise Exit(2, f"--device {device}: CUDA_VISIBLE_DEVICES={given} leaves {len(gpus)} GPUs, of which the first is gpu:0")
    return gpus[index]


def _visible_gpus() -> list[str]:
    """As CUDA names them: what CUDA_VISIBLE_DEVICES says up to the first that is none, else all of the machine's NVIDIA GPUs."""
    from jaxsr.doctor import nvidia_gpus

    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is None:
        return [str(i) for i in range(nvidia_gpus())]
    return list(itertools.takewhile(lambda name: name not in ("", "-1"), (name.strip() for name in given.split(","))))


def slices_at_a_time(text: str) -> int | Literal["auto"]:
    """The number of `--batch-size`, or 'auto'."""
    if text.isdigit() and int(text) > 0:
        return int(text)
    if text != "auto":
        raise typer.BadParameter(f"'{text}' is neither auto nor a positive number", param_hint="--batch-size")
    return "auto"


def check_voxel_size(to_mm: float | None) -> None:
    if to_mm is not None and not 0.1 <= to_mm <= 10:
        raise typer.BadParameter(f"{to_mm:g} is not a voxel size between 0.1 and 10 mm", param_hint="--to-mm")


def check_sampling(method: "Method", kind: str, steps: int | None, eta: float | None = None, option: str = "--steps") -> None:
    """`steps` and `eta`, where given, are something that `method` can do; `option` is what the command calls the steps."""
    for name, value in ((option, steps), ("--eta", eta)):
        if value is not None and method.most_steps == 1:
            raise typer.BadParameter(f"{kind} does not sample, so {name} would change nothing: leave it out", param_hint=name)
    if eta and getattr(method, "one_step_draws", False):
        raise typer.BadParameter(
            f"{kind} draws all noise anew between steps, so --eta would change nothing: leave it out", param_hint="--eta"
        )
    if steps is not None and not 1 <= steps <= method.most_steps:
        raise typer.BadParameter(f"{steps} is not in 1…{method.most_steps}, the steps that the model can take", param_hint=option)


def check_mixture(method: "Method", kind: str, option: str) -> None:
    """`method` has experts, as `option` is for."""
    if not hasattr(method, "experts"):
        raise typer.BadParameter(f"is for a mixture of experts (moediff), and the model is of kind {kind}: leave it out", param_hint=option)


def failed(failures: list[tuple[Path, str]], total: int) -> str:
    """What a command that goes on after a failure says last."""
    from jaxsr.files import shown

    said = [(shown(path), " ".join(why.split())) for path, why in failures]
    lines = [why if why.startswith(name) else f"{name}: {why}" for name, why in said]
    return "\n".join([f"{len(failures)} of {total} failed:", *(f"  {line}" for line in lines)])


def choice(option: str, value: str, known: tuple[str, ...]) -> str:
    """`value`, if it is one of `known`."""
    if value not in known:
        raise typer.BadParameter(f"'{value}' is none of {', '.join(known)}", param_hint=option)
    return value


def choices(option: str, value: str, known: tuple[str, ...]) -> tuple[str, ...]:
    """The comma-separated parts of `value`, or all of `known`."""
    if value == "all":
        return known
    parts = tuple(choice(option, part.strip(), known) for part in value.split(","))
    if len(set(parts)) < len(parts):
        raise typer.BadParameter(f"'{value}' names one of them twice", param_hint=option)
    return parts


def words(values: list[str] | None) -> tuple[str, ...]:
    """What a repeatable option was given, of which each may hold several, parted by commas."""
    return tuple(word for value in values or () for word in (part.strip() for part in value.split(",")) if word)
