"""Training: one linear function. All it does is a function of (config, step), so a run that was stopped goes on as if it had not been."""

import contextlib
import json
import signal
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

import jaxsr
from jaxsr.config import ConfigError, differences, dump, from_dict, to_dict
from jaxsr.data.pipeline import SliceStream, batches, sample_ids
from jaxsr.data.subjects import AnatomySubjects, FolderSubjects, Split, Subjects, find_volumes, split_by_subject
from jaxsr.experiment import FREE_ON_RESUME, DataConfig, Experiment, load_experiment
from jaxsr.methods.base import Batch, Method
from jaxsr.physics.acquisition import named_acquisition
from jaxsr.runtime.checkpoint import Checkpoints
from jaxsr.runtime.distributed import is_first
from jaxsr.runtime.mesh import batch_sharding, make_mesh, replicated, share_of_batch
from jaxsr.train.state import State, abstract_state, init_state, make_optimizer, state_shardings
from jaxsr.train.step import make_step

TRAINING = 2**20  # the purpose of the key that training noise comes from; splits and subjects have small numbers

Report = Callable[[int, dict[str, float]], None]  # step, scalars: called at every log step


class TrainingDiverged(RuntimeError):
    """The loss is NaN or infinite; says where and what is left."""


class Stopped(Exception):
    """SIGTERM came; the state has been saved."""


def train(
    experiment: Experiment, run_dir: Path, report: Report = lambda step, scalars: None, note: Callable[[str], None] = lambda text: None
) -> State:
    """Trains until `experiment.train.steps`, from the newest checkpoint in `run_dir` if there is one. Returns the final state.

    Writes `config.yaml`, `metrics.jsonl` and `checkpoints/`.

    Args:
      report: given the scalars of each log step.
      note: given sentences that people should see.

    Raises:
      ConfigError: where `run_dir` belongs to another experiment.
      TrainingDiverged, Stopped: see there.
    """
    config = experiment.train
    _claim(run_dir, experiment)
    mesh = make_mesh(**dict(experiment.mesh))
    part, parts = share_of_batch(mesh, config.batch_size)
    method = build_method(experiment)
    optimizer = make_optimizer(experiment.optimizer, config.steps)
    subjects = build_subjects(experiment.data, "train", experiment.seed, note)
    stream = build_stream(experiment, subjects)
    shape = abstract_batch(experiment)
    shardings = state_shardings(method, optimizer, shape, mesh)

    with Checkpoints(run_dir / "checkpoints", keep=config.keep_checkpoints) as checkpoints, _StopFlag() as stop:
        if (latest := checkpoints.latest) is None:
            state, _ = init_state(method, optimizer, shape, jax.random.key(experiment.seed), mesh)
        else:
            _check_same(experiment, from_dict(checkpoints.about(latest)["config"], Experiment), run_dir)
            state = checkpoints.restore(latest, abstract_state(method, optimizer, shape, shardings))
            note(f"resumed {run_dir} at step {latest}")
        start = int(state.step)
        if start >= config.steps:
            note(f"{run_dir} is already at step {start} of {config.steps}: nothing to do")
            return state

        # The position of the input is the step, so there is no other position to save.
        iterator = batches(
            stream,
            config.batch_size,
            start=start,
            process=part,
            processes=parts,
            threads=experiment.data.threads,
        )
        by_batch, everywhere = batch_sharding(mesh), replicated(mesh)
        step_fn = jax.jit(
            make_step(method, optimizer, ema=config.ema, accumulate=config.accumulate),
            donate_argnums=0,
            out_shardings=(shardings, everywhere),
        )
        root = jax.random.fold_in(jax.random.key(experiment.seed), TRAINING)
        clock = _Clock()

        with MetricsFile(run_dir / "metrics.jsonl", start) as metrics_file:
            for done in range(start + 1, config.steps + 1):
                sample = next(iterator)
                batch = Batch(
                    **{
                        name: jax.make_array_from_process_local_data(by_batch, sample[name], getattr(shape, name).shape)
                        for name in ("high", "low")
                    }
                )
                state, metrics = step_fn(state, batch, root)
                stopping = stop.requested(done)
                saving = done % config.checkpoint_every == 0 or done == config.steps or stopping
                if saving or done % config.log_every == 0 or done == start + 1:
                    scalars = {name: float(value) for name, value in metrics.items()}
                    if not np.isfinite(list(scalars.values())).all():  # before saving: a poisoned state must never be the newest
                        raise TrainingDiverged(_diverged(done, scalars, sample["origin"], subjects, checkpoints.latest))
                    scalars |= clock.rates(done, config.batch_size)
                    metrics_file.write(done, scalars)
                    report(done, scalars)
                if saving:
                    checkpoints.save(done, state, {"config": to_dict(experiment), "next_batch": done, "version": jaxsr.__version__})
                if stopping:
                    raise Stopped(f"stopped at step {done}; run the same command again to go on from there")
    return state


def build_method(experiment: Experiment) -> Method:
    return experiment.method.build(jnp.bfloat16 if experiment.precision == "bf16" else jnp.float32)


def build_subjects(data: DataConfig, split: Split, seed: int, note: Callable[[str], None] = lambda text: None) -> Subjects:
    """The subjects of one split of the set that `data` names; what was left out is told to `note`."""
    acquisition = named_acquisition(data.acquisition)
    if data.volumes is None:
        return AnatomySubjects(
            data.subjects,
            split,
            voxel_size=data.voxel_size,
            acquisition=acquisition,
            seed=seed,
            contrast=data.contrast,
            interpolation=data.interpolation,
        )
    paths, left_out = find_volumes(data.volumes, data.voxel_size)
    for sentence in left_out:
        note(f"left out: {sentence}")
    chosen = split_by_subject(paths, data.volumes, split, seed)
    note(f"{split}: {len(chosen)} of {len(paths)} volumes in {data.volumes}")
    return FolderSubjects(chosen, voxel_size=data.voxel_size, acquisition=acquisition, seed=seed, interpolation=data.interpolation)


def build_stream(experiment: Experiment, subjects: Subjects) -> SliceStream:
    data = experiment.data
    return SliceStream(subjects, (data.crop, data.crop), draws=data.draws, window=data.window, augment=data.augment, seed=experiment.seed)


def abstract_batch(experiment: Experiment) -> Batch:
    """Shapes of one global batch."""
    crop = experiment.data.crop
    image = jax.ShapeDtypeStruct((experiment.train.batch_size, crop, crop, 1), jnp.float32)
    return Batch(high=image, low=image)  # type: ignore[arg-type]


class MetricsFile:
    """Scalars as JSON lines; lines of steps after `start`, which a stopped run may have left, are dropped."""

    def __init__(self, path: Path, start: int):
        self._path = path
        if path.exists() and is_first():
            _write_whole(path, "".join(line + "\n" for line in path.read_text().splitlines() if _step_of(line) <= start))

    def __enter__(self) -> "MetricsFile":
        self._file = self._path.open("a") if is_first() else None
        return self

    def __exit__(self, *_: object) -> None:
        if self._file:
            self._file.close()

    def write(self, step: int, scalars: dict[str, float]) -> None:
        if self._file:
            self._file.write(json.dumps({"step": step, **scalars}) + "\n")
            self._file.flush()


class _Clock:
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


class _StopFlag:
    """Becomes true at SIGTERM; on every process of the job at the same step. Outside the context SIGTERM means what it meant before."""

    def __init__(self) -> None:
        self._requested = False
        self._before: Any = None

    def __enter__(self) -> "_StopFlag":
        if jax.process_count() == 1:  # of several, JAX's coordination service takes the signal
            with contextlib.suppress(ValueError):  # not the main thread: whoever called us has the signals
                self._before = signal.signal(signal.SIGTERM, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)

    def requested(self, step: int) -> bool:
        """Whether to leave after `step`: processes learn of a signal at different moments, but must leave after the same one."""
        return self._requested if jax.process_count() == 1 else bool(multihost_utils.reached_preemption_sync_point(step))

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        self._requested = True


def _claim(run_dir: Path, experiment: Experiment) -> None:
    path = run_dir / "config.yaml"
    if path.exists():
        _check_same(experiment, load_experiment(path), run_dir)
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("config read")
    if is_first():
        run_dir.mkdir(parents=True, exist_ok=True)
        _write_whole(path, dump(experiment))


def _check_same(now: Experiment, before: Experiment, run_dir: Path) -> None:
    free = tuple(name for name in FREE_ON_RESUME if name != "train.steps" or now.optimizer.decay == "constant")
    changed = [d for d in differences(before, now) if not d.startswith(free)]
    if changed:
        lines = "\n  ".join(changed)
        raise ConfigError(f"{run_dir} holds another experiment; choose another folder, or set back:\n  {lines}")


def _diverged(step: int, scalars: dict[str, float], origin: np.ndarray, subjects: Subjects, latest: int | None) -> str:
    slices = "\n  ".join(sample_ids(origin, subjects))
    last = f"the last checkpoint is of step {latest}" if latest is not None else "there is no checkpoint yet"
    wrong = ", ".join(f"{name} {value}" for name, value in scalars.items() if not np.isfinite(value))
    return f"training diverged at step {step}: {wrong} ({last}; try a lower optimizer.learning_rate). The batch was:\n  {slices}"


def _write_whole(path: Path, text: str) -> None:
    part = path.with_name(f".{path.name}.part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)


def _step_of(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError):
        return float("inf")
