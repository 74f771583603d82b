"""Laws of checkpoints: what comes back is what was saved, or nothing does."""

import errno
import hashlib
import os
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsr.runtime.checkpoint import CheckpointError, Checkpoints, read_checkpoint

STATE = {"step": jnp.int32(7), "ema": {"w": jnp.arange(6.0).reshape(2, 3)}, "stats": {}}


def shapes(tree):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)


@pytest.fixture
def saved(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(7, STATE, {"config": {"seed": 1}})
        checkpoints.save(9, jax.tree.map(lambda x: x + 1, STATE), {"config": {"seed": 1}})
    return tmp_path


def test_a_state_comes_back_bit_for_bit_with_what_was_said_about_it(saved):
    with Checkpoints(saved) as checkpoints:
        assert checkpoints.latest == 9
        assert checkpoints.about(7) == {"config": {"seed": 1}}
        restored = checkpoints.restore(7, shapes(STATE))
    jax.tree.map(np.testing.assert_array_equal, restored, STATE)


def test_only_the_newest_stay(tmp_path):
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        for step in range(1, 5):
            checkpoints.save(step, STATE, {})
    assert {p.name for p in tmp_path.iterdir() if p.name.isdigit()} == {"3", "4"}


@pytest.mark.parametrize(
    "change, sentence",
    [
        (lambda s: {**s, "ema": {"w": s["ema"]["w"].astype(jnp.bfloat16)}}, r"ema/w: float32\[2, 3\] saved, bfloat16\[2, 3\] expected"),
        (lambda s: {**s, "ema": {"w": s["ema"]["w"].T}}, r"ema/w: float32\[2, 3\] saved, float32\[3, 2\] expected"),
        (lambda s: {**s, "ema": {**s["ema"], "b": jnp.zeros(3)}}, "ema/b: not in the checkpoint"),
    ],
)
def test_another_dtype_shape_or_tree_is_refused_by_name(saved, change, sentence):
    wanted = shapes(change(STATE))
    with Checkpoints(saved) as checkpoints, pytest.raises(CheckpointError, match=sentence):
        checkpoints.restore(9, wanted)
    with pytest.raises(CheckpointError, match=sentence):
        read_checkpoint(saved, {"ema": wanted["ema"]})


def test_a_part_can_be_read_without_the_rest(saved):
    step, part = read_checkpoint(saved, shapes({"ema": STATE["ema"]}))
    assert step == 9
    np.testing.assert_array_equal(part["ema"]["w"], STATE["ema"]["w"] + 1)


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


DAMAGE = {
    "missing": lambda path: path.unlink(),
    "empty": lambda path: path.write_bytes(b""),
    "cut short": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "one bit flipped": flip,
    "garbage": lambda path: path.write_bytes(np.random.default_rng(0).bytes(path.stat().st_size)),
}


@pytest.mark.parametrize(
    "what, kind",
    [
        (what, kind)
        for what in ("arrays", "state/_METADATA", "about/metadata", "state/manifest.ocdbt", "SHA256SUMS")
        for kind in DAMAGE
        if (what, kind) != ("SHA256SUMS", "missing")
    ],
)
def test_a_damaged_newest_checkpoint_is_skipped_with_a_note(saved, what, kind):
    """By who reads, and by who goes on from it: that one sets it aside, so that the step can be saved again."""
    newest = saved / "9"
    DAMAGE[kind](max(newest.glob("state/ocdbt*/d/*"), key=lambda p: p.stat().st_size) if what == "arrays" else newest / what)
    notes = []
    step, part = read_checkpoint(saved, shapes({"ema": STATE["ema"]}), notes.append)
    assert step == 7
    np.testing.assert_array_equal(part["ema"]["w"], STATE["ema"]["w"])
    assert "checkpoints/9 is damaged and is skipped" in notes[0].replace(str(saved), "checkpoints")

    with Checkpoints(saved) as checkpoints:
        step, state = checkpoints.newest(shapes(STATE), lambda about: None, notes.append)
        assert step == 7
        checkpoints.save(9, STATE, {})
    jax.tree.map(np.testing.assert_array_equal, state, STATE)
    assert "it is now 9.corrupt" in notes[1]
    assert {p.name for p in saved.iterdir()} == {"7", "9", "9.corrupt"}
    assert read_checkpoint(saved, shapes({"ema": STATE["ema"]}))[0] == 9


def test_a_checkpoint_without_checksums_is_taken_and_said_to_be_unverified(saved):
    """As older versions wrote them."""
    (saved / "9" / "SHA256SUMS").unlink()
    notes = []
    assert read_checkpoint(saved, shapes({"ema": STATE["ema"]}), notes.append)[0] == 9
    with Checkpoints(saved) as checkpoints:
        assert checkpoints.newest(shapes(STATE), lambda about: None, notes.append)[0] == 9
    assert [("has no checksums" in n, "cannot be verified" in n) for n in notes] == [(True, True)] * 2
    assert {p.name for p in saved.iterdir()} == {"7", "9"}


@pytest.mark.parametrize("name", ["SHA256SUMS", "manifest.ocdbt"])
def test_a_file_that_cannot_be_read_at_the_moment_is_no_damage_and_nothing_is_set_aside(saved, name, monkeypatch):
    """EIO, as of a disk or a file server: named with its reason."""

    def unreadable(path, *args, **kwargs):
        if path.name == name and "9" in path.parts:
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        return as_it_is(path, *args, **kwargs)

    as_it_is = Path.open
    monkeypatch.setattr(Path, "open", unreadable)
    monkeypatch.setattr(Path, "read_text", lambda path, **how: path.open(**how).read())
    sentence = rf"9/.*{name} cannot be read \({os.strerror(errno.EIO)}\)"
    with pytest.raises(CheckpointError, match=sentence):
        read_checkpoint(saved, shapes({"ema": STATE["ema"]}))
    with Checkpoints(saved) as checkpoints, pytest.raises(CheckpointError, match=sentence):
        checkpoints.newest(shapes(STATE), lambda about: None, print)
    assert {p.name for p in saved.iterdir()} == {"7", "9"}


def test_the_checksums_are_those_of_every_file_and_sha256sum_reads_them(saved):
    lines = dict(reversed(line.split("  ")) for line in (saved / "9" / "SHA256SUMS").read_text().splitlines())
    items = {p.relative_to(saved / "9").as_posix() for item in ("state", "about") for p in (saved / "9" / item).rglob("*") if p.is_file()}
    assert items <= lines.keys()
    for name, digest in lines.items():
        assert hashlib.sha256((saved / "9" / name).read_bytes()).hexdigest() == digest


def test_what_an_interrupted_save_left_is_no_checkpoint_and_goes(saved):
    shutil.copytree(saved / "9", saved / "10.orbax-checkpoint-tmp")
    assert read_checkpoint(saved, shapes({"ema": STATE["ema"]}))[0] == 9
    assert (saved / "10.orbax-checkpoint-tmp").exists()  # a reader leaves it alone: it may be being written
    with Checkpoints(saved) as checkpoints:
        assert checkpoints.latest == 9
        checkpoints.save(11, STATE, {})
    assert {p.name for p in saved.iterdir()} == {"7", "9", "11"}


def test_what_is_said_beside_the_state_can_refuse_it_and_nothing_is_set_aside(saved):
    def refuse(about):
        raise KeyError(about["config"]["seed"])

    with Checkpoints(saved) as checkpoints, pytest.raises(KeyError, match="1"):
        checkpoints.newest(shapes(STATE), refuse, print)
    assert {p.name for p in saved.iterdir()} == {"7", "9"}


def test_an_empty_folder_is_no_model(tmp_path):
    with pytest.raises(CheckpointError, match="jaxsr train"):
        read_checkpoint(tmp_path, shapes(STATE))
    with pytest.raises(CheckpointError, match="jaxsr train"):
        read_checkpoint(tmp_path / "none", shapes(STATE))
