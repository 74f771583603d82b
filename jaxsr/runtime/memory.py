"""Memory: what a program needs, what is free, and running out of it."""

import resource
from collections.abc import Iterable
from pathlib import Path

import jax
from jax.stages import Compiled

from jaxsr.volume.memory import free_memory as host_memory


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
    known = [n for n in (host_memory(), address_space_left()) if n is not None]
    return min(known) // jax.local_device_count("cpu") if known and device.platform == "cpu" else None


def address_space_left() -> int | None:
    """Bytes up to the limit that `ulimit -v` set this process; None where there is no limit, or nobody says."""
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
    except OSError:
        return None
    return None if limit == resource.RLIM_INFINITY else limit - pages * resource.getpagesize()
