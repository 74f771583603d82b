"""Whether a network that was trained elsewhere is the one that a config describes, and what of it is taken.

Shapes do not tell heads, groups of a norm, or which of an image encoder's tokens a layer is for: so what a file or a run says of its
network is compared with the config too, and then the shapes. A denoiser brings what it was trained with, its guidance and the layers that
make its context, and those are taken only where the config has the same; all else starts as it starts without weights.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from jaxsr.config import ConfigError, Strict, to_dict
from jaxsr.methods import MethodConfig
from jaxsr.methods.anatomy import AnatomyConfig
from jaxsr.methods.autoencoder import AutoencoderConfig
from jaxsr.methods.spcdd_config import SpcddConfig
from jaxsr.methods.spcdd_networks import SpcddNetworks
from jaxsr.methods.sr3 import Sr3Config
from jaxsr.methods.student import StagedConfig
from jaxsr.methods.teacher import TeacherConfig
from jaxsr.methods.vqvae import VqvaeConfig

# Network → of what kind the models are that it is taken of.
HOLDERS = {
    "autoencoder": "autoencoder",
    "anatomy": "anatomy",
    "image_encoder": "teacher",
    "sr3": "sr3",
    "student": "student",
    "teacher": "spcdd",
    "unet": "teacher",
    "vqvae": "vqvae",
}
BESIDE = {"context": "layer to the context", "spatial": "layer to the spatial condition", "guidance": "guidance"}  # a denoiser

_OF_STAGES = ("stages", "schedule", "prediction", "stage_conditioning", "residual_std", "bound")
_OF_SR3 = ("schedule", "prediction", "residual_std", "context", "shrink", "bound")
_OF_TEACHERS = ("autoencoder", "schedule", "prediction", "residual_std")
_LEARNT_LATER = {  # by an sr3
    "scale_conditioning": "told how coarse a scan is",
    "axes_conditioning": "told over how many axes the mean is",
    "quality_conditioning": "told how sharp and how noisy a scan is",
    "passes": "shown what it made of a volume before",
}
_TRAINING = ("remat", "train", "context", "dropout")  # settings of networks that say nothing of their parameters


def network_of(method: MethodConfig, name: str) -> tuple[Strict | None, str]:
    """The config of the network `name` of a method that has it, and the key that it stands under."""
    if name in ("sr3", "student") or is_all_of(method, name):
        return method.network, "method.network"  # type: ignore[union-attr]
    if name == "teacher":
        return method.distill.teacher, "method.distill.teacher"  # type: ignore[union-attr]
    if name == "anatomy":
        prior = method.prior  # type: ignore[union-attr]
        return (prior.network, "method.prior.network") if prior else (None, "method.prior")
    if name in ("autoencoder", "vqvae"):
        return getattr(method, name).network, f"method.{name}.network"
    return getattr(method, name), f"method.{name}"


def network_in(trained: MethodConfig, name: str) -> Strict | None:
    """The config of the network `name` that others take of a method that was trained: as a teacher, all of it."""
    if name != "teacher":
        return network_of(trained, name)[0]
    assert isinstance(trained, SpcddConfig)
    return SpcddNetworks(**{key: getattr(trained, key) for key in SpcddNetworks.model_fields})


def check_network(source: object, found: Mapping[str, Any], wanted: Strict, key: str) -> None:
    """Raises ConfigError where `found`, settings of the network in `source`, are others than `wanted` has under the same names."""
    theirs, ours = _settings(found), _settings(to_dict(wanted))
    if wrong := [f"{name}: {theirs[name]} → {ours[name]}" for name in ours if theirs.get(name, ours[name]) != ours[name]]:
        listed = "\n  ".join(wrong)
        raise ConfigError(
            f"{source} holds another network than {key} says: name another, or set there what it has (its → yours)\n  {listed}"
        )


def is_all_of(method: MethodConfig, name: str) -> bool:
    """Whether the network `name` is all that the method trains: its parameters and statistics are those of the method."""
    alone: dict[str, type] = {"anatomy": AnatomyConfig, "autoencoder": AutoencoderConfig, "sr3": Sr3Config}
    alone |= {"student": StagedConfig, "vqvae": VqvaeConfig}
    return name in alone and isinstance(method, alone[name])


def check_maps_seen(source: object, found: VqvaeConfig, wanted: Any) -> None:
    """Raises ConfigError where the VQ-VAE in `source` is shown other maps than that of the method `wanted`: channels do not tell which."""
    alone = isinstance(wanted, VqvaeConfig)
    maps = wanted.maps if alone else wanted.vqvae.maps
    if found.maps != maps:
        key = "method.maps" if alone else "method.vqvae.maps"
        raise ConfigError(
            f"{source} was shown other maps beside the slice than {key} says: name another, or set there what it has: "
            f"{list(found.maps)} → {list(maps)}"
        )


def check_process(source: object, found: MethodConfig, wanted: MethodConfig) -> None:
    """Raises ConfigError where an sr3, student or teacher in `source` goes another way, from noise to images or through resolutions, than
    `wanted`."""
    keys = _OF_SR3 if isinstance(wanted, Sr3Config) else _OF_STAGES if isinstance(wanted, StagedConfig) else _OF_TEACHERS
    both = ({key: to_dict(method)[key] for key in keys} for method in (found, wanted))
    theirs, ours = ({key: _settings(of) if isinstance(of, Mapping) else of for key, of in settings.items()} for settings in both)
    for settings in (theirs, ours):
        if (stages := settings.get("stages")) and stages["blur"] == "matched":
            del stages["k"]  # which is of the other
    if wrong := [f"method.{key}: {theirs[key]} → {ours[key]}" for key in keys if theirs[key] != ours[key]]:
        listed = "\n  ".join(wrong)
        raise ConfigError(f"{source} was trained in another way: set here what it has (its → yours)\n  {listed}")


def started_sr3(
    source: object, tree: Any, wanted: Any, found: Sr3Config, method: Sr3Config, note: Callable[[str], None]
) -> tuple[Any, Any]:
    """An sr3's parameters `tree`, of a model `found`, for a network of the shapes `wanted`, of `method`; and those that it has to have.

    One that was not told or shown something of `_LEARNT_LATER` may start one that is, of which `note` is told. What it is newly shown
    counts for nothing at first. The axes and the quality, newly told, count as in a network that is trained from nothing: the layer that
    hears them changes little in training, and would not listen if it began at zero. A typical scan along three axes (`TOLD_AS_ONE` of
    jaxsr.methods.sr3) tells it zeros, and it is what it was. Of the scale layers of their own hear, which begin as if nothing was told.

    Raises:
      ConfigError: where it is told or shown what this network is not.
    """
    new = []
    for key, said in _LEARNT_LATER.items():
        theirs, ours = getattr(found, key), getattr(method, key)
        if theirs > ours:
            raise ConfigError(f"method.weights.sr3: {source} is {said}: set method.{key}={str(theirs).lower()}, or name another")
        if theirs < ours:
            new.append(key)
    if not new:
        return tree, wanted
    lacked = ", nor ".join(_LEARNT_LATER[key] for key in new)
    note(f"{source} was not {lacked}: it starts as it is, for a typical scan along three axes, and learns that")
    began = dict(tree)
    if "scale_conditioning" in new:
        wanted = {name: of for name, of in wanted.items() if name in tree or not name.startswith("scale_")}
    elif found.scale_conditioning:  # what it is told, one after the other: the scale, the axes, the quality
        told = np.asarray(tree["scale_in"]["kernel"])
        count, features = wanted["scale_in"]["kernel"].shape
        first = np.random.default_rng(0).normal(0, count**-0.5, (6, features)).astype(told.dtype)
        if "axes_conditioning" in new:
            told = np.insert(told, 3, first[0], axis=0)
        if "quality_conditioning" in new:
            told = np.concatenate([told, first[1:]])
        began["scale_in"] = {**tree["scale_in"], "kernel": told}
    if "passes" in new:  # channels are the volume's slab and x_t; as many as the slab has come between them
        kernel, slab = np.asarray(tree["stem"]["kernel"]), 1 + 2 * found.context
        of_pixels = kernel.reshape(*kernel.shape[:2], found.network.patch**2, slab + 1, -1)
        wider = np.insert(of_pixels, [slab] * slab, 0, axis=3)
        began["stem"] = {**tree["stem"], "kernel": wider.reshape(*kernel.shape[:2], -1, kernel.shape[3])}
    return began, wanted


def check_shapes(source: object, tree: Any, wanted: Any, key: str) -> None:
    """Raises ConfigError where the arrays of `tree` have other names or shapes than those `wanted`."""
    found, expected = _shapes(tree), _shapes(wanted)
    wrong = [
        f"{name}: {found.get(name, 'absent')}, expected {expected.get(name, 'none')}"
        for name in sorted(found | expected)
        if found.get(name) != expected.get(name)
    ]
    if wrong:
        listed = "\n  ".join(wrong[:10])
        raise ConfigError(
            f"{source} does not fit {key}, in {len(wrong)} places: set its sizes as `jaxsr weights verify` tells them\n  {listed}"
        )


def with_condition(unet: Any, wanted: Any) -> Any | None:
    """A `unet` whose stem takes the noisy latents alone, for a stem that takes the condition beside them: it starts by not looking at that,
    and is exactly what it was. None where it takes something else."""
    kernel, channels, latent = unet["stem"]["kernel"], wanted["stem"]["kernel"].shape[2], wanted["out"]["kernel"].shape[-1]
    if not kernel.shape[2] == unet["out"]["kernel"].shape[-1] == latent < channels:
        return None
    wider = np.pad(kernel, ((0, 0), (0, 0), (0, channels - latent), (0, 0)))  # the latents come first
    return {**unet, "stem": {**unet["stem"], "kernel": wider}}


def beside(
    source: object, found: Mapping[str, Any], trained: TeacherConfig | None, method: TeacherConfig, shapes: Any, note: Callable[[str], None]
) -> dict[str, Any]:
    """What of `found`, parameters that a denoiser was trained with, by `BESIDE`, serves `method` too; `note` is told of the rest.

    Args:
      trained: of what; None: Zero-1-to-3, whose context is CLIP's pooled token.
      shapes: of the parameters of `method`.
    """
    taken = {}
    for name in (name for name in BESIDE if name in found and name in shapes):
        if _alike(name, trained, method) and _shapes(found[name]) == _shapes(shapes[name]):
            taken[name] = found[name]
        else:
            key = "method.guidance" if name == "guidance" else "method.image_encoder"
            note(f"the {BESIDE[name]} in {source} is not taken, as {key} is another than it was made for: here it starts untrained")
    return taken


def _alike(name: str, trained: TeacherConfig | None, method: TeacherConfig) -> bool:
    if trained is None:
        return name == "context" and method.image_encoder is not None and method.image_encoder.context == "pooled"
    one, other = (of.guidance if name == "guidance" else of.image_encoder for of in (trained, method))
    if one is None or other is None or _settings(to_dict(one)) != _settings(to_dict(other)):
        return False
    return name != "context" or one.context == other.context  # type: ignore[union-attr]


def _settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Those that make the network, in one order."""

    def ordered(name: str, value: Any) -> Any:
        return _settings(value) if isinstance(value, Mapping) else sorted(value, key=str) if name == "attention_at" else value

    return {name: ordered(name, value) for name, value in config.items() if name not in _TRAINING}


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    return {jax.tree_util.keystr(path): leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
