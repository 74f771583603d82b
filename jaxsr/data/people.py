"""Who a file is of, by its name and the folders it lies in. Reads no file.

A flat folder often holds several volumes of each person, told apart at the end of the name by contrast and field strength: `x-T1.nii`,
`x-T2.nii` and `x_3T_FLAIR.nii` are all of `x`. An ending counts where it is one of CONTRASTS, in upper or lower case, or a number of tesla
(3T, 1.5T, 1p5T, 64mT), after one of `-`, `_`, `.` or a space.

Nor do words of visits and sessions name a person, so `baseline/x.nii`, `x_visit2.nii`, `ses-3_x.nii` and `x_MR1/1.nii` are all of
`x`: VISITS wherever they stand between the same separators, and SHORT, which could be a name too, as folders or behind a name.
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

_N = r"[-_ ]?\d{1,4}"
VISITS = (
    r"ses-[a-z0-9]+", rf"ses{_N}", rf"(?:session|visit|timepoint)(?:{_N}|[-_ ]?[a-z])?", rf"(?:tp|run|wave){_N}",
    rf"(?:baseline|bl|screening|follow[-_ ]?up|fu|retest|rescan)(?:{_N})?", rf"(?:pre|post)(?:[-_ ]?op)?(?:{_N})?",
    rf"(?:day|week|month|year)s?{_N}", r"\d{1,3}[-_ ]?(?:days?|weeks?|mo|months?|yrs?|years?)",
)  # fmt: skip
SHORT = (rf"scan{_N}", r"mr[-_ ]?d?\d{1,4}", r"m\d{1,3}", r"y\d{1,2}")
_VISIT = re.compile(rf"(?:(?:^|(?<=[-_. ]))(?:{'|'.join(VISITS)})|(?<=[-_. ])(?:{'|'.join(SHORT)}))(?:[-_. ]|$)", re.IGNORECASE)
_SHORT = re.compile("|".join(SHORT), re.IGNORECASE)


def person_of(inside: PurePath) -> str:
    """The person in a path below the root of a set: the BIDS `sub-…` of the file or of the nearest folder; else the first subfolder that is
    not named after a contrast, a field or a visit (the volumes in it are one person's), without its visit; else the file's name without its
    suffix, contrast and visit.
    """
    for part in (inside.name, *reversed(inside.parts[:-1])):
        if part.startswith("sub-"):
            return plain(re.split(r"[_.]", part)[0])
    for folder in map(plain, inside.parts[:-1]):
        if not _SHORT.fullmatch(folder) and (name := without_visits(folder)) and not _ENDING.search(name):
            return name
    return bare(inside) or "unnamed"


def bare(path: PurePath) -> str:
    """A file's name without suffix, contrasts and visits; '' where it has nothing else."""
    name = stem(path.name)
    while name != (shorter := without_visits(without_contrast(name))):
        name = shorter
    return name


def without_visits(name: str) -> str:
    """A name without its words of visits and sessions, wherever they stand."""
    while visit := _VISIT.search(name):
        name = (name[: visit.start()] + name[visit.end() :]).rstrip("-_. ")
    return name


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
