"""Memory: what a program needs, what is free, and running out of it."""

import resource
from collections.abc import Iterable
from pathlib import Path

import jax
from jax.stages import Compiled


class OutOfMemory(MemoryError):
    """More was needed than there is, also after all retries; one sentence with the way out."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the host (MemoryError) or a device (an error of JAX's runtime, known by its words) had no memory left."""
    return isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error)


def program_memory(program: Compiled) -> int | None:
    """Bytes on one device that the program needs, arguments and results included, by the compiler's account; None where it gives none."""
    stats = program.memory_analysis()
    if stats is None:
        return None
    held = stats.argument_size_in_bytes + stats.output_size_in_bytes - stats.alias_size_in_bytes
    return int(held + stats.temp_size_in_bytes + stats.generated_code_size_in_bytes)


def free_memory(devices: Iterable[jax.Device]) -> int | None:
    """Bytes free on the fullest of this process's `devices`; those made of the host share what it has. None where nobody says."""
    free = [_free(device) for device in devices]
    known = [bytes_free for bytes_free in free if bytes_free is not None]
    return min(known) if known and len(known) == len(free) else None


def _free(device: jax.Device) -> int | None:
    if statistics := device.memory_stats():
        return int(statistics["bytes_limit"] - statistics["bytes_in_use"]) if "bytes_limit" in statistics else None
    host = host_free()
    return None if host is None or device.platform != "cpu" else host // jax.local_device_count("cpu")


def host_free(root: Path = Path("/")) -> int | None:
    """Bytes that this process can still have without swapping, within the limits of its container and of `ulimit -v`.

    None where Linux is not there to say.
    """
    try:
        lines = (root / "proc/meminfo").read_text().splitlines()
        available = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
        pages = int((root / "proc/self/statm").read_text().split()[0])
    except (OSError, StopIteration):
        return None
    if (address_space := resource.getrlimit(resource.RLIMIT_AS)[0]) != resource.RLIM_INFINITY:
        available = min(available, address_space - pages * resource.getpagesize())
    try:
        group = root / "sys/fs/cgroup"
        limit, used = (int((group / name).read_text()) for name in ("memory.max", "memory.current"))
        counts = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        return min(available, limit - used + int(counts["inactive_file"]))  # the cache of files gives way
    except (OSError, ValueError, KeyError):  # no container, or no limit: 'max'
        return available
