"""What tests share: how they are compiled; real heads, where they are."""

import gc
import math
import os
import re
from importlib.metadata import version
from pathlib import Path

import pytest

_QUICK = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
if version("jaxlib").startswith("0.10."):  # half the time again; later versions lack the first flag, and end at an unknown one
    _QUICK += " --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"

# Minutes each: begun last, they would keep one of several processes at work alone.
_LONGEST = [f"test_{name}.py" for name in ("kill", "devices", "prepare_killed", "registration", "lpips", "loop", "demo", "cli")]
_LONGEST += [f"test_{name}.py" for name in ("teacher_recipe", "frozen", "encoded", "latents", "unet", "ablation")]

_BESIDE = Path(__file__).resolve().parents[1].parent / "shared" / "mri"


def pytest_configure(config: pytest.Config) -> None:
    """Nearly all of the tests' time would be XLA optimising programs that run once; those for a GPU are about the optimised ones.

    Here, as no test has been imported yet: XLA reads its flags when the first computation starts.
    """
    selects_gpu = re.search(r"(?<!not )\bgpu\b", config.getoption("markexpr"))
    if not selects_gpu and _QUICK not in os.environ.get("XLA_FLAGS", ""):
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_QUICK}".strip()
    # Where in our code each operation comes from: a third of the time of tracing and lowering, for programs that nobody profiles.
    os.environ.setdefault("JAX_TRACEBACK_IN_LOCATIONS_LIMIT", "0")
    # Tracing makes so many objects that looking for unreachable ones, as often as Python would, is a tenth of it.
    gc.set_threshold(200_000, 20, 100)
    # The same small programs are compiled by many tests, some in processes of their own: once is enough.
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).resolve().parents[1] / ".cache" / "tests"))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first; pytest-xdist keeps the order where it is told --no-loadscope-reorder."""
    items.sort(key=lambda item: item.path.name not in _LONGEST)


def _is_of(request: pytest.FixtureRequest, names: tuple[str, ...]) -> bool:
    """Whether a test's file, or its folder, is among `names`."""
    return bool({request.path.name, request.path.parent.name} & {*names})


# Here heads are something to train on; what they are is tested elsewhere.
_HEADS_ARE_INPUT = ("train", "methods", "precompute", "upscale", "test_cli.py", "test_demo.py")


@pytest.fixture(scope="module", autouse=True)
def same_heads_once(request):
    """Small heads that were rendered once in this process are not rendered again: a second each, in hundreds of trainings."""
    if not _is_of(request, _HEADS_ARE_INPUT):
        yield
        return
    import jax

    from jaxsr.data import subjects

    render = subjects.render

    def once(key, shape, *how, **further):
        if math.prod(shape) > 2**18:
            return render(key, shape, *how, **further)
        name = (jax.random.key_data(key).tobytes(), shape, how, tuple(further.items()))
        if name not in _HEADS:
            _HEADS[name] = render(key, shape, *how, **further)
        return _HEADS[name]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(subjects, "render", once)
        yield


_HEADS: dict = {}


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
        most_steps = 1

        def upscale(self, variables, condition, keys, request):
            return UpscaleOutput(condition.low, {})

    return Identity()


# Many trainings and upscalings of one small network.
_MADE_ONCE = ("train", "methods", "precompute", "upscale", "test_cli.py", "test_demo.py")


@pytest.fixture(scope="module", autouse=True)
def same_programs_once(request):
    """As tests/once.py says, for all of a module. What processes of their own do, which share nothing, is in tests/robustness."""
    if not _is_of(request, _MADE_ONCE):
        yield
        return
    from once import make_once

    with pytest.MonkeyPatch.context() as patch:
        make_once(patch.setattr)
        yield
