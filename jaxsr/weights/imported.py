"""Weights of others in a file of ours: importing them, reading them, and seeing that a file is what it was.

The file holds `params/…` (and `context/…`, Zero-1-to-3's), and says of itself: `kind`, `configuration` (what the network is made with, as
JSON), `layout` (whose names the source had), `source` (SHA-256 by file name, as JSON), `sha256` of the arrays, `version` of jaxsr.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

import jaxsr
from jaxsr.files import FileError, shown
from jaxsr.weights.file import SUFFIX, WeightsError, digest, opened, read_about, read_arrays, read_stored, write_arrays
from jaxsr.weights.foreign import open_foreign, sums_of
from jaxsr.weights.kinds import KINDS, Converted

FORMAT = "jaxsr weights 1"


class Weights(NamedTuple):
    """Attributes:
    sizes: what the network is made with: of `VisionTransformer` for clip (and `side`), of `LatentUNet` for unet (and `in_channels`), of
      `Encoder` and `Decoder` together for autoencoder, the net for lpips.
    variables: `params`, a tree of float32 arrays, and for a unet of Zero-1-to-3's `context`: a `kernel` `[D, D]` and `bias` `[D]` from
      CLIP's projection to the context.
    digest: of the arrays.
    """

    sizes: Mapping[str, Any]
    variables: dict[str, Any]
    digest: str


def import_weights(kind: str, sources: list[Path], out: Path) -> Converted:
    """The part of `sources`, which belong together, that is of this `kind`, in one file `out`.

    Raises:
      WeightsError: where they are not there, not whole, unsafe, of another kind, or hold something unknown or not finite.
      FileError: where `out` cannot be written, or is named as another file.
    """
    if out.suffix != SUFFIX:
        raise FileError(f"{shown(out)}: weights are written to a {SUFFIX} file: name it {shown(out.with_suffix(SUFFIX))}")
    with open_foreign(sources) as tensors:
        converted = KINDS[kind].convert(tensors, " with ".join(shown(source) for source in sources))
        _check_finite(flatten_dict(converted.variables, sep="/"), sources[0])
        about = {
            "format": FORMAT,
            "version": jaxsr.__version__,
            "kind": kind,
            "configuration": json.dumps(converted.sizes),
            "layout": converted.layout,
            "source": json.dumps({name: value for source in sources for name, value in sums_of(source).items()}),
            "sha256": digest(converted.variables),
        }
        write_arrays(out, converted.variables, {**about, **converted.about})
    return converted


def read_weights(path: Path, kind: str) -> Weights:
    """What `import_weights` wrote.

    Raises:
      WeightsError: where the file is not there, is not of this `kind`, or not as it was written.
    """
    if not path.is_file():
        raise WeightsError(f"{shown(path)} is not there: make it with `jaxsr weights import {kind} SOURCE {shown(path)}`")
    about = read_about(path)
    if about.get("kind") != kind:
        raise WeightsError(
            f"{shown(path)} holds weights of kind {about.get('kind')!r}, expected {kind!r}: make it with `jaxsr weights import {kind}`"
        )
    sizes, wanted = _expected(path, about)
    variables = read_arrays(path, wanted)
    if (found := digest(variables)) != about.get("sha256"):
        raise WeightsError(f"{shown(path)} is not what was written: the SHA-256 of its arrays differs: copy or import it again")
    return Weights(sizes, variables, found)


def read_vgg16(path: Path) -> dict[str, Any]:
    """The parameters of VGG-16's convolutions: from a file of kind vgg16, or from the weights of LPIPS whose backbone it is.

    Raises: as `read_weights`.
    """
    about = read_about(path) if path.is_file() else {}
    if (about.get("kind"), about.get("net")) == ("lpips", "vgg"):
        return read_weights(path, "lpips").variables["params"]["backbone"]  # type: ignore[no-any-return]
    return read_weights(path, "vgg16").variables["params"]  # type: ignore[no-any-return]


def verify(path: Path, sha256: str | None = None) -> dict[str, Any]:
    """Reads a weights file, ours or another's, to its last byte, and says what it is.

    Args:
      sha256: what the SHA-256 of the file must be; of the list, where it is one of shards.

    Raises:
      WeightsError: where it is not that, not whole, not what it says of itself, or holds NaN or Inf.
    """
    sums = sums_of(path)
    if sha256 is not None and sums[path.name] != sha256.lower():
        raise WeightsError(f"{shown(path)} has the SHA-256 {sums[path.name]}, expected {shown(sha256.lower())}: download it again")
    about: dict[str, str] = {}
    with open_foreign([path]) as tensors:
        _check_finite(tensors, path)
        if path.suffix == SUFFIX:
            about = read_about(path)
        if {"sha256", "format"} <= about.keys() and digest(read_stored(path)) != about["sha256"]:
            raise WeightsError(f"{shown(path)} is not what was written: the SHA-256 of its arrays differs: copy or make it again")
        if about.get("kind") in KINDS:
            _, wanted = _expected(path, about)
            found = {name: tensor.shape for name, tensor in tensors.items()}
            if found != {name: leaf.shape for name, leaf in flatten_dict(wanted, sep="/").items()}:
                raise WeightsError(f"{shown(path)} does not fit its own configuration: import it again")
        count = {"tensors": len(tensors), "parameters": sum(int(np.prod(tensor.shape)) for tensor in tensors.values())}
    said = {name: about[name] for name in ("format", "kind", "layout", "configuration", "source", "dtype", "model_card") if name in about}
    return {"file": str(path), "sha256": sums, **count, "about": said, "own_digest": "sha256" in about}


def _expected(path: Path, about: Mapping[str, str]) -> tuple[Mapping[str, Any], Any]:
    """What a file says that its network is made with, and the shapes that follow; the shapes of a context are the file's."""
    try:
        kind = KINDS[about["kind"]]
        sizes = {**kind.unseen, **json.loads(about["configuration"])}
        shapes = {f"params/{name}": shape for name, shape in kind.shapes(sizes).items()}
    except (KeyError, ValueError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
        raise WeightsError(f"{shown(path)} says of itself what makes no sense ({_first_line(error)}): import it again") from error
    with opened(path) as file:
        shapes |= {name: tuple(file.get_slice(name).get_shape()) for name in file.keys() if name in ("context/kernel", "context/bias")}  # noqa: SIM118
    return sizes, unflatten_dict({name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes.items()}, sep="/")


def _check_finite(tensors: Mapping[str, Any], path: Path) -> None:
    for name, tensor in tensors.items():
        array = np.asarray(tensor)
        if np.issubdtype(array.dtype, np.floating) and not np.isfinite(array).all():
            raise WeightsError(f"{shown(path)}: {shown(name)} holds NaN or Inf: download or train it again")


def _first_line(error: Exception) -> str:
    return shown(next(iter(str(error).splitlines()), type(error).__name__))
