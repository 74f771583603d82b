#!/usr/bin/env python3
"""The whole set of benchmarks in a box of time, and its tables for BENCHMARKS.md.

    python launch/benchmarks.py OUT [PART …] [--on gpu|cpu] [--seconds 470]

launch/benchmarks.yaml says what is run on a GPU and, at smaller sizes, on a CPU, what matters most first. Each step is a process of its
own, with what launch/environment.sh sets; one that fails, outlasts its time or has none left is named at the end and does not stop the
others. OUT gets results.jsonl (one benchmark a line, all that it found), table.md, doctor.json and log.txt; the table is written after
every step, so that what was measured is there whatever happens. Needs no installation: from a checkout, with the dependencies importable.
Status 1 where anything is missing.
"""

import argparse
import datetime
import importlib.util
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import yaml

ROOT = Path(__file__).resolve().parents[1]
BENCHES = ("count", "train", "upscale", "data", "layers", "compile")
SHORTEST = 5  # s; a step is not begun with less
KILL = 5  # s that a step has to end in, once it is told to


class Step(NamedTuple):
    """One line of the list; `run`: its words."""

    part: str
    name: str
    run: list[str]
    seconds: float
    needs: list[str]

    @property
    def bench(self) -> str | None:
        """Which of `jaxsr bench` it is."""
        return self.run[0] if self.run[0] in BENCHES else None

    @property
    def command(self) -> str:
        """As one would type it."""
        return f"jaxsr bench {shlex.join(self.run)}" if self.bench else f"python {shlex.join(self.run)}"


def steps_of(path: Path, machine: str, parts: Sequence[str] = ()) -> list[Step]:
    """Of the named parts (none: of all), in the list's order.

    Raises:
      ValueError: for a part that it has not, or a file that is no such list.
    """
    try:
        listed = yaml.safe_load(path.read_text())[machine]
        if missing := {"name", "run", "seconds"} - set.intersection(*(set(step) for steps in listed.values() for step in steps)):
            raise KeyError(missing.pop())
    except (yaml.YAMLError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is no list of benchmarks for a {machine}, as launch/benchmarks.yaml is: {error!r}") from error
    if unknown := set(parts) - set(listed):
        raise ValueError(f"{', '.join(sorted(unknown))}: the parts for a {machine} are {', '.join(listed)}")
    return [
        Step(part, step["name"], shlex.split(step["run"]), step["seconds"], step.get("needs", []))
        for part, steps in listed.items()
        if not parts or part in parts
        for step in steps
    ]


class Outcome(NamedTuple):
    """`answer`: its standard output; `why`: it failed, or ''."""

    answer: str
    why: str


def run(step: Step, limit: float, log: Any) -> Outcome:
    """Runs a step for `limit` s at most; what it says goes to the `log`."""
    words = ["-m", "jaxsr", "bench", *step.run, "--json"] if step.bench else step.run
    words = ["bash", "-c", 'source launch/environment.sh && exec "$@"', "bash", sys.executable, *words]
    process = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
    why = ""
    try:
        answer, said = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        why = f"not done after {limit:.0f} s"
        answer, said = _end(process)
    except BaseException:  # of whoever stops this script nothing is left on the device
        _end(process)
        raise
    log.write(said + answer)
    if process.returncode and not why:
        lines = [line.strip() for line in (said + answer).splitlines() if line.strip()]
        why = f"status {process.returncode}" + (f": {lines[-1]}" if lines else "")
    return Outcome(answer, why)


def _end(process: "subprocess.Popen[str]") -> tuple[str, str]:
    """Ends a step and what it has started: asked first, then not; what it said."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with suppress(subprocess.TimeoutExpired):
            return process.communicate(timeout=KILL)
    return "", ""


def result_of(step: Step, answer: str) -> dict[str, Any] | None:
    """The object that a benchmark printed, with what it is; None where it printed none."""
    lines = [line for line in answer.splitlines() if line.startswith("{")]
    try:
        found = json.loads(lines[-1] if lines else answer)
    except ValueError:
        return None
    return (
        {"part": step.part, "benchmark": step.name, "bench": step.bench, "command": step.command, **found}
        if isinstance(found, dict)
        else None
    )


Row = dict[str, Any]
Column = tuple[str, Callable[[Row], Any]]


def _number(value: float | None, digits: int = 3) -> str:
    return "–" if value is None else f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.{digits}g}"


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.0%}"


def _bytes(value: float | None) -> str:
    return "–" if value is None else f"{value / 2**30:.2f} GiB"


def _flops(value: float | None) -> str:
    return "–" if value is None else f"{value / 1e12:.3g} T"


def _spread(times: dict[str, float]) -> str:
    return f"{_number(times['median'])} ({_number(times['lower_quartile'])}–{_number(times['upper_quartile'])})"


def _gap(row: Row, seconds: str) -> str:
    floor = row.get("floor_seconds")
    return "–" if not floor else f"{_number(floor)} s, × {row[seconds] / floor:.2f}"


def _ratios(row: Row) -> str:
    """Of slices/s, then of FLOP/s."""
    if "ratios" not in row:
        return "–"
    of = row["ratios"]
    return " / ".join(f"{of[key]:.2f}" for key in ("slices_per_second", "flops_per_second") if key in of)


def _rates(seconds: str) -> list[Column]:
    """What a timed benchmark has; `seconds` names its time."""
    return [
        ("slices/s", lambda row: _number(row["slices_per_second"])),
        ("floor, gap", lambda row: _gap(row, seconds)),
        ("FLOP/s", lambda row: _flops(row["flops_per_second"])),
        ("of the peak", lambda row: _share(row["share_of_peak"])),
        ("of a matrix product", lambda row: _share(row["share_of_matrix_rate"])),
        ("peak memory", lambda row: f"{_bytes(row['peak_memory_bytes'])} of the {row['peak_memory_of']}"),
        ("compilation", lambda row: f"{row['compile_seconds']:.1f} s{', cached' if row.get('compile_cached') else ''}"),
        ("the peer's slices/s", lambda row: _number(row["peer"]["slices_per_second"]) if "peer" in row else "–"),
        ("ratio, of FLOP/s", _ratios),
    ]


COLUMNS: dict[str, list[Column]] = {
    "train": [
        ("precision", lambda row: row["precision"]),
        ("batch", lambda row: row["batch_size"]),
        ("s a step (quartiles)", lambda row: _spread(row["step_seconds"])),
        *_rates("seconds_per_step"),
    ],
    "upscale": [
        ("precision", lambda row: row["precision"]),
        ("volume", lambda row: " × ".join(map(str, row["shape"]))),
        ("steps", lambda row: row["sampling_steps"]),
        ("batch", lambda row: " or ".join(map(str, row["batch_sizes"]))),
        ("s a volume (quartiles)", lambda row: _spread(row["volume_seconds"])),
        ("devices alone", lambda row: _share(row["device_share"])),
        *_rates("seconds_per_volume"),
    ],
    "count": [
        ("parameters", lambda row: f"{row['parameters']:,}"),
        ("multiply-adds", lambda row: "–" if row["multiply_adds"] is None else f"{row['multiply_adds'] / 1e9:.4g} G"),
    ],
    "compile": [
        ("what", lambda row: row["what"]),
        ("slices", lambda row: row["batch_size"]),
        ("mesh", lambda row: ", ".join(f"{axis} {size}" for axis, size in row["mesh"].items() if size > 1) or "one device"),
        ("held", lambda row: _bytes(sum(row["held_bytes"].values()))),
        ("temporary", lambda row: _bytes(row["temporary_bytes"])),
        ("in all, a device", lambda row: _bytes(row["device_bytes"]) + (", estimated" if row["estimated"] else "")),
        ("compilation", lambda row: f"{row['compile_seconds']:.1f} s"),
    ],
    "data": [
        ("workers", lambda row: row["workers"]),
        ("slices/s", lambda row: _number(row["slices_per_second"])),
        ("median of its tenths (quartiles)", lambda row: _spread(row["slices_per_second_in_parts"])),
        ("cores busy", lambda row: f"{row['cpu_share']:.2f}"),
        ("ms of a core a slice", lambda row: _number(1000 * row["cpu_seconds_per_slice"])),
        ("resident memory", lambda row: _bytes(row["peak_memory_bytes"])),
    ],
    "layers": [
        ("layer", lambda row: f"{row['kind']}, {row['batch']} × {row['side']}² × {row['channels']}"),
        ("ms (quartiles)", lambda row: _spread({key: 1000 * value for key, value in row["forward"].items()})),
        ("with gradients", lambda row: _spread({key: 1000 * value for key, value in row["gradients"].items()})),
        ("to the peer's speed", lambda row: " / ".join(f"{ratio:.2f}" for ratio in row["ratios"].values()) if "ratios" in row else "–"),
    ],
}  # fmt: skip


def rows_of(result: Row) -> list[Row]:
    """A benchmark's rows: one, but for those that measure several things."""
    several = {"data": "runs", "layers": "layers"}.get(result["bench"])
    return [result] if several is None else [{**result, **one} for one in result[several]]


def tables(results: Sequence[Row]) -> str:
    """One for each benchmark there is, and the commands."""
    text = []
    for bench in BENCHES:
        if found := [result for result in results if result["bench"] == bench]:
            columns: list[Column] = [("", lambda row: f"{row['part']}: {row['benchmark']}"), *COLUMNS[bench]]
            table = [[name for name, _ in columns], ["---"] * len(columns)]
            table += [[str(of(row)) for _, of in columns] for result in found for row in rows_of(result)]
            text += [f"`bench {bench}`\n", *("| " + " | ".join(line) + " |" for line in table), ""]
    return "\n".join([*text, *(f"- {result['part']}: {result['benchmark']}: `{result['command']}`" for result in results), ""])


def heading(results: Sequence[Row]) -> str:
    """Where, when and with what."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout.strip()
    about = next((result for result in results if "device" in result and result["bench"] not in ("count", "compile")), None)
    on = f" on {about.get('devices', 1)} × {about['device']} ({about['processor']})" if about else ""
    names = {
        name: number for result in results for of in (result, result.get("peer", {})) for name, number in of.get("versions", {}).items()
    }
    versions = ", ".join(f"{name} {number}" for name, number in names.items())
    return f"Measured {datetime.date.today()}{on} at commit {commit or 'unknown'}, with {versions or 'nothing'}.\n\n"


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("parts", nargs="*", metavar="PART", help="of the list; all, if none is named")
    parser.add_argument("--on", choices=("gpu", "cpu"), default="gpu", help="which list (%(default)s)")
    parser.add_argument("--seconds", type=float, default=470, help="for all together (%(default)s)")
    parser.add_argument("--list", type=Path, default=ROOT / "launch" / "benchmarks.yaml", help="(%(default)s)")
    given = parser.parse_intermixed_args(words)
    try:
        steps = steps_of(given.list, given.on, given.parts)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    if given.on == "cpu":
        os.environ["JAX_PLATFORMS"] = "cpu"
    given.out.mkdir(parents=True, exist_ok=True)
    missing, results, start = [], [], time.monotonic()
    with open(given.out / "log.txt", "w", buffering=1) as log, open(given.out / "results.jsonl", "w", buffering=1) as lines:
        for step in steps:
            title, left = f"{step.part}: {step.name}", given.seconds - KILL - (time.monotonic() - start)
            lacking = [name for name in step.needs if importlib.util.find_spec(name) is None]
            if lacking or left < SHORTEST:
                why = f"{', '.join(lacking)} is not here" if lacking else f"{given.seconds:g} s are over"
                missing.append(f"{title}: left out, as {why}")
                continue
            for stream in (sys.stdout, log):
                print(f"\n== {title}: {step.command}", file=stream, flush=True)
            began = time.monotonic()
            outcome = run(step, min(step.seconds, left), log)
            result = result_of(step, outcome.answer) if step.bench and not outcome.why else None
            why = outcome.why or ("its answer is not a JSON object" if step.bench and result is None else "")
            last = "" if step.bench else next((f": {line[:200]}" for line in reversed(outcome.answer.splitlines()) if line.strip()), "")
            print(f"-- {f'FAILED: {why}' if why else f'ok{last}'} ({time.monotonic() - began:.0f} s)", flush=True)
            if why:
                missing.append(f"{title}: {why}")
            if step.name == "doctor" and not why:
                (given.out / "doctor.json").write_text(outcome.answer)
            if result is not None:
                results.append(result)
                print(json.dumps(result), file=lines)
                (given.out / "table.md").write_text(heading(results) + tables(results))
    print("\n" + heading(results) + tables(results))
    took = f"{time.monotonic() - start:.0f} s"
    if missing:
        print(f"not all, after {took}:", *(f"  {line}" for line in missing), sep="\n")
        return 1
    print(f"all done after {took}: {given.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
