"""A model as one file: weights, configuration, and a card that says what it is. `load_model` reads it; nothing in it is run.

In half precision what multiplies is stored so, arrays of two or more dimensions; scales, shifts and other vectors, a thousandth of the
bytes, stay as they are. Whoever reads the file computes with what is in it, as float32 or as the configuration's precision has it.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

import jaxsr
from jaxsr.config import to_dict
from jaxsr.data.variety import Variety
from jaxsr.experiment import DataConfig, Experiment, SourceConfig
from jaxsr.files import FileError, shown
from jaxsr.upscale.model import Model
from jaxsr.weights.file import SUFFIX, digest, write_arrays

Stored = Literal["float32", "bfloat16", "float16"]


def check_name(path: Path) -> None:
    """Raises FileError for a name that no model is exported to."""
    if path.suffix != SUFFIX:
        raise FileError(f"{path}: a model is exported to a {SUFFIX} file: name it {path.with_suffix(SUFFIX)}")


def export_model(model: Model, path: Path, dtype: Stored = "float32", before: Mapping[str, str] = MappingProxyType({})) -> None:
    """Writes `model`, for `load_model`. Where the training data lay is left out: it may name people.

    Args:
      before: of a model that was read from such a file, what stands there (`read_about`): its name, and what it was trained on.

    Raises:
      FileError: where it cannot be written, as `check_name`, and for weights that are not finite, or not in `dtype`.
    """
    check_name(path)
    nameless: dict[str, Any] = {"data": _nameless(model.experiment.data)}
    if weights := getattr(model.experiment.method, "weights", None):
        nameless["method"] = model.experiment.method.model_copy(update={"weights": type(weights)()})
    stored = jax.tree.map(lambda leaf: _cast(leaf, dtype, path), model.variables)
    about = {
        "format": "jaxsr",
        "version": jaxsr.__version__,
        "name": before.get("name", model.name),
        "step": str(model.step),
        "dtype": dtype,
        "rounded": dtype if dtype != "float32" else before.get("rounded", "no"),
        "trained_on": before.get("trained_on", _trained_on(model.experiment)),
        "sha256": digest(stored),
        "experiment": json.dumps(to_dict(model.experiment.model_copy(update=nameless))),
    }
    read = jax.tree.map(lambda leaf: leaf.astype(np.float32) if leaf.dtype.itemsize == 2 else leaf, stored["params"])
    write_arrays(path, stored, {**about, "model_card": model_card(model, about, digest(read))})


def model_card(model: Model, about: Mapping[str, str], sha256: str) -> str:
    """What whoever is given the file should know, Markdown.

    Args:
      about: what stands in the file.
      sha256: of the trained weights as they are read from it, by which sidecars know them.
    """
    experiment, method = model.experiment, model.experiment.method
    data, config = experiment.data, experiment.train
    counts = {name: sum(int(leaf.size) for leaf in jax.tree.leaves(tree)) for name, tree in _networks(model).items()}
    finest, coarsest = getattr(method, "between_mm", (data.voxel_size, None))
    made = f"anything from {coarsest:g} mm to {finest:g} mm, in {method.stages.count} stages" if coarsest else f"{finest:g} mm"  # type: ignore[union-attr]
    scans = f"{' × '.join(f'{mm:.3g}' for mm in data.acquired)} mm" if data.acquired else data.acquisition.name
    if data.range_acquired:
        scans = "{:g} to {:g} mm".format(*data.range_acquired)
    if between := getattr(method, "pixels", None):
        made = f"anything down to {between[0]:g} mm"
    request = model.method.default_request
    each = " a stage" if coarsest else ""
    steps = f"{request.steps} sampling step{'s' if request.steps > 1 else ''}{each}, η = {request.eta:g}"
    sampling = steps if model.method.most_steps > 1 else "it does not sample"
    rounded = f", rounded to {about['rounded']} before" if about["dtype"] == "float32" != about["rounded"] != "no" else ""
    slices = f"{config.batch_size} slices of {data.crop} × {data.crop} pixels"
    lines = [
        f"# {about['name']}",
        "",
        f"A brain MRI super-resolution model of kind `{method.kind}`, made by jaxsr {jaxsr.__version__}.",
        "**Research use only**: what it makes is synthetic, may show structures that are not there and miss some that are, and is not for",
        "diagnosis.",
        "",
        f"- voxels: {made}, of scans like {scans}",
        f"- parameters: {', '.join(f'{name} {count:,}' for name, count in counts.items())}; stored as {about['dtype']}{rounded}",
        f"- computes in {'bfloat16' if experiment.precision == 'bf16' else 'float32'}; by default {sampling}",
        f"- trained for {model.step:,} steps of {slices}, on {about['trained_on']}; these are the moving averages of the weights",
        f"- guided by: {', '.join(getattr(method, 'maps', ())) or 'no maps'}",
        f"- SHA-256 of the trained weights, which outputs' sidecars give: {sha256}",
        *(f"- SHA-256 of its {name.replace('_', ' ')} when it was trained: {of}" for name, of in model.frozen.items()),
        "",
        "    jaxsr upscale -i scan.nii.gz -o out.nii.gz --model THIS_FILE",
        "",
        "How well it does is not in this file: `jaxsr evaluate --protocol` tells. Networks that hold published weights, or started from",
        "some, are under the licences of those, which `jaxsr weights list` names. `jaxsr --cite` prints the papers.",
    ]
    return "\n".join(lines) + "\n"


def _networks(model: Model) -> dict[str, Any]:
    return {"trained": model.variables["params"], **{name.replace("_", " "): tree for name, tree in model.variables["frozen"].items()}}


def _nameless(data: DataConfig) -> DataConfig:
    """Without its paths. A mixture's sources stay, so that it is told what scans were like: as if of the embedded anatomy."""
    paths: dict[str, Any] = {"volumes": None, "labels": None}
    of_volumes: dict[str, Any] = {"native": False, **Variety()._asdict()}
    mixture = tuple(source.model_copy(update={**paths, **of_volumes}) for source in data.mixture)
    return data.model_copy(update={**paths, "manifest": None, "mixture": mixture})


def _trained_on(experiment: Experiment) -> str:
    data = experiment.data
    if data.mixture:
        return " and ".join(dict.fromkeys(_of_source(source) for source in data.mixture))
    if data.manifest is not None:
        return "a prepared set"
    return _of_source(data)


def _of_source(of: DataConfig | SourceConfig) -> str:
    if of.labels is not None:
        return "synthetic heads rendered from label maps"
    return "a folder of volumes" if of.volumes is not None else "synthetic heads rendered from tissue averages"


def _cast(leaf: Any, dtype: Stored, path: Path) -> np.ndarray:
    """As it is stored."""
    values = np.asarray(leaf)
    if dtype == "float32" or values.dtype != np.float32 or values.ndim < 2:
        return values
    if not np.isfinite(values).all():
        raise FileError(f"{shown(path)}: a weight is NaN or infinite: export an earlier checkpoint, or another run")
    with np.errstate(over="ignore", under="ignore"):
        stored = values.astype(jnp.dtype(dtype))
    if not np.isfinite(stored.astype(np.float32)).all():
        larger = "float32" if dtype == "bfloat16" else "bfloat16, or float32"
        raise FileError(f"{shown(path)}: a weight is {np.abs(values).max():g}, more than {dtype} holds: choose --dtype {larger}")
    return stored
