"""What test_devices.py runs in processes of their own: trainings, one after the other, whose batches leave a fingerprint in the metrics.

python many_devices.py TASK…        TASK is JSON: {"run": DIR, "set": [override, …], "copy_to": [DIR, …], "signal": [process, step],
                                            "devices": [the mesh's, by number], "config": FILE beside this one}
"""

import json
import os
import shutil
import signal
import sys
from functools import cache
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import jaxsr.runtime.mesh as meshes
from jaxsr.cli.status import run
from jaxsr.experiment import load_experiment
from jaxsr.runtime.distributed import start
from jaxsr.train import loop

sys.path.insert(0, str(Path(__file__).parents[1]))
from once import make_once

CONFIG = "many_devices.yaml"
make_mesh = loop.make_mesh


def fingerprint(batch):
    """An integer of every bit of the batch and its place, the same however it is laid over devices: sums of integers have no order."""
    sums = []
    for image in (batch.high, batch.low):
        bits = jax.lax.bitcast_convert_type(image, jnp.uint32).ravel()
        places = jax.lax.iota(jnp.uint32, bits.size) * np.uint32(2654435761) | np.uint32(1)
        sums.append((bits * places).sum(dtype=jnp.uint32))
    return sums


@cache
def told(step):
    """A step that has the batch's fingerprint among its metrics."""

    def told_step(state, batch, *rest):
        state, metrics = step(state, batch, *rest)
        high, low = fingerprint(batch)
        return state, {**metrics, "high_bits": high, "low_bits": low}

    return told_step


def perform(task):
    def report(step, scalars):
        if task.get("signal") == [jax.process_index(), step]:
            os.kill(os.getpid(), signal.SIGTERM)

    devices = [jax.devices()[i] for i in task.get("devices", range(jax.device_count()))]
    loop.make_mesh = lambda **sizes: make_mesh(**sizes, devices=devices)
    loop.train(load_experiment(Path(__file__).with_name(task.get("config", CONFIG)), task.get("set", [])), Path(task["run"]), report=report)
    for folder in task.get("copy_to", ()):
        shutil.copytree(task["run"], folder)


if __name__ == "__main__":
    meshes.FSDP_FLOOR = 256  # so that a network this small is split
    make_once()
    make_step = loop.make_step
    loop.make_step = lambda *arguments, **options: told(make_step(*arguments, **options))
    start()
    sys.exit(run(lambda: [perform(json.loads(task)) for task in sys.argv[1:]] and None))
