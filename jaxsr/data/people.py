"""Who a file is of, by its name and the folders it lies in. Reads no file.

A flat folder often holds several volumes of each person, told apart at the end of the name by contrast and field strength: `x-T1.nii`,
`x-T2.nii` and `x_3T_FLAIR.nii` are all of `x`. An ending counts where it is one of CONTRASTS, in upper or lower case, or a number of tesla
(3T, 1.5T, 1p5T, 64mT), after one of `-`, `_`, `.` or a space.
"""

import re
import unicodedata
from pathlib import PurePath

from jaxsr.volume.io import SUFFIXES

CONTRASTS = (
    "T1", "T1w", "T1n", "T1c", "T1ce", "T1gd", "UNIT1", "MPRAGE", "MP2RAGE", "T2", "T2w", "T2f", "T2star", "T2starw",
    "PD", "PDw", "PDT2", "FLAIR", "SWI", "MRA", "DWI", "ADC",
)  # fmt: skip
_ENDING = re.compile(rf"(?:^|[-_. ])({'|'.join(sorted(CONTRASTS, key=len, reverse=True))}|\d+(?:[p.]\d+)?m?T)$", re.IGNORECASE)


def person_of(inside: PurePath) -> str:
    """The person in a path below the root of a set: the BIDS `sub-…` of the file or of the nearest folder; else the first subfolder that is
    not named after a contrast or a field (the volumes in it are one person's); else the file's name without its suffix and contrast.
    """
    for part in (inside.name, *reversed(inside.parts[:-1])):
        if part.startswith("sub-"):
            return plain(re.split(r"[_.]", part)[0])
    for folder in inside.parts[:-1]:
        if not _ENDING.search(folder):
            return plain(folder)
    return without_contrast(stem(inside.name)) or "unnamed"


def without_contrast(name: str) -> str:
    """A stem without the contrasts and field strengths at its end."""
    while ending := _ENDING.search(name):
        name = name[: ending.start()]
    return name


def stem(name: str) -> str:
    """A file's name without the suffix of its format, as one sequence of code points whatever the file system made of it."""
    suffix = max((s for s in SUFFIXES if name.lower().endswith(s)), key=len, default="")
    return plain(name[: len(name) - len(suffix)] if suffix else name.split(".")[0])


def plain(text: str) -> str:
    """NFC: macOS hands out names in another normal form than other systems, and they are the same names."""
    return unicodedata.normalize("NFC", text)
