"""Laws of volumes in line: what runs beside what, in which order outcomes come, and that one that fails stops no other."""

import gc
import threading
import traceback
import weakref
from concurrent.futures import Future

import numpy as np
import pytest

from jaxsr.runtime.memory import OutOfMemory
from jaxsr.upscale import line
from jaxsr.upscale.line import in_line
from jaxsr.volume.errors import VolumeError

SECONDS = 20  # within which a thread comes to what it is waited for


def test_outcomes_come_in_order_and_everything_goes_from_hand_to_hand():
    jobs = ["a", "b", "c"]
    found = list(in_line(jobs, str.upper, lambda job, read: (job, read), lambda job, made: [job, *made]))
    assert [(job, of.done, of.error) for job, of in found] == [(job, [job, job, job.upper()], None) for job in jobs]
    assert list(in_line([], str.upper, lambda job, read: read, lambda job, made: made)) == []


def test_while_one_is_made_the_next_is_read_and_the_last_is_written():
    started = {(what, job): threading.Event() for what in ("read", "write") for job in range(3)}

    def read(job):
        started["read", job].set()
        return job

    def make(job, given):
        assert threading.current_thread() is threading.main_thread()
        if job < 2:
            assert started["read", job + 1].wait(SECONDS)
        if job > 0:
            assert started["write", job - 1].wait(SECONDS)
            release[job - 1].set()
        return given

    release = [threading.Event() for _ in range(3)]
    release[2].set()

    def write(job, made):
        started["write", job].set()
        assert release[job].wait(SECONDS)  # ends only while the next is made
        return job

    assert [of.done for _, of in in_line(range(3), read, make, write)] == [0, 1, 2]


@pytest.mark.parametrize("where", ["read", "make", "write"])
@pytest.mark.parametrize("which", range(3))
def test_one_that_fails_stops_no_other(where, which):
    def fails(at, job, value):
        if (at, job) == (where, which):
            raise ValueError(f"{at} {job}")
        return value

    found = list(
        in_line(
            range(3), lambda job: fails("read", job, job), lambda job, of: fails("make", job, of), lambda job, of: fails("write", job, of)
        )
    )
    assert [job for job, _ in found] == [0, 1, 2]
    for job, outcome in found:
        assert (outcome.done, str(outcome.error)) == ((None, f"{where} {which}") if job == which else (job, "None"))


def test_where_there_is_no_room_one_is_written_before_the_next_is_read():
    happened, lock = [], threading.Lock()

    def does(what, job):
        with lock:
            happened.append((what, job))
        return job

    how = [lambda job, *given, what=what: does(what, job) for what in ("read", "make", "write")]
    found = list(in_line(range(4), *how, lambda job, given: job == 1))
    assert [of.done for _, of in found] == [0, 1, 2, 3]
    place = {step: i for i, step in enumerate(happened)}
    assert place["write", 0] < place["read", 1] < place["make", 1]
    assert place["read", 2] < place["make", 2]  # read ahead, beside 1
    assert place["write", 1] < place["make", 2]  # but 2 has no room for that
    assert place["write", 2] < place["read", 3]


def test_what_could_not_be_read_beside_another_is_read_again_by_itself():
    tries, writing = [], set()

    def read(job):
        tries.append(job)
        if job == 1 and tries.count(1) == 1:
            raise VolumeError("2 GB are needed, and 1 GB is free")
        assert not writing or job != 1
        return job

    def write(job, made):
        writing.add(job)
        writing.discard(job)
        return made

    assert [of.done for _, of in in_line(range(3), read, lambda job, given: given, write)] == [0, 1, 2]
    assert tries.count(1) == 2


@pytest.mark.parametrize("where", ["make", "write"])
def test_of_one_that_failed_nothing_stays_in_memory_while_the_next_is_made(where):
    held = []

    def fails(job):
        volume = np.zeros(10)
        held.append(weakref.ref(volume))
        try:
            raise MemoryError("short")
        except MemoryError as error:
            raise OutOfMemory("short of memory") from error

    def make(job, given):
        if job == 2:
            gc.collect()
            assert all(of() is None for of in held)
        return fails(job) if where == "make" and job < 2 else job

    def write(job, made):
        return fails(job) if where == "write" and job < 2 else job

    outcomes = [of for _, of in in_line(range(3), lambda job: job, make, write)]
    assert len(held) == 2
    assert [of.done for of in outcomes] == [None, None, 2]
    assert "short of memory" in "".join(traceback.format_exception(outcomes[0].error))


def test_what_is_being_written_when_the_caller_is_stopped_is_written_and_told():
    told, writing = [], threading.Event()

    def make(job, given):
        if job == 1:
            writing.set()
            raise KeyboardInterrupt
        return given

    def write(job, made):
        assert writing.wait(SECONDS)
        return made

    def go():
        for job, outcome in in_line(range(3), lambda job: job, make, write):
            told.append((job, outcome.done))

    with pytest.raises(KeyboardInterrupt):
        go()
    assert told == [(0, 0)]


def test_what_is_being_written_last_is_told_of_when_the_caller_is_stopped(monkeypatch):
    """Ctrl-C while it waits for the last to be written."""
    told, interrupted = [], []

    class Waited(Future):
        def result(self, timeout=None):
            if threading.current_thread() is threading.main_thread() and not interrupted and self.done_writing():
                interrupted.append(self)
                raise KeyboardInterrupt
            return super().result(timeout)

        def done_writing(self):
            return isinstance(super().result(), line.Outcome)

    monkeypatch.setattr("concurrent.futures.thread._base.Future", Waited)

    def go():
        for job, of in in_line(range(1), lambda job: job, lambda job, given: given, lambda job, made: made):
            told.append((job, of.done))

    with pytest.raises(KeyboardInterrupt):
        go()
    assert interrupted
    assert told == [(0, 0)]


def test_a_caller_that_looks_no_further_leaves_nothing_behind():
    def go():
        for _job, outcome in in_line(range(3), lambda job: job, lambda job, given: given, lambda job, made: made):
            raise ValueError(outcome.done)

    before = threading.active_count()
    with pytest.raises(ValueError, match="0"):
        go()
    assert threading.active_count() == before
