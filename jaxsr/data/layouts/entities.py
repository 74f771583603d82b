"""Names of files in BIDS: `sub-01_ses-2_acq-highres_run-1_T1w.nii.gz` has entities (key-value) and a suffix."""

import fnmatch
import re
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import NamedTuple

from jaxsr.data.people import stem
from jaxsr.files import shown
from jaxsr.volume.errors import VolumeError

DATATYPES = (
    "anat",
    "func",
    "dwi",
    "fmap",
    "perf",
    "swi",
    "meg",
    "eeg",
    "ieeg",
    "beh",
    "pet",
    "micr",
    "nirs",
    "motion",
    "mrs",
    "figures",
    "xfm",
)
OUTSIDE = ("sourcedata", "code", "stimuli", "phenotype")  # folders at the root that are no part of the set
_NAME = re.compile(r"sub-[A-Za-z0-9+]+(?:_[A-Za-z0-9]+-[^_]+)*_[A-Za-z0-9]+")


class Named(NamedTuple):
    """A file, what its name says, and where it is.

    Attributes:
      section: '' for the set itself, else the pipeline below derivatives/, or a folder that is no part of the set.
      datatype: 'anat', 'func', …, or '' where no folder says so.
    """

    path: PurePosixPath
    entities: Mapping[str, str]
    suffix: str
    section: str
    datatype: str

    @property
    def person(self) -> str:
        return f"sub-{self.entities['sub']}"

    @property
    def session(self) -> str:
        return self.entities.get("ses", "")

    @property
    def name(self) -> str:
        """Entities as they stand in the name, without the suffix."""
        return stem(self.path.name).rpartition("_")[0]


class Filter(NamedTuple):
    """What a side of a pair is told by: values of entities, which may have wildcards, and perhaps a pipeline."""

    entities: Mapping[str, str]
    section: str | None

    def takes(self, file: Named) -> bool:
        fits = all(fnmatch.fnmatchcase(file.entities.get(key, ""), value) for key, value in self.entities.items())
        return fits and (self.section is None or fnmatch.fnmatchcase(file.section, self.section))


def parse(path: PurePosixPath) -> Named | None:
    """What a path below the root of a set says; None where the file's name is none of BIDS."""
    name = stem(path.name)
    if not _NAME.fullmatch(name):
        return None
    *pairs, suffix = name.split("_")
    entities = dict(pair.split("-", 1) for pair in pairs)
    folders = path.parts[:-1]
    section = ""
    if "derivatives" in folders:
        at = folders.index("derivatives")
        section = folders[at + 1] if len(folders) > at + 1 and not folders[at + 1].startswith("sub-") else "derivatives"
    elif folders and folders[0] in OUTSIDE:
        section = folders[0]
    datatype = next((part for part in reversed(folders) if part in DATATYPES), "")
    return Named(path, entities, suffix, section, datatype)


def parse_filter(text: str | None, key: str) -> Filter:
    """'acq-highres', 'ses-7T_acq-mp2rage', 'ses-*7T', or a pipeline's name as in 'fmriprep_desc-preproc'; `_`, `,` or spaces part words.

    Raises:
      VolumeError: for an entity that is named twice.
    """
    entities: dict[str, str] = {}
    section = None
    for word in re.split(r"[_, ]+", (text or "").strip("_, ").removeprefix("derivatives/")):
        name, dash, value = word.partition("-")
        if dash and name.isalnum():
            if name in entities:
                raise VolumeError(f"{key}={shown(text or '')}: {name} is given twice")
            entities[name] = value
        elif word:
            section = word
    return Filter(entities, section)
