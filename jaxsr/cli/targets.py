"""What the options of `jaxsr upscale` say together: which volumes, which voxel size, how many steps."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import typer

from jaxsr.cli.options import choice, select_device

if TYPE_CHECKING:
    from jaxsr.physics.protocol import Acquisition
    from jaxsr.upscale.inputs import Job, Sizes
    from jaxsr.upscale.model import Recipe


def target_of(
    recipe: "Recipe", to_mm: float | None, resolved: "Sizes | Literal['found'] | None", *, derivative: bool
) -> tuple[float | None, list[str]]:
    """mm of the output, None where each scan decides, and what is to be said of it.

    Args:
      to_mm, resolved: of --to-mm and --from-mm.
      derivative: whether outputs are named by one size.

    Raises:
      BadParameter: where a model that goes to one size is told what a scan resolves.
    """
    from jaxsr.upscale.plan import is_told

    trained, pixels = recipe.experiment.data.voxel_size, getattr(recipe.method, "pixel_range", None)
    multiscale = pixels is not None or hasattr(recipe.method, "pixel")
    if resolved and not is_told(recipe.method):
        raise typer.BadParameter(
            f"a model of kind {recipe.experiment.method.kind} is not told what a scan resolves, standard and students are: leave it out",
            param_hint="--from-mm",
        )
    target = to_mm or (None if pixels and not derivative else trained)
    if target and abs(target - trained) > 1e-6 and not multiscale:
        return target, [f"note: the model was trained for {trained:g} mm, not {target:g} mm"]
    if target and pixels and target > pixels[1] + 1e-6:
        return target, [f"note: the model was trained for {pixels[0]:g} to {pixels[1]:g} mm, not {target:g} mm"]
    return target, []


def steps_of_mode(mode: str, recipe: "Recipe") -> int:
    """Sampling steps of --mode. Raises BadParameter for a model without modes."""
    sharp = getattr(recipe.experiment.method, "sharp_steps", None)
    if sharp is None:
        raise typer.BadParameter("this model has no modes: say how many sampling steps by --steps", param_hint="--mode")
    return sharp if mode == "sharp" else recipe.method.default_request.steps


def check_places(
    source: Path | None,
    output: Path | None,
    bids: tuple[Path, Path, str] | None,
    participants: list[str] | None,
    sessions: list[str] | None,
) -> None:
    """Raises BadParameter unless there are either -i and -o, or --bids."""
    if bids:
        if source or output:
            raise typer.BadParameter("names the input and the output itself: leave out -i and -o", param_hint="--bids")
        choice("--bids", bids[2], ("participant",))
        return
    for option, value in (("--input", source), ("--output", output)):
        if value is None:
            raise typer.BadParameter("is needed, or --bids IN OUT participant", param_hint=option)
    for option, labels in (("--participant-label", participants), ("--session-label", sessions)):
        if labels:
            raise typer.BadParameter("is for --bids: name the volumes by -i", param_hint=option)


def resolved_sizes(text: str) -> "Sizes | Literal['found'] | None":
    """Of --from-mm, mm to the right, front and top; None for auto. Raises BadParameter for what is none of them."""
    if text == "auto":
        return None
    if text == "found":
        return "found"
    try:
        sizes = [float(part) for part in text.split(",")]
    except ValueError:
        sizes = []
    if len(sizes) not in (1, 3) or not all(0.1 <= mm <= 20 for mm in sizes):
        raise typer.BadParameter(
            f"'{text}' is neither auto nor found nor millimetres, one number or three, as in 2 or 1,1,5", param_hint="--from-mm"
        )
    x, y, z = sizes * 3 if len(sizes) == 1 else sizes
    return x, y, z


def declared_scanner(acquisition: str | None, noise: float | None, consistency: bool) -> "Acquisition | None":
    """The acquisition that --acquisition names. Raises BadParameter for it, or --noise, without --consistency, or a σ that is none."""
    for option, value in (("--acquisition", acquisition), ("--noise", noise)):
        if value is not None and not consistency:
            raise typer.BadParameter("is for --consistency: ask for that, or leave it out", param_hint=option)
    if noise is not None and not noise > 0:
        raise typer.BadParameter(f"{noise:g} is no standard deviation above 0", param_hint="--noise")
    if acquisition is None:
        return None
    from jaxsr.physics.protocol import load_acquisition

    return load_acquisition(acquisition)


def bids_jobs(
    bids: tuple[Path, Path, str],
    participants: Sequence[str],
    sessions: Sequence[str],
    suffixes: Sequence[str],
    model: Path,
    to_mm: float | None,
    device: str,
) -> "list[Job]":
    """Those of --bids, with the device chosen; names hold the voxel size, which the model may have to say."""
    from jaxsr.upscale.derivatives import derivative_jobs, find_scans

    scans = find_scans(bids[0], bids[1], participants, sessions, suffixes)
    select_device(device, apart=True)
    from jaxsr.upscale.model import read_experiment

    return derivative_jobs(bids[0], bids[1], scans, to_mm or read_experiment(model).data.voxel_size)
