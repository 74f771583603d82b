"""The layout `folder`: a folder of volumes, or folders of matching names.

ROOT/x.nii, ROOT/y.nii.gz, …            every volume is a truth
ROOT/x-T1.nii, ROOT/x-T2.nii, …         with high='T1' those, with reference='T2' those of the same name
ROOT/high/x.nii, ROOT/low/x.nii, …      pairs; optional ROOT/reference/, bias/, gradient/, labels/, mask/
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path, PurePosixPath

from jaxsr.data.layouts.base import Found, Wanted
from jaxsr.data.layouts.tree import Account, look, stem_of
from jaxsr.data.people import bare, person_of, plain, without_contrast, without_visits
from jaxsr.files import shown
from jaxsr.volume.errors import VolumeError

_SIDES = {"high": ("high", "hr"), "low": ("low", "lr")}
_MAPS = ("reference", "bias", "gradient", "labels", "mask")

Stems = Mapping[str, PurePosixPath]


class Folder:
    """Any folder of volumes.

    With a subfolder `high` or `HR` (upper or lower case; or `wanted.high_in`) volumes of the same name in the subfolders `low` or `LR` (or
    `wanted.low_in`), `reference`, `bias`, `gradient`, `labels`, `mask` belong together. A name is the path in the subfolder without
    .nii, .nii.gz, .mgh or .mgz, and upper and lower case differ. Without a subfolder `low` it is to be simulated; with one, who is not in
    it is left out; likewise who is not in `reference`, if `wanted.reference` is given, whatever it says.

    Otherwise every volume is a truth, or those whose names end in the contrast `wanted.high`; `wanted.low` and `wanted.reference` are other
    contrasts of the same name. A contrast is any word after `-`, `_`, `.` or a space.

    Who is who: `jaxsr.data.people`; names that may mean other people than they count as are told once, in a note.
    """

    def find(self, root: Path, wanted: Wanted) -> Found:
        account = Account(look(root))
        if (root / "dataset_description.json").is_file():
            account.note(".", "is a BIDS data set: --layout bids tells its contrasts, sessions and people apart")
        folders = self._sides(account, wanted)
        if folders:
            self._pairs(account, wanted, folders)
            _doubts(account, [draft.files["high"].relative_to(folders["high"]) for draft in account.drafts], PurePosixPath(folders["high"]))
            return account.found(lambda path: f"outside of {', '.join(sorted(folders.values()))}")
        self._truths(account, wanted)
        _doubts(account, [draft.files["high"] for draft in account.drafts])
        return account.found(lambda path: f"its name does not end in {wanted.high}" if wanted.high else "it has no part in this set")

    def _sides(self, account: Account, wanted: Wanted) -> dict[str, str]:
        """Subfolders by role; none where the folder has no sides."""
        tops = sorted({path.parts[0] for path in account.files if len(path.parts) > 1} | _folders(account.root))
        found: dict[str, str] = {}
        for role, names in _SIDES.items():
            asked = wanted.high_in if role == "high" else wanted.low_in
            if asked is not None and asked.strip("/") not in tops:
                raise VolumeError(
                    f"{shown(account.root)}: there is no subfolder {shown(asked)}, only {', '.join(map(shown, tops)) or 'files'}"
                )
            fitting = [asked.strip("/")] if asked else [top for top in tops if top.lower() in names]
            if len(fitting) > 1:
                raise VolumeError(f"{shown(account.root)}: {' and '.join(fitting)} could both be the {role} side: name one with {role}_in")
            if fitting:
                found[role] = fitting[0]
        if "low" in found and "high" not in found:
            raise VolumeError(f"{shown(account.root)}: there is a folder {found['low']} and none of truths: name it high, or give high_in")
        if not found:
            return {}
        return found | {role: top for role in _MAPS for top in tops if top.lower() == role and top not in found.values()}

    def _pairs(self, account: Account, wanted: Wanted, folders: Mapping[str, str]) -> None:
        stems: dict[str, dict[str, PurePosixPath]] = {role: {} for role in folders}
        roles = {top: role for role, top in folders.items()}
        for path in account.files:
            role = roles.get(path.parts[0]) if len(path.parts) > 1 else None
            if role:
                stems[role][stem_of(path.relative_to(path.parts[0]))] = path
        missing = [role for role in ("low", "reference") if getattr(wanted, role) and role not in folders]
        if missing:
            raise VolumeError(f"{shown(account.root)}: {missing[0]} is wanted and there is no folder {missing[0]} beside {folders['high']}")
        needed = {"low", *(["reference"] if wanted.reference else [])} & set(folders)  # other maps are there or not
        for stem, high in stems["high"].items():
            files = {"high": high}
            for role in sorted(set(folders) - {"high"}, key=["low", *_MAPS].index):
                partner = stems[role].get(stem)
                if partner is not None:
                    files[role] = partner
                    continue
                why = f"there is no {folders[role]}/{shown(stem)}{_nearly(stem, stems[role])}"
                if role in needed:
                    account.refuse(high, "partner", why)
                else:
                    account.note(str(high), f"goes without {role}: {why}", "partner")
            if not needed - set(files):
                account.scan(stem.replace("/", "_"), person_of(high.relative_to(high.parts[0])), files)
        _refuse_left(account, stems, lambda stem: f"{folders['high']}/{shown(stem)}", lambda stem: _nearly(stem, stems["high"]))

    def _truths(self, account: Account, wanted: Wanted) -> None:
        if wanted.high is None:
            if wanted.low or wanted.reference:
                raise VolumeError(
                    f"{shown(account.root)}: say which volumes are truths (high), as the endings of their names tell contrasts apart"
                )
            for path in account.files:
                account.scan(stem_of(path).replace("/", "_"), person_of(path), {"high": path})
            return
        words = {role: word for role in ("high", "low", "reference") if (word := getattr(wanted, role))}
        if len({word.lower() for word in words.values()}) < len(words):
            raise VolumeError(f"{shown(account.root)}: {', '.join(f'{r}={w}' for r, w in words.items())} do not tell the sides apart")
        sides: dict[str, dict[str, PurePosixPath]] = {role: {} for role in words}
        for path in account.files:
            for role, word in words.items():
                base = _base(stem_of(path), word)
                if base is not None and sides[role].setdefault(base, path) != path:
                    account.refuse(path, "duplicate", f"{shown(sides[role][base])} is {word} of the same name: rename one")
        for base, high in sides["high"].items():
            lacking = [words[role] for role in sides if base not in sides[role]]
            if lacking:
                account.refuse(high, "partner", f"there is no {' and no '.join(lacking)} of the same name")
            else:
                name = base.replace("/", "_").rstrip("_") or wanted.high
                account.scan(name, person_of(high), {role: sides[role][base] for role in sides})
        _refuse_left(account, sides, lambda base: str(wanted.high), lambda base: " of the same name")


def _refuse_left(account: Account, sides: Mapping[str, Stems], truth: Callable[[str], str], missing: Callable[[str], str]) -> None:
    """Refuses what is of no scan on any side but that of the truths.

    Args:
      sides: by role, paths by the name that partners share.
      truth: what the truth of that name is called.
      missing: what is to be added where there is none.
    """
    used = {path for draft in account.drafts for path in draft.files.values()}
    for role in set(sides) - {"high"}:
        for name, path in sides[role].items():
            if name not in sides["high"]:
                account.refuse(path, "partner", f"there is no {truth(name)}{missing(name)}")
            elif path not in used:
                account.refuse(path, "partner", f"its {truth(name)} lacks another partner")


def _folders(root: Path) -> set[str]:
    return {path.name for path in root.iterdir() if not path.name.startswith(".") and path.is_dir()}


def _doubts(account: Account, inside: Iterable[PurePosixPath], side: PurePosixPath = PurePosixPath()) -> None:
    """Notes where subfolders may be no people, or visits in names may be: one name in several subfolders, more names than subfolders."""
    paths = sorted(inside)
    people = {person_of(path) for path in paths}
    homes: dict[str, dict[str, PurePosixPath]] = defaultdict(dict)  # by name, the first file of each person
    visits: dict[str, dict[str, PurePosixPath]] = defaultdict(dict)  # by person, the first file of all that they are called with visits
    strangers: dict[str, dict[str, PurePosixPath]] = defaultdict(dict)  # by subfolder, the files that are not called after it
    for path in paths:
        person, name = person_of(path), bare(path)
        if person.startswith("sub-"):
            continue
        homes[name].setdefault(person, path)
        folder = next((folder for folder in path.parts[:-1] if without_visits(plain(folder)) == person), None)
        visits[person].setdefault(folder or "/".join(filter(None, map(without_contrast, stem_of(path).split("/")))), path)
        if folder and name and not name.lower().startswith(person.lower()):
            strangers[person].setdefault(name, path)
    names = {name for found in strangers.values() for name in found}
    shared = {n: of for n, of in homes.items() if n and len(of) > 1 and (_tells(n) or len(names) > len(people))}
    if shared:
        first, second, *_ = next(iter(shared.values())).values()
        account.note(
            str(side / first),
            f"{shown(side / second)} is called the same, and {person_of(first)} and {person_of(second)} count as two people"
            f"{_likewise(len(shared) - 1, 'name')}: if one person is in both, call its files sub-…, or give it one subfolder",
        )
    elif len(names) > len(people):
        person, found = max(strangers.items(), key=lambda item: len(item[1]))
        account.note(
            str(side / next(iter(found.values()))),
            f"the {len(found)} names in its subfolder count as one person, {person}{_likewise(len(strangers) - 1, 'subfolder')}: if "
            "they are several people, call the files sub-…, or give each a subfolder of their own at the top",
        )
    merged = {person: list(found.values()) for person, found in visits.items() if len(found) > 1}
    if merged:
        person, (first, second, *_) = next(iter(merged.items()))
        account.note(
            str(side / first),
            f"counts as another visit of {person}, as {shown(side / second)} does{_likewise(len(merged) - 1, 'name')}: if they are "
            "different people, call the files sub-…, or give each a subfolder",
        )


def _tells(name: str) -> bool:
    """Whether a name is a person's rather than `scan`, `brain` or `scan1`: it has a number that is not a visit's."""
    return any(c.isdigit() for c in name) and without_visits(f"x {name}") != "x"


def _likewise(count: int, what: str) -> str:
    return f" (and likewise {count} other {what}{'s' * (count > 1)})" if count else ""


def _base(stem: str, word: str) -> str | None:
    """`stem` without the contrast `word` at its end, with its folder; None where it ends otherwise."""
    folder, _, name = stem.rpartition("/")
    at = f"{folder}/" if folder else ""
    if name.lower() == word.lower():
        return at
    if name.lower().endswith(word.lower()) and name[-len(word) - 1] in "-_. ":
        return at + name[: -len(word) - 1]
    return None


def _nearly(stem: str, others: Stems) -> str:
    """What a partner may be called that is not called `stem`: a half sentence, or ''."""
    for other, path in sorted(others.items()):
        if _bare(other) == _bare(stem):
            return f", but {shown(path)}: give both the same name"
    return ""


def _bare(stem: str) -> str:
    """Names that differ in case, in a contrast or in nnU-Net's number of a channel (_0000) are nearly the same."""
    name = stem.lower()
    if name[-5:-4] == "_" and name[-4:].isdigit():
        name = name[:-5]
    return without_contrast(name)
