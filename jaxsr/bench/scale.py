"""How a training step scales, by a model: what a device computes, measured, and what devices say to one another, counted in the program.

More devices are more of the mesh's `data` axis, each with as many slices as before (weak scaling): payloads stay what they were, and only
the number of those who exchange them grows. A payload S between n devices, m of each of k = n/m nodes, as rings within nodes and then
between them, of which each device has a part of S/m:

    t = f ((m − 1)/m S/r_in + (k − 1)/k (S/m)/r_out) + f (l_in ⌈log₂ m⌉ + l_out ⌈log₂ k⌉),    f = 2 for an all-reduce, else 1

r are the links' rates, l their latencies, of a hop of a tree; where a machine does not group the arrays of an exchange into one message,
as gloo does not, which is what processes on CPUs talk by, the latency is paid for each. Of a step that computes for c seconds and
exchanges for t in all,

    nothing of it hidden:  c + t          all of it that can be:  max(c, t)

and efficiency is c over that: a device's throughput against its own when it is alone. What is not in it: input, stragglers, failures,
checkpoints, other traffic, and topologies in which nodes are not alike to one another.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pydantic

from jaxsr.bench.collectives import KINDS
from jaxsr.bench.count import quantity
from jaxsr.config import ConfigError, Strict, from_dict, load
from jaxsr.config.document import plain, read_file

_FILE = Path(__file__).with_name("machines.yaml")


class Links(Strict):
    """Between devices that are alike: bytes a second that one sends, in one direction, and the seconds that a hop takes."""

    bytes_per_second: pydantic.PositiveFloat
    latency: pydantic.NonNegativeFloat = 0.0


class Inside(Links):
    """Those within a node, of `devices`."""

    devices: pydantic.PositiveInt


class Machine(Strict):
    """A kind of cluster; machines.yaml says what the fields are."""

    inside: Inside
    between: Links
    peak: pydantic.PositiveFloat | None = None
    grouped: bool = True
    reached: float = pydantic.Field(1.0, gt=0, le=1)


class Predicted(NamedTuple):
    """Attributes:
    mesh: sizes by axis.
    exchange_seconds: t above.
    seconds: of a step, at least and at most.
    efficiency: at most and at least.
    """

    chips: int
    mesh: dict[str, int]
    exchange_seconds: float
    seconds: tuple[float, float]
    efficiency: tuple[float, float]


def read_machine(name: str) -> Machine:
    """One of machines.yaml by its name, or a YAML file of one.

    Raises:
      ConfigError: where it is neither, or the file does not say what a machine is.
    """
    known = machines()
    if name in known:
        return from_dict(known[name], Machine)
    if not Path(name).is_file():
        raise ConfigError(f"'{name}' is none of the machines that are known, {', '.join(known)}, and no file that describes one")
    return load(name, [], Machine)


def machines() -> dict[str, Any]:
    """What machines.yaml says, by name."""
    return plain(read_file(_FILE, []))  # type: ignore[no-any-return]


def bench_scale(
    compiled: Mapping[str, Any],
    machine: str,
    chips: Sequence[int],
    *,
    trained: Mapping[str, Any] | None = None,
    step_seconds: float | None = None,
    share: float | None = None,
) -> dict[str, Any]:
    """What `jaxsr bench compile --json` found, on more chips of `machine`, as JSON can hold it.

    How long a device computes is `step_seconds`, or that of `trained`, which `jaxsr bench train --json` measured on one device with as many
    slices as each has here, or what the step's multiply-adds take at a `share` of the machine's peak.

    Raises:
      ConfigError: where the one is no training step, the other is of another size or number of devices, or nothing says how long.
    """
    if not str(compiled.get("what")).startswith("training step") or "collectives" not in compiled:
        raise ConfigError("what is scaled is a training step, as `jaxsr bench compile CONFIG --mesh … --json` describes it")
    found, mesh = read_machine(machine), compiled["mesh"]
    slices = compiled["batch_size"] / (mesh["data"] * mesh["fsdp"])
    if step_seconds is not None:
        seconds, source = step_seconds, "as given"
    elif trained is not None:
        seconds, source = _measured(trained, compiled, slices), f"measured on one {trained['device']}, {trained['date'][:10]}"
    elif share is not None and found.peak and compiled.get("multiply_adds"):
        devices = math.prod(mesh.values())
        seconds = 2 * compiled["multiply_adds"] / devices / (share * found.peak)
        source = f"taken for {share:.0%} of the peak of {quantity(found.peak, 'FLOP/s')}, which is not measured"
    else:
        raise ConfigError("how long a device computes must be known: measured, given, or a share of a peak that the machine has")
    payloads: dict[str, int] = {}
    for row in compiled["collectives"]:
        payloads[row["kind"]] = payloads.get(row["kind"], 0) + row["payload_bytes"]
    predicted = predict(compiled, found, seconds, chips)
    rows = [
        {**one._asdict(), "slices_per_second": [slices * one.mesh["data"] * one.mesh["fsdp"] / each for each in reversed(one.seconds)]}
        for one in predicted
    ]
    about = {"config_digest": compiled.get("config_digest"), "estimated": compiled.get("estimated")}
    said = {"machine": machine, "slices_a_device": slices, "compute_seconds": seconds, "compute_from": source}
    return {**said, "payload_bytes": payloads, "predicted": rows, **about}


def _measured(trained: Mapping[str, Any], compiled: Mapping[str, Any], slices: float) -> float:
    if trained.get("encoded", False) != ("encoded" in compiled["what"]):
        raise ConfigError("one of the two is of encoded slices and the other is not: ask both for --encoded, or neither")
    if trained.get("devices") != 1 or trained.get("batch_size") != slices or trained.get("size") != compiled["size"]:
        raise ConfigError(
            f"measure one device with {slices:g} slices of {compiled['size']}² pixels, by jaxsr bench train CONFIG "
            f"train.batch_size={slices:g} --json: this is of {trained.get('devices')} with {trained.get('batch_size')} of "
            f"{trained.get('size')}²"
        )
    return float(trained["seconds_per_step"])


def predict(compiled: Mapping[str, Any], machine: Machine, compute_seconds: float, chips: Sequence[int]) -> list[Predicted]:
    """Of the step that `jaxsr bench compile` found, `compute_seconds` of which a device computes, on so many chips of `machine`.

    Raises:
      ConfigError: where a number of chips is not a multiple of what one part of `data` takes; where the program was compiled with one part,
        which exchanges no gradients, and more are asked about.
    """
    mesh = dict(compiled["mesh"])
    one = math.prod(size for axis, size in mesh.items() if axis != "data")
    if wrong := [count for count in chips if count < 1 or count % one]:
        raise ConfigError(f"numbers of chips must be multiples of {one}, what fsdp × tensor × expert takes, got {wrong[0]}")
    if mesh["data"] == 1 and max(chips) > one:
        raise ConfigError(
            f"the step was compiled with data=1, and then exchanges nothing over data: for more than {one} chips compile with data=2, "
            f"as by jaxsr bench compile CONFIG --devices {2 * one} --mesh data=2,…"
        )
    return [_predicted(compiled["collectives"], {**mesh, "data": count // one}, machine, compute_seconds) for count in chips]


def exchange_seconds(kind: str, payload: float, devices: int, nodes: int, machine: Machine, arrays: float = 1) -> float:
    """t above of one collective of `arrays` between `devices`, as many on each of `nodes`."""
    messages = 1 if machine.grouped else arrays
    passes, within = max(1, KINDS[kind]), devices // nodes
    inside, between = (links.bytes_per_second * machine.reached for links in (machine.inside, machine.between))
    if not KINDS[kind]:  # all of it, to one other
        return payload / (between if nodes > 1 else inside) + messages * (machine.between if nodes > 1 else machine.inside).latency
    moved = (within - 1) / within * payload / inside + (nodes - 1) / nodes * payload / within / between
    hops = machine.inside.latency * _depth(within) + machine.between.latency * _depth(nodes)
    return passes * (moved + messages * hops)


def describe(result: dict[str, Any]) -> list[tuple[str, str]]:
    """Rows of a table for people."""
    rows = [
        (
            "a device computes",
            f"{result['compute_seconds']:.4g} s a step of {result['slices_a_device']:g} slices, {result['compute_from']}",
        ),
        ("and exchanges", ", ".join(f"{quantity(n, 'B', 1024)} by {kind}" for kind, n in result["payload_bytes"].items()) or "nothing"),
        ("on", result["machine"]),
    ]
    for one in result["predicted"]:
        least, most = one["seconds"]
        best, worst = one["efficiency"]
        mesh = ", ".join(f"{axis} {size}" for axis, size in one["mesh"].items() if size > 1) or "one device"
        rows.append(
            (
                f"{one['chips']} chips",
                f"efficiency {worst:.1%} to {best:.1%}, step {least:.4g} to {most:.4g} s, "
                f"{quantity(one['slices_per_second'][0])} to {quantity(one['slices_per_second'][1])} slices/s ({mesh})",
            )
        )
    return rows


def _predicted(found: Sequence[Mapping[str, Any]], mesh: dict[str, int], machine: Machine, compute: float) -> Predicted:
    total = 0.0
    for row in found:
        devices = math.prod(mesh[axis] for axis in row["axes"])
        if devices == 1:
            continue
        nodes = devices // _within(row["axes"], mesh, machine.inside.devices)
        each = row["payload_bytes"] / row["times"], devices, nodes, machine, row.get("arrays", row["times"]) / row["times"]
        total += row["times"] * exchange_seconds(row["kind"], *each)
    seconds = max(compute, total), compute + total
    return Predicted(math.prod(mesh.values()), mesh, total, seconds, (compute / seconds[0], compute / seconds[1]))


def _within(axes: Sequence[str], mesh: Mapping[str, int], node: int) -> int:
    """How many of those that differ along `axes` are in one node; devices lie on nodes in the order of the mesh, the last axis fastest."""
    count, stride = 1, 1
    for axis, size in reversed(list(mesh.items())):
        if axis in axes:
            count *= math.gcd(size, max(1, node // stride))
        stride *= size
    return count


def _depth(count: int) -> int:
    return math.ceil(math.log2(count)) if count > 1 else 0
