"""What a run says of itself: scalars left on the devices until someone looks, then in metrics.jsonl and, if wanted, for TensorBoard."""

import contextlib
import importlib.util
import json
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from jaxsr.config import ConfigError
from jaxsr.files import write_text
from jaxsr.runtime.distributed import is_first
from jaxsr.train.step import Metrics

HELD = 256  # steps whose metrics may stay on the devices

Write = Callable[[int, dict[str, float]], None]


class NotFinite(Exception):
    """A metric is NaN or infinite, at `step` for the first time."""

    def __init__(self, step: int, scalars: dict[str, float], origin: np.ndarray):
        super().__init__(", ".join(f"{name} {value}" for name, value in scalars.items() if not np.isfinite(value)))
        self.step, self.origin = step, origin


class Recent:
    """Metrics of the steps since the last look, with the origins of their samples: no step waits for the host, none goes unseen."""

    class _Step(NamedTuple):
        number: int
        metrics: Metrics
        origin: np.ndarray

    def __init__(self) -> None:
        self._steps: deque[Recent._Step] = deque()

    def add(self, step: int, metrics: Metrics, origin: np.ndarray) -> None:
        self._steps.append(self._Step(step, metrics, origin))
        if len(self._steps) > HELD:  # long done, so this waits for nothing
            self._look(self._steps.popleft())

    def newest(self) -> dict[str, float]:
        """The scalars of the newest step, once all are seen to be finite.

        Raises:
          NotFinite: for the first that is not.
        """
        scalars: dict[str, float] = {}
        while self._steps:
            scalars = self._look(self._steps.popleft())
        return scalars

    def _look(self, step: "Recent._Step") -> dict[str, float]:
        scalars = {name: float(value) for name, value in jax.device_get(step.metrics).items()}
        if not np.isfinite(list(scalars.values())).all():
            raise NotFinite(step.number, scalars, step.origin)
        return scalars


class Clock:
    """Steps and slices a second since the last question; compilation, which is in the first step, is told apart."""

    def __init__(self) -> None:
        self._then: float = time.monotonic()
        self._step: int | None = None

    def rates(self, step: int, batch_size: int) -> dict[str, float]:
        now = time.monotonic()
        elapsed, self._then = now - self._then, now
        before, self._step = self._step, step
        if before is None:
            return {"first_step_seconds": elapsed}
        rate = (step - before) / max(elapsed, 1e-9)
        return {"steps_per_second": rate, "slices_per_second": rate * batch_size}


@contextlib.contextmanager
def record(run_dir: Path, start: int, tensorboard: bool = False) -> Iterator[Write]:
    """Yields `write(step, scalars)`: a JSON line in metrics.jsonl, and scalars under tensorboard/ where wanted.

    What a stopped run left of steps after `start` is dropped, so that every step is there once.
    """
    if not is_first():
        yield lambda step, scalars: None
        return
    path = run_dir / "metrics.jsonl"
    if path.exists():
        write_text(path, "".join(line + "\n" for line in path.read_text().splitlines() if _step_of(line) <= start))
    with path.open("a") as file, _events(run_dir / "tensorboard", start) if tensorboard else contextlib.nullcontext() as show:

        def write(step: int, scalars: dict[str, float]) -> None:
            file.write(json.dumps({"step": step, **scalars}) + "\n")
            file.flush()
            if show:
                show(step, scalars)

        yield write


def require_tensorboard() -> None:
    """ConfigError where `train.tensorboard` cannot be served."""
    if importlib.util.find_spec("tensorboardX") is None:
        raise ConfigError("train.tensorboard: true needs tensorboardX, which is not installed: pip install 'jaxsr[tracking]'")


@contextlib.contextmanager
def _events(folder: Path, start: int) -> Iterator[Write]:
    from tensorboardX import SummaryWriter

    # TensorBoard hides what an earlier file says of steps from `purge_step` on.
    with SummaryWriter(str(folder), purge_step=start + 1) as writer:

        def write(step: int, scalars: dict[str, float]) -> None:
            for name, value in scalars.items():
                writer.add_scalar(name, value, step)
            writer.flush()

        yield write


def _step_of(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return float("inf")
