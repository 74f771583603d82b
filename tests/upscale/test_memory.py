"""Laws of running out of memory: what does not fit is done again in smaller batches, what is done stays, a number asked for is kept."""

import itertools

import jax
import numpy as np
import pytest

import jaxsr.upscale.batches as batches_module
from jaxsr.methods.base import Request, UpscaleOutput
from jaxsr.runtime.memory import OutOfMemory, is_out_of_memory
from jaxsr.runtime.mesh import make_mesh
from jaxsr.upscale.batches import Batches
from jaxsr.upscale.engine import Engine
from jaxsr.volume.io import Volume

EXHAUSTED = "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 12345 bytes.\nmore lines"
REQUEST = Request(steps=1)
HEAD = Volume(np.random.default_rng(0).normal(100, 20, (21, 24, 19)).astype(np.float32), np.diag([2.0, 2.0, 2.0, 1.0]))


class Noise:
    """Adds to each slice what its own key gives, so that a slice under another's key shows."""

    multiple = 8
    default_request = REQUEST

    def upscale(self, variables, condition, keys, request):
        return UpscaleOutput(condition.low + jax.vmap(lambda key: jax.random.normal(key, condition.low.shape[1:]))(keys), {})


class Late:
    """An array that turns out not to be there when it is asked for, as on devices that work while the host goes on."""

    def __array__(self, *_, **__):
        raise jax.errors.JaxRuntimeError(EXHAUSTED)


class Short:
    """A program on a device that has memory for `limit()` slices."""

    def __init__(self, program, limit, late):
        self._program, self._limit, self._late = program, limit, late

    def memory_analysis(self):
        return None

    def __call__(self, variables, condition, index, key):
        if len(condition["low"]) <= self._limit():
            return self._program(variables, condition, index, key)
        if self._late:
            return UpscaleOutput(Late(), {})
        raise jax.errors.JaxRuntimeError(EXHAUSTED)


@pytest.fixture(params=[False, True], ids=["when dispatched", "when fetched"])
def short(request, monkeypatch):
    """Makes engines whose device has memory for so many slices."""
    compile_ = Batches._compile

    def short(limit, batch_size="auto"):
        monkeypatch.setattr(Batches, "_compile", lambda self, *arguments: Short(compile_(self, *arguments), limit, request.param))
        return Engine(Noise(), {}, make_mesh(), batch_size=batch_size)

    return short


def test_a_batch_that_does_not_fit_is_done_in_smaller_ones_and_nothing_changes_in_the_result(short):
    expected = Engine(Noise(), {}, make_mesh(), batch_size=8).upscale(HEAD, REQUEST).volume.data
    notes, progress = [], []
    engine = short(lambda: 2)
    result = engine.upscale(HEAD, REQUEST, note=notes.append, progress=lambda done, total: progress.append(done)).volume.data
    np.testing.assert_allclose(result, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    assert notes == [f"{n} slices at a time do not fit into memory: going on with {n // 2}" for n in (7, 3)]  # 7 of 8 leave fewer fillers
    assert progress == sorted(set(progress))
    assert progress[-1] == sum(HEAD.data.shape)


def test_memory_that_becomes_short_on_the_way_costs_what_is_in_flight_and_no_more(short):
    """After the first axis: its slices are not done again."""
    seen, calls = [], itertools.count()
    engine = short(lambda: 8 if next(calls) < 3 else 4)
    engine.upscale(HEAD, REQUEST, progress=lambda done, total: seen.append(done))
    assert engine.batch_size == 3
    assert seen[:4] == [7, 14, 21, 24]
    assert seen == sorted(set(seen))


def test_what_is_tried_next_is_half_of_what_was_tried_and_not_of_what_might_have_been(short):
    """Of 19 to 24 slices at most 64 at a time are 24, which do not fit, nor do 12; no size is compiled twice."""
    notes, engine = [], short(lambda: 6)
    engine._batches.size = 64
    engine.upscale(HEAD, REQUEST, note=notes.append)
    assert notes == [f"{n} slices at a time do not fit into memory: going on with {n // 2}" for n in (24, 12)]
    assert engine.batch_size == 6


def test_the_size_that_was_found_is_kept_for_the_next_volume(short):
    engine, notes = short(lambda: 4), []
    for _ in range(2):
        engine.upscale(HEAD, REQUEST, note=notes.append)
    assert (engine.batch_size, len(notes)) == (3, 1)


def test_a_number_that_was_asked_for_is_kept(short):
    engine = short(lambda: 4, batch_size=8)
    with pytest.raises(OutOfMemory, match=r"7 slices at a time: try --batch-size auto \(RESOURCE_EXHAUSTED.*12345 bytes\.\)"):
        engine.upscale(HEAD, REQUEST)
    assert engine.batch_size == 8


def test_one_slice_that_does_not_fit_is_the_end_with_ways_out(short):
    with pytest.raises(OutOfMemory, match=r"one slice at a time.*--to-mm, --precision bf16"):
        short(lambda: 0).upscale(HEAD, REQUEST)


def test_another_error_is_not_taken_for_a_lack_of_memory(monkeypatch):
    def broken(self, *arguments):
        raise jax.errors.JaxRuntimeError("INVALID_ARGUMENT: of our own making")

    monkeypatch.setattr(Batches, "_compile", broken)
    with pytest.raises(jax.errors.JaxRuntimeError, match="INVALID_ARGUMENT"):
        Engine(Noise(), {}, make_mesh(), batch_size="auto").upscale(HEAD, REQUEST)


@pytest.mark.parametrize("batch_size, expected", [("auto", 2), (8, 8)])
def test_what_the_compiler_says_a_program_needs_is_asked_before_it_runs(batch_size, expected, monkeypatch):
    """100 bytes a slice, 250 free, of which four fifths serve: two at a time, found in one step. A number is tried all the same."""
    notes = []
    engine = Engine(Noise(), {}, make_mesh(), batch_size=batch_size)
    monkeypatch.setattr(batches_module, "free_memory", lambda devices: 250)
    monkeypatch.setattr(batches_module, "program_memory", lambda program: 100 * program.args_info[0][2].shape[0])
    engine.upscale(HEAD, REQUEST, note=notes.append)
    assert engine.batch_size == expected
    assert len(notes) == (batch_size == "auto")


@pytest.mark.parametrize("error, expected", [
    (MemoryError(), True), (np._core._exceptions._ArrayMemoryError((9,), np.dtype("f4")), True),
    (RuntimeError("RESOURCE_EXHAUSTED: x"), True), (RuntimeError("INTERNAL: x"), False), (ValueError("memory"), False),
])  # fmt: skip
def test_lack_of_memory_is_known_by_its_class_or_its_word(error, expected):
    assert is_out_of_memory(error) == expected
