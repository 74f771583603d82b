"""What a layout finds: the files of one scan, who it is of, and all that could not be used.

A layout knows where a data set keeps its files, and nothing of what is done with them. Whatever it finds goes into exactly one of two
lists: scans, or problems. Nothing is dropped silently.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple, Protocol

from jaxsr.config import Strict


class Scan(NamedTuple):
    """Files of one person that belong together.

    Attributes:
      id: unique in the set and safe as a file's name, e.g. 'sub-01_ses-2_run-1'.
      person: who must not be in two splits, e.g. 'sub-01'.
      files: by role: 'high' always; 'low', 'reference', 'bias', 'gradient', 'labels', 'mask' where there are.
    """

    id: str
    person: str
    files: Mapping[str, Path]


class Problem(NamedTuple):
    """`path` (or a scan's name) cannot be used, and `why`, in a sentence that says what would help."""

    path: str
    why: str


class Found(NamedTuple):
    """Scans sorted by id, problems sorted by path."""

    scans: list[Scan]
    problems: list[Problem]


class Wanted(Strict):
    """What to look for; each layout documents the words it knows and its defaults (None).

    Attributes:
      high: contrast or suffix of the truth, as in 'T1w'.
      low: of the low-resolution scan; None: it will be simulated from `high`.
      reference: of the second contrast; None: none.
      high_in, low_in: what else tells the two sides apart: for BIDS an entity, as in 'acq-highres' or 'ses-7T'; for `folder` a subfolder.
    """

    high: str | None = None
    low: str | None = None
    reference: str | None = None
    high_in: str | None = None
    low_in: str | None = None


class Layout(Protocol):
    """One data set's habits."""

    def find(self, root: Path, wanted: Wanted) -> Found: ...
