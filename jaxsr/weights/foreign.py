"""Weights files of others, as tensors by name: safetensors, also in shards, and what torch.save writes. Nothing in them is run."""

import functools
import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

import jax.numpy as jnp  # noqa: F401  (it teaches NumPy the name bfloat16, by which safetensors asks for it)
import numpy as np
from safetensors import SafetensorError

from jaxsr.files import shown
from jaxsr.weights.file import SUFFIX, WeightsError, opened
from jaxsr.weights.pickled import MAGIC, ZIP, Stored, open_pickled

INDEX = ".index.json"  # what the file that lists shards ends with


@contextmanager
def open_foreign(paths: list[Path]) -> Iterator[Mapping[str, Stored]]:
    """The tensors of all of `paths`, by name, each read when `np.asarray` asks for it, in float32 where it lies in half precision.

    A file ending in .index.json stands for the shards that it lists.

    Raises:
      WeightsError: where a file is not there, is none that is known, is not whole or unsafe, or two hold the same name.
    """
    tensors: dict[str, Stored] = {}
    with ExitStack() as stack:
        for path in [file for given in paths for file in files_of(given) if not file.name.endswith(INDEX)]:
            found = stack.enter_context(_open(path))
            if twice := tensors.keys() & found.keys():
                raise WeightsError(
                    f"{shown(path)} holds {shown(min(twice))}, which another file that was given holds too: give one of them"
                )
            tensors |= found
        yield tensors


def files_of(path: Path) -> list[Path]:
    """`path`, and the shards that it lists if it lists any.

    Raises:
      WeightsError: where one is not there.
    """
    if not path.is_file():
        raise WeightsError(f"{shown(path)} is not there, or no file: give a {SUFFIX}, .pt, .pth, .ckpt or .bin file, or a *{INDEX}")
    if not path.name.endswith(INDEX):
        return [path]
    try:
        names = sorted(set(json.loads(path.read_text(encoding="utf-8"))["weight_map"].values()))
        if any(Path(name).name != name for name in names):
            raise ValueError("a shard lies in another folder")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise WeightsError(f"{shown(path)} is no list of shards ({error}): copy or download it again") from error
    if absent := [name for name in names if not (path.parent / name).is_file()]:
        raise WeightsError(
            f"{shown(path)} lists {shown(absent[0])}, which is not beside it: download all {len(names)} shards into one folder"
        )
    return [path, *(path.parent / name for name in names)]


def sums_of(path: Path) -> dict[str, str]:
    """SHA-256 of `path` and of its shards, by file name."""
    sums = {}
    for file in files_of(path):
        with open(file, "rb") as data:
            sums[file.name] = hashlib.file_digest(data, "sha256").hexdigest()
    return sums


@contextmanager
def _open(path: Path) -> Iterator[Mapping[str, Stored]]:
    with open(path, "rb") as file:
        start = file.read(64)
    if start.startswith((ZIP, MAGIC)):
        with open_pickled(path) as tensors:
            yield tensors
    elif start[8:9] == b"{" or path.suffix == SUFFIX:
        with opened(path) as file:
            names = list(file.keys())
            yield {name: Stored(tuple(file.get_slice(name).get_shape()), functools.partial(_read, file, name, path)) for name in names}
    elif start.startswith(b"version https://git-lfs"):
        raise WeightsError(f"{shown(path)} is a pointer to a file, not the file: fetch it with `git lfs pull`")
    else:
        what = "a pickle that torch.save did not write" if start[:1] == b"\x80" else "no weights file that is known"
        raise WeightsError(f"{shown(path)} is {what}: give a {SUFFIX} file, or one that torch.save wrote; torch can convert others")


def _read(file: object, name: str, path: Path) -> np.ndarray:
    try:
        return file.get_tensor(name)  # type: ignore[attr-defined, no-any-return]
    except (SafetensorError, AttributeError, TypeError, ValueError) as error:  # of a type that NumPy does not have
        raise WeightsError(f"{shown(path)}: {shown(name)} cannot be read ({error}): convert it to float32, float16 or bfloat16") from error
