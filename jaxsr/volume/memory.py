"""How much memory there is for a volume."""

import os
from pathlib import Path

_CGROUPS = (  # limit, use, statistics with the file cache that the kernel gives back: version 2, then version 1
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current", "/sys/fs/cgroup/memory.stat", "inactive_file"),
    (
        "/sys/fs/cgroup/memory/memory.limit_in_bytes",
        "/sys/fs/cgroup/memory/memory.usage_in_bytes",
        "/sys/fs/cgroup/memory/memory.stat",
        "total_inactive_file",
    ),
)


def free_memory() -> int | None:
    """Bytes that can still be taken: what the system has available, within the limit of the container; None where nobody says."""
    known = [n for n in (_available(), *(_left_in(*files) for files in _CGROUPS)) if n is not None]
    return min(known) if known else None


def _available() -> int | None:
    pages = _fields("/proc/meminfo").get("MemAvailable:")
    if pages is not None:
        return pages * 1024
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return None


def _left_in(limit: str, used: str, statistics: str, cache: str) -> int | None:
    try:
        most, now = int(Path(limit).read_text()), int(Path(used).read_text())
    except (OSError, ValueError):  # no such version of cgroups here, or 'max': no limit
        return None
    return max(0, most - now + _fields(statistics).get(cache, 0))


def _fields(path: str) -> dict[str, int]:
    """Lines of a name, a number and perhaps a unit."""
    try:
        lines = [line.split() for line in Path(path).read_text().splitlines()]
    except OSError:
        return {}
    return {words[0]: int(words[1]) for words in lines if len(words) > 1 and words[1].isdigit()}
