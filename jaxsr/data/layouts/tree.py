"""The files under a folder, and the account that a layout keeps of them: each ends in a scan or in a problem.

A volume's name ends in one of SUFFIXES, in upper or lower case. Whatever begins with a dot (macOS leaves `._x.nii` beside x.nii) or lies in
`__MACOSX` is ignored and counted. Links are followed, to folders too. What comes out does not depend on the order in which the file system
lists a folder.
"""

import hashlib
import os
import re
import stat
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from jaxsr.data.layouts.base import Found, Kind, Problem, Scan
from jaxsr.data.people import plain
from jaxsr.files import shown
from jaxsr.volume.errors import VolumeError
from jaxsr.volume.io import SUFFIXES

PREFERRED = (".nii.gz", ".nii", ".mgz", ".mgh")  # of one volume in several formats; gzip has a checksum
OTHERS = {
    ".dcm": "run dcm2niix on the folder", ".ima": "run dcm2niix on the folder", ".nrrd": "convert them to .nii.gz",
    ".nhdr": "convert them to .nii.gz", ".mha": "convert them to .nii.gz", ".mhd": "convert them to .nii.gz",
    ".mnc": "convert them to .nii.gz", ".mif": "convert them to .nii.gz", ".mif.gz": "convert them to .nii.gz",
    ".hdr": "convert them to .nii.gz", ".img": "convert them to .nii.gz", ".hdr.gz": "convert them to .nii.gz",
    ".img.gz": "convert them to .nii.gz", ".nii.bz2": "unpack them", ".nii.zst": "unpack them", ".h5": "the layout fastmri reads them",
}  # fmt: skip
_IGNORED_FOLDERS = ("__MACOSX",)
_QUIET = (".git", ".datalad", ".bidsignore", ".gitattributes", ".gitignore", ".DS_Store")  # hidden, and nobody misses them
_POINTER = 1024  # bytes; a file this small may be a pointer to one that was not fetched
_LONGEST_ID = 100
_FETCH = "its content was not fetched: run `datalad get` or `git annex get` on it"

Files = Mapping[str, PurePosixPath]


class Tree(NamedTuple):
    """Volumes below `root`, in sorted order, as far as names, sizes and links tell; and what cannot be one."""

    root: Path
    files: tuple[PurePosixPath, ...]
    problems: tuple[Problem, ...]


class Draft(NamedTuple):
    name: str
    person: str
    files: Files


class Account:
    """What has become of each file of a tree so far.

    Of one volume in several formats (x.nii beside x.nii.gz) one is in `files`, the others are problems.
    """

    def __init__(self, tree: Tree):
        self.root = tree.root
        self.drafts: list[Draft] = []
        self.problems = list(tree.problems)
        self._said: dict[PurePosixPath, Problem] = {}
        formats: dict[str, list[PurePosixPath]] = defaultdict(list)
        for path in tree.files:
            formats[stem_of(path)].append(path)
        self.files: list[PurePosixPath] = []
        for same in formats.values():
            first, *others = sorted(same, key=_preference)
            self.files.append(first)
            for other in others:
                self.refuse(
                    other, "duplicate", f"{shown(first.name)} beside it is the same volume in another format, and was taken: keep one"
                )
        self.files.sort()

    def scan(self, name: str, person: str, files: Files) -> None:
        """`name` becomes the scan's id, made safe and unique."""
        self.drafts.append(Draft(name, plain(person), files))

    def refuse(self, path: PurePosixPath, kind: Kind, why: str) -> None:
        """Says why a file is in no scan. The first reason stands."""
        self._said.setdefault(path, Problem(shown(path), why, kind))

    def note(self, path: str, why: str, kind: Kind = "note") -> None:
        """Says something of a scan, a person or the set."""
        self.problems.append(Problem(shown(path), why, kind))

    @property
    def rest(self) -> list[PurePosixPath]:
        """Files of which nothing is known yet."""
        used = {path for draft in self.drafts for path in draft.files.values()}
        return [path for path in self.files if path not in used and path not in self._said]

    def found(self, reason: Callable[[PurePosixPath], str] = lambda path: "it has no part in this set") -> Found:
        """All of it. What was neither taken nor refused is unused, for `reason`; a folder where nothing was taken is told once."""
        self._drop_twins()
        used = {path for draft in self.drafts for path in draft.files.values()}
        said = [problem for path, problem in self._said.items() if path not in used]
        busy = {parent for path in (*used, *self._said) for parent in path.parents}
        idle: dict[PurePosixPath, list[PurePosixPath]] = defaultdict(list)
        for path in self.rest:
            quiet = [parent for parent in path.parents if parent not in busy and parent.name]
            idle[quiet[-1] if quiet else path].append(path)
        said += [_unused(top, paths, reason) for top, paths in idle.items()]
        scans = [
            Scan(name, draft.person, {role: self.root / path for role, path in sorted(draft.files.items())})
            for name, draft in zip(unique_ids([(d.name, str(d.files["high"])) for d in self.drafts]), self.drafts, strict=True)
        ]
        return Found(sorted(scans, key=lambda s: s.id), sorted((*self.problems, *said), key=lambda p: (p.path, p.why)))

    def _drop_twins(self) -> None:
        """One file under two names (links) would be two scans, perhaps of two people in two splits."""
        seen: dict[tuple[int, int], Draft] = {}
        kept = []
        for draft in sorted(self.drafts, key=lambda d: d.files["high"]):
            status = os.stat(self.root / draft.files["high"])
            first = seen.setdefault((status.st_dev, status.st_ino), draft)
            if first is draft or first.files["high"] == draft.files["high"]:
                kept.append(draft)
            else:
                self.refuse(draft.files["high"], "duplicate", f"the same file as {shown(first.files['high'])}, which was taken")
        self.drafts = kept


def look(root: Path, suffixes: Sequence[str] = SUFFIXES) -> Tree:
    """All files under `root` whose names end in `suffixes`, and a problem for each that is empty, a broken link or a pointer.

    Raises:
      VolumeError: where `root` is no folder.
    """
    if not root.is_dir():
        raise VolumeError(f"{shown(root)} is not a folder: give the one that holds the data set")
    files: list[PurePosixPath] = []
    problems: list[Problem] = []
    hidden: list[str] = []
    foreign: dict[tuple[PurePosixPath, str], list[str]] = defaultdict(list)
    for path in _walk(root, PurePosixPath(), (os.path.realpath(root),), problems, hidden):
        lower = path.name.lower()
        if lower.endswith(tuple(suffixes)):
            why = _unusable(root / path)
            if why:
                problems.append(Problem(shown(path), why))
            else:
                files.append(path)
        elif other := max((s for s in OTHERS if lower.endswith(s)), key=len, default=None):
            foreign[path.parent, other].append(path.name)
    for (folder, suffix), names in foreign.items():
        count = f"{len(names)} file{'s' * (len(names) > 1)} in {suffix} {'are' if len(names) > 1 else 'is'} not read as volumes"
        problems.append(Problem(shown(folder / sorted(names)[0]), f"{count} here: {OTHERS[suffix]}", "ignored"))
    if hidden:
        which = f"{', '.join(sorted(hidden)[:3])}{', …' if len(hidden) > 3 else ''}"
        problems.append(Problem(".", f"{len(hidden)} hidden volumes or folders are ignored ({which})", "ignored"))
    return Tree(root, tuple(sorted(files)), tuple(problems))


def suffix_of(name: str) -> str:
    """The suffix of a volume's name in lower case, as in '.nii.gz'; '' where it has none."""
    return max((s for s in (*SUFFIXES, ".h5", ".hdf5") if name.lower().endswith(s)), key=len, default="")


def stem_of(path: PurePosixPath) -> str:
    """A path without the suffix of its volume; the same whatever the file system made of accents."""
    text = path.as_posix()
    return plain(text[: len(text) - len(suffix_of(path.name))])


def safe_id(name: str) -> str:
    """A file's name on every system: of letters, digits and `._-`, at most 100; what had to be changed is told apart by a hash."""
    kept = re.sub(r"[^A-Za-z0-9._-]+", "-", plain(name)).lstrip(".-").rstrip(".")[:_LONGEST_ID]
    return kept if kept and kept == name else f"{kept or 'scan'}-{_hash(plain(name))}"


def unique_ids(named: Sequence[tuple[str, str]]) -> list[str]:
    """Safe ids for (name, path), also where upper and lower case are the same; names that clash are told apart by a hash of the path."""
    safe = [safe_id(name) for name, _ in named]
    count = Counter(name.lower() for name in safe)
    return [name if count[name.lower()] == 1 else f"{name}-{_hash(path)}" for name, (_, path) in zip(safe, named, strict=True)]


def _walk(root: Path, at: PurePosixPath, chain: tuple[str, ...], problems: list[Problem], hidden: list[str]) -> Iterator[PurePosixPath]:
    try:
        entries = list(os.scandir(root / at))
    except OSError as error:
        problems.append(Problem(f"{shown(at)}/", f"the folder cannot be listed ({error.strerror}): check its permissions"))
        return
    for entry in entries:
        path = at / entry.name
        folder = _is_folder(entry)
        if entry.name.startswith(".") or entry.name in _IGNORED_FOLDERS:
            if entry.name not in _QUIET and (folder or suffix_of(entry.name)):
                hidden.append(f"{shown(path)}{'/' if folder else ''}")
        elif not folder:
            yield path
        elif entry.is_symlink() and os.path.realpath(root / path) in chain:
            problems.append(Problem(f"{shown(path)}/", "the link leads back to a folder that it lies in", "ignored"))
        else:
            yield from _walk(root, path, (*chain, os.path.realpath(root / path)), problems, hidden)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself, which is found broken when it is looked at as a file
        return False


def _unusable(path: Path) -> str:
    """Why a file can be no volume, as far as its name, its size and the link it may be tell; ''."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return "the name is no text in UTF-8: rename the file"
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            return "not a regular file: give a volume"
        if status.st_size == 0:
            return "the file is empty: copy or download it again"
        if status.st_size < _POINTER:
            with open(path, "rb") as file:
                head = file.read(64)
            if head.startswith(b"/annex/objects"):
                return _FETCH
            if head.startswith(b"version https://git-lfs"):
                return "a pointer to the file, not the file: run `git lfs pull`"
    except OSError as error:
        if not path.is_symlink():
            return f"cannot be opened ({error.strerror}): check its permissions"
        target = shown(os.readlink(path))
        return _FETCH if ".git/annex/" in target else f"a link to {target}, which is not there: copy what it should lead to"
    return "" if os.access(path, os.R_OK) else "cannot be opened (Permission denied): check its permissions"


def _unused(top: PurePosixPath, paths: list[PurePosixPath], reason: Callable[[PurePosixPath], str]) -> Problem:
    reasons = sorted({reason(path) for path in paths})
    why = "; ".join(reasons[:3]) + ("; …" if len(reasons) > 3 else "")
    return (
        Problem(shown(paths[0]), why, "unused") if len(paths) == 1 else Problem(f"{shown(top)}/", f"{len(paths)} volumes: {why}", "unused")
    )


def _preference(path: PurePosixPath) -> tuple[int, str]:
    suffix = suffix_of(path.name)
    return (PREFERRED.index(suffix) if suffix in PREFERRED else len(PREFERRED), path.name)


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:8]
