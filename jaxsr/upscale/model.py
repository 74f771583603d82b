"""A trained model: from the run directory that trained it, or from the one file that it was exported to.

What it needs and was trained elsewhere (`Method.frozen`: a teacher's autoencoder) is named in its config under `method.weights`, as a run
directory, an exported file, or what `jaxsr weights import` made. It is not saved again with every checkpoint, which holds its SHA-256
instead, and it must be the same when it is used. An exported file holds everything.
"""

import json
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import flax.linen as nn
import jax

from jaxsr.config import ConfigError, from_dict, to_dict
from jaxsr.experiment import Experiment, load_experiment
from jaxsr.methods.base import Method, Variables
from jaxsr.methods.condition import Batch
from jaxsr.methods.spcdd_config import SpcddConfig
from jaxsr.methods.spcdd_networks import NETWORKS
from jaxsr.methods.sr3 import Sr3Config
from jaxsr.methods.student import StagedConfig
from jaxsr.methods.vqvae import VqvaeConfig
from jaxsr.runtime.checkpoint import NoCheckpoint, newest_checkpoint, read_checkpoint, read_checkpoint_about
from jaxsr.train.build import abstract_batch, build_method, only_to_train, variables_to_upscale
from jaxsr.train.state import abstract_variables
from jaxsr.upscale.fitting import (
    HOLDERS,
    beside,
    check_maps_seen,
    check_network,
    check_process,
    check_shapes,
    is_all_of,
    network_in,
    network_of,
    started_sr3,
    with_condition,
)
from jaxsr.weights.file import WeightsError, digest, read_about, read_arrays
from jaxsr.weights.imported import read_vgg16, read_weights

Note = Callable[[str], None]

_IMPORTED = {"autoencoder": "autoencoder", "image_encoder": "clip", "unet": "unet"}  # kinds of imported files
_OTHER_WAYS = {
    "anatomy": "; `jaxsr train configs/anatomy.yaml` trains one",
    "autoencoder": "; `jaxsr train configs/autoencoder.yaml` trains one",
    "vqvae": "; `jaxsr train configs/vqvae.yaml` trains one",
    "image_encoder": "; or train it, method.image_encoder.train=true, or leave it out, method.image_encoder=null",
}


class ModelError(ValueError):
    """No model where one was named; says how to get one."""


class Model(NamedTuple):
    """Attributes:
    name: of the run.
    step: of the checkpoint.
    variables: the moving average of the parameters, statistics, and what is frozen.
    sha256: of the parameters.
    frozen: SHA-256 of each network that is frozen.
    """

    name: str
    step: int
    experiment: Experiment
    method: Method
    variables: Variables
    sha256: str
    frozen: Mapping[str, str] = MappingProxyType({})

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


def load_model(
    source: Path, *, precision: str | None = None, note: Note = lambda text: None, frozen: Collection[str] | None = None
) -> Model:
    """The newest checkpoint of a run directory that can be read, or an exported file; `note` is told of checkpoints that cannot.

    Args:
      frozen: which of the networks that were trained elsewhere are wanted; None: all. An exported file is read whole.

    Raises:
      ModelError: where there is no trained run, or its config does not say where such a network is; ConfigError: as `load_frozen`.
      WeightsError: for a file that is no exported model, or not as it was written.
      CheckpointError: where the checkpoint does not fit the run's config, or cannot be read.
    """
    experiment = read_experiment(source, precision)
    method = build_method(experiment)
    shapes = variables_to_upscale(experiment, method)
    if source.is_file():
        about, stored = read_about(source), read_arrays(source, shapes, half=True)
        if digest(stored) != about.get("sha256"):
            raise WeightsError(f"{source} is not what was written: the SHA-256 of its arrays differs: copy or export it again")
        variables = jax.tree.map(lambda leaf, shape: leaf.astype(shape.dtype, copy=False), stored, shapes)
        sums = {name: digest(tree) for name, tree in variables["frozen"].items()}
        return Model(source.stem, int(about["step"]), experiment, method, variables, digest(variables["params"]), sums)
    try:
        wanted = {"ema": shapes["params"]} | ({"stats": shapes["stats"]} if shapes["stats"] else {})
        step, state = read_checkpoint(source / "checkpoints", wanted, note, without=only_to_train(method))
    except NoCheckpoint as error:
        raise ModelError(str(error)) from error
    before = read_checkpoint_about(source / "checkpoints", step).get("frozen", {})
    asked = shapes["frozen"].keys() & (before.keys() if frozen is None else {*frozen})
    _check_named(experiment, {name: sha256 for name, sha256 in before.items() if name in asked}, source)
    elsewhere = load_frozen(experiment, method, frozen)
    check_frozen(experiment, elsewhere.sha256, before, source)
    variables = {"params": state["ema"], "stats": state.get("stats", {}), "frozen": elsewhere.variables}
    return Model(source.name, step, experiment, method, variables, digest(state["ema"]), elsewhere.sha256)


def is_model(path: Path) -> bool:
    """Whether `load_model` is who reads `path`, which is there: a folder or an exported file, and no weights that were imported."""
    return path.is_dir() or read_about(path).get("format") == "jaxsr"


class Frozen(NamedTuple):
    """Networks that were trained elsewhere, by name: their parameters and, where they have any, statistics; and SHA-256 of those."""

    variables: dict[str, Any]
    sha256: dict[str, str]


def load_frozen(experiment: Experiment, method: Method, names: Collection[str] | None = None, batch: Batch | None = None) -> Frozen:
    """What `method.frozen(batch)` asks for, or those networks of it in `names`, from where the config says that it is.

    Raises:
      ModelError: where the config names nothing, or nothing that is there; ConfigError: where it is another network than the config says;
        WeightsError, CheckpointError: as `load_model`.
    """
    shapes = nn.meta.unbox(method.frozen(batch))
    found = {name: _read_part(experiment, name, shapes)[name] for name in shapes if names is None or name in names}
    sums = {name: digest(tree) for name, tree in found.items()}
    if {"autoencoder", "teacher"} <= found.keys():
        path: Path = experiment.method.weights.teacher  # type: ignore[union-attr, assignment]
        check_frozen(experiment, {"autoencoder": sums["autoencoder"]}, _frozen_of(path), path)
    return Frozen(found, sums)


def load_start(experiment: Experiment, method: Method, note: Note = lambda text: None) -> dict[str, Any]:
    """Parameters that training starts from in place of random ones, as they stand in `params`, and statistics, as they stand in `stats`: of
    what `method.weights` names and is not frozen. `note` is told of what does not come as it is.

    Raises: as `load_frozen`.
    """
    named = {name for name, path in getattr(experiment.method, "weights", ()) if path is not None}
    if not named:
        return {}
    shapes = abstract_variables(method, abstract_batch(experiment))
    start: dict[str, Any] = {}
    for name in sorted(named - shapes["frozen"].keys()):
        alone = is_all_of(experiment.method, name)
        found = _read_part(experiment, name, {name: shapes["params"] | shapes["stats"]} if alone else shapes["params"], note)
        start |= found[name] if alone else found
    return start


def _frozen_of(source: Path) -> Mapping[str, str]:
    """SHA-256 of the networks that the model in `source` was trained with, whether they are still where they were or not."""
    if source.is_file():
        return load_model(source).frozen
    return read_checkpoint_about(source / "checkpoints", newest_checkpoint(source / "checkpoints")).get("frozen", {})


def check_frozen(experiment: Experiment, now: Mapping[str, str], before: Mapping[str, str], source: Path) -> None:
    """Raises ModelError where `source` was trained with other networks, by their SHA-256, than those that its config names `now`."""
    for name, sha256 in now.items():
        if name in before and before[name] != sha256:
            path = getattr(experiment.method.weights, name)  # type: ignore[union-attr]
            raise ModelError(
                f"{source} was trained with another {name.replace('_', ' ')} than {path} holds now: "
                f"SHA-256 {before[name]} then, {sha256} now. "
                f"Put it back as it was, or name where that one is as method.weights.{name} (in {source}/config.yaml)"
            )


def _check_named(experiment: Experiment, before: Mapping[str, str], source: Path) -> None:
    """Raises ModelError where `source` was trained with networks, of the SHA-256 `before`, that its config does not name: their encodings
    were enough."""
    for name, sha256 in before.items():
        if getattr(experiment.method.weights, name) is None:  # type: ignore[union-attr]
            raise ModelError(
                f"{source} was trained on a set that its {name.replace('_', ' ')} had encoded, and does not say where that is: set "
                f"method.weights.{name} in {source}/config.yaml to the run directory, exported file or imported weights that "
                f"{experiment.data.manifest} was encoded with, of SHA-256 {sha256}"
            )


def _read_part(experiment: Experiment, name: str, shapes: Mapping[str, Any], note: Note = lambda text: None) -> dict[str, Any]:
    """The parameters of one network, of the `shapes` under its name, from the file or run that `method.weights` names, with its statistics
    where it is all that was trained there; and, with a denoiser, those of what stands beside it."""
    method = experiment.method
    path: Path | None = getattr(method.weights, name)  # type: ignore[union-attr]
    if name == "perceptual":
        return {name: _read_features(path, shapes[name])}
    title, (wanted, key) = name.replace("_", " "), network_of(method, name)
    assert wanted
    if path is None:
        ways = ", an exported file or one made by `jaxsr weights import`" if name in _IMPORTED else " or an exported file"
        raise ModelError(
            f"method.weights.{name} names nothing, and there is no {title} without training: name a run directory{ways}"
            f"{_OTHER_WAYS.get(name, '')}"
        )
    if not path.exists():
        raise ModelError(f"method.weights.{name}={path} is not there: check the path{_OTHER_WAYS.get(name, '')}")
    trained = None
    if is_model(path):
        trained = read_experiment(path).method
        if trained.kind != HOLDERS[name]:
            raise ConfigError(f"method.weights.{name}: {path} holds a model of kind {trained.kind}, expected {HOLDERS[name]}: name another")
        theirs = network_in(trained, name)
        if theirs is None:
            raise ConfigError(f"method.weights.{name}: {path} holds a {trained.kind} without {title}: name another")
        check_network(path, to_dict(theirs), wanted, key)
        if isinstance(trained, Sr3Config | StagedConfig | SpcddConfig):
            check_process(path, trained, method)
        if isinstance(trained, VqvaeConfig):
            check_maps_seen(path, trained, method)
        variables = load_model(path, frozen=("anatomy",) if name == "teacher" else (name,)).variables
        found = variables["params"]
        if name == "teacher":
            found = {name: {of: part for of, part in (variables["frozen"] | found).items() if of in NETWORKS}}
        tree = found | variables["stats"] if is_all_of(trained, name) else (found if name in found else variables["frozen"])[name]
    elif name not in _IMPORTED:
        raise ConfigError(f"method.weights.{name}: {path} holds imported weights, expected a trained {title}: name its run directory")
    else:
        read = read_weights(path, _IMPORTED[name])
        found, tree = read.variables, read.variables["params"]
        check_network(path, read.sizes, wanted, key)
    if name == "unet" and (wider := with_condition(tree, shapes[name])):
        note(f"{path} is shown the noisy latents alone: it starts as it is, with zeros for the condition's columns in its first kernel")
        tree = wider
    if name == "sr3":
        assert isinstance(trained, Sr3Config)
        assert isinstance(method, Sr3Config)
        tree, has = started_sr3(path, tree, shapes[name], trained, method, note)
        shapes = {**shapes, name: has}
    check_shapes(path, tree, shapes[name], key)
    return {name: tree} | (beside(path, found, trained, method, shapes, note) if name == "unet" else {})  # type: ignore[arg-type]


def _read_features(path: Path | None, wanted: Mapping[str, Any]) -> dict[str, Any]:
    """VGG-16's layers as far as they are `wanted`: it is published, and the same for all, so there are no sizes to compare."""
    if path is None:
        raise ModelError(
            "method.weights.perceptual names nothing, and a perceptual loss is defined by the published weights of VGG-16: name what "
            "`jaxsr weights import vgg16` made, or do without (method.perceptual=none)"
        )
    layers = read_vgg16(path)
    return {layer: layers[layer] for layer in wanted}


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
