"""What can be imported, one entry a kind: how its published files are told, what they are made into, and what they may hold besides.

A file is known by a name that only it has. A whole checkpoint, of Stable Diffusion or Zero-1-to-3, holds three networks under prefixes of
their own; each kind takes its own. What it leaves are names that are known to be another's; anything else is an error.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from flax.traverse_util import unflatten_dict

from jaxsr.files import shown
from jaxsr.models.perceptual import NETS
from jaxsr.weights import autoencoder, clip, deduced, perceptual, unet
from jaxsr.weights.deduced import Shapes, Sizes, Tensors
from jaxsr.weights.file import WeightsError
from jaxsr.weights.names import Piece, take

ZERO123 = "cc_projection."  # Zero-1-to-3's layer from CLIP's projection and a pose of four numbers to the context
POSE = 4
_WAY_OUT = "is it whole, and of this kind?"

# Beginnings of the names in a whole checkpoint: its networks, their moving averages, and buffers of the schedule.
LEFT_OF_WHOLE = (
    *("model.diffusion_model.", "first_stage_model.", "cond_stage_model.", "model_ema.", ZERO123),
    *("betas", "alphas_cumprod", "sqrt_", "log_one_minus_alphas_cumprod", "posterior_", "lvlb_weights", "logvar", "scale_factor"),
)


class Converted(NamedTuple):
    """Attributes:
    variables: a tree of float32 arrays.
    sizes: what the network is made with, as far as shapes tell.
    layout: whose names the file had.
    left: how many tensors were left out, by the beginning of their names.
    about: more for the file to say of itself.
    """

    variables: dict[str, Any]
    sizes: Sizes
    layout: str
    left: dict[str, int]
    about: Mapping[str, str] = MappingProxyType({})


class Layout(NamedTuple):
    """One way in which a network is published.

    Attributes:
      title: whose names these are.
      prefix: of all its names.
      probe: a name, after the prefix, that no other layout has.
      sizes: of the tensors by their names after the prefix, what the network is made with.
      names: for these sizes, ours → theirs after the prefix.
      leave: beginnings of names after the prefix that are not the network's.
    """

    title: str
    prefix: str
    probe: str
    sizes: Callable[[Tensors], Sizes]
    names: Callable[[Sizes], Mapping[str, str | Piece]]
    leave: tuple[str, ...] = ()


class Kind(NamedTuple):
    """Attributes:
    title: what it is, for people.
    convert: tensors by their published names, and the name of their file → our variables.
    shapes: of our parameters, by name, for these sizes.
    unseen: sizes that shapes do not tell, as published: of a file that does not say them.
    """

    title: str
    convert: Callable[[Tensors, str], Converted]
    shapes: Callable[[Sizes], Shapes]
    unseen: Sizes = MappingProxyType({})


def _network(
    shapes: Callable[[Sizes], Shapes],
    layouts: tuple[Layout, ...],
    context: bool = False,
) -> Callable[[Tensors, str], Converted]:
    """`Kind.convert` of a network with the parameters `shapes`; with `context`, Zero-1-to-3's layer to it is taken too."""

    def convert(tensors: Tensors, source: str) -> Converted:
        layout = _layout(layouts, tensors, source)
        prefix = layout.prefix
        part = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
        rest = {name: tensor for name, tensor in tensors.items() if not name.startswith(prefix)}
        try:
            sizes = layout.sizes(part)
            described = ", ".join(f"{name} {value}" for name, value in sizes.items())
            what = f"tensors under {layout.title}'s names do not fit a network of {described}"
            taken = take(part, layout.names(sizes), _known(shapes, sizes), what, leave=layout.leave, way_out=_WAY_OUT)
            variables = {"params": unflatten_dict(taken.arrays, sep="/")}
            if context and f"{ZERO123}weight" in tensors:
                variables["context"] = _zero123_context({name: rest.pop(name) for name in tensors if name.startswith(ZERO123)})
            left = take(rest, {}, {}, "rest is of no checkpoint that is known", leave=LEFT_OF_WHOLE, way_out=_WAY_OUT).left
        except WeightsError as error:
            raise WeightsError(f"{shown(source)}: {error}") from error
        return Converted(variables, sizes, layout.title, {f"{prefix}{name}": n for name, n in taken.left.items()} | left)

    return convert


def _layout(layouts: tuple[Layout, ...], tensors: Tensors, source: str) -> Layout:
    for layout in layouts:
        if layout.prefix + layout.probe in tensors:
            return layout
    if any(name.startswith("params/") for name in tensors):
        raise WeightsError(f"{shown(source)} has jaxsr's names already: use it as it is, `jaxsr weights verify` says what it is")
    begin = ", ".join(shown(name) for name in sorted({name.split(".")[0] for name in tensors})[:8])
    probes = ", ".join(layout.prefix + layout.probe for layout in layouts)
    raise WeightsError(f"{shown(source)} holds none of {probes}: its {len(tensors)} tensors begin with {begin}; is it another kind?")


def _known(shapes: Callable[[Sizes], Shapes], sizes: Sizes) -> Shapes:
    try:
        return shapes(sizes)
    except (ValueError, TypeError, ZeroDivisionError) as error:  # sides, heads or groups that do not divide
        raise WeightsError(f"no network of ours has the sizes {dict(sizes)} ({str(error).splitlines()[0]}): {_WAY_OUT}") from error


# ------------------------------------------------------------------------------------------------ the entries


def _zero123_context(tensors: Tensors) -> dict[str, Any]:
    """Zero-1-to-3's layer to the context, `kernel` `[D, D]` and `bias` `[D]`: without the columns of its pose, as if that were zeros."""
    shape = tuple(tensors[f"{ZERO123}weight"].shape)
    if len(shape) != 2 or shape[1] != shape[0] + POSE:
        raise WeightsError(f"{ZERO123}weight has shape {list(shape)}, expected [D, D + {POSE}], the last {POSE} the pose: {_WAY_OUT}")
    names = {"kernel": f"{ZERO123}weight", "bias": f"{ZERO123}bias"}
    arrays = take(
        tensors, names, {"kernel": (shape[1], shape[0]), "bias": shape[:1]}, "context's layer does not fit", way_out=_WAY_OUT
    ).arrays
    return {"kernel": arrays["kernel"][:-POSE], "bias": arrays["bias"]}


def _lpips(tensors: Tensors, source: str) -> Converted:
    """Of lpips' own state dictionary, or of torchvision's backbone and lpips' heads, given together."""
    whole = "net.slice1.0.weight" in tensors
    names = perceptual.lpips_names if whole else lambda net: perceptual.torchvision_names(net) | perceptual.head_names(net)
    if not (net := next((net for net in NETS if set(names(net).values()) <= tensors.keys()), None)):
        raise WeightsError(
            f"{shown(source)} holds no whole LPIPS: give the state dictionary of lpips.LPIPS(net=…), or torchvision's {', '.join(NETS)} "
            "--with the heads that lpips has in weights/v0.1"
        )
    heads = {name: tensor for name, tensor in tensors.items() if name.startswith("lin")}
    backbone = {name: tensor for name, tensor in tensors.items() if not name.startswith("lin")}
    found = perceptual.from_lpips(net, tensors) if whole else perceptual.from_torchvision(net, backbone, heads)
    counts = {prefix: sum(name.startswith(prefix) for name in tensors) for prefix in (*perceptual.CLASSIFIER, "lins.", "scaling_layer.")}
    left = {prefix: n for prefix, n in counts.items() if n}
    about = {"format": perceptual.FORMAT, "net": net}
    return Converted({**found.variables}, {"net": net}, "lpips" if whole else "torchvision", left, about)


def _vgg16_names(sizes: Sizes) -> dict[str, str]:
    return {ours.removeprefix("backbone/"): theirs for ours, theirs in perceptual.torchvision_names("vgg").items()}


def _ldm_unet(sizes: Sizes) -> dict[str, str]:
    return {ours: theirs.removeprefix(unet.LDM_PREFIX) for ours, theirs in unet.ldm_names(deduced.unet_network(sizes)).items()}


def _ldm_autoencoder(sizes: Sizes) -> dict[str, str]:
    names = autoencoder.ldm_names(sizes["multipliers"], sizes["blocks"])
    return {ours: theirs.removeprefix(autoencoder.LDM_PREFIX) for ours, theirs in names.items()}


def _diffusers_autoencoder(sizes: Sizes, old: bool = False) -> dict[str, str]:
    return autoencoder.diffusers_names(sizes["multipliers"], sizes["blocks"], old=old)


def _of_ldm_autoencoder(prefix: str) -> Layout:
    probe = "encoder.mid.attn_1.q.weight"
    return Layout("ldm", prefix, probe, deduced.autoencoder_of_ldm, _ldm_autoencoder, ("loss.", "model_ema."))


def _of_openai(prefix: str) -> Layout:
    names = lambda sizes: clip.openai_names(sizes["layers"])  # noqa: E731
    return Layout("OpenAI", prefix, "visual.conv1.weight", deduced.clip_of_openai, names, clip.LEFT_OF_OPENAI)


_UNET = (
    Layout("ldm", unet.LDM_PREFIX, "input_blocks.0.0.weight", deduced.unet_of_ldm, _ldm_unet),
    Layout(
        "diffusers",
        "",
        "down_blocks.0.resnets.0.time_emb_proj.weight",
        deduced.unet_of_diffusers,
        lambda sizes: unet.diffusers_names(deduced.unet_network(sizes)),
    ),
)
_MIDDLE = "encoder.mid_block.attentions.0"
_AUTOENCODER = (
    _of_ldm_autoencoder(autoencoder.LDM_PREFIX),
    _of_ldm_autoencoder(""),
    Layout("diffusers", "", f"{_MIDDLE}.to_q.weight", deduced.autoencoder_of_diffusers, _diffusers_autoencoder),
    Layout(
        "diffusers", "", f"{_MIDDLE}.query.weight", deduced.autoencoder_of_diffusers, lambda sizes: _diffusers_autoencoder(sizes, old=True)
    ),
)
_CLIP = (
    Layout(
        "transformers",
        "",
        "vision_model.embeddings.patch_embedding.weight",
        deduced.clip_of_transformers,
        lambda sizes: clip.transformers_names(sizes["layers"]),
        clip.LEFT_OF_TRANSFORMERS,
    ),
    _of_openai(""),
    _of_openai("cond_stage_model.model."),  # in Zero-1-to-3
)
_VGG16 = (Layout("torchvision", "", "features.28.weight", lambda tensors: {}, _vgg16_names, perceptual.CLASSIFIER),)

KINDS: dict[str, Kind] = {
    "unet": Kind(
        "the denoiser of Stable Diffusion v1 or Zero-1-to-3",
        _network(deduced.unet_shapes, _UNET, context=True),
        deduced.unet_shapes,
        deduced.UNET_UNSEEN,
    ),
    "autoencoder": Kind(
        "the autoencoder of Stable Diffusion v1 or Zero-1-to-3",
        _network(deduced.autoencoder_shapes, _AUTOENCODER),
        deduced.autoencoder_shapes,
        deduced.AUTOENCODER_UNSEEN,
    ),
    "clip": Kind("CLIP's vision transformer", _network(deduced.clip_shapes, _CLIP), deduced.clip_shapes),
    "lpips": Kind("LPIPS 0.1, backbone and heads", _lpips, deduced.lpips_shapes),
    "vgg16": Kind("VGG-16's convolutions", _network(deduced.vgg16_shapes, _VGG16), deduced.vgg16_shapes),
}
