"""What devices say to one another in a compiled program: its collectives, as the optimised program has them.

A collective of a payload of S bytes between n devices, by rings, has each device send [Thakur et al. 2005]

    all-gather       (n − 1)/n × S      S what comes out of it
    reduce-scatter   (n − 1)/n × S      S what goes into it
    all-to-all       (n − 1)/n × S
    all-reduce      2 (n − 1)/n × S
    permute                     S

A loop's body counts as often as it runs, where the compiler says how often; where it does not, once, and `notes` says so. A CPU's compiler
makes an all-reduce of what a GPU's or a TPU's would make a reduce-scatter of, half the bytes: for those it is an upper bound.
"""

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np

KINDS = {
    "all-gather": 1,
    "reduce-scatter": 1,
    "all-to-all": 1,
    "ragged-all-to-all": 1,
    "all-reduce": 2,
    "collective-permute": 0,
    "collective-broadcast": 0,
}  # how often (n − 1)/n of the payload is sent; 0: all of it, once

_BYTES = {"pred": 1, "token": 0, **{f"{kind}{bits}": bits / 8 for kind in "su" for bits in (2, 4, 8, 16, 32, 64)}}
_BYTES |= {"bf16": 2, "f16": 2, "f32": 4, "f64": 8, "c64": 8, "c128": 16}  # what is not here has one, as f8e4m3fn
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) .*-> .*\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?[\w.\-]+ = (.*?)\s([a-z][\w\-]*)\((.*)$")
_ARRAY = re.compile(r"\b([a-z]+\d*(?:e\d+m\d+\w*)?)\[([\d,]*)\]")
_CALLED = re.compile(r"\b(?:calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.\-]+)")
_SEVERAL = re.compile(r"\b(?:branch_computations|called_computations|calls)=\{([^}]*)\}")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')


class Collective(NamedTuple):
    """Attributes:
    kind: as XLA names it.
    axes: of the mesh, along which its devices differ.
    devices: that take part in each.
    payload: bytes of one (S above).
    arrays: that one takes together.
    times: that it is done in a run of the program.
    """

    kind: str
    axes: tuple[str, ...]
    devices: int
    payload: int
    arrays: int
    times: int

    @property
    def sent(self) -> float:
        """Bytes that a device sends, in all of them."""
        return self.times * self.payload * wire_factor(self.kind, self.devices)


def wire_factor(kind: str, devices: int) -> float:
    """Bytes that a device sends a byte of payload, where `devices` take part."""
    share = KINDS[kind]
    return share * (devices - 1) / devices if share else float(devices > 1)


def collectives(text: str, mesh: Mapping[str, int], notes: list[str]) -> list[Collective]:
    """Those of an optimised program (`Compiled.as_text()`) over `mesh`, sizes by axis, equal ones together, those that send most first."""
    count: Counter[tuple[str, tuple[str, ...], int, int, int]] = Counter()
    for operation, shapes, rest, times in _run(text, notes):
        kind = operation.removesuffix("-start")
        groups = _groups(rest, math.prod(mesh.values()), kind, notes)
        if groups is None or groups.shape[1] < 2:
            continue
        places = np.stack(np.unravel_index(groups[0], tuple(mesh.values())))
        axes = tuple(name for name, along in zip(mesh, places, strict=True) if len(set(along.tolist())) > 1)
        count[kind, axes, groups.shape[1], *_payload(operation, shapes, groups.shape[1])] += times
    found = [Collective(*one, times) for one, times in count.items()]
    return sorted(found, key=lambda one: -one.sent)


def summed(found: list[Collective]) -> list[dict[str, object]]:
    """By kind and axes, as JSON can hold it."""
    rows: dict[tuple[str, tuple[str, ...]], dict[str, object]] = {}
    for one in found:
        row = rows.setdefault((one.kind, one.axes), {"kind": one.kind, "axes": list(one.axes), "devices": one.devices, "times": 0})
        row["times"] = row["times"] + one.times  # type: ignore[operator]
        row["arrays"] = row.get("arrays", 0) + one.times * one.arrays  # type: ignore[operator]
        row["payload_bytes"] = row.get("payload_bytes", 0) + one.times * one.payload  # type: ignore[operator]
        row["sent_bytes"] = row.get("sent_bytes", 0) + round(one.sent)  # type: ignore[operator]
    return list(rows.values())


def _run(text: str, notes: list[str]) -> Iterator[tuple[str, str, str, int]]:
    """Operation, type, the rest of the line, and number of runs, of each collective that is run."""
    bodies: dict[str, list[tuple[str, str, str]]] = {}
    entry, name = "", ""
    for line in text.splitlines():
        if heading := _COMPUTATION.match(line):
            name = heading[2]
            bodies[name] = []
            entry = name if heading[1] else entry
        elif name and (instruction := _INSTRUCTION.match(line)):
            bodies[name].append(instruction.groups())  # type: ignore[arg-type]

    def visit(name: str, times: int) -> Iterator[tuple[str, str, str, int]]:
        for shapes, operation, rest in bodies.get(name, ()):
            if operation.removesuffix("-start") in KINDS:
                yield operation, shapes, rest, times
                continue
            called = [*_CALLED.findall(rest), *(part.strip(" %") for parts in _SEVERAL.findall(rest) for part in parts.split(","))]
            inner = times
            if operation == "while":
                trips = _TRIPS.search(rest)
                inner = times * int(trips[1]) if trips else times
            found = [one for part in dict.fromkeys(called) for one in visit(part, inner)]
            if found and operation == "while" and not trips:
                notes.append("a loop whose number of runs the compiler does not say holds collectives: they are counted once")
            yield from found

    yield from visit(entry, 1)


def _payload(operation: str, shapes: str, devices: int) -> tuple[int, int]:
    """S of one, and of how many arrays. The result of an asynchronous start is a tuple of what goes in and what comes out, and what is none
    of both."""
    sizes = [round(math.prod(map(int, filter(None, sides.split(",")))) * _BYTES.get(name, 1)) for name, sides in _ARRAY.findall(shapes)]
    if operation == "all-gather-start":
        sizes = sizes[len(sizes) // 2 :]
    if operation == "collective-permute-start":
        sizes = sizes[1:2]
    return sum(sizes) * (devices if operation == "reduce-scatter" else 1), len(sizes)


def _groups(rest: str, devices: int, kind: str, notes: list[str]) -> np.ndarray | None:
    """[groups, members]: places of devices on the flattened mesh."""
    if pairs := re.search(r"source_target_pairs=\{\{(\d+),(\d+)\}", rest):
        return np.array([[int(pairs[1]), int(pairs[2])]])
    if named := re.search(r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\((.*?\)?)\))? \{([^}]*)\}", rest):
        return _of_mesh(*named.groups())
    if listed := re.search(r"replica_groups=(\[[\d,]+\]<=\[[\d,]+\](?:T\([\d,]+\))?)", rest):
        return _of_iota(listed[1])
    if explicit := re.search(r"replica_groups=\{(\{[\d,{} ]*\})?\}", rest):
        members = [[int(n) for n in part.split(",")] for part in re.findall(r"\{([\d,]+)\}", explicit[0])]
        return np.array(members) if members else np.arange(devices)[None]
    notes.append(f"a {kind} whose devices are written in a way that is not known here is not counted")
    return None


def _of_iota(text: str) -> np.ndarray:
    """`[4,2]<=[2,4]T(1,0)`: numbers in the second shape, transposed, in the first."""
    shape, source, order = re.fullmatch(r"\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", text).groups()  # type: ignore[union-attr]
    sides = _numbers(source)
    places = np.arange(math.prod(sides)).reshape(sides)
    return (places.transpose(_numbers(order)) if order else places).reshape(_numbers(shape))


def _of_mesh(axes: str, order: str | None, along: str) -> np.ndarray:
    """`mesh['a'=2,'b'=4] {'b'}`; a part of an axis, `'b':(2)2`, is 2 of it after 2 others."""
    sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", axes)}
    members = re.findall(r"'(\w+)'(?::\((\d+)\)(\d+))?", along)
    count = math.prod(sizes.values())
    places = np.arange(count)
    if order:
        places = (_of_iota(f"[{count}]<={order}") if order.startswith("[") else np.array(_numbers(order))).reshape(-1)
    sides: list[int] = []
    taken: list[int] = []
    for name, size in sizes.items():
        parts = {int(before or 1): int(part or size) for axis, before, part in members if axis == name}
        done = 1
        for before, part in sorted(parts.items()):
            sides += [before // done, part]
            taken.append(len(sides) - 1)
            done = before * part
        sides.append(size // done)
    left = [i for i in range(len(sides)) if i not in taken]
    return places.reshape(sides).transpose([*left, *taken]).reshape(-1, math.prod(sides[i] for i in taken))


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]
