"""What each of the things that make jaxsr fast is worth here: the same benchmark with it and without, in turn.

    python docs/measure_speedups.py OUT.json [--rounds 2]

Each benchmark is a process of its own. What can be switched off by a variable is switched off by that; of the rest the process starts with
a line of Python that undoes it. The table goes to standard output: medians, then the median over rounds of how many times as fast.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
THEIRS = "--xla_cpu_experimental_ynn_fusion_type=+LIBRARY_FUSION_TYPE_INDIVIDUAL_CONVOLUTION"
UNDONATED = "import jax; jit = jax.jit; jax.jit = lambda f, **k: jit(f, **{a: b for a, b in k.items() if a != 'donate_argnums'})"
UNFITTED = "import jaxsr.upscale.batches as of; of.fitting_size = lambda counts, most, devices=1: most"
UNDIVIDED = "import jaxsr.nn.parts as of; of.DECODED = 10**6; of.in_parts.__defaults__ = (10**6,)"
HUGE = "glibc.malloc.hugetlb=1"


# What the environment may have set already, as launch/environment.sh does.
SWITCHES = ("GLIBC_TUNABLES", "JAX_OPTIMIZATION_LEVEL", "JAX_COMPILATION_CACHE_DIR", "JAXSR_ATTENTION", "XLA_FLAGS")


class Change(NamedTuple):
    """`figure` of what `jaxsr bench` finds, given `words`; `env` and `undo` (Python) make it as it was before."""

    name: str
    words: str
    figure: str
    env: Mapping[str, str] = MappingProxyType({})
    undo: str = ""
    after: Mapping[str, str] = MappingProxyType({})


SMALL = "train configs/sr3-small.yaml --steps 6 --warmup 2"
TRAIN = "train configs/demo.yaml --steps 30 --warmup 5"
CHANGES = (
    Change("XLA's own convolutions, not YNNPACK's", TRAIN, "seconds_per_step", env={"XLA_FLAGS": THEIRS}),
    Change(
        "the same", "upscale configs/demo.yaml --shape 96,96,96 --batch-size 8", "seconds_per_volume", env={"XLA_FLAGS": THEIRS}
    ),
    Change("attention by parts", "layers --channels 32", "layers", env={"JAXSR_ATTENTION": "xla"}),
    Change("huge pages", TRAIN, "seconds_per_step", after={"GLIBC_TUNABLES": HUGE}),
    Change("JAX_OPTIMIZATION_LEVEL=O1", TRAIN, "seconds_per_step", after={"JAX_OPTIMIZATION_LEVEL": "O1"}),
    Change("a state that is given away", SMALL, "program_memory_bytes", undo=UNDONATED),
    Change("the same", SMALL, "seconds_per_step", undo=UNDONATED),
    Change(
        "batches that fit", "upscale configs/demo.yaml --shape 130,155,130 --batch-size 32", "seconds_per_volume", undo=UNFITTED
    ),
    Change(
        "decoding 16 slices at a time",
        "compile configs/teacher.yaml --upscale 64 --size 256 --device cpu",
        "temporary_bytes",
        undo=UNDIVIDED,
    ),
)  # fmt: skip


def figure_of(change: Change, env: Mapping[str, str], undo: str) -> float:
    """One run's."""
    start = f"{undo}\nfrom jaxsr.cli import main\nmain()" if undo else "from jaxsr.cli import main\nmain()"
    words = [sys.executable, "-c", start, "bench", *change.words.split(), "--json"]
    bare = {name: value for name, value in os.environ.items() if name not in SWITCHES}
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, env={**bare, **env})
    if done.returncode:
        raise SystemExit(f"{change.name}: {done.stderr.strip().splitlines()[-1:]}")
    found = json.loads([line for line in done.stdout.splitlines() if line.startswith("{")][-1])
    if change.figure == "layers":  # that of attention with its gradient, at the higher resolution
        return float(next(layer for layer in found["layers"] if layer["kind"] == "attention")["gradients"]["median"])
    return float(found[change.figure])


def told(change: Change, value: float) -> str:
    return f"{value / 2**20:,.0f} MiB" if change.figure.endswith("bytes") else f"{value:.3g} s"


def cache_row() -> dict:
    """A first and a second start with the compilation cache."""
    with tempfile.TemporaryDirectory() as folder:
        change = Change(
            "the compilation cache, at the second start", "upscale configs/demo.yaml --shape 64,64,64 --batch-size 8", "compile_seconds"
        )
        env = {"JAX_COMPILATION_CACHE_DIR": folder, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
        return {"change": change, "before": [figure_of(change, env, "")], "after": [figure_of(change, env, "")]}  # fmt: skip


def main(out: Path, rounds: int) -> None:
    rows = [cache_row()]
    for change in CHANGES:
        exact = change.figure.endswith("bytes")
        before, after = [], []
        for _ in range(1 if exact else rounds):
            before.append(figure_of(change, change.env, change.undo))
            after.append(figure_of(change, change.after, ""))
        rows.append({"change": change, "before": before, "after": after})
        print(f"{change.name}: {before} {after}", file=sys.stderr, flush=True)
    kept = [{"change": row["change"].name, "before": row["before"], "after": row["after"]} for row in rows]
    out.write_text(json.dumps(kept, indent=1))
    print("| change | measured with `jaxsr bench` | before | after | ratio |\n| --- | --- | --- | --- | --- |")
    for row in rows:
        change, ratio = row["change"], statistics.median(b / a for b, a in zip(row["before"], row["after"], strict=True))
        values = [told(change, statistics.median(row[when])) for when in ("before", "after")]
        print(f"| {change.name} | `{change.words}` | {values[0]} | {values[1]} | {ratio:.2f} |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--rounds", type=int, default=2)
    given = parser.parse_args()
    main(given.out, given.rounds)
