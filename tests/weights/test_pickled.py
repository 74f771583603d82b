"""Laws of reading what torch.save writes: every view is what it was, and a file that wants something called is refused by its name.

The files are made without torch, of the opcodes that it uses, in its two layouts; tests/reference/test_weights.py reads torch's own.
"""

import builtins
import os
import pickle
import struct
import zipfile

import jax.numpy as jnp
import numpy as np
import pytest

from jaxsr.weights.file import WeightsError
from jaxsr.weights.foreign import open_foreign

PROTO, STOP, EMPTY_DICT, MARK, TUPLE, REDUCE, BUILD, SETITEMS, PERSISTENT = b"\x80\x02", b".", b"}", b"(", b"t", b"R", b"b", b"u", b"Q"
ORDERED = b"ccollections\nOrderedDict\n)R"
KINDS = {"float32": "Float", "float16": "Half", "int64": "Long", "bfloat16": "BFloat16", "float64": "Double", "uint8": "Byte"}


def text(word):
    return b"X" + struct.pack("<I", len(word.encode())) + word.encode()


def number(value):
    return b"J" + struct.pack("<i", value)


def numbers(values):
    return MARK + b"".join(map(number, values)) + TUPLE


def dictionary(items):
    return EMPTY_DICT + MARK + b"".join(text(name) + value for name, value in items.items()) + SETITEMS


def call(module, name, *arguments):
    return f"c{module}\n{name}\n".encode() + MARK + b"".join(arguments) + TUPLE + REDUCE


class Storages:
    """Those of one file; `tensor` is the pickle of a view of one, `numpy` made whole of an array."""

    def __init__(self):
        self.arrays = {}

    def add(self, array):
        self.arrays[str(len(self.arrays))] = np.ascontiguousarray(array).ravel()
        return str(len(self.arrays) - 1)

    def view(self, key, offset, shape, stride, size=None, kind=None, parameter=False):
        array = self.arrays[key]
        storage = MARK + text("storage") + f"ctorch\n{kind or KINDS[array.dtype.name]}Storage\n".encode() + text(key) + text("cpu")
        storage += number(len(array) if size is None else size) + TUPLE + PERSISTENT
        found = call("torch._utils", "_rebuild_tensor_v2", storage, number(offset), numbers(shape), numbers(stride), b"\x89", ORDERED)
        return call("torch._utils", "_rebuild_parameter", found, b"\x88", ORDERED) if parameter else found

    def tensor(self, array, **more):
        array = np.asarray(array)
        return self.view(
            self.add(array), 0, array.shape, [s // array.itemsize for s in np.ascontiguousarray(array).strides[: array.ndim]], **more
        )


def write_zip(path, pickled, storages=None, byteorder=b"little", compressed=()):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", PROTO + pickled + STOP, "data.pkl" in compressed and zipfile.ZIP_DEFLATED)
        archive.writestr("archive/byteorder", byteorder)
        for key, array in (storages.arrays if storages else {}).items():
            archive.writestr(f"archive/data/{key}", array.tobytes(), "data" in compressed and zipfile.ZIP_DEFLATED)
    return path


def write_legacy(path, pickled, storages=None, little=True):
    arrays = storages.arrays if storages else {}
    data = pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2)
    data += pickle.dumps({"protocol_version": 1001, "little_endian": little, "type_sizes": {"short": 2, "int": 4, "long": 4}}, 2)
    data += PROTO + pickled + STOP + pickle.dumps(sorted(arrays), 2)
    data += b"".join(struct.pack("<q", len(arrays[key])) + arrays[key].tobytes() for key in sorted(arrays))
    path.write_bytes(data)
    return path


def write(path, arrays, writer=write_zip):
    """A state dictionary of `arrays`."""
    storages = Storages()
    return writer(path, dictionary({name: storages.tensor(array) for name, array in arrays.items()}), storages)


def read(*paths):
    with open_foreign(list(paths)) as tensors:
        return {name: np.asarray(tensor) for name, tensor in tensors.items()}


def drawn(*shape, dtype=np.float32):
    return np.random.default_rng(sum(shape)).normal(size=shape).astype(dtype)


WRITERS = pytest.mark.parametrize("writer", [write_zip, write_legacy])

# ------------------------------------------------------------------------------------------------ what is read


@WRITERS
def test_a_state_dictionary_is_read_as_it_was_saved(writer, tmp_path):
    arrays = {"a.weight": drawn(3, 4), "a.bias": drawn(3), "count": np.array(7), "none": drawn(0, 2)}
    found = read(write(tmp_path / "m.pt", arrays, writer))
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array)
        assert found[name].shape == array.shape


@WRITERS
@pytest.mark.parametrize("dtype", [np.float16, jnp.bfloat16])
def test_half_precision_becomes_float32_without_changing_a_value(writer, dtype, tmp_path):
    array = drawn(5, 3).astype(dtype)
    found = read(write(tmp_path / "m.ckpt", {"w": array}, writer))["w"]
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, array.astype(np.float32))


@WRITERS
def test_views_of_one_storage_are_read_each_as_it_lies(writer, tmp_path):
    storages, array = Storages(), drawn(4, 6)
    key = storages.add(array)
    views = {
        "whole": storages.view(key, 0, (4, 6), (6, 1)),
        "transposed": storages.view(key, 0, (6, 4), (1, 6)),
        "row": storages.view(key, 12, (6,), (1,)),
        "every second column": storages.view(key, 1, (4, 3), (6, 2)),
        "repeated": storages.view(key, 0, (5, 6), (0, 1)),
        "parameter": storages.view(key, 0, (4, 6), (6, 1), parameter=True),
    }
    found = read(writer(tmp_path / "m.pth", dictionary(views), storages))
    expected = {"whole": array, "transposed": array.T, "row": array[2], "every second column": array[:, 1::2], "parameter": array}
    for name, values in {**expected, "repeated": np.broadcast_to(array[0], (5, 6))}.items():
        np.testing.assert_array_equal(found[name], values)


@pytest.mark.parametrize("under", ["state_dict", "model_state_dict", "model"])
def test_a_checkpoint_s_state_dictionary_is_found_beside_its_settings(under, tmp_path):
    """As Lightning writes it: settings as NumPy scalars, the class of a callback as a key that is never called."""
    storages = Storages()
    weights = dictionary({"w": storages.tensor(drawn(2))})
    scalar = call("numpy", "dtype", text("f8"), b"\x89", b"\x88") + numbers([3]) + BUILD
    settings = {
        "loss": call("numpy.core.multiarray", "scalar", scalar, call("_codecs", "encode", text("8bytes.."), text("latin1"))),
        "hooks": ORDERED + dictionary({"_metadata": dictionary({})}) + BUILD,
        "callbacks": EMPTY_DICT + MARK + b"clightning.callbacks\nCheckpoint\n" + number(1) + SETITEMS,
        "optimizer_states": dictionary({"exp_avg": storages.tensor(drawn(2))}),
    }
    path = write_zip(tmp_path / "last.ckpt", dictionary({**settings, under: weights}), storages)
    np.testing.assert_array_equal(read(path)["w"], drawn(2))
    assert read(path).keys() == {"w"}


def test_modules_of_torchscript_give_their_tensors_by_their_paths(tmp_path):
    """As OpenAI published CLIP."""
    storages = Storages()

    def module(name, parts):
        return f"c__torch__.{name}\nM\n)".encode() + b"\x81" + dictionary(parts) + BUILD

    inner = module("inner", {"weight": storages.tensor(drawn(3)), "training": b"\x89"})
    path = write_zip(tmp_path / "jit.pt", module("outer", {"visual": inner, "scale": storages.tensor(drawn(1))}), storages)
    assert {name: array.shape for name, array in read(path).items()} == {"visual.weight": (3,), "scale": (1,)}


def test_nothing_is_read_before_it_is_asked_for(tmp_path):
    """Names and shapes are there although the bytes of every storage are spoilt."""
    path = write(tmp_path / "m.pt", {"w": np.full(64, 3, np.float32)})
    data = path.read_bytes()
    path.write_bytes(data.replace(np.full(64, 3, np.float32).tobytes(), np.full(64, 4, np.float32).tobytes()))
    with open_foreign([path]) as tensors:
        assert tensors["w"].shape == (64,)
        with pytest.raises(WeightsError, match=r"m.pt is not a whole file of torch.save \(BadZipFile: Bad CRC-32"):
            np.asarray(tensors["w"])


# ------------------------------------------------------------------------------------------------ what is refused


class Malicious:
    def __init__(self, function, *arguments):
        self.what = function, arguments

    def __reduce__(self):
        return self.what


def pickled(value, protocol):
    """Its opcodes, without the beginning and the end that the writers add; a frame would be one."""
    data = pickle.dumps(value, protocol)
    return data[11:-1] if protocol >= 4 else data[2:-1] if protocol >= 2 else data[:-1]


@WRITERS
@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("function, argument, name", [
    (os.system, "touch {}", "posix.system"),
    (builtins.eval, "open({!r}, 'w').close()", "eval"),
    (builtins.exec, "open({!r}, 'w').close()", "exec"),
    (os.mkdir, "{}", "posix.mkdir"),
])  # fmt: skip
def test_a_file_that_wants_something_called_is_refused_by_its_name_and_nothing_is_called(
    writer, protocol, function, argument, name, tmp_path
):
    trace, storages = tmp_path / "trace", Storages()
    bad = Malicious(function, argument.format(str(trace)))
    state = dictionary({"w": storages.tensor(drawn(2)), "bad": pickled(bad, protocol)})
    with pytest.raises(WeightsError, match=rf"m.pt wants to call [\w.]*{name}, which no weights need, so it is not read: if you trust"):
        read(writer(tmp_path / "m.pt", state, storages))
    assert not trace.exists()
    pickle.loads(pickle.dumps(bad, protocol))
    assert trace.exists(), "it was harmless"


@pytest.mark.parametrize("opcodes, name", [
    (b"cos\nsystem\n)\x81", "to call os.system"),  # NEWOBJ
    (b"(S'ls'\nios\nsystem\n", "to call os.system"),  # INST
    (b"(cos\nsystem\nS'ls'\no", "to call os.system"),  # OBJ
    (b"cos\nsystem\n)R", "to call os.system"),
    (b"cnumpy\nload\n)R", "to call numpy.load"),
    (b"ctorch.hub\nload\n)R", "to call torch.hub.load"),
    (b"c__torch__evil\nM\n)\x81", "to call __torch__evil.M"),
    (b"ccollections\nOrderedDict\n" + dictionary({"_call": number(1)}) + BUILD, "to change a function"),
    (call("torch._utils", "_rebuild_tensor_v2") , "TypeError"),
    (MARK + text("file") + text("x") + b"N" * 3 + TUPLE + PERSISTENT, "an object of kind 'file' from outside"),
    (b"\x82\x01", "unregistered extension code 1"),  # EXT1
    (b"N" + dictionary({"a": number(1)}) + BUILD, "AttributeError"),
])  # fmt: skip
def test_every_way_of_calling_and_changing_is_closed(opcodes, name, tmp_path):
    storages = Storages()
    state = dictionary({"w": storages.tensor(drawn(2)), "bad": opcodes})
    with pytest.raises(WeightsError, match=name):
        read(write_zip(tmp_path / "m.pt", state, storages))


def test_a_tensor_s_own_state_cannot_be_set(tmp_path):
    storages = Storages()
    with pytest.raises(WeightsError, match="wants to change a tensor"):
        read(write_zip(tmp_path / "m.pt", dictionary({"w": storages.tensor(drawn(2)) + dictionary({}) + BUILD}), storages))


@WRITERS
@pytest.mark.parametrize("offset, shape, stride, size", [
    (0, (5,), (1,), 4),
    (3, (2,), (1,), 4),
    (0, (2, 2), (3, 1), 4),
    (-1, (1,), (1,), 4),
    (0, (2,), (-1,), 4),
    (0, (-2,), (1,), 4),
    (0, (2,), (1, 1), 4),
    (0, (8,), (1,), 8),  # more than the file has
])  # fmt: skip
def test_a_tensor_that_reaches_beyond_its_storage_is_refused(writer, offset, shape, stride, size, tmp_path):
    storages = Storages()
    view = storages.view(storages.add(drawn(4)), offset, shape, stride, size=size)
    with pytest.raises(WeightsError, match=r"is not a whole file of torch\.save"):
        read(writer(tmp_path / "m.pt", dictionary({"w": view}), storages))


@WRITERS
@pytest.mark.parametrize("cut", [20, 60, -200, -1])
def test_a_file_that_is_not_whole_is_refused(writer, cut, tmp_path):
    path = write(tmp_path / "m.pt", {"a": drawn(8, 8), "b": drawn(9)}, writer)
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(WeightsError, match=r"m.pt is (not a whole file of torch.save|a pickle that torch.save did not write)"):
        read(path)


@pytest.mark.parametrize("compressed", ["data.pkl", "data"])
def test_a_compressed_archive_is_refused_as_it_could_grow_without_end(compressed, tmp_path):
    storages = Storages()
    state = dictionary({"w": storages.tensor(np.zeros(10**6, np.float32))})
    with pytest.raises(WeightsError, match="compressed"):
        read(write_zip(tmp_path / "m.pt", state, storages, compressed=[compressed]))


@pytest.mark.parametrize("make, message", [
    (lambda p: write_zip(p, dictionary({"epoch": number(3)})), r"no state dictionary \(a dictionary of epoch\): save model.state_dict"),
    (lambda p: write_zip(p, number(3)), r"holds no state dictionary \(int\)"),
    (lambda p: write_zip(p, dictionary({}), byteorder=b"big"), "big-endian"),
    (lambda p: write_legacy(p, dictionary({}), little=False), "big-endian"),
    (lambda p: p.write_bytes(pickle.dumps({"a": 1})), "is a pickle that torch.save did not write"),
    (lambda p: p.write_bytes(b"<html>not found</html>"), "is no weights file that is known"),
    (lambda p: p.write_bytes(b""), "is no weights file that is known"),
    (lambda p: p.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n"), "fetch it with `git lfs pull`"),
    (lambda p: zipfile.ZipFile(p, "w").close(), "is no weights file that is known"),
    (lambda p: p.mkdir(), "is not there, or no file"),
])  # fmt: skip
def test_what_holds_no_weights_is_told_in_a_sentence(make, message, tmp_path):
    make(tmp_path / "m.pt")
    with pytest.raises(WeightsError, match=message) as raised:
        read(tmp_path / "m.pt")
    assert "\n" not in str(raised.value)
