"""Laws of volumes in line: what runs beside what, in which order outcomes come, and that one that fails stops no other."""

import threading

import pytest

from jaxsr.runtime.memory import OutOfMemory
from jaxsr.upscale.line import in_line

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


@pytest.mark.parametrize("error", [OutOfMemory, MemoryError])
@pytest.mark.parametrize("where", ["read", "make"])
def test_where_memory_is_short_for_two_at_a_time_one_is_done_with_nothing_beside_it(where, error):
    writing, tries, released = set(), [], threading.Event()

    def short(at, job):
        tries.append((at, job))
        if at == where and job == 1 and tries.count((at, job)) == 1:
            released.set()
            raise error("short")
        if at == where and job == 1:
            assert not writing
        return job

    def write(job, made):
        writing.add(job)
        assert job or released.wait(SECONDS)
        writing.discard(job)
        return made

    found = list(in_line(range(3), lambda job: short("read", job), lambda job, of: short("make", job), write))
    assert [of.done for _, of in found] == [0, 1, 2]
    assert tries.count((where, 1)) == 2


def test_a_single_one_that_memory_is_too_short_for_is_not_tried_twice():
    tries = []

    def make(job, given):
        tries.append(job)
        raise OutOfMemory("short")

    (only,) = in_line([0], lambda job: job, make, lambda job, made: made)
    assert isinstance(only[1].error, OutOfMemory)
    assert tries == [0]


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


def test_a_caller_that_looks_no_further_leaves_nothing_behind():
    def go():
        for _job, outcome in in_line(range(3), lambda job: job, lambda job, given: given, lambda job, made: made):
            raise ValueError(outcome.done)

    before = threading.active_count()
    with pytest.raises(ValueError, match="0"):
        go()
    assert threading.active_count() == before
