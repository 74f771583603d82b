"""Volumes one after another, with the host's work beside the device's: while one is made, the next is read and the last is written.

    reader      read 1   read 2    read 3
    caller               make 1    make 2    make 3
    writer                         write 1   write 2   write 3

Memory holds one volume more on either side. Where it is too short for that, a volume is read, or made, again with nothing beside it.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any, Generic, NamedTuple, TypeVar

from jaxsr.runtime.memory import OutOfMemory

Job = TypeVar("Job")
Read = TypeVar("Read")
Made = TypeVar("Made")
Done = TypeVar("Done")


class Outcome(NamedTuple, Generic[Done]):
    """What `write` returned, or why there is nothing."""

    done: Done | None = None
    error: Exception | None = None


def in_line(
    jobs: Sequence[Job], read: Callable[[Job], Read], make: Callable[[Job, Read], Made], write: Callable[[Job, Made], Done]
) -> Iterator[tuple[Job, Outcome[Done]]]:
    """Yields each of `jobs`, in their order, with its outcome, once the next has been made: one that fails stops no other.

    `make` runs in the calling thread, `read` and `write` in one of their own each. What stops the caller (Ctrl-C, say) waits until what is
    being written is, which is yielded first.
    """
    ahead: Future[Read] | None = None
    behind: tuple[Job, Future[Done]] | None = None
    with ThreadPoolExecutor(1, "read") as reader, ThreadPoolExecutor(1, "write") as writer:
        try:
            for job, later in itertools.zip_longest(jobs, jobs[1:]):
                given = ahead or reader.submit(read, job)
                wait([given])
                ahead = reader.submit(read, later) if later is not None else None
                written: Future[Done] = Future()
                try:
                    try:
                        made = make(job, given.result())
                    except (OutOfMemory, MemoryError):
                        if ahead is None and behind is None:
                            raise
                        beside: list[Future[Any] | None] = [ahead, behind[1] if behind else None]
                        wait([future for future in beside if future])
                        ahead = None
                        made = make(job, read(job))
                    del given
                    if behind:  # one at a time waits to be written
                        wait([behind[1]])
                    written = writer.submit(write, job, made)
                    del made
                except Exception as error:
                    written.set_exception(error)
                if behind:
                    yield behind[0], _outcome(behind[1])
                behind = job, written
        except GeneratorExit:
            raise
        except BaseException:
            if behind:
                yield behind[0], _outcome(behind[1])
            raise
        if behind:
            yield behind[0], _outcome(behind[1])


def _outcome(future: Future[Done]) -> Outcome[Done]:
    try:
        return Outcome(future.result())
    except Exception as error:
        return Outcome(error=error)
