"""What the environment says of processes is believed only where it can be; what each reads of a batch is what its devices hold."""

import json
import os
import socket
import subprocess
import sys

import pytest

from jaxsr.runtime.distributed import Place, place
from jaxsr.runtime.mesh import MeshError


@pytest.fixture
def said(monkeypatch):
    for name in [name for name in os.environ if name.startswith(("JAXSR_", "SLURM_", "OMPI_"))]:
        monkeypatch.delenv(name)

    def say(**variables):
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        return place()

    return say


def test_without_a_launcher_there_is_one_process(said):
    assert said() == Place(0, 1)


@pytest.mark.parametrize("process, processes, message", [
    ("x", "2", "JAXSR_PROCESS=x, which is not a number"),
    ("0", "two", "JAXSR_PROCESSES=two"),
    ("-1", "2", "JAXSR_PROCESS=-1"),
    ("2", "2", "JAXSR_PROCESS=2 must lie below JAXSR_PROCESSES=2"),
])  # fmt: skip
def test_a_number_of_a_process_that_cannot_be_is_refused_by_name(process, processes, message, said):
    with pytest.raises(MeshError, match=message):
        said(JAXSR_PROCESS=process, JAXSR_PROCESSES=processes)


# Sizes of data, fsdp, tensor, expert; in which order the devices lie on them, four of each process; which of 16 slices each process has.
SHARES = [
    ((2, 4, 1, 1), range(8), [[*range(8)], [*range(8, 16)]]),
    ((4, 1, 2, 1), range(8), [[*range(8)], [*range(8, 16)]]),
    ((1, 1, 8, 1), range(8), [[*range(16)], [*range(16)]]),
    ((1, 4, 2, 1), (0, 4, 1, 5, 2, 6, 3, 7), [[*range(16)], [*range(16)]]),  # tensor is across the processes
    ((2, 4, 1, 1), (0, 4, 1, 5, 2, 6, 3, 7), [[0, 1, 4, 5, 8, 9, 12, 13], [2, 3, 6, 7, 10, 11, 14, 15]]),
    ((8, 1, 1, 1), (0, 1, 4, 5, 6, 7, 2, 3), [[0, 1, 2, 3, 12, 13, 14, 15], [*range(4, 12)]]),
    ((1, 4, 1, 2), (0, 1, 2, 4, 3, 5, 6, 7), [[*range(12)], [*range(4, 16)]]),  # they share some
]

TWO_PROCESSES = f"""
import json
import jax, numpy as np
from jaxsr.methods.condition import Batch
from jaxsr.runtime.distributed import start
from jaxsr.runtime.mesh import batch_sharding, make_mesh, share_of_batch
from jaxsr.train.loop import laid_out

start()
assert jax.device_count() == 8 and len(jax.local_devices()) == 4
high = np.arange(16 * 6, dtype=np.float32).reshape(16, 2, 3, 1)
whole, found = {{"high": high, "low": -high}}, []
for sizes, order in {[(sizes, list(order)) for sizes, order, _ in SHARES]!r}:
    mesh = make_mesh(*sizes, devices=[jax.devices()[i] for i in order])
    rows = share_of_batch(mesh, 16)
    batch = laid_out({{name: x[rows] for name, x in whole.items()}}, Batch(**whole), batch_sharding(mesh))
    for name, x in whole.items():
        for shard in getattr(batch, name).addressable_shards:
            np.testing.assert_array_equal(shard.data, x[shard.index])
    found.append(rows.tolist())
print(json.dumps(found))
"""


def test_each_of_two_processes_reads_the_slices_that_its_devices_hold():
    """And each device is given its own, wherever it lies on the mesh; a process has no slice that none of its devices computes."""
    with socket.socket() as s:
        s.bind(("localhost", 0))
        coordinator = f"localhost:{s.getsockname()[1]}"
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=4".strip()
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags, "JAXSR_COORDINATOR": coordinator, "JAXSR_PROCESSES": "2"}
    words, pipes = [sys.executable, "-c", TWO_PROCESSES], {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    started = [subprocess.Popen(words, env={**environment, "JAXSR_PROCESS": str(i)}, **pipes) for i in range(2)]
    try:
        told = [process.communicate(timeout=120) for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0, 0], "\n".join(error[-2000:] for _, error in told)
    assert [list(shares) for shares in zip(*(json.loads(out.splitlines()[-1]) for out, _ in told), strict=True)] == [s for *_, s in SHARES]
