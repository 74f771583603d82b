"""Who is in which split of a prepared set, and that nobody changes it."""

from collections.abc import Iterable, Mapping, Sequence

from jaxsr.config import ConfigError
from jaxsr.data.records import Manifest, Rejected, Shard
from jaxsr.data.splits import Split, assign_splits, settle
from jaxsr.prepare.settings import PrepareSettings

_MOST = 10  # names in a message


def same_people(shards: Iterable[Shard]) -> tuple[dict[str, str], list[Rejected]]:
    """Each person with the name that their split goes by, and what is to be said: people who share a truth, byte for byte, are one."""
    holders: dict[str, set[str]] = {}
    for shard in shards:
        truth = next(source.sha256 for source in shard.sources if source.role == "high")
        holders.setdefault(truth, set()).add(shard.person)
    name = {person: person for people in holders.values() for person in people}
    for people in holders.values():
        called = {name[person] for person in people}
        name = {person: min(called) if now in called else now for person, now in name.items()}
    said = [
        Rejected(what=person, why=f"has a truth that is a copy of one of {called}'s: they are in one split", kind="note")
        for person, called in sorted(name.items())
        if person != called
    ]
    return name, said


def split_people(
    names: Mapping[str, str], own: Mapping[str, str], settings: PrepareSettings, given: Mapping[str, Split]
) -> tuple[dict[str, Split], list[Rejected]]:
    """The split of each person.

    Args:
      names: each person with the name that their split goes by.
      own: who they were before families made one person of several, with who they are.
      given: the table of `--splits`, by either name.

    Raises:
      VolumeError: where the table gives people who are one two splits.
    """
    called = {**{before: names[person] for before, person in own.items() if person in names}, **names}
    settled, unknown = settle(given, called)
    splits = assign_splits(set(names.values()), settings.split_seed, settings.shares, stable=settings.split == "stable", given=settled)
    said = [Rejected(what=name, why="is in the table of --splits and not in the set", kind="note") for name in unknown]
    return {person: splits[name] for person, name in names.items()}, said


def check_nobody_moves(before: Manifest | None, splits: Mapping[str, Split]) -> None:
    """Raises ConfigError where somebody was in another split of the set as it was: a model may have been trained on it."""
    was = {shard.person: shard.split for shard in before.shards} if before else {}
    moved = [f"{person}: {was[person]} → {split}" for person, split in sorted(splits.items()) if was.get(person, split) != split]
    if moved:
        shown = "\n  ".join([*moved[:_MOST], *([f"… and {len(moved) - _MOST} more"] if len(moved) > _MOST else [])])
        raise ConfigError(
            f"{len(moved)} people would change their split, and a model trained on the set as it was has seen some of them: give the same "
            f"--splits and --families as before (--split exact moves people when some are added), or choose another folder:\n  {shown}"
        )


def people_by_own_name(scans: Sequence) -> dict[str, str]:
    """Who each scan is of by its files, with who that is in the set, where relatives count as one."""
    return {scan.own or scan.person: scan.person for scan in scans}
