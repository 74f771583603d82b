"""Laws of checkpoints: what comes back is what was saved, or nothing does."""

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


def test_a_damaged_newest_checkpoint_is_skipped_with_a_note(saved):
    for path in (saved / "9" / "state").rglob("*"):
        if path.is_file():
            path.write_bytes(b"")
    notes = []
    step, _ = read_checkpoint(saved, shapes({"ema": STATE["ema"]}), notes.append)
    assert step == 7
    assert "skipped" in notes[0]


def test_an_empty_folder_is_no_model(tmp_path):
    with pytest.raises(CheckpointError, match="jaxsr train"):
        read_checkpoint(tmp_path, shapes(STATE))
    with pytest.raises(CheckpointError, match="jaxsr train"):
        read_checkpoint(tmp_path / "none", shapes(STATE))
