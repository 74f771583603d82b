"""A model as one file: weights, configuration, and a card that says what it is. `load_model` reads it; nothing in it is run.

In half precision what multiplies is stored so, arrays of two or more dimensions; scales, shifts and other vectors, a thousandth of the
bytes, stay as they are. Whoever reads the file computes with what is in it, as float32 or as the configuration's precision has it.
"""

import json
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

import jaxsr
from jaxsr.config import to_dict
from jaxsr.experiment import Experiment
from jaxsr.files import FileError, shown
from jaxsr.upscale.model import Model
from jaxsr.weights.file import SUFFIX, digest, write_arrays

Stored = Literal["float32", "bfloat16", "float16"]


def export_model(model: Model, path: Path, dtype: Stored = "float32") -> None:
    """Writes `model`, for `load_model`. Where the training data lay is left out: it may name people.

    Raises:
      FileError: where it cannot be written, for a name that does not end in .safetensors, and for weights beyond what `dtype` holds.
    """
    if path.suffix != SUFFIX:
        raise FileError(f"{path}: a model is exported to a {SUFFIX} file: name it {path.with_suffix(SUFFIX)}")
    nameless: dict[str, Any] = {"data": model.experiment.data.model_copy(update={"volumes": None, "labels": None, "manifest": None})}
    if weights := getattr(model.experiment.method, "weights", None):
        nameless["method"] = model.experiment.method.model_copy(update={"weights": type(weights)()})
    stored = jax.tree.map(lambda leaf: _cast(leaf, dtype, path), model.variables)
    sha256 = digest(stored)
    about = {
        "format": "jaxsr",
        "version": jaxsr.__version__,
        "name": model.name,
        "step": str(model.step),
        "dtype": dtype,
        "sha256": sha256,
        "experiment": json.dumps(to_dict(model.experiment.model_copy(update=nameless))),
        "model_card": model_card(model, dtype, sha256),
    }
    write_arrays(path, stored, about)


def model_card(model: Model, dtype: Stored, sha256: str) -> str:
    """What whoever is given the file should know, Markdown."""
    experiment, method = model.experiment, model.experiment.method
    data, config = experiment.data, experiment.train
    counts = {name: sum(int(leaf.size) for leaf in jax.tree.leaves(tree)) for name, tree in _networks(model).items()}
    finest, coarsest = getattr(method, "between_mm", (data.voxel_size, None))
    made = f"anything from {coarsest:g} mm to {finest:g} mm" if coarsest else f"{finest:g} mm"
    scans = f"{' × '.join(f'{mm:g}' for mm in data.acquired)} mm" if data.acquired else data.acquisition.name
    request = model.method.default_request
    sampling = f"{request.steps} sampling steps, η = {request.eta:g}" if model.method.most_steps > 1 else "it does not sample"
    slices = f"{config.batch_size} slices of {data.crop} × {data.crop} pixels"
    lines = [
        f"# {model.name}",
        "",
        f"A brain MRI super-resolution model of kind `{method.kind}`, made by jaxsr {jaxsr.__version__}.",
        "**Research use only**: what it makes is synthetic, may show structures that are not there and miss some that are, and is not for",
        "diagnosis.",
        "",
        f"- voxels: {made}, of scans like {scans}",
        f"- parameters: {', '.join(f'{name} {count:,}' for name, count in counts.items())}; stored as {dtype}",
        f"- computes in {'bfloat16' if experiment.precision == 'bf16' else 'float32'}; by default {sampling}",
        f"- trained for {model.step:,} steps of {slices}, on {_trained_on(experiment)}; these are the moving averages of the weights",
        f"- guided by: {', '.join(getattr(method, 'maps', ())) or 'no maps'}",
        f"- SHA-256 of the weights: {sha256}",
        "",
        "    jaxsr upscale -i scan.nii.gz -o out.nii.gz --model THIS_FILE",
        "",
        "How well it does is not in this file: `jaxsr evaluate --protocol` tells. `jaxsr --cite` prints the papers.",
    ]
    return "\n".join(lines) + "\n"


def _networks(model: Model) -> dict[str, Any]:
    return {"trained": model.variables["params"], **{name.replace("_", " "): tree for name, tree in model.variables["frozen"].items()}}


def _trained_on(experiment: Experiment) -> str:
    data = experiment.data
    if data.manifest is not None:
        return "a prepared set"
    if data.labels is not None:
        return "synthetic heads rendered from label maps"
    return "a folder of volumes" if data.volumes is not None else "synthetic heads rendered from tissue averages"


def _cast(leaf: Any, dtype: Stored, path: Path) -> np.ndarray:
    """As it is stored."""
    values = np.asarray(leaf)
    if dtype == "float32" or values.dtype != np.float32 or values.ndim < 2:
        return values
    with np.errstate(over="ignore"):
        stored = values.astype(jnp.dtype(dtype))
    if not np.isfinite(stored.astype(np.float32)).all():
        most = np.abs(values).max()
        raise FileError(f"{shown(path)}: a weight is {most:g}, more than {dtype} holds: choose --dtype bfloat16, or float32")
    return stored
