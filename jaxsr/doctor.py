"""What this machine offers jaxsr, and what is wrong with it: `jaxsr doctor`.

`report` only looks and computes two tiny sums; `problems` reads a report and names what will hurt, each with the way out.
"""

import importlib.metadata
import os
import platform
import shutil
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

PACKAGES = (
    "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "scipy", "nibabel", "isal", "nilearn", "matplotlib",
    "pydantic", "PyYAML", "array-record", "jinja2", "safetensors", "pooch", "typer", "rich",
)  # fmt: skip
EXTRAS: Mapping[str, tuple[str, ...]] = {
    "cuda": ("jax-cuda13-plugin", "jax-cuda13-pjrt"),
    "tpu": ("libtpu",),
    "itk": ("SimpleITK",),
    "fastmri": ("h5py",),
    "tracking": ("tensorboardX",),
    "test": ("pytest", "pytest-xdist", "chex"),
    "reference": ("torch", "diffusers", "scikit-image", "SimpleITK"),
    "dev": ("ruff", "mypy", "import-linter", "pre-commit"),
}
GIB = 2**30
MEMORY_ADVISED, DISK_ADVISED = 4, 2  # GiB


def report() -> dict[str, Any]:
    """The machine and the installation, as JSON can hold it. Never raises for what it finds: a failure is part of the report."""
    return {
        "jaxsr": _version("jaxsr"),
        "commit": _commit(Path(__file__).parent),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": round(_memory() / GIB, 1),
        "disk_free_gib": round(shutil.disk_usage(Path.cwd()).free / GIB, 1),
        "nvidia_gpus": nvidia_gpus(),
        "packages": {name: _version(name) for name in PACKAGES},
        "extras": {extra: {name: _version(name) for name in names} for extra, names in EXTRAS.items()},
        "environment": {
            name: value for name, value in sorted(os.environ.items()) if name.startswith(("JAX_", "XLA_", "CUDA_VISIBLE", "NCCL_"))
        },
        "jax": _jax_report(),
    }


def nvidia_gpus() -> int:
    """How many the driver shows, whether or not JAX can use them."""
    if nodes := len(list(Path("/dev").glob("nvidia[0-9]*"))):
        return nodes
    try:  # under Windows' Linux there are no such files
        answer = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return 0
    return sum(line.startswith("GPU ") for line in answer.stdout.splitlines())


def problems(report: Mapping[str, Any]) -> list[str]:
    """What is wrong in a `report`, a sentence each that ends with the way out; empty when all is well."""
    found = [f"{name} is not installed: pip install jaxsr" for name, version in report["packages"].items() if version is None]
    jax = report["jax"]
    if "error" in jax:
        found.append(
            f"JAX does not start ({jax['error']}): check JAX_PLATFORMS, and reinstall with pip install 'jaxsr[cuda]', 'jaxsr[tpu]' or jaxsr"
        )
    elif report["nvidia_gpus"] and jax["backend"] == "cpu":
        found.append(
            f"{report['nvidia_gpus']} NVIDIA GPUs are here but JAX computes on the CPU: pip install 'jaxsr[cuda]', "
            "and see that neither JAX_PLATFORMS nor CUDA_VISIBLE_DEVICES hides them"
        )
    for platform_name, checks in jax.get("checks", {}).items():
        for check, result in checks.items():
            if result != "ok":
                found.append(
                    f"the {check} check on {platform_name} gave: {result}; reinstall jax and jaxlib together, "
                    f"update the driver, or compute elsewhere with JAX_PLATFORMS={'cuda' if platform_name == 'cpu' else 'cpu'}"
                )
    cache = jax.get("compilation_cache_dir")
    if cache and not cache.startswith("gs://") and not _writable(Path(cache)):
        found.append(f"the compilation cache {cache} cannot be written: set JAX_COMPILATION_CACHE_DIR to a folder of yours")
    if report["memory_gib"] < MEMORY_ADVISED:
        found.append(
            f"{report['memory_gib']} GiB of memory is little, {MEMORY_ADVISED} are advised: make train.batch_size or the model smaller"
        )
    if report["disk_free_gib"] < DISK_ADVISED:
        found.append(
            f"{report['disk_free_gib']} GiB are free on this disk, {DISK_ADVISED} are advised: free some or run from another folder"
        )
    return found


def _jax_report() -> dict[str, Any]:
    """Devices as JAX sees them, and the sums done on each platform; {'error': …} where JAX does not start."""
    try:
        import jax

        devices = jax.local_devices()
        platforms = {device.platform: device for device in (*reversed(devices), *_cpu()[:1])}
    except Exception as error:  # whatever keeps JAX from starting is what is asked about
        return {"error": _first_line(error)}
    return {
        "backend": jax.default_backend(),
        "process_count": jax.process_count(),
        "process_index": jax.process_index(),
        "device_count": jax.device_count(),
        "devices": [
            {"id": device.id, "platform": device.platform, "kind": device.device_kind, "memory_gib": _device_memory(device)}
            for device in devices
        ],
        "compilation_cache_dir": getattr(jax.config, "jax_compilation_cache_dir"),  # noqa: B009 (mypy cannot see it)
        "checks": {
            name: {"matmul": _outcome(_matmul_is_exact, device), "convolution": _outcome(_convolution_is_exact, device)}
            for name, device in sorted(platforms.items())
        },
    }


def _cpu() -> list[Any]:
    """The CPU as JAX's device, beside the accelerators; none where JAX_PLATFORMS leaves it out."""
    import jax

    try:
        return list(jax.local_devices(backend="cpu"))
    except RuntimeError:
        return []


def _outcome(check: Callable[[Any], bool], device: Any) -> str:
    try:
        return "ok" if check(device) else "failed: wrong values"
    except Exception as error:  # a broken driver may raise anything
        return f"failed: {_first_line(error)}"


def _matmul_is_exact(device: Any) -> bool:
    """A product of small integers, exact in every precision a device may choose."""
    import jax
    import numpy as np

    a = np.arange(64, dtype=np.float32).reshape(8, 8) % 7
    return bool((np.asarray(jax.jit(lambda x: x @ x.T)(jax.device_put(a, device))) == a @ a.T).all())


def _convolution_is_exact(device: Any) -> bool:
    """A 3 × 3 box over ones counts the neighbours: 4 in a corner, 6 on an edge, 9 inside."""
    import jax
    import numpy as np

    image, box = jax.device_put((np.ones((1, 8, 8, 1), np.float32), np.ones((3, 3, 1, 1), np.float32)), device)
    convolve = jax.jit(lambda x, k: jax.lax.conv_general_dilated(x, k, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")))
    ends = np.array([2, 3, 3, 3, 3, 3, 3, 2], np.float32)
    return bool((np.asarray(convolve(image, box))[0, :, :, 0] == np.outer(ends, ends)).all())


def _device_memory(device: Any) -> float | None:
    """GiB that JAX may use on the device; None where the platform does not say (CPU)."""
    statistics = device.memory_stats() or {}
    return round(statistics["bytes_limit"] / GIB, 1) if "bytes_limit" in statistics else None


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit(folder: Path) -> str | None:
    """The commit of the checkout this file lies in, '-dirty' if files differ from it; None where it is no checkout of jaxsr."""
    if not (folder.parent / "pyproject.toml").is_file():
        return None
    try:
        answer = subprocess.run(
            ["git", "-C", str(folder), "describe", "--always", "--dirty", "--exclude=*"],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip()


def _memory() -> int:
    """Bytes of memory this process may have: the machine's, or its container's limit."""
    installed = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        return min(installed, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    except (OSError, ValueError):  # no container, or 'max'
        return installed


def _writable(folder: Path) -> bool:
    """Whether `folder` can be written, or made."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return folder.is_dir() and os.access(folder, os.W_OK)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
