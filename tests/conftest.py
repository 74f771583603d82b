"""What tests share: how they are compiled; real heads, where they are."""

import os
import re
from pathlib import Path

import pytest

_QUICK = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"

_BESIDE = Path(__file__).resolve().parents[1].parent / "shared" / "mri"


def pytest_configure(config: pytest.Config) -> None:
    """Nearly all of the tests' time would be XLA optimising programs that run once; those for a GPU are about the optimised ones.

    Here, as no test has been imported yet: XLA reads its flags when the first computation starts.
    """
    selects_gpu = re.search(r"(?<!not )\bgpu\b", config.getoption("markexpr"))
    if not selects_gpu and _QUICK not in os.environ.get("XLA_FLAGS", ""):
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_QUICK}".strip()
    # The same small programs are compiled by many tests, some in processes of their own: once is enough.
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).resolve().parents[1] / ".cache" / "tests"))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")


@pytest.fixture(scope="session")
def mri() -> Path:
    """The folder of real volumes: $JAXSR_MRI, or shared/mri beside the repository."""
    folder = Path(os.environ.get("JAXSR_MRI", _BESIDE))
    if not folder.is_dir():
        pytest.skip(f"no real volumes at {folder}: set JAXSR_MRI to their folder")
    return folder


@pytest.fixture(scope="session")
def identity_method():
    """A method that changes nothing, which laws about places, batches and memory are stated with."""
    from jaxsr.methods.base import Request, UpscaleOutput

    class Identity:
        multiple = 8
        default_request = Request(steps=1)

        def upscale(self, variables, condition, keys, request):
            return UpscaleOutput(condition.low, {})

    return Identity()
