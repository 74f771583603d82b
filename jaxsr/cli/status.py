"""From exceptions to exit statuses: which errors are the user's, and what a command ends with.

Exceptions are matched by name along their ancestry, so that a command that never imported JAX need not import it to fail.
"""

import signal
import sys
from collections.abc import Callable

import typer

from jaxsr.files import shown

STATUS = {
    "ConfigError": 2,
    "VolumeError": 2,
    "FileError": 2,
    "EvaluationError": 2,
    "NoHeads": 3,
    "NothingToDo": 3,
    "CheckpointError": 2,
    "MeshError": 2,
    "ModelError": 4,
    "WeightsError": 4,
    "TrainingDiverged": 6,
    "FloatingPointError": 6,
    "OutOfMemory": 5,
    "Interrupted": 130,
    "Stopped": 143,
}


class Terminated(BaseException):
    """SIGTERM came where nobody else looks after it."""


class Exit(Exception):
    """Ends a command with `status` after saying `sentence`."""

    def __init__(self, status: int, sentence: str):
        super().__init__(sentence)
        self.status = status


def run(command: Callable[[], object]) -> int:
    """Runs `command` and returns its exit status; users see one sentence, tracebacks are for our mistakes."""
    try:
        result = command()
        if result == 128 + signal.SIGINT:  # typer turns KeyboardInterrupt into that
            raise KeyboardInterrupt
        return result if isinstance(result, int) else 0
    except typer.Exit as done:
        return done.exit_code
    except (KeyboardInterrupt, typer.Abort):
        return _say(128 + signal.SIGINT, "interrupted; run the same command again to go on")
    except Terminated:
        return _say(128 + signal.SIGTERM, "stopped by SIGTERM; run the same command again to go on")
    except typer.TyperException as error:  # wrong usage, which knows how to show itself
        error.show()  # type: ignore[attr-defined]
        return 2
    except Exit as error:
        return _say(error.status, str(error))
    except Exception as error:
        if (status := status_of(error)) is None:
            raise
        if status == 5 and "OutOfMemory" not in _ancestors(error):  # it has no way out of its own to tell
            return _say(5, f"out of memory: try a smaller --batch-size, or train.batch_size\n{next(iter(str(error).splitlines()), '')}")
        if isinstance(error, OSError):
            return _say(status, f"{shown(str(error.filename))}: {error.strerror}; check the path, its permissions and the disk")
        return _say(status, str(error))


def status_of(error: Exception) -> int | None:
    """The exit status of an error that is the user's or the machine's; None for our own mistakes."""
    found = [STATUS[name] for name in _ancestors(error) if name in STATUS]
    if found:
        return found[0]
    if "RESOURCE_EXHAUSTED" in str(error) or isinstance(error, MemoryError):
        return 5
    return 2 if isinstance(error, OSError) and error.filename is not None else None  # a folder without permission, a full disk


def _ancestors(error: Exception) -> list[str]:
    return [ancestor.__name__ for ancestor in type(error).__mro__]


def terminate(signum: int, frame: object) -> None:
    """A handler: SIGTERM unwinds like an exception, so that nothing temporary is left behind."""
    raise Terminated


def _say(status: int, sentence: str) -> int:
    text = "\n".join(shown(line) for line in sentence.split("\n"))  # names may hold what a terminal obeys
    print(f"jaxsr: {text}", file=sys.stderr)
    return status
