"""Processes: one on a laptop, many on a cluster, started the same way.

Training joins them into one program (`start`). Upscaling does not: volumes share nothing, so each process takes its own (`place`), none
waits for another, and one that dies leaves the others alone.
"""

import os
from typing import NamedTuple

import jax

from jaxsr.runtime.mesh import MeshError


class Place(NamedTuple):
    """Which process this is, from 0, and how many there are; its number on its own machine, where the launcher gives each all GPUs."""

    process: int
    processes: int
    local: int | None = None


# Slurm's variables of a job *step*: a batch script, which is one process, has those of its job too.
_LAUNCHERS = (
    ("JAXSR_PROCESS", "JAXSR_PROCESSES", None),
    ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID"),
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"),
)


def place() -> Place:
    """What launch/local.sh, srun or mpirun say in the environment; nothing is started or waited for.

    Raises:
      MeshError: where they say what cannot be.
    """
    for process, processes, local in _LAUNCHERS:
        if process in os.environ and processes in os.environ:
            found = Place(_number(process), _number(processes), _number(local) if local and local in os.environ else None)
            if found.process >= found.processes:
                raise MeshError(f"{process}={found.process} must lie below {processes}={found.processes}: processes are counted from 0")
            return found
    return Place(0, 1)


def _number(variable: str) -> int:
    text = os.environ[variable]
    if not text.isdigit():
        raise MeshError(f"the environment says {variable}={text}, which is not a number: correct it, or unset it for a single process")
    return int(text)


def start() -> None:
    """Joins the other processes of this job, where the environment says that there are any; otherwise does nothing.

    `JAXSR_COORDINATOR`, `JAXSR_PROCESSES` and `JAXSR_PROCESS` (as launch/local.sh sets them) come first; under Slurm and Open MPI JAX finds
    out by itself. To be called before anything asks JAX for its devices.
    """
    if jax.distributed.is_initialized():
        return
    if coordinator := os.environ.get("JAXSR_COORDINATOR"):
        if os.environ.get("JAX_PLATFORMS", "") in ("", "cpu"):
            jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(coordinator, _number("JAXSR_PROCESSES"), _number("JAXSR_PROCESS"))
    elif place().processes > 1:
        jax.distributed.initialize()


def is_first() -> bool:
    """True on the one process that writes files and talks."""
    return jax.process_index() == 0
