"""What devices exchange is read off the compiled program: kinds, axes, bytes, and how often."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from jaxsr.bench.collectives import Collective, _groups, collectives, summed, wire_factor

MESH = {"data": 2, "fsdp": 4}

EIGHT_DEVICES = """
import json
import jax, jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from jaxsr.bench.collectives import collectives, summed

mesh = jax.make_mesh((2, 4), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)

def program(x):
    def once(carry, _):
        carry = carry + jax.lax.psum(carry * 1.5, "data")
        return carry + jax.lax.all_gather(carry, "fsdp", tiled=True).reshape(4, -1).sum(0).reshape(carry.shape), None
    y = jax.lax.scan(once, x, None, length=5)[0]
    y = jax.lax.ppermute(y, "fsdp", [(i, (i + 1) % 4) for i in range(4)])
    return y + jax.lax.psum(y, ("data", "fsdp"))

x = jax.ShapeDtypeStruct((16, 32), jnp.float32, sharding=NamedSharding(mesh, P(("data", "fsdp"))))
placed = jax.jit(jax.shard_map(program, mesh=mesh, in_specs=P(("data", "fsdp")), out_specs=P(("data", "fsdp")), check_vma=False))
notes = []
found = summed(collectives(placed.lower(x).compile().as_text(), dict(mesh.shape), notes))

from jaxsr.runtime import mesh as ours
ours.FSDP_FLOOR = 64
from jaxsr.bench import compile as bench
from jaxsr.config import from_dict
from jaxsr.experiment import Experiment
steps = []
for data in (2, 4):
    network = {"width": 8, "multipliers": [1], "blocks": 1, "attention_at": [], "groups": 4}
    sizes = {"data": data, "fsdp": 2}
    settings = {"method": {"kind": "sr3", "network": network}, "data": {"crop": 8}, "train": {"batch_size": 4 * data}, "mesh": sizes}
    bench.make_mesh = lambda **sizes: ours.make_mesh(**sizes, devices=jax.devices()[: 2 * data])
    steps.append(bench.compile_train(from_dict(settings, Experiment))["collectives"])
from jaxsr.bench.links import bench_links
print(json.dumps({"found": found, "notes": notes, "steps": steps, "links": bench_links((2**12, 2**16), repeats=2)}))
"""


@pytest.fixture(scope="module")
def eight():
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
    done = subprocess.run([sys.executable, "-c", EIGHT_DEVICES], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_kinds_axes_bytes_and_runs_of_a_program_are_those_that_were_written(eight):
    """A device has 2 × 32 float32 of x: 256 bytes; the loop runs five times."""
    assert eight["notes"] == []
    expected = [
        {"kind": "all-gather", "axes": ["fsdp"], "devices": 4, "times": 5, "arrays": 5, "payload_bytes": 5 * 1024, "sent_bytes": 5 * 768},
        {"kind": "all-reduce", "axes": ["data"], "devices": 2, "times": 5, "arrays": 5, "payload_bytes": 5 * 256, "sent_bytes": 5 * 256},
        {"kind": "all-reduce", "axes": ["data", "fsdp"], "devices": 8, "times": 1, "arrays": 1, "payload_bytes": 256, "sent_bytes": 448},
        {"kind": "collective-permute", "axes": ["fsdp"], "devices": 2, "times": 1, "arrays": 1, "payload_bytes": 256, "sent_bytes": 256},
    ]
    assert sorted(eight["found"], key=str) == sorted(expected, key=str)


def test_payloads_of_a_step_do_not_depend_on_how_far_data_goes(eight):
    """Which is what `jaxsr.bench.scale` takes for granted: as many slices a device, twice as many devices."""
    two, four = (
        {(row["kind"], tuple(row["axes"])): row["payload_bytes"] for row in rows if row["axes"] != ["expert"]} for rows in eight["steps"]
    )
    assert two == four
    assert sum(two.values()) > 0


def test_links_are_timed_over_all_devices(eight):
    links = eight["links"]
    assert (links["devices"], [one["bytes"] for one in links["measured"]]) == (8, [2**12, 2**16])
    assert links["bytes_per_second"] > 0 <= links["latency"]


def test_a_ring_sends_what_it_sends():
    """All but a device's own share of what is gathered, twice that to reduce it; to one other, all of it."""
    kinds = ("all-gather", "reduce-scatter", "all-to-all", "all-reduce", "collective-permute")
    assert [wire_factor(kind, 4) for kind in kinds] == [0.75, 0.75, 0.75, 1.5, 1]
    assert [wire_factor(kind, 1) for kind in kinds] == [0] * 5
    assert Collective("all-reduce", ("data",), 4, 100, 7, 3).sent == 450


@pytest.mark.parametrize(
    "written, groups",
    [
        ("replica_groups={{0,4},{1,5},{2,6},{3,7}}", [[0, 4], [1, 5], [2, 6], [3, 7]]),
        ("replica_groups={}", [[0, 1, 2, 3, 4, 5, 6, 7]]),
        ("replica_groups=[2,4]<=[8]", [[0, 1, 2, 3], [4, 5, 6, 7]]),
        ("replica_groups=[4,2]<=[2,4]T(1,0)", [[0, 4], [1, 5], [2, 6], [3, 7]]),
        ("replica_groups=mesh['a'=2,'b'=4] {'b'}", [[0, 1, 2, 3], [4, 5, 6, 7]]),
        ("replica_groups=mesh['a'=2,'b'=4] {'a'}", [[0, 4], [1, 5], [2, 6], [3, 7]]),
        ("replica_groups=mesh['a'=8] {'a':(2)2}", [[0, 2], [1, 3], [4, 6], [5, 7]]),
        ("replica_groups=mesh['a'=1,'b'=4,'c'=2], device_ids=([2,4]T(1,0)) {'b'}", [[0, 1, 2, 3], [4, 5, 6, 7]]),
        ("source_target_pairs={{0,1},{1,2}}", [[0, 1]]),
    ],
)
def test_every_way_of_naming_devices_is_read(written, groups):
    notes = []
    np.testing.assert_array_equal(_groups(f"%x), channel_id=1, {written}, dimensions={{0}}", 8, "all-reduce", notes), groups)
    assert notes == []


PROGRAM = """\
HloModule jit_step

%add (a: f32[], b: f32[]) -> f32[] {{
  ROOT %c = f32[] add(%a, %b)
}}

%body (p: (s32[], bf16[8,4])) -> (s32[], bf16[8,4]) {{
  %started = (bf16[2,4]{{1,0}}, bf16[8,4]{{1,0}}) all-gather-start(%x), replica_groups=[2,4]<=[8], dimensions={{0}}
  %done = bf16[8,4]{{1,0}} all-gather-done(%started)
  ROOT %t = (s32[], bf16[8,4]) tuple(%i, %done)
}}

ENTRY %main (x: bf16[2,4]) -> f32[2] {{
  %loop = (s32[], bf16[8,4]) while(%init), condition=%below, body=%body{trips}
  %scattered = f32[2,4]{{1,0}} reduce-scatter(%g), {groups}, dimensions={{0}}, to_apply=%add
  ROOT %sum = f32[2] all-reduce(%y), replica_groups={{{{0}},{{1}},{{2}},{{3}},{{4}},{{5}},{{6}},{{7}}}}, to_apply=%add
}}
"""


def test_an_accelerator_s_asynchronous_program_is_read_too():
    """The start has a tuple of what goes in and comes out, its end is none; one of a device alone exchanges nothing."""
    notes = []
    text = PROGRAM.format(trips=', backend_config={"known_trip_count":{"n":"3"}}', groups="replica_groups=[2,4]<=[8]")
    assert collectives(text, MESH, notes) == [
        Collective("all-gather", ("fsdp",), 4, 64, 1, 3),
        Collective("reduce-scatter", ("fsdp",), 4, 4 * 32, 1, 1),
    ]
    assert notes == []


def test_arrays_that_are_reduced_together_are_counted():
    """As the gradients of a step are: one all-reduce, whose arrays gloo sends one after another."""
    shapes = "(f32[2]{0}, f32[4,8]{1,0}, /*index=2*/f32[])"
    text = f"ENTRY %main (x: f32[2]) -> f32[2] {{\n  %all = {shapes} all-reduce(%a, %b, %c), replica_groups={{}}\n}}"
    [found] = collectives(text, MESH, [])
    assert (found.arrays, found.payload) == (3, 4 * (2 + 32 + 1))
    assert summed([found._replace(times=2)])[0]["arrays"] == 6


def test_what_cannot_be_counted_is_told():
    notes = []
    found = collectives(PROGRAM.format(trips="", groups="replica_groups=@something"), MESH, notes)
    assert found == [Collective("all-gather", ("fsdp",), 4, 64, 1, 1)]
    assert [("counted once" in note, "not counted" in note) for note in notes] == [(True, False), (False, True)]
    assert [row["sent_bytes"] for row in summed(found)] == [48]
