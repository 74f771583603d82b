"""The sidecar: a JSON file beside every output that says it is synthetic and how it was made."""

import datetime
import json
import os
import platform
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jaxsr
from jaxsr.files import Writer, shown, write_whole
from jaxsr.volume.io import VolumeError

if TYPE_CHECKING:  # they need JAX, and where a sidecar lies must be known before it is imported
    from jaxsr.methods.base import Request
    from jaxsr.upscale.engine import Upscaled
    from jaxsr.upscale.model import Model

WARNING = "Synthetic: upscaled by a generative model. Structures may be invented or lost. For research only, not for diagnosis."


def sidecar_path(output: Path) -> Path:
    """`scan.nii.gz` → `scan.json`."""
    name = output.name.removesuffix(".gz")
    return output.with_name(name[: name.rfind(".")] + ".json")


def read_sidecar(output: Path) -> dict[str, Any] | None:
    """What `describe` wrote beside `output`, or None where there is nothing of ours."""
    try:
        facts = json.loads(sidecar_path(output).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return facts if isinstance(facts, dict) and "JaxSR" in facts else None


def check_sidecar(output: Path) -> None:
    """Raises VolumeError where the sidecar would replace a file that is not ours."""
    path = sidecar_path(output)
    if path.exists() and read_sidecar(output) is None:
        raise VolumeError(f"{shown(path)} exists and was not written by jaxsr: choose another -o, whose sidecar does not replace it")


def describe(model: "Model", source: Path, output: Path, result: "Upscaled", request: "Request", **settings: Any) -> dict[str, Any]:
    """BIDS-derivatives keys where BIDS has them, ours under `JaxSR`."""
    import jax

    size = result.volume.voxel_size
    return {
        "Description": WARNING,
        "Sources": [os.path.relpath(source.resolve(), output.resolve().parent)],
        "Resolution": f"{' × '.join(f'{v:g}' for v in size)} mm",
        "JaxSR": {
            "Version": jaxsr.__version__,
            "Model": model.name,
            "Method": model.experiment.method.kind,
            "Checkpoint": model.step,
            "WeightsSHA256": model.sha256,
            "TrainedVoxelSize": model.experiment.data.voxel_size,
            "TrainedAcquisition": model.experiment.data.acquisition,
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
