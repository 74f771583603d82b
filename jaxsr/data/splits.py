"""Who is trained on, who is held out: a function of the people's names and a seed alone.

Each person has a number 0 ≤ u < 1, a hash of the seed and the name. Two rules make splits of it:

    stable   u decides, for each person alone: validation where u < v, test where u < v + t, else train; v and t are the shares.
             Adding people moves nobody. Counts are near the shares: of 100 people 10 ± 3 are in a split with a share of a tenth.
    exact    the people sorted by u are cut at the shares, rounded. Adding a person can move another one across a cut, and a model trained
             on the smaller set has then seen who is now in the test split.

A set that grows is common and a leak is not noticed, so `stable` is the default. A set of few people (with tenths, fewer than about 30)
may have nobody in a split by it: take `exact`, or a file that says who is where.
"""

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Literal, get_args

from jaxsr.data.people import plain
from jaxsr.data.tables import read_pairs
from jaxsr.files import shown
from jaxsr.volume.errors import VolumeError

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)
SHARES = (8.0, 1.0, 1.0)  # of SPLITS, as the papers

_ALSO: dict[str, Split] = {"training": "train", "val": "validation", "valid": "validation", "dev": "validation", "testing": "test"}


def assign_splits(
    people: Iterable[str],
    seed: int = 0,
    shares: tuple[float, float, float] = SHARES,
    *,
    stable: bool = True,
    given: Mapping[str, Split] | None = None,
) -> dict[str, Split]:
    """The split of each person, by name in sorted order.

    Args:
      shares: of train, validation and test; only their ratios count.
      stable: see the head of this file.
      given: people whose split is settled, by a file or an earlier set; who is not among `people` is ignored, and `settle` tells who.

    Raises:
      VolumeError: where shares are negative or all zero.
    """
    total = sum(shares)
    if min(shares) < 0 or not 0 < total < float("inf"):
        raise VolumeError(f"shares of {':'.join(f'{s:g}' for s in shares)} split nothing: give three of at least 0, as in 8:1:1")
    part = dict(zip(SPLITS, (share / total for share in shares), strict=True))
    names = sorted(set(people))
    splits = {name: split for name, split in (given or {}).items() if name in set(names)}
    rest = sorted((name for name in names if name not in splits), key=lambda name: (_place(seed, name), name))
    if stable:
        for name in rest:
            u = _place(seed, name)
            splits[name] = "validation" if u < part["validation"] else "test" if u < part["validation"] + part["test"] else "train"
    else:
        settled = list(splits.values())
        held_out: tuple[Split, ...] = ("validation", "test")
        for split in held_out:
            count = max(0, round(len(names) * part[split]) - settled.count(split))
            splits |= dict.fromkeys(rest[:count], split)
            rest = rest[count:]
        splits |= dict.fromkeys(rest, "train")
    return {name: splits[name] for name in names}


def read_splits(path: Path) -> dict[str, Split]:
    """Who is where, by a table with the columns `participant` (or participant_id, person, subject) and `split`, tab-separated or .csv.

    Raises:
      VolumeError: where it cannot be read, somebody is in two splits, or a split is not train, validation or test.
    """
    found = read_pairs(path, ("participant", "participant_id", "person", "subject"), ("split",))
    splits: dict[str, Split] = {}
    for name, word in found.items():
        split = _ALSO.get(word.lower(), word.lower())
        if split not in SPLITS:
            raise VolumeError(f"{shown(path)}: {name} is in split {word}: the splits are {', '.join(SPLITS)}")
        splits[plain(name)] = split
    return splits


def settle(given: Mapping[str, Split], names: Mapping[str, str]) -> tuple[dict[str, Split], list[str]]:
    """A table of splits by the names that splits go by, and those of its names that are nobody's, sorted.

    Args:
      given: a split by own name, or by the name that splits go by.
      names: everybody's own name with the name their split goes by: their family's, or their own.

    Raises:
      VolumeError: where members of one family are given two splits.
    """
    settled: dict[str, tuple[str, Split]] = {}  # with the name in the table
    unmatched = []
    known = {name: name for name in names.values()} | dict(names)
    for name, split in sorted(given.items()):
        if name not in known:
            unmatched.append(name)
            continue
        first, other = settled.setdefault(known[name], (name, split))
        if other != split:
            raise VolumeError(
                f"{shown(first)} is to be in {other} and {shown(name)} in {split}, but both are of {shown(known[name])}: "
                "give both the same split"
            )
    return {name: split for name, (_, split) in settled.items()}, unmatched


def _place(seed: int, name: str) -> float:
    """u of the head of this file; the same on every machine, in every Python."""
    digest = hashlib.sha256(f"{seed}/{plain(name)}".encode("utf-8", "surrogateescape")).digest()
    return (int.from_bytes(digest[:8], "big") >> 11) / 2.0**53
