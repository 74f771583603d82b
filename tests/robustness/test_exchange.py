"""What devices exchange in a step is parameters and their gradients, however many slices each has: XLA, left alone, adds up activations."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROGRAM = """
import json, sys
import jaxsr.runtime.mesh as meshes
meshes.FSDP_FLOOR = 256  # so that networks this small are split
from jaxsr.bench.compile import compile_train
from jaxsr.experiment import load_experiment

name, *settings = json.loads(sys.argv[1])
found = [
    compile_train(load_experiment(name, [*settings, "mesh.data=2", "mesh.fsdp=2", f"train.batch_size={size}"]))["collectives"]
    for size in (8, 32)
]
print(json.dumps([[row["payload_bytes"] for row in rows] for rows in found]))
"""


@pytest.mark.parametrize(
    "name, settings",
    [
        ("teacher-tiny.yaml", ["data.crop=32"]),
        ("moediff-tiny.yaml", ["data.crop=64"]),
        pytest.param("sr3-small.yaml", ["method.network.width=16", "data.crop=32"], marks=pytest.mark.slow),
        pytest.param("spcdd-tiny.yaml", ["data.crop=32"], marks=pytest.mark.slow),
    ],
)
def test_four_times_the_slices_exchange_no_more(name, settings):
    """On 2 × 2 devices. What does grow is of a slice some numbers, as means that a norm or a loss takes of all."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=4"
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
    task = json.dumps([str(ROOT / "configs" / name), *settings])
    done = subprocess.run([sys.executable, "-c", PROGRAM, task], env=environment, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr[-3000:]
    few, many = (sum(payloads) for payloads in json.loads(done.stdout.splitlines()[-1]))
    assert few > 10_000
    assert many < 1.05 * few
