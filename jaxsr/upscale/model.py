"""A trained model, from the run directory that trained it."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from jaxsr.experiment import Experiment, load_experiment
from jaxsr.methods.base import Method, Variables
from jaxsr.runtime.checkpoint import NoCheckpoint, newest_checkpoint, read_checkpoint
from jaxsr.train.loop import abstract_batch, build_method
from jaxsr.train.state import abstract_state, make_optimizer


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
    """What a run directory says of its model without its weights being read; `step` is that which `load_model` would take."""

    name: str
    step: int
    experiment: Experiment
    method: Method


def read_recipe(run_dir: Path, *, precision: str | None = None, note: Callable[[str], None] = lambda text: None) -> Recipe:
    """The model in `run_dir` but for its weights, whose checksums are verified; `note` is told of checkpoints that are skipped.

    Raises:
      ModelError: where there is no trained run.
      CheckpointError: where a checkpoint cannot be read.
    """
    experiment = _experiment(run_dir, precision)
    try:
        step = newest_checkpoint(run_dir / "checkpoints", note)
    except NoCheckpoint as error:
        raise ModelError(str(error)) from error
    return Recipe(run_dir.name, step, experiment, build_method(experiment))


def load_model(run_dir: Path, *, precision: str | None = None, note: Callable[[str], None] = lambda text: None) -> Model:
    """The newest checkpoint of `run_dir` that can be read; `note` is told of those that cannot.

    Raises:
      ModelError: where there is no trained run.
      CheckpointError: where the checkpoint does not fit the run's config, or cannot be read.
    """
    experiment = _experiment(run_dir, precision)
    method = build_method(experiment)
    shapes = abstract_state(method, make_optimizer(experiment.optimizer, experiment.train.steps), abstract_batch(experiment))
    try:
        step, state = read_checkpoint(run_dir / "checkpoints", {"ema": shapes.ema, "stats": shapes.stats}, note)
    except NoCheckpoint as error:
        raise ModelError(str(error)) from error
    return Model(run_dir.name, step, experiment, method, {"params": state["ema"], "stats": state["stats"]}, _digest(state["ema"]))


def _experiment(run_dir: Path, precision: str | None) -> Experiment:
    config = run_dir / "config.yaml"
    if not config.is_file():
        raise ModelError(
            f"{run_dir} is not a run directory (it has no config.yaml): train one with `jaxsr train CONFIG --run-dir {run_dir}`"
        )
    experiment = load_experiment(config)
    return experiment.model_copy(update={"precision": precision}) if precision else experiment


def _digest(params: object) -> str:
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]:
        digest.update(jax.tree_util.keystr(path).encode())
        digest.update(np.ascontiguousarray(leaf).tobytes())
    return digest.hexdigest()
