"""The sidecar: a JSON file beside every output that says it is synthetic and how it was made."""

import datetime
import json
import os
import platform
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jaxsr
from jaxsr.evaluate.files import sidecar_path
from jaxsr.files import Writer, shown, write_whole
from jaxsr.volume.io import VolumeError

if TYPE_CHECKING:  # they need JAX, and where a sidecar lies must be known before it is imported
    from jaxsr.methods.base import Request
    from jaxsr.upscale.engine import Upscaled
    from jaxsr.upscale.model import Model

WARNING = "Synthetic: upscaled by a generative model. Structures may be invented or lost. For research only, not for diagnosis."


def read_sidecar(output: Path) -> dict[str, Any] | None:
    """What `describe` wrote beside `output`, or None where there is nothing of ours."""
    try:
        facts = json.loads(sidecar_path(output).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return facts if isinstance(facts, dict) and "JaxSR" in facts else None


def picture_path(output: Path) -> Path:
    """`scan.nii.gz` → `scan.png`."""
    return sidecar_path(output).with_suffix(".png")


def check_sidecar(output: Path, *, picture: bool = False) -> None:
    """Raises VolumeError where the sidecar, or the picture, would replace a file that is not ours; a picture is where our sidecar is."""
    if read_sidecar(output) is not None:
        return
    path, drawn = sidecar_path(output), picture_path(output)
    if path.exists():
        raise VolumeError(f"{shown(path)} exists and was not written by jaxsr: choose another -o, whose sidecar does not replace it")
    if picture and drawn.exists():
        raise VolumeError(
            f"{shown(drawn)} exists and was not written by jaxsr: choose another -o, whose picture does not replace it, or --no-montage"
        )


def check_record(path: Path, jobs: Iterable[tuple[Path, Path]]) -> None:
    """Raises VolumeError where a record of a run at `path` would replace what is read or written for `jobs`, or a file that is not ours."""
    taken: dict[Path, str] = {}
    for source, output in jobs:
        taken |= {
            _resolved(output.parent): "the outputs' folder",
            _resolved(source): "an input",
            _resolved(output): "an output",
            _resolved(sidecar_path(output)): "a sidecar",
            _resolved(picture_path(output)): "a picture",
        }
    if what := taken.get(_resolved(path)):
        raise VolumeError(f"--run-json {shown(path)} is the place of {what}: name another file")
    if not path.exists():
        return
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        facts = None
    if not (isinstance(facts, dict) and {"DryRun", "Volumes"} <= facts.keys()):
        raise VolumeError(f"--run-json {shown(path)} exists and is no record of a run: name another file")


def _resolved(path: Path) -> Path:
    try:
        return path.resolve()
    except (OSError, ValueError, RuntimeError):  # a name too long, or with a zero in it, or links in a circle: reading says so
        return path.absolute()


def describe(model: "Model", source: Path, output: Path, result: "Upscaled", request: "Request", **settings: Any) -> dict[str, Any]:
    """BIDS-derivatives keys where BIDS has them, ours under `JaxSR`."""
    import jax

    size = result.volume.voxel_size
    return {
        "Description": WARNING,
        "Sources": [os.path.relpath(source.resolve(), output.resolve().parent)],
        "Resolution": _millimetres(size),
        "JaxSR": {
            "Version": jaxsr.__version__,
            "Model": model.name,
            "Method": model.experiment.method.kind,
            "Checkpoint": model.step,
            "WeightsSHA256": model.sha256,
            "TrainedVoxelSize": model.experiment.data.voxel_size,
            "TrainedAcquisition": _millimetres(model.experiment.data.acquired) or model.experiment.data.acquisition.name,
            "SamplingSteps": request.steps,
            "Eta": request.eta,
            "IntensityWindow": [result.window.low, result.window.high],
            "Axes": list(result.plan.axes),
            "Notes": [*result.volume.notes, *result.plan.left_out],
            **result.metrics,
            **settings,
            "Made": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "Jax": jax.__version__,
            "Device": jax.local_devices()[0].device_kind,
            "Devices": jax.local_device_count(),
            "Platform": platform.platform(),
        },
    }


def write_json(path: Path, content: Any) -> None:
    """Writes whole or not at all."""
    write_whole(path, json_writer(content))


def json_writer(content: Any) -> Writer:
    """Writes `content` to a path as JSON in UTF-8; what is no text in a file's name is escaped, which JSON can."""
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    return lambda path: path.write_text(text, encoding="utf-8", errors="backslashreplace")


def _millimetres(size: tuple[float, float, float] | None) -> str:
    """As in '2 × 2 × 5 mm'."""
    return f"{' × '.join(f'{v:g}' for v in size)} mm" if size else ""
