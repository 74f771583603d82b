"""What commands that make a file of each input do alike: skip what is done, and go on where one of several fails."""

import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxsr.cli.options import failed
from jaxsr.cli.status import Exit, status_of

if TYPE_CHECKING:
    from jaxsr.upscale.inputs import Job


def unfinished(jobs: "Sequence[Job]", overwrite: bool, terminal: Any) -> "list[Job]":
    """Those whose output is not there, or all with `overwrite`; `terminal` is told of the others."""
    from jaxsr.upscale.inputs import is_done

    todo = [job for job in jobs if overwrite or not is_done(job)]
    if len(todo) < len(jobs):
        terminal.print(f"{len(jobs) - len(todo)} done already, whatever made them (redo with --overwrite)")
    return todo


def do_each(jobs: "Sequence[Job]", do: "Callable[[Job], None]") -> None:
    """Does all of `jobs`, whichever fail.

    Raises:
      Exit: at the end, with those that failed; 5 where memory was too short for all. Of a single job what `do` raises.
    """
    failures: list[tuple[Path, str]] = []
    statuses = []
    for job in jobs:
        try:
            do(job)
        except Exception as error:
            if len(jobs) == 1:
                raise
            status = status_of(error)
            statuses.append(status)
            failures.append((job.source, str(error) if status else f"{type(error).__name__}: {error}"))
            if status is None:  # a mistake of ours: that the other volumes go on is no reason to hide it
                traceback.print_exception(error)
    if failures:
        raise Exit(5 if statuses == [5] * len(jobs) else 1, failed(failures, len(jobs)))
