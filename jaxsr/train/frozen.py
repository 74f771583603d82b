"""Networks that were trained elsewhere, as far as training needs them."""

import flax.linen as nn

from jaxsr.config import ConfigError
from jaxsr.data.records import Encoding
from jaxsr.experiment import Experiment
from jaxsr.methods.base import Method
from jaxsr.methods.condition import Batch
from jaxsr.upscale.model import Frozen, load_frozen


def load_needed(experiment: Experiment, method: Method, batch: Batch, encoding: Encoding | None) -> Frozen:
    """The frozen networks that the loss of `batch` computes with, and the SHA-256 of all of the method's, which a checkpoint records.

    Those that an encoded set spares need not be named; where they are, they must be what it was encoded with.

    Raises: as `load_frozen`; ConfigError where the set was encoded with other networks.
    """
    if encoding is None:
        return load_frozen(experiment, method, batch=batch)
    of_set = {"autoencoder": encoding.autoencoder, "image_encoder": encoding.image_encoder}
    used = {name: sha256 for name, sha256 in of_set.items() if name in method.frozen() and sha256}
    needed = nn.meta.unbox(method.frozen(batch))
    named = {name for name, path in experiment.method.weights if path is not None}  # type: ignore[union-attr]
    there = load_frozen(experiment, method, named | needed.keys())
    for name, sha256 in used.items():
        if there.sha256.get(name, sha256) != sha256:
            path = getattr(experiment.method.weights, name)  # type: ignore[union-attr]
            raise ConfigError(
                f"data.manifest={experiment.data.manifest} was encoded with another {name.replace('_', ' ')} than "
                f"method.weights.{name}={path} names: SHA-256 {sha256} there, {there.sha256[name]} here. "
                "Name that one, or encode the set again with this one"
            )
    variables = {name: {part: there.variables[name][part] for part in parts} for name, parts in needed.items()}
    return Frozen(variables, {**there.sha256, **used})
