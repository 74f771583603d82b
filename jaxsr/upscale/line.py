"""Volumes one after another, with the host's work beside the device's: while one is made, the next is read and the last is written.

    reader      read 1   read 2    read 3
    caller               make 1    make 2    make 3
    writer                         write 1   write 2   write 3

Memory holds one volume more on either side, where there is room for that; where not, one is read, made and written before the next.
"""

import itertools
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Generic, NamedTuple, TypeVar

Job = TypeVar("Job")
Read = TypeVar("Read")
Made = TypeVar("Made")
Done = TypeVar("Done")


class Outcome(NamedTuple, Generic[Done]):
    """What `write` returned, or why there is nothing."""

    done: Done | None = None
    error: Exception | None = None


def in_line(
    jobs: Sequence[Job],
    read: Callable[[Job], Read],
    make: Callable[[Job, Read], Made],
    write: Callable[[Job, Made], Done],
    room: Callable[[Job, Read], bool] = lambda job, given: True,
) -> Iterator[tuple[Job, Outcome[Done]]]:
    """Yields each of `jobs`, in their order, with its outcome, once the next has been made: one that fails stops no other.

    `make` and `room` run in the calling thread, `read` and `write` in one of their own each. `room` says, before a job is made, whether
    memory has room for others beside it. What could not be read beside another is read again by itself. What stops the caller (Ctrl-C,
    say) waits until what is being read and written is; the latter is yielded first.
    """
    ahead: Future[Read] | None = None
    behind: tuple[Job, Future[Outcome[Done]]] | None = None
    with ThreadPoolExecutor(1, "read") as reader, ThreadPoolExecutor(1, "write") as writer:
        try:
            for job, later in itertools.zip_longest(jobs, jobs[1:]):
                given, ahead = ahead, None
                if given is None or given.exception() is not None:
                    if behind:
                        wait([behind[1]])
                    given = reader.submit(read, job)
                written: Future[Outcome[Done]] = Future()
                try:
                    if room(job, given.result()):
                        ahead = reader.submit(read, later) if later is not None else None
                    elif behind:
                        wait([behind[1]])
                    made = make(job, given.result())
                    del given
                    if behind:  # one at a time waits to be written
                        wait([behind[1]])
                    written = writer.submit(_attempt, write, job, made)
                    del made
                except Exception as error:
                    written.set_result(Outcome(error=_light(error)))
                if behind:
                    yield behind[0], behind[1].result()
                behind = job, written
                del written
            if behind:
                yield behind[0], behind[1].result()
        except GeneratorExit:
            raise
        except BaseException:
            if behind:
                yield behind[0], behind[1].result()
            raise


def _attempt(write: Callable[[Job, Made], Done], job: Job, made: Made) -> Outcome[Done]:
    try:
        return Outcome(write(job, made))
    except Exception as error:
        del made
        return Outcome(error=_light(error))


def _light(error: Exception) -> Exception:
    """`error` without the variables of the functions that it came through: they hold volumes, and the next needs the memory."""
    of: BaseException | None = error
    while of is not None:
        traceback.clear_frames(of.__traceback__)
        of = of.__cause__ or of.__context__
    return error
