"""Processes: one on a laptop, many on a cluster, started the same way."""

import os

import jax


def start() -> None:
    """Joins the other processes of this job, where the environment says that there are any; otherwise does nothing.

    `JAXSR_COORDINATOR`, `JAXSR_PROCESSES` and `JAXSR_PROCESS` (as launch/local.sh sets them) come first; under Slurm, Open MPI or on a TPU
    pod JAX finds out by itself.
    """
    if jax.distributed.is_initialized():
        return
    if coordinator := os.environ.get("JAXSR_COORDINATOR"):
        if os.environ.get("JAX_PLATFORMS", "") in ("", "cpu"):
            jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(coordinator, int(os.environ["JAXSR_PROCESSES"]), int(os.environ["JAXSR_PROCESS"]))
    elif int(os.environ.get("SLURM_NTASKS", "1")) > 1 or int(os.environ.get("OMPI_COMM_WORLD_SIZE", "1")) > 1:
        jax.distributed.initialize()


def is_first() -> bool:
    """True on the one process that writes files and talks."""
    return jax.process_index() == 0
