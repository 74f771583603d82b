"""Laws of weights in a file: what is written is read, whole or not at all, and is what was expected or refused."""

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from jaxsr.weights.file import WeightsError, read_about, read_arrays, write_arrays

TREE = {
    "params": {"stem": {"kernel": np.arange(24, dtype=np.float32).reshape(2, 3, 4), "bias": np.zeros(4, np.float32)}},
    "stats": {"count": np.int32(7)},
}
WANTED = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), TREE)


@pytest.fixture
def path(tmp_path):
    write_arrays(tmp_path / "m.safetensors", TREE, {"step": "3"})
    return tmp_path / "m.safetensors"


def test_what_is_written_is_read(path):
    read = read_arrays(path, WANTED)
    assert jax.tree.structure(read) == jax.tree.structure(TREE)
    jax.tree.map(np.testing.assert_array_equal, read, TREE)
    assert read_about(path) == {"step": "3"}
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_arrays_are_stored_under_their_paths(path):
    from safetensors.numpy import load_file

    assert set(load_file(path)) == {"params/stem/kernel", "params/stem/bias", "stats/count"}


@pytest.mark.parametrize("wrong, message", [
    ({"params/stem/kernel": np.zeros((2, 3, 5), np.float32)}, r"params/stem/kernel: float32\[2, 3, 5\] in the file, float32\[2, 3, 4\]"),
    ({"params/stem/kernel": np.zeros((2, 3, 4), np.float16)}, "float16"),
    ({"params/more": np.zeros(1, np.float32)}, "params/more: only in the file"),
    ({"stats/count": None}, "stats/count: not in the file"),
])  # fmt: skip
def test_every_array_is_used_once_and_fits_or_is_named(wrong, message, tmp_path):
    arrays = {
        "params/stem/kernel": TREE["params"]["stem"]["kernel"],
        "params/stem/bias": TREE["params"]["stem"]["bias"],
        "stats/count": np.int32(7),
    }
    arrays = {name: np.asarray(array) for name, array in {**arrays, **wrong}.items() if array is not None}
    save_file(arrays, tmp_path / "m.safetensors")
    with pytest.raises(WeightsError, match=message):
        read_arrays(tmp_path / "m.safetensors", WANTED)


@pytest.mark.parametrize("cut", [0, 4, 30, -1])
def test_a_file_that_is_not_whole_is_refused(path, cut):
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(WeightsError, match="copy or export it again"):
        read_arrays(path, WANTED)


def test_a_pickle_is_refused_and_not_run(tmp_path):
    import pickle

    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    (tmp_path / "m.safetensors").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(WeightsError):
        read_about(tmp_path / "m.safetensors")
    assert not (tmp_path / "ran").exists()
