"""The same work by PyTorch in the same run: `launch/peer_*.py`, in processes of their own, as nothing here imports torch."""

import importlib.util
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

import jaxsr
from jaxsr.config import ConfigError

_LAUNCH = Path(jaxsr.__file__).parents[1] / "launch"
NETWORKS, LAYERS = _LAUNCH / "peer_diffusers.py", _LAUNCH / "peer_layers.py"


def check_peer(script: Path = NETWORKS) -> None:
    """Raises ConfigError where the peer cannot be run: before anything is timed."""
    if not script.is_file() or not all(importlib.util.find_spec(name) for name in ("torch", "diffusers")):
        raise ConfigError(f"the peer is {script.name}, of the repository: install jaxsr from a clone, with pip install -e '.[reference]'")


def run_peer(words: Sequence[str], script: Path = NETWORKS) -> dict[str, Any]:
    """What the peer, given `words`, found, on the device that this process computes on.

    Raises:
      ConfigError: where it failed; with what it said last.
    """
    device = "cpu" if jax.default_backend() == "cpu" else "cuda"
    done = subprocess.run([sys.executable, str(script), *words, "--device", device], capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise ConfigError(f"the peer failed: {last}")
    return json.loads(done.stdout.splitlines()[-1])  # type: ignore[no-any-return]


def compared(ours: dict[str, Any], peer: dict[str, Any]) -> dict[str, Any]:
    """`ours` with the peer's figures, and how many times its rates ours are."""
    ratios = {key: ours[key] / peer[key] for key in ("slices_per_second", "flops_per_second") if ours.get(key) and peer.get(key)}
    return {**ours, "peer": peer, "ratios": ratios}


def describe(result: dict[str, Any]) -> list[tuple[str, str]]:
    """Rows of a table for people."""
    peer, ratios = result["peer"], result["ratios"]
    without = f", without {peer['left_out']}" if peer["left_out"] else ""
    names = {"slices_per_second": "slices/s", "flops_per_second": "FLOP/s"}
    return [
        ("the peer", f"{peer['peer']}, {peer['parameters']:,} parameters, {peer['precision']}{without}"),
        ("its slices/s", f"{peer['slices_per_second']:.4g}"),
        *((f"ours to its {names[key]}", f"{ratio:.2f}") for key, ratio in ratios.items()),
    ]
