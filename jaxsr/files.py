"""Files that appear whole or not at all, and names that are safe to show."""

import errno
import os
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

Writer = Callable[[Path], object]

_KEPT = 40  # characters of the name that its temporary file shows; a name has at most 255 bytes
_REASONS = {
    errno.ENOSPC: "the disk is full: free some space and run again",
    errno.EDQUOT: "your disk quota is used up: free some space and run again",
    errno.EFBIG: "the file is larger than this disk or `ulimit -f` allows: choose another place, or raise the limit",
    errno.EROFS: "the disk is read-only: choose another place",
    errno.EACCES: "no permission to write there: choose another place",
}


class FileError(ValueError):
    """A file that cannot be written: one sentence that names it, says why, and the way out."""


def write_whole(path: Path, write: Writer) -> Path:
    """`write` into a hidden file beside `path`, then renames it: nobody ever sees half of it. Missing folders are made.

    Raises:
      FileError: where it cannot be written; what was there before is still there, and nothing else.
    """
    write_together({path: write})
    return path


def write_text(path: Path, text: str) -> Path:
    """`write_whole` of `text`, in UTF-8."""
    return write_whole(path, lambda part: part.write_text(text, encoding="utf-8"))


def write_together(writers: Mapping[Path, Writer]) -> None:
    """Files that belong together: all are complete on the disk before the first appears; they appear in the order given."""
    temporary = {path: path.parent / f".{path.name[:_KEPT]}.{uuid.uuid4().hex[:12]}.tmp{_suffix(path)}" for path in writers}
    path = next(iter(writers))
    try:
        for path, write in writers.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            write(temporary[path])
            with open(temporary[path], "rb") as file:
                os.fsync(file.fileno())
        for path in writers:
            os.replace(temporary[path], path)
    except OSError as error:
        reason = _REASONS.get(error.errno or 0) or f"{error.strerror or error}: choose another place"
        raise FileError(f"{shown(path)} cannot be written, {reason}") from error
    finally:
        for part in temporary.values():
            with suppress(OSError):  # not there, as it should be, or its folder never was
                part.unlink()


def shown(name: str | os.PathLike[str]) -> str:
    """A name as it can be printed, on one line: control characters, line breaks and bytes that are no text are escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in os.fspath(name))


def _suffix(path: Path) -> str:
    """What writers tell the format by; '.nii.gz' is one."""
    suffix = "".join(path.suffixes[-2:]) if path.suffix.lower() == ".gz" else path.suffix
    return suffix if len(suffix) < _KEPT else ""
