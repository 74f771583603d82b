"""What an evaluation writes, and that it replaces no file but its own, which it knows by what is in them."""

import json
from collections.abc import Iterable
from pathlib import Path

from jaxsr.files import FileError, shown

PICTURE = {"Software": "jaxsr"}  # of a PNG, https://www.w3.org/TR/png-3/#11tEXt
COLUMNS = ("subject", "method", "region", "data_range", "voxels")  # of metrics.csv, before the metrics
PAGE = '<meta name="generator" content="jaxsr">'
_KEYS = {"conventions", "versions", "summary", "rows"}  # of metrics.json
_START = 2000  # bytes, in which a file says what it is


def picture_paths(folder: Path, subjects: Iterable[str], single: bool) -> dict[str, Path]:
    """Subject → its montage; `single`: there is but one."""
    flat = {subject: subject.replace("/", "_") for subject in subjects}
    if len(set(flat.values())) < len(flat):
        flat = {subject: subject for subject in flat}
    return {subject: folder / ("montage.png" if single else f"montages/{name}.png") for subject, name in flat.items()}


def check_folder(folder: Path, pictures: Iterable[Path] = ()) -> None:
    """Raises FileError where a table or a picture would replace a file that is not an evaluation's."""
    _check(folder / "metrics.csv", _is_table(folder / "metrics.csv"))
    _check(folder / "metrics.json", _is_document(folder / "metrics.json"))
    for picture in pictures:
        _check(picture, b"tEXtSoftware\0" + PICTURE["Software"].encode() in _start(picture))


def check_page(path: Path) -> None:
    """Raises FileError where a report would replace a file that is none."""
    _check(path, PAGE.encode() in _start(path))


def _check(path: Path, ours: bool) -> None:
    if path.exists() and not ours:
        raise FileError(f"{shown(path)} exists and was not written by jaxsr: choose another -o, so that it is not replaced")


def _is_table(path: Path) -> bool:
    return _start(path).startswith(",".join(COLUMNS).encode())


def _is_document(path: Path) -> bool:
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(said, dict) and said.keys() >= _KEYS


def _start(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(_START)
    except OSError:  # a folder, or nothing there
        return b""
