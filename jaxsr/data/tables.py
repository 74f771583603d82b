"""Small tables that come with data sets: who is in them, of which family, in which split. TSV, or CSV by the suffix."""

import csv
from pathlib import Path

from jaxsr.files import shown
from jaxsr.volume.errors import VolumeError


def read_table(path: Path) -> list[dict[str, str]]:
    """Rows by column, names of columns in lower case, every value stripped.

    Raises:
      VolumeError: where it cannot be read, is no text or has no header.
    """
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            rows = list(csv.reader(file, delimiter="," if path.suffix.lower() == ".csv" else "\t"))
    except OSError as error:
        raise VolumeError(f"{shown(path)}: cannot be read ({error.strerror or error}): check the path and its permissions") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise VolumeError(f"{shown(path)}: not a table in UTF-8 ({error}): save it as tab-separated text") from error
    rows = [[value.strip() for value in row] for row in rows if any(value.strip() for value in row)]
    if not rows:
        raise VolumeError(f"{shown(path)}: the table is empty: its first line names the columns")
    names = [name.lower() for name in rows[0]]
    return [dict(zip(names, row + [""] * (len(names) - len(row)), strict=False)) for row in rows[1:]]


def read_pairs(path: Path, keys: tuple[str, ...], values: tuple[str, ...]) -> dict[str, str]:
    """One column of a table by another; each is named by the first of its names that the header has.

    Raises:
      VolumeError: as `read_table`; where a column is missing, a value is empty, or one key has two values.
    """
    rows = read_table(path)
    found: dict[str, str] = {}
    columns = [next((name for name in names if rows and name in rows[0]), None) for names in (keys, values)]
    if rows and None in columns:
        missing = (keys, values)[columns.index(None)]
        raise VolumeError(f"{shown(path)}: there is no column {' or '.join(missing)}, only {', '.join(rows[0])}: name it in the first line")
    for row in rows:
        key, value = (row.get(str(column), "") for column in columns)
        if not key or not value:
            raise VolumeError(f"{shown(path)}: a line has {key or 'nothing'} and {value or 'nothing'}: every line needs both columns")
        if found.setdefault(key, value) != value:
            raise VolumeError(f"{shown(path)}: {key} is listed with {found[key]} and with {value}: keep one line")
    return found
