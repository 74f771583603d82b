"""Arrays by name in one file, and text that says what they are: safetensors, which holds data only and runs nothing when it is read."""

import hashlib
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.traverse_util import unflatten_dict
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from jaxsr.files import shown, write_whole

SUFFIX = ".safetensors"


class WeightsError(ValueError):
    """A weights file that cannot be used: one sentence that names it, says why, and the way out."""


def write_arrays(path: Path, tree: Any, about: Mapping[str, str]) -> None:
    """The leaves of `tree` (nested dictionaries) by their paths, as in `params/stem/kernel`, and `about`; whole or not at all.

    Raises:
      FileError: where it cannot be written.
    """
    arrays = {name: np.asarray(leaf, order="C") for name, leaf in _named(tree).items()}
    write_whole(path, lambda part: save_file(arrays, part, metadata=dict(about)))


def read_about(path: Path) -> dict[str, str]:
    """The text that was written with the arrays, which are not read. Raises WeightsError."""
    with opened(path) as file:
        return dict(file.metadata() or {})


def read_arrays(path: Path, wanted: Any, half: bool = False) -> Any:
    """The arrays as a tree like `wanted`, whose leaves have shapes and dtypes: every one of the file is used, once.

    Args:
      half: what is wanted in float32 may be stored in half precision, and comes as it is stored.

    Raises:
      WeightsError: where names, shapes or dtypes differ, naming them.
    """
    names = _named(wanted)
    with opened(path) as file:
        found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dictionary)
    wrong = [f"{name}: not in the file" for name in names.keys() - found.keys()]
    wrong += [f"{name}: only in the file" for name in found.keys() - names.keys()]
    wrong += [
        f"{name}: {found[name].dtype}{list(found[name].shape)} in the file, {leaf.dtype}{list(leaf.shape)} expected"
        for name, leaf in names.items()
        if name in found and not (found[name].shape == leaf.shape and _serves(found[name].dtype, leaf.dtype, half))
    ]
    if wrong:
        listed = "\n  ".join(sorted(wrong)[:10])
        raise WeightsError(f"{shown(path)} does not fit its own configuration, in {len(wrong)} places: export it again\n  {listed}")
    return jax.tree.unflatten(jax.tree.structure(wanted), [found[name] for name in names])


def read_stored(path: Path) -> dict[str, Any]:
    """All arrays of a file that `write_arrays` wrote, as nested dictionaries, in the dtypes of the file. Raises WeightsError."""
    with opened(path) as file:
        return unflatten_dict({name: file.get_tensor(name) for name in file.keys()}, sep="/")  # type: ignore[no-any-return]  # noqa: SIM118


def digest(tree: object) -> str:
    """SHA-256 of the leaves of `tree` and of their paths: safetensors has no checksum of its own."""
    sums = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        sums.update(jax.tree_util.keystr(path).encode())
        sums.update(np.ascontiguousarray(leaf).tobytes())
    return sums.hexdigest()


class opened:
    """`safe_open`, whose errors become ours."""

    def __init__(self, path: Path):
        self._path = path

    def __enter__(self) -> Any:
        try:
            self._file = safe_open(self._path, framework="numpy")
            return self._file.__enter__()
        except (SafetensorError, OSError, ValueError, struct.error) as error:
            said = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise WeightsError(f"{shown(self._path)} is not a whole {SUFFIX} file ({said}): copy or export it again") from error

    def __exit__(self, *error: Any) -> None:
        self._file.__exit__(*error)


def _serves(stored: np.dtype, wanted: np.dtype, half: bool) -> bool:
    return stored == wanted or (half and wanted == np.float32 and stored.name in ("bfloat16", "float16"))


def _named(tree: Any) -> dict[str, Any]:
    flat = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {"/".join(str(key.key) for key in path): leaf for path, leaf in flat}
