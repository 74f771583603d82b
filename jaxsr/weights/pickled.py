"""Tensors of the files that torch.save writes, read without torch and without running anything that they hold.

A pickle is a program: it names functions and has them called. Here a name is never looked up. The few that torch needs to describe its
tensors stand for functions of this file; what only carries settings is dropped; every other name may stand there, but a file that wants it
called is refused. So is a file that sets the state of something that it did not make.

    zip      NAME/data.pkl, NAME/data/KEY (one a storage)                     since torch 1.6; TorchScript's archives are alike
    legacy   a magic number, a version and the machine, the pickle, the keys, then for every key its length and its bytes, in one stream

A tensor is a view (offset, shape, strides) of a storage, and several may share one. Storages are read when a tensor is asked for.
"""

import os
import pickle
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxsr.files import shown
from jaxsr.weights.file import WeightsError

MAGIC = pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2)  # how a legacy file begins
ZIP = b"PK\x03\x04"
_INSTEAD = "if you trust where it is from, convert it to .safetensors where torch is"

# What elements are called as a storage, and as a dtype.
_KINDS = {
    **{"Double": "float64", "Float": "float32", "Half": "float16", "BFloat16": "bfloat16"},
    **{"Long": "int64", "Int": "int32", "Short": "int16", "Char": "int8", "Byte": "uint8", "Bool": "bool"},
}
_DTYPES = {name: np.dtype(jnp.bfloat16 if name == "bfloat16" else name) for name in _KINDS.values()}
_STORAGES = {f"torch.{kind}Storage": _DTYPES[name] for kind, name in _KINDS.items()}


class Stored:
    """An array that still lies in its file, while that is open: `np.asarray` reads it. Half precision becomes float32."""

    __slots__ = ("_read", "shape")

    def __init__(self, shape: tuple[int, ...], read: Callable[[], np.ndarray]):
        self.shape, self._read = shape, read

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        array = self._read()
        if array.dtype in (np.float16, jnp.bfloat16):
            array = array.astype(np.float32)
        return array if dtype is None else array.astype(dtype, copy=False)

    def __setstate__(self, state: object) -> None:
        raise _Refused("to change a tensor")


@contextmanager
def open_pickled(path: Path) -> Iterator[Mapping[str, Stored]]:
    """The tensors of a file that torch.save, or torch.jit.save, wrote: those of the state dictionary, by name.

    Raises:
      WeightsError: where it is no such file, is not whole, holds no state dictionary, or wants something called.
    """
    with open(path, "rb") as file:
        with _understood(path):
            tensors = _tensors(_legacy(file, path) if file.read(len(MAGIC)) == MAGIC else _zipped(file, path), path)
        yield tensors


@contextmanager
def _understood(path: Path) -> Iterator[None]:
    """Errors of reading `path` become ours."""
    try:
        yield
    except WeightsError:
        raise
    except _Refused as error:
        raise WeightsError(f"{shown(path)} wants {shown(str(error))}, which no weights need, so it is not read: {_INSTEAD}") from error
    except _BROKEN as error:
        said = f"{type(error).__name__}: {error}".splitlines()[0]
        raise WeightsError(f"{shown(path)} is not a whole file of torch.save ({shown(said)}): copy or download it again") from error


# ------------------------------------------------------------------------------------------------ the two layouts


def _zipped(file: IO[bytes], path: Path) -> object:
    archive = zipfile.ZipFile(file)
    root = next((name.removesuffix("data.pkl") for name in archive.namelist() if name.count("/") == 1 and name.endswith("/data.pkl")), None)
    if root is None:
        raise KeyError("no data.pkl in the archive")
    entries = {entry.filename: entry for entry in archive.infolist()}
    if f"{root}byteorder" in entries:
        with archive.open(f"{root}byteorder") as order:
            if order.read(16) != b"little":
                raise _Refused("to be read on a big-endian machine")
    last: dict[str, bytes] = {}  # views of one storage mostly follow each other

    def read(storage: _Storage) -> bytes:
        if storage.key not in last:
            last.clear()
            entry = entries[f"{root}data/{storage.key}"]
            if entry.compress_type != zipfile.ZIP_STORED or entry.file_size < storage.size * storage.dtype.itemsize:
                raise EOFError(f"data/{storage.key} is compressed, or too short")
            last[storage.key] = archive.read(entry)  # with its checksum
        return last[storage.key]

    if entries[f"{root}data.pkl"].compress_type != zipfile.ZIP_STORED:
        raise EOFError("data.pkl is compressed")
    with archive.open(f"{root}data.pkl") as pickled:
        return _Unpickler(pickled, read, path).load()


def _legacy(file: IO[bytes], path: Path) -> object:
    places: dict[str, int] = {}  # of a storage's bytes, once they are known

    def read(storage: _Storage) -> bytes:
        file.seek(places[storage.key])
        return _exactly(file, storage.size * storage.dtype.itemsize)

    _Unpickler(file, read, path).load()  # the version
    if not _Unpickler(file, read, path).load()["little_endian"]:
        raise _Refused("to be read on a big-endian machine")
    unpickler = _Unpickler(file, read, path)
    found, keys = unpickler.load(), _Unpickler(file, read, path).load()
    for key in keys:
        storage = unpickler.storages[key]
        if (size := int.from_bytes(_exactly(file, 8), "little")) < storage.size:
            raise EOFError(f"storage {key} has {size} elements of {storage.size}")
        places[key] = file.tell()
        file.seek(size * storage.dtype.itemsize, 1)
    return found


def _exactly(file: IO[bytes], size: int) -> bytes:
    if size > os.fstat(file.fileno()).st_size or len(data := file.read(size)) < size:
        raise EOFError("it ends within its storages")
    return data


# ------------------------------------------------------------------------------------------------ the pickle


class _Refused(Exception):
    """What a file wants and does not get."""


_BROKEN = (
    *(pickle.UnpicklingError, zipfile.BadZipFile, EOFError, KeyError, IndexError, ValueError, TypeError, AttributeError, OverflowError),
    *(NotImplementedError, RuntimeError, RecursionError),  # zipfile's
)


class _Storage(NamedTuple):
    key: str
    dtype: np.dtype
    size: int  # elements


class _Unpickler(pickle.Unpickler):
    """Resolves no name: see the top of the file."""

    def __init__(self, file: IO[bytes], read: Callable[[_Storage], bytes], path: Path):
        super().__init__(file, encoding="utf-8")
        self._read, self._path = read, path
        self.storages: dict[str, _Storage] = {}

    def find_class(self, module: str, name: str) -> Any:
        whole = f"{module}.{name}"
        if whole in _STORAGES or whole.removeprefix("torch.") in _DTYPES:
            return whole
        if module == "__torch__" or module.startswith("__torch__."):  # a module of TorchScript
            return type(name, (_Module,), {})  # a class of its own each time, which nothing can spoil
        known: Mapping[str, Callable[..., object]] = {
            "collections.OrderedDict": _Dictionary,
            "torch._utils._rebuild_tensor": self._tensor,
            "torch._utils._rebuild_tensor_v2": self._tensor,
            "torch._utils._rebuild_parameter": lambda tensor, *rest: tensor,
            "torch._utils._rebuild_parameter_with_state": lambda tensor, *rest: tensor,
            "torch.jit._pickle.restore_type_tag": lambda value, tag: value,
            **dict.fromkeys(_DROPPED, _Dropped),
        }  # fmt: skip
        return _Function(known[whole]) if whole in known else type(name, (_Unknown,), {"wanted": whole})

    def persistent_load(self, pid: Any) -> Any:
        if pid[0] == "module":  # a class and its source, in legacy files of whole modules
            return pid[1]
        word, kind, key, _, size, *_ = pid
        if word != "storage":
            raise _Refused(f"an object of kind {word!r} from outside")
        if kind not in _STORAGES:
            raise _Refused(f"a tensor of {getattr(kind, 'wanted', kind)}")
        storage = _Storage(str(key), _STORAGES[kind], int(size))
        return self.storages.setdefault(storage.key, storage)

    def _tensor(self, storage: _Storage, offset: int, shape: tuple[int, ...], stride: tuple[int, ...], *rest: object) -> Stored:
        """Raises ValueError for a view that reaches beyond its storage."""
        last = offset + sum((n - 1) * step for n, step in zip(shape, stride, strict=True))
        if min(offset, *shape, *stride, 0) < 0 or (0 not in shape and last >= storage.size):
            raise ValueError(f"a tensor {list(shape)} reaches beyond its storage of {storage.size}")

        def read() -> np.ndarray:
            with _understood(self._path):
                whole = np.frombuffer(self._read(storage), storage.dtype)
            steps = [step * storage.dtype.itemsize for step in stride]
            return np.lib.stride_tricks.as_strided(whole[offset:], shape, steps, writeable=False)

        return Stored(tuple(int(n) for n in shape), read)


class _Function:
    """One of ours, to be called and nothing else."""

    __slots__ = ("_call",)

    def __init__(self, call: Callable[..., object]):
        self._call = call

    def __call__(self, *arguments: object) -> object:
        return self._call(*arguments)

    def __setstate__(self, state: object) -> None:
        raise _Refused("to change a function")


class _Unknown:
    """A name that is not resolved: it may be mentioned, as the class of a callback in a checkpoint's settings, but not be called."""

    wanted = ""

    def __new__(cls, *arguments: object) -> "_Unknown":
        raise _Refused(f"to call {cls.wanted}")


class _Dropped:
    """A setting, whatever it was."""

    def __init__(self, *arguments: object):
        pass

    def __setstate__(self, state: object) -> None:
        pass


class _Dictionary(dict[Any, Any]):
    """Of which the state that torch gives it, versions of modules, is dropped."""

    def __setstate__(self, state: object) -> None:
        pass


class _Module:
    """A module of TorchScript: its parameters, buffers and modules by name."""

    def __setstate__(self, state: object) -> None:
        self.parts = dict(state) if isinstance(state, dict) else {}


_DROPPED = (
    *("torch.Size", "torch.device", "numpy.dtype", "_codecs.encode"),
    *("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar"),
    *(f"torch.jit._pickle.build_{kind}list" for kind in ("int", "double", "bool", "tensor")),
)

# ------------------------------------------------------------------------------------------------ the state dictionary

_NESTED = ("state_dict", "model_state_dict", "model")  # under which training scripts keep it, the likeliest first


def _tensors(root: object, path: Path) -> Mapping[str, Stored]:
    if isinstance(root, _Module):
        return dict(_of_module(root, "", set()))
    for found in (root, *(root.get(name) for name in _NESTED)) if isinstance(root, dict) else ():
        tensors = {name: value for name, value in found.items() if isinstance(value, Stored)} if isinstance(found, dict) else {}
        if tensors and all(isinstance(name, str) for name in tensors):
            return tensors
    inside = f"a dictionary of {', '.join(shown(str(name)) for name in list(root)[:8])}" if isinstance(root, dict) else type(root).__name__
    raise WeightsError(f"{shown(path)} holds no state dictionary ({inside}): save model.state_dict(), or that under {_NESTED[0]!r}")


def _of_module(module: _Module, prefix: str, above: set[int]) -> Iterator[tuple[str, Stored]]:
    if id(module) in above:
        raise ValueError("a module that holds itself")
    for name, part in getattr(module, "parts", {}).items():
        if isinstance(part, Stored):
            yield f"{prefix}{name}", part
        elif isinstance(part, _Module):
            yield from _of_module(part, f"{prefix}{name}.", above | {id(module)})
