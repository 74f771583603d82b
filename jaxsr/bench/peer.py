"""The same work by PyTorch in the same run: `launch/peer_*.py`, in processes of their own, as nothing here imports torch.

The peer comes first: JAX, once it has started, holds most of a GPU's memory.
"""

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jaxsr
from jaxsr.config import ConfigError
from jaxsr.methods.condition import passes_of, told_to

_LAUNCH = Path(jaxsr.__file__).parents[1] / "launch"
NETWORKS, LAYERS = _LAUNCH / "peer_diffusers.py", _LAUNCH / "peer_layers.py"


def _check_peer(script: Path) -> None:
    """Raises ConfigError where the peer, or what it needs, is not there."""
    needs = ("torch", "diffusers") if script == NETWORKS else ("torch",)
    if not script.is_file() or not all(importlib.util.find_spec(name) for name in needs):
        raise ConfigError(f"the peer is {script.name}, of the repository: install jaxsr from a clone, with pip install -e '.[reference]'")


def why_no_peer(method: Any) -> str:
    """What of a method's config no network of diffusers is like, or ''."""
    if method.kind not in ("teacher", "sr3", "student"):
        return f"is of kind {method.kind}: there are peers of teachers, students and SR3"
    if method.kind == "teacher":
        return ""
    odd = {
        "is shown slices on either side": getattr(method, "context", 0),
        "is told of the scan in numbers": bool(told_to(method)),
        "is shown what it made of a volume before": passes_of(method) > 1,
        "has a network without norms": method.network.groups is None,
        "has a network without skips": not method.network.skips,
    }
    return next((f"{what}, as none of diffusers is or has" for what, so in odd.items() if so), "")


def run_peer(words: Sequence[str], device: str, script: Path = NETWORKS) -> dict[str, Any]:
    """What the peer, given `words`, found on `device`, as `--device` of `jaxsr` names it, and has told the environment; of several
    GPUs that are visible it takes the first.

    Raises:
      ConfigError: where it is not there, or failed; with what it said last.
    """
    _check_peer(script)
    device = "cpu" if os.environ.get("JAX_PLATFORMS") == "cpu" else "auto" if device == "auto" else "cuda"
    done = subprocess.run([sys.executable, str(script), *words, "--device", device], capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise ConfigError(f"the peer failed: {last}")
    return json.loads(done.stdout.splitlines()[-1])  # type: ignore[no-any-return]


def check_same_device(peer: dict[str, Any], device: str, count: int) -> None:
    """Raises ConfigError where the `peer` was not measured on what ours will be, `count` of `device`: a ratio would be of two things."""
    if (device == "cpu") != (peer["device"] == "cpu"):
        raise ConfigError(f"ours would be measured on {device} and the peer was on {peer['device']}: is PyTorch built for this GPU?")
    if count > 1:
        raise ConfigError(f"ours would be measured on {count} × {device} and the peer was on one: choose one with --device gpu:0")


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
