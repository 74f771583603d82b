"""The published weights of LPIPS: from the names of torchvision and of lpips to ours, and in a file of their own.

torchvision keeps a backbone as `features.<i>.weight` and `.bias`; lpips keeps the same under `net.slice<k>.<i>`, and its heads as
`lin<k>.model.1.weight`. Ours are the trees of `jaxsr.models.perceptual`. Kernels turn from OIHW to HWIO; no value changes.
`jaxsr weights import lpips` makes a file of either, and `read_perceptual` reads it.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxsr.files import shown
from jaxsr.models.perceptual import CHANNELS, NETS, SCALE, SHIFT, Net, perceptual_shapes
from jaxsr.weights.file import WeightsError, read_about, read_arrays
from jaxsr.weights.names import Tensor, take

Arrays = Mapping[str, Tensor]

FORMAT = "jaxsr lpips 0.1"

# Module of ours → its place in torchvision's `features`, in the order of the layers; each fire module has three convolutions.
_PLACES: dict[Net, dict[str, int]] = {
    "alex": {"conv1": 0, "conv2": 3, "conv3": 6, "conv4": 8, "conv5": 10},
    "vgg": {
        **{"conv1_1": 0, "conv1_2": 2, "conv2_1": 5, "conv2_2": 7, "conv3_1": 10, "conv3_2": 12, "conv3_3": 14},
        **{"conv4_1": 17, "conv4_2": 19, "conv4_3": 21, "conv5_1": 24, "conv5_2": 26, "conv5_3": 28},
    },
    "squeeze": {"conv1": 0, "fire2": 3, "fire3": 4, "fire4": 6, "fire5": 7, "fire6": 9, "fire7": 10, "fire8": 11, "fire9": 12},
}
_SLICES: dict[Net, tuple[int, ...]] = {  # the places at which lpips' slices 2, 3, … begin
    "alex": (2, 5, 8, 10),
    "vgg": (4, 9, 16, 23),
    "squeeze": (2, 5, 8, 10, 11, 12),
}
_LEAVES = {"kernel": "weight", "bias": "bias"}
CLASSIFIER = ("classifier.",)  # beginning of the names of what torchvision has on top of its features


class Perceptual(NamedTuple):
    """What LPIPS computes with.

    Attributes:
      net: of whom the features are.
      variables: of `PerceptualDistance(net)`.
    """

    net: Net
    variables: Mapping[str, Any]


def torchvision_names(net: Net) -> dict[str, str]:
    """Our names of the backbone's arrays, as in `backbone/conv1/kernel` → torchvision's."""
    return {
        f"backbone/{module}/{part}{ours}": f"features.{place}.{part.replace('/', '.')}{theirs}"
        for module, place in _PLACES[net].items()
        for part in (("squeeze/", "expand1x1/", "expand3x3/") if module.startswith("fire") else ("",))
        for ours, theirs in _LEAVES.items()
    }


def head_names(net: Net) -> dict[str, str]:
    """Our names of the layers' weights → lpips'."""
    return {f"head{k}/kernel": f"lin{k}.model.1.weight" for k in range(len(CHANNELS[net]))}


def lpips_names(net: Net) -> dict[str, str]:
    """Our names of every array → those of lpips' full state dictionary."""

    def sliced(name: str) -> str:
        _, place, rest = name.split(".", 2)
        return f"net.slice{1 + sum(int(place) >= begin for begin in _SLICES[net])}.{place}.{rest}"

    return {ours: sliced(theirs) for ours, theirs in torchvision_names(net).items()} | head_names(net)


def from_torchvision(net: Net, backbone: Arrays, heads: Arrays) -> Perceptual:
    """torchvision's state dictionary of the backbone, with or without its classifier, and lpips' linear heads.

    Raises:
      WeightsError: where a name is missing or unknown, a shape wrong, or a value none that was published.
    """
    taken = _take(net, backbone, torchvision_names(net), "torchvision weights", leave=CLASSIFIER)
    return _checked(net, taken | _take(net, _once(net, heads), head_names(net), "lpips heads"))


def from_lpips(net: Net, state: Arrays) -> Perceptual:
    """The full state dictionary of lpips' module, backbone and heads. Raises WeightsError as `from_torchvision`."""
    state = dict(_once(net, state))
    for name, expected in {"scaling_layer.shift": SHIFT, "scaling_layer.scale": SCALE}.items():
        found = np.ravel(state.pop(name, np.array(expected)))
        if found.shape != (3,) or not np.allclose(found, expected, atol=1e-6):
            raise WeightsError(f"the lpips weights have {found.tolist()} as {name}, LPIPS 0.1 is {list(expected)}: use version 0.1")
    return _checked(net, _take(net, state, lpips_names(net), "lpips weights"))


def read_perceptual(path: Path) -> Perceptual:
    """What `jaxsr weights import lpips` wrote. There is nothing to fall back to: without published weights there is no LPIPS.

    Raises:
      WeightsError: where the file is not there, is no such file, or does not fit the network that it names.
    """
    if not path.is_file():
        raise WeightsError(
            f"{shown(path)} is not there, and LPIPS is defined by its published weights: make the file once from those of lpips "
            "or torchvision, with `jaxsr weights import lpips` (docs/weights.md)"
        )
    about = read_about(path)
    net = about.get("net")
    if about.get("format") != FORMAT or net not in NETS:
        raise WeightsError(
            f"{shown(path)} holds no LPIPS weights of ours (format {about.get('format')!r}, net {net!r}, expected {FORMAT!r} and one of "
            f"{', '.join(NETS)}): make it with `jaxsr weights import lpips`"
        )
    variables = read_arrays(path, {"params": perceptual_shapes(net)["params"]})
    return _checked(net, flatten_dict(variables["params"], sep="/"), shown(path))


def _take(net: Net, arrays: Arrays, names: Mapping[str, str], what: str, leave: tuple[str, ...] = ()) -> dict[str, np.ndarray]:
    """The `arrays`, each of them once, under our names and in our order of axes."""
    shapes = {ours: leaf.shape for ours, leaf in _shapes(net).items()}
    return take(arrays, names, shapes, f"{what} do not fit the network {net}", leave=leave).arrays


def _once(net: Net, arrays: Arrays) -> Arrays:
    """lpips' module holds its heads a second time as `lins.<k>`: the same, or refused."""
    rest = {name: array for name, array in arrays.items() if not re.match(r"lins\.\d+\.", name)}
    for name in arrays.keys() - rest.keys():
        twin = name.replace("lins.", "lin", 1)
        if twin not in arrays or not np.array_equal(arrays[twin], arrays[name]):
            raise WeightsError(f"the lpips weights of {net} hold {shown(name)}, not the same as {shown(twin)}: save it again")
    return rest


def _checked(net: Net, arrays: Mapping[str, np.ndarray], what: str = "the weights") -> Perceptual:
    """As a tree, if the values can be those of LPIPS: finite, and no head below zero."""
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            raise WeightsError(f"{what}: {name} holds NaN or Inf: use the published weights of {net}")
        if name.startswith("head") and array.min() < 0:
            raise WeightsError(f"{what}: {name} has the weight {array.min():.3g}, LPIPS has none below 0: use the published ones of {net}")
    return Perceptual(net, {"params": unflatten_dict(dict(arrays), sep="/")})


def _shapes(net: Net) -> dict[str, Any]:
    shapes: dict[str, Any] = flatten_dict(perceptual_shapes(net)["params"], sep="/")
    return shapes
