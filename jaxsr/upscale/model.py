"""A trained model: from the run directory that trained it, or from the one file that it was exported to."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jaxsr
from jaxsr.config import from_dict, to_dict
from jaxsr.experiment import Experiment, load_experiment
from jaxsr.methods.base import Method, Variables
from jaxsr.runtime.checkpoint import NoCheckpoint, newest_checkpoint, read_checkpoint
from jaxsr.train.loop import abstract_batch, build_method
from jaxsr.train.state import State, abstract_state, make_optimizer
from jaxsr.weights.file import SUFFIX, WeightsError, digest, read_about, read_arrays, write_arrays


class ModelError(ValueError):
    """No model where one was named; says how to get one."""


class Model(NamedTuple):
    """Attributes:
    name: of the run.
    step: of the checkpoint.
    variables: the moving average of the parameters, and statistics.
    sha256: of the parameters.
    """

    name: str
    step: int
    experiment: Experiment
    method: Method
    variables: Variables
    sha256: str

    @property
    def recipe(self) -> "Recipe":
        return Recipe(self.name, self.step, self.experiment, self.method)


class Recipe(NamedTuple):
    """What is known of a model without its weights being read; `step` is that which `load_model` would take."""

    name: str
    step: int
    experiment: Experiment
    method: Method


def read_recipe(source: Path, *, precision: str | None = None, note: Callable[[str], None] = lambda text: None) -> Recipe:
    """The model in `source` but for its weights; checkpoints' checksums are verified, and `note` is told of those that are skipped.

    Raises: as `load_model`, but for weights that do not fit.
    """
    experiment = read_experiment(source, precision)
    if source.is_file():
        return Recipe(source.stem, int(read_about(source)["step"]), experiment, build_method(experiment))
    try:
        step = newest_checkpoint(source / "checkpoints", note)
    except NoCheckpoint as error:
        raise ModelError(str(error)) from error
    return Recipe(source.name, step, experiment, build_method(experiment))


def load_model(source: Path, *, precision: str | None = None, note: Callable[[str], None] = lambda text: None) -> Model:
    """The newest checkpoint of a run directory that can be read, or an exported file; `note` is told of checkpoints that cannot.

    Raises:
      ModelError: where there is no trained run.
      WeightsError: for a file that is no exported model, or not as it was written.
      CheckpointError: where the checkpoint does not fit the run's config, or cannot be read.
    """
    experiment = read_experiment(source, precision)
    method = build_method(experiment)
    shapes = _shapes(experiment, method)
    if source.is_file():
        about, variables = read_about(source), read_arrays(source, {"params": shapes.ema, "stats": shapes.stats})
        if digest(variables) != about.get("sha256"):  # safetensors has no checksum of its own
            raise WeightsError(f"{source} is not what was written: the SHA-256 of its arrays differs: copy or export it again")
        return Model(source.stem, int(about["step"]), experiment, method, variables, digest(variables["params"]))
    try:
        step, state = read_checkpoint(source / "checkpoints", {"ema": shapes.ema, "stats": shapes.stats}, note)
    except NoCheckpoint as error:
        raise ModelError(str(error)) from error
    return Model(source.name, step, experiment, method, {"params": state["ema"], "stats": state["stats"]}, digest(state["ema"]))


def export_model(model: Model, path: Path) -> None:
    """One file with weights and configuration, for `load_model`. Where the training data lay is left out: it may name people.

    Raises:
      WeightsError: for a name that does not end in .safetensors.
      FileError: where it cannot be written.
    """
    if path.suffix != SUFFIX:
        raise WeightsError(f"{path}: a model is exported to a {SUFFIX} file: name it {path.with_suffix(SUFFIX)}")
    nameless = model.experiment.data.model_copy(update={"volumes": None, "labels": None, "manifest": None})
    experiment = model.experiment.model_copy(update={"data": nameless})
    about = {"format": "jaxsr", "version": jaxsr.__version__, "name": model.name, "step": str(model.step)}
    write_arrays(path, model.variables, {**about, "sha256": digest(model.variables), "experiment": json.dumps(to_dict(experiment))})


def read_experiment(source: Path, precision: str | None = None) -> Experiment:
    """What `source`, a run directory or an exported file, was trained as.

    Raises:
      ModelError, WeightsError: where it is neither.
    """
    config = source / "config.yaml"
    if source.is_file():
        about = read_about(source)
        if about.get("format") != "jaxsr" or not {"experiment", "step"} <= about.keys():
            raise WeightsError(
                f"{source} was not written by `jaxsr export`, and says nothing of its network: name a run directory, or export one"
            )
        experiment = from_dict(json.loads(about["experiment"]), Experiment)
    elif config.is_file():
        experiment = load_experiment(config)
    else:
        raise ModelError(f"{source} is not a run directory (it has no config.yaml): train one with `jaxsr train CONFIG --run-dir {source}`")
    return experiment.model_copy(update={"precision": precision}) if precision else experiment


def _shapes(experiment: Experiment, method: Method) -> State:
    return abstract_state(method, make_optimizer(experiment.optimizer, experiment.train.steps), abstract_batch(experiment))
