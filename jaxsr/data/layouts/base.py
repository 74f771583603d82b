"""What a layout finds: the files of one scan, who it is of, and all that could not be used.

A layout knows where a data set keeps its files, and nothing of what is done with them. Whatever it finds goes into exactly one of two
lists: scans, or problems. Nothing is dropped silently.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

from jaxsr.config import Strict

Kind = Literal["unreadable", "partner", "duplicate", "unused", "ignored", "note"]


class Scan(NamedTuple):
    """Files of one person that belong together.

    Attributes:
      id: unique in the set and safe as a file's name, e.g. 'sub-01_ses-2_run-1'.
      person: who must not be in two splits, e.g. 'sub-01'.
      files: by role: 'high' always; 'low' and 'reference' where they are wanted; 'bias', 'gradient', 'labels', 'mask' where there are.
        A 'bias' is the field itself, which multiplies the image, as N4 and HCP write it (see `read_bias`); a 'gradient' is in mm.
      own: the person's own name, where `person` is their family's; '' means that it is `person`.
    """

    id: str
    person: str
    files: Mapping[str, Path]
    own: str = ""


class Problem(NamedTuple):
    """`path` (or a scan's name) cannot be used, and `why`, in a sentence that says what would help.

    Attributes:
      path: below the root; one that ends in '/' speaks for every file in that folder.
      kind: 'unreadable', as its name, size or link tells; 'partner', which a scan lacks; 'duplicate' of a file that was taken; 'unused',
        of another contrast or modality; 'ignored' by a rule on names; 'note', where nothing is lost but something is odd.
    """

    path: str
    why: str
    kind: Kind = "unreadable"


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
      families: a table (TSV, or .csv) with the columns `subject` and `family`: who shares a family counts as one person.
    """

    high: str | None = None
    low: str | None = None
    reference: str | None = None
    high_in: str | None = None
    low_in: str | None = None
    families: Path | None = None


class Layout(Protocol):
    """One data set's habits."""

    def find(self, root: Path, wanted: Wanted) -> Found: ...
