"""Many devices: a run does not know on how many devices and processes it computes, nor does a volume.

Devices are made of one processor, processes talk through gloo: what JAX does on a cluster, but for the wires. Programs on different meshes
are different programs, which add up in different orders, so states are compared to float32's rounding, relative to the largest value of
their kind: 1e-5 is a hundred and more roundings (6e-8) over the four steps; a slice more or less, or another key, changes the third digit.
"""

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import jax
import nibabel as nib
import numpy as np
import pytest

from jaxsr.experiment import load_experiment
from jaxsr.runtime.checkpoint import Checkpoints
from jaxsr.runtime.mesh import make_mesh
from jaxsr.train import loop
from jaxsr.train.state import abstract_state, make_optimizer, players_of

PROGRAM = Path(__file__).with_name("many_devices.py")
CONFIG = Path(__file__).with_name("many_devices.yaml")
MIXTURE = Path(__file__).with_name("many_devices_mixture.yaml")
SPCDD = Path(__file__).with_name("many_devices_spcdd.yaml")
VQVAE = Path(__file__).with_name("many_devices_vqvae.yaml")
LONGER = "train.steps=4"
ROUNDING = 1e-5
LAST = 4


def start(tasks, processes, devices, folder):
    """The processes of one job, `devices` of the CPU to each."""
    with socket.socket() as s:
        s.bind(("localhost", 0))
        port = s.getsockname()[1]
    several = {"JAXSR_COORDINATOR": f"localhost:{port}", "JAXSR_PROCESSES": str(processes)} if processes > 1 else {}
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}".strip()
    words = [sys.executable, str(PROGRAM), *(json.dumps(task) for task in tasks)]
    started = []
    for i in range(processes):
        environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags, **several, "JAXSR_PROCESS": str(i)}
        log = (folder / f"{processes}x{devices}.{i}.log").open("w")
        started.append(subprocess.Popen(words, cwd=folder, env=environment, stdout=log, stderr=subprocess.STDOUT))
    return started


def finish(folder, *jobs):
    """The exit statuses of all processes, job by job; none outlives the test."""
    try:
        return [[process.wait(timeout=500) for process in job] for job in jobs]
    except subprocess.TimeoutExpired:
        pytest.fail("\n".join(f"{log}:\n{log.read_text()[-2000:]}" for log in folder.glob("*.log")))
    finally:
        for process in (p for job in jobs for p in job):
            process.kill()


def write_heads(folder):
    rng = np.random.default_rng(0)
    folder.mkdir()
    for i, shape in enumerate([(28, 30, 32), (32, 28, 30), (30, 32, 28)]):
        data = rng.normal(100, 30, shape).clip(0).astype(np.float32)
        nib.save(nib.Nifti1Image(data, np.eye(4)), folder / f"sub-{i:02d}_T1w.nii")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A folder of the same run on seven arrangements of devices, four steps each; and what the one on four had saved after two."""
    folder = tmp_path_factory.mktemp("runs")
    write_heads(folder / "heads")
    copies = ["on_1x1", "on_1x2", "on_2x1"]
    one = start([{"run": "1x1"}], 1, 1, folder)
    four = [
        {"run": "1x4", "set": ["train.steps=2"], "copy_to": copies},
        {"run": "1x4"},
        {"run": "1x4 fsdp", "set": ["mesh.data=2", "mesh.fsdp=2", "train.accumulate=2"]},
        {"run": "1x4 tensor", "set": ["mesh.data=2", "mesh.tensor=2"]},
    ]
    two = [
        {"run": "2x2"},
        {"run": "2x2 tensor", "set": ["mesh.data=1", "mesh.tensor=4"]},  # every process computes every slice, and has half of the weights
        # Devices need not be in the order of processes, as on a TPU pod: here the first process has the slices 0, 1, 6, 7 of eight.
        {"run": "2x2 fsdp", "set": ["mesh.data=2", "mesh.fsdp=2"], "devices": [0, 2, 3, 1]},
    ]
    statuses = finish(folder, one, start(four, 1, 4, folder), start(two, 2, 2, folder))
    assert statuses == [[0], [0], [0, 0]], "\n".join(log.read_text()[-3000:] for log in folder.glob("*.log"))
    return folder


@pytest.fixture(scope="module")
def resumed(runs):
    """The run that four devices began, brought to its end by others; and one process of two, stopped by a signal at step 6."""
    stopped = {"run": "on_2x1", "set": ["train.steps=1000", "train.checkpoint_every=1000"], "signal": [1, 6]}
    jobs = [
        start([{"run": "on_1x1"}], 1, 1, runs),
        start([{"run": "on_1x2"}], 1, 2, runs),
        start([{"run": "on_2x1"}, stopped], 2, 1, runs),
    ]
    return runs, finish(runs, *jobs)


def state_of(folder, config):
    """The state after the last step, brought to the one device of this process."""
    experiment = load_experiment(config)
    method, shape = loop.build_method(experiment), loop.abstract_batch(experiment)
    optimizer = make_optimizer(experiment.optimizer, LAST, players_of(method))
    with Checkpoints(folder / "checkpoints") as checkpoints:
        return checkpoints.restore(LAST, abstract_state(method, optimizer, shape, make_mesh()))


def metrics_of(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def assert_same_run(folder, expected, config=CONFIG):
    for told, wanted in zip(metrics_of(folder)[:LAST], metrics_of(expected)[:LAST], strict=True):
        assert {name: told[name] for name in ("step", "high_bits", "low_bits")} == {n: wanted[n] for n in ("step", "high_bits", "low_bits")}
        np.testing.assert_allclose(told["loss"], wanted["loss"], rtol=ROUNDING)
    for name, (ours, theirs) in pairs(state_of(folder, config), state_of(expected, config)).items():
        largest = max(np.abs(leaf).max() for leaf in theirs)
        for leaf, wanted in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(leaf, wanted, rtol=0, atol=ROUNDING * largest, err_msg=name)


def pairs(ours, theirs):
    """What is compared, by kind: leaves of one state and of the other."""
    kinds = [{"step": s.step, "parameters": s.params, "average": s.ema, "statistics": s.stats, **_moments(s.opt)} for s in (ours, theirs)]
    leaves = {name: [jax.tree.leaves(state[name]) for state in kinds] for name in kinds[0]}
    return {name: both for name, both in leaves.items() if both[0]}


def _moments(opt):
    adams = [part for part in jax.tree.leaves(opt, is_leaf=lambda part: hasattr(part, "mu")) if hasattr(part, "mu")]  # one a player
    return {
        f"{name} {i}": moment
        for i, adam in enumerate(adams)
        for name, moment in (("count", adam.count), ("first moments", adam.mu), ("second moments", adam.nu))
    }


ARRANGEMENTS = ["1x4", "1x4 fsdp", "1x4 tensor", "2x2", "2x2 tensor", "2x2 fsdp"]


@pytest.mark.parametrize("arrangement", ARRANGEMENTS)
def test_devices_and_processes_see_the_same_batches_and_agree_to_rounding(runs, arrangement):
    """Batches bit for bit; losses, weights, their average and the optimiser's moments to rounding. Accumulating is the large batch."""
    assert_same_run(runs / arrangement, runs / "1x1")


def test_what_was_split_over_devices_was(runs):
    """Otherwise the laws above would be about whole copies: shards of weights lie in files of their own, by process."""
    written = {f.parent.name for f in (runs / "2x2 tensor" / "checkpoints" / str(LAST)).rglob("ocdbt.process_*/manifest.ocdbt")}
    assert written == {"ocdbt.process_0", "ocdbt.process_1"}


@pytest.mark.parametrize("arrangement", ["on_1x1", "on_1x2", "on_2x1"])
def test_what_four_devices_saved_goes_on_on_others_as_if_never_moved(resumed, arrangement):
    """Processes × devices 1 × 1, 1 × 2 and 2 × 1 restore step 2 of four devices, and end where those did."""
    runs, _ = resumed
    assert_same_run(runs / arrangement, runs / "1x4")


def test_a_signal_to_one_process_stops_both_at_the_same_step_with_a_checkpoint(resumed):
    """Process 1 has it at step 6, both hear of it a little later; what they save is whole, and metrics are written once."""
    runs, statuses = resumed
    assert statuses == [[0], [0], [143, 143]], "\n".join(log.read_text()[-3000:] for log in runs.glob("2x1.*.log"))
    steps = [int(re.search(r"stopped at step (\d+), which is saved", log.read_text())[1]) for log in runs.glob("2x1.*.log")]
    step = steps[0]
    assert steps == [step, step]
    assert step >= 6
    assert [line["step"] for line in metrics_of(runs / "on_2x1")] == list(range(1, step + 1))
    with Checkpoints(runs / "on_2x1" / "checkpoints") as checkpoints:
        assert checkpoints.latest == step


@pytest.fixture(scope="module")
def mixtures(tmp_path_factory):
    """A mixture's four steps on one device; and what it had after two brought to the end by others, experts side by side among them. And
    the same of its VQ-VAE, and of two players."""
    folder = tmp_path_factory.mktemp("mixtures")
    write_heads(folder / "heads")
    mixture, vqvae, players = {"config": MIXTURE.name}, {"config": VQVAE.name}, {"config": SPCDD.name}
    one = [
        {"run": "vqvae", "copy_to": ["vqvae on fsdp"], **vqvae},
        {"run": "one", "set": ["train.steps=2"], "copy_to": ["on experts"], **mixture},
        {"run": "one", **mixture},
        {"run": "straight", **mixture},
        {"run": "vqvae straight", "set": [LONGER], **vqvae},
        {"run": "players", "set": ["train.steps=2"], "copy_to": ["players on fsdp"], **players},
        {"run": "players straight", **players},
    ]
    statuses = finish(folder, start(one, 1, 1, folder))
    split = ["mesh.data=2", "mesh.fsdp=2"]
    on_four = [{"run": "vqvae on fsdp", "set": [LONGER, *split], **vqvae}, {"run": "players on fsdp", "set": split, **players}]
    others = [
        start(on_four, 1, 4, folder),
        start([{"run": "on experts", "set": ["mesh.data=2", "mesh.expert=3"], **mixture}], 1, 6, folder),
    ]
    statuses += finish(folder, *others)
    assert statuses == [[0], [0], [0]], "\n".join(log.read_text()[-3000:] for log in folder.glob("*.log"))
    return folder


def test_a_mixture_that_was_stopped_goes_on_bit_for_bit_with_its_statistics(mixtures):
    """40-moediff, Losses: running statistics live in the training state."""
    straight, resumed = (state_of(mixtures / name, MIXTURE) for name in ("straight", "one"))
    assert straight.stats.keys() == {"usage", "gating"}
    for ours, theirs in zip(jax.tree.leaves(resumed), jax.tree.leaves(straight), strict=True):
        np.testing.assert_array_equal(ours, theirs)


UPSCALED = """
from pathlib import Path
import jax, jax.numpy as jnp, numpy as np
from jaxsr.methods.base import Request
from jaxsr.methods.condition import Condition
from jaxsr.runtime.mesh import make_mesh
from jaxsr.upscale.model import load_model

model = load_model(Path("straight"))
method = model.method
method.vqvae.decode = lambda vqvae, z0: z0  # codes would hide small differences
low = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (4, 16, 24, 1)), jnp.float32)
operands = model.variables, Condition(low), jax.random.split(jax.random.key(0), 4)
program = lambda: jax.jit(lambda *operands: method.upscale(*operands, Request(3)).image).lower(*operands).compile()
expected = program()(*operands)
assert expected.std() > 0.01
for data in (1, 2):
    with jax.set_mesh(make_mesh(data, expert=3, devices=jax.devices()[: 3 * data])):
        compiled = program()
        assert "conditional" in compiled.as_text(), "every device would run every expert"
        np.testing.assert_allclose(compiled(*operands), expected, rtol=1e-4, atol=1e-5)
print("ok")
"""


def test_experts_side_by_side_make_what_they_make_one_after_another(mixtures):
    """`upscale --experts parallel`: Eq. 9's latents, sampled by each expert on devices of its own."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=6"
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
    done = subprocess.run([sys.executable, "-c", UPSCALED], env=environment, cwd=mixtures, capture_output=True, text=True, check=False)
    assert done.stdout == "ok\n", done.stderr[-2000:]


def test_a_mixture_goes_on_on_other_devices_as_if_never_moved(mixtures):
    """Parameters, moments and running statistics; each expert on devices of its own changes nothing."""
    assert_same_run(mixtures / "on experts", mixtures / "one", MIXTURE)


def test_a_codebook_goes_on_on_other_devices_as_if_never_moved(mixtures):
    """What two steps on one device left, brought to step 4 by four."""
    assert_same_run(mixtures / "vqvae on fsdp", mixtures / "vqvae straight", VQVAE)


def test_two_players_go_on_on_other_devices_as_if_never_moved(mixtures):
    """30-spcdd: discriminator, its optimiser and spectral normalisation with the rest; half the slices have no pair."""
    assert state_of(mixtures / "players straight", SPCDD).stats.keys() == {"spectral"}
    assert_same_run(mixtures / "players on fsdp", mixtures / "players straight", SPCDD)
