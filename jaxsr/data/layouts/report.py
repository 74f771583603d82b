"""What was found, for people: one report of all that could not be used."""

from collections import Counter
from typing import get_args

from jaxsr.data.layouts.base import Found, Kind

_MEANING: dict[str, str] = {
    "unreadable": "cannot be read",
    "partner": "without a partner",
    "duplicate": "duplicates",
    "unused": "have no part",
    "ignored": "ignored by name",
    "note": "remarks",
}


def problems_report(found: Found, limit: int | None = 20) -> str:
    """Counts by kind, then a line for each problem, the gravest kind first; `limit` lines of each kind, None for all."""
    people = len({scan.person for scan in found.scans})
    lines = [f"{len(found.scans)} scan{'s' * (len(found.scans) != 1)} of {people} {'person' if people == 1 else 'people'}"]
    count = Counter(problem.kind for problem in found.problems)
    kinds: tuple[Kind, ...] = get_args(Kind)
    if count:
        lines[0] += "; " + ", ".join(f"{count[kind]} {_MEANING[kind]}" for kind in kinds if count[kind])
    for kind in kinds:
        if not count[kind]:
            continue
        lines.append(f"{_MEANING[kind]}:")
        listed = [problem for problem in found.problems if problem.kind == kind]
        lines += [f"  {problem.path}: {problem.why}" for problem in listed[:limit]]
        if limit is not None and len(listed) > limit:
            lines.append(f"  … and {len(listed) - limit} more")
    return "\n".join(lines)
