"""Training: one linear function. All it does is a function of (config, step), so a run that was stopped goes on as if it had not been."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding

import jaxsr
from jaxsr.config import ConfigError, differences, dump, from_dict, to_dict
from jaxsr.data.pipeline import Sample, batches, sample_ids
from jaxsr.data.prepared import PreparedSet
from jaxsr.data.records import MANIFEST
from jaxsr.data.subjects import Subjects
from jaxsr.experiment import FREE_ON_RESUME, DataConfig, Experiment, SourceConfig, load_experiment
from jaxsr.files import write_text
from jaxsr.methods.condition import Batch
from jaxsr.methods.precision import held_to_train
from jaxsr.runtime.checkpoint import Checkpoints, was_begun
from jaxsr.runtime.distributed import is_first
from jaxsr.runtime.mesh import batch_sharding, make_mesh, replicated, share_of_batch
from jaxsr.train.build import abstract_batch, build_method, build_stream, build_subjects, fitted, prepared_set, unpaired_scans
from jaxsr.train.frozen import load_needed
from jaxsr.train.metrics import Clock, NotFinite, Recent, record, require_tensorboard
from jaxsr.train.state import State, abstract_state, frozen_shardings, make_optimizer, new_state, players_of, shardings_of, started
from jaxsr.train.step import make_step
from jaxsr.train.stop import StopSignals
from jaxsr.upscale.model import check_frozen, load_start
from jaxsr.weights.standard import named_model

VOLUMES = "volumes.txt"  # in the run directory: the volumes, or label maps, that it is trained on, a line each
UNPAIRED = "unpaired.txt"  # there too, of scans without a truth
MANIFEST_SUM = "manifest.sha256"  # there too, of a prepared set, as sha256sum writes it
TRAINING = 2**20  # the purpose of the key that training noise comes from; splits and subjects have small numbers

Report = Callable[[int, dict[str, float]], None]  # step, scalars: called at every log step
Note = Callable[[str], None]


class TrainingDiverged(RuntimeError):
    """The loss is NaN or infinite; says where and what is left."""


def train(experiment: Experiment, run_dir: Path, report: Report = lambda step, scalars: None, note: Note = lambda text: None) -> State:
    """Trains until `experiment.train.steps`, from the newest checkpoint in `run_dir` that can be read. Returns the final state.

    Writes `config.yaml`, `volumes.txt` (where there is a folder of them) or `manifest.sha256` (where there is a prepared set),
    `metrics.jsonl`, `checkpoints/` and, if wanted, `tensorboard/`.

    Args:
      report: given the scalars of each log step.
      note: given sentences that people should see; may be called from other threads.

    Raises:
      ConfigError: where `run_dir` belongs to another experiment, or what is to be started from or frozen is another network.
      ModelError: where a network that the method needs is not there, or another than the run began with.
      CheckpointError: where its checkpoint is of another shape or dtype or cannot be read, or all are damaged.
      TrainingDiverged: NaN or Inf; the checkpoint before it stays.
      Stopped: after SIGTERM, with the state saved; Interrupted, likewise, after Ctrl-C.
    """
    experiment = _settled(experiment)
    records = prepared_set(experiment.data)
    experiment = fitted(experiment, records)
    config = experiment.train
    if config.tensorboard:
        require_tensorboard()
    begun = was_begun(run_dir / "checkpoints")
    if begun:
        _check_config(run_dir, experiment)
    mesh = make_mesh(**dict(experiment.mesh))
    rows = share_of_batch(mesh, config.batch_size, config.accumulate)
    method = build_method(experiment)
    optimizer = make_optimizer(experiment.optimizer, config.steps, players_of(method))
    encoding = records.manifest.encoding if records else None
    shape = abstract_batch(experiment, records)
    frozen, sums = load_needed(experiment, method, shape, encoding)
    subjects = records or build_subjects(experiment.data, "train", experiment.seed, note)
    if begun:
        _check_set(run_dir, experiment, subjects)
    abstract = abstract_state(method, optimizer, shape, mesh)
    shardings = shardings_of(abstract)

    def check(about: dict) -> None:
        _check_same(experiment, _settled(from_dict(about["config"], Experiment)), run_dir)
        check_frozen(experiment, sums, about.get("frozen", {}), run_dir)

    def save(step: int) -> None:
        about = {"config": to_dict(experiment), "next_batch": step, "version": jaxsr.__version__, "frozen": sums}
        checkpoints.save(step, state, about)

    with StopSignals() as stop, Checkpoints(run_dir / "checkpoints", keep=config.keep_checkpoints) as checkpoints:
        found = checkpoints.newest(abstract, check, note)
        _claim(run_dir, experiment, subjects)  # only now: what is refused leaves nothing that would refuse the next
        if found:
            start, state = found
            note(f"resumed {run_dir} at step {start}")
        else:
            start, state = 0, new_state(method, optimizer, shape, jax.random.key(experiment.seed), shardings)
            # A student that is distilled further starts as it was.
            state = started(state, load_start(experiment, method, note) | frozen.get("student", {}))
        if start >= config.steps:
            note(f"{run_dir} is already at step {start} of {config.steps}: nothing to do")
            return state

        held = held_to_train(method, frozen, shape, experiment.precision)
        fixed = jax.device_put(held, frozen_shardings(method, mesh, shape))
        del frozen, held  # the host's copies
        by_batch, everywhere = batch_sharding(mesh), replicated(mesh)
        step_fn = jax.jit(
            make_step(method, optimizer, ema=config.ema, steps=config.steps, accumulate=config.accumulate),
            donate_argnums=0,
            out_shardings=(shardings, everywhere),
        )
        root = jax.random.fold_in(jax.random.key(experiment.seed), TRAINING)
        recent, clock = Recent(), Clock()

        # The position of the input is the step, so there is no other position to save.
        with (
            build_stream(experiment, subjects, note) as stream,
            record(run_dir, start, config.tensorboard) as write,
        ):
            iterator = batches(stream, config.batch_size, start=start, rows=rows, threads=experiment.data.threads)
            done = start
            try:
                while done < config.steps:
                    if sample := stop.next_of(iterator):
                        batch = laid_out(sample, shape, by_batch)
                        with jax.set_mesh(mesh):  # which a mixture's experts are laid over
                            state, metrics = step_fn(state, batch, root, fixed)
                        done += 1
                        recent.add(done, metrics, sample["origin"])
                    stopping = sample is None or stop.requested(done)
                    saving = done % config.checkpoint_every == 0 or done == config.steps or stopping
                    looking = saving or done % config.log_every == 0 or done == start + 1
                    if looking and (scalars := recent.newest()):  # before saving: a poisoned state must never be the newest
                        scalars |= clock.rates(done, config.batch_size)
                        write(done, scalars)
                        report(done, scalars)
                    if saving and done > start:
                        save(done)
                    if stopping:
                        saved = ", which is saved" if done else ", before anything was to be saved"
                        raise stop.error(f"stopped at step {done}{saved}; run the same command again to go on from there")
            except NotFinite as error:
                raise TrainingDiverged(_diverged(error, subjects, run_dir, checkpoints.latest)) from None
    return state


def laid_out(sample: Sample, shape: Batch, sharding: NamedSharding) -> Batch:
    """This process's share of a batch, in ascending order, as its part of the whole, laid out over all devices; no copy is made here."""
    wanted = {name: leaf for name, leaf in shape._asdict().items() if leaf is not None}
    made = {name: jax.make_array_from_process_local_data(sharding, sample[name], leaf.shape) for name, leaf in wanted.items()}  # type: ignore[literal-required]
    return shape._replace(**made)


def _settled(experiment: Experiment) -> Experiment:
    """With absolute paths: one folder has many spellings, and a run is resumed from anywhere."""
    data = experiment.data
    manifest = data.manifest / MANIFEST if data.manifest and data.manifest.is_dir() else data.manifest
    of_data = {"volumes": data.volumes, "labels": data.labels, "unpaired": data.unpaired, "manifest": manifest}
    absolute: dict[str, Any] = {name: path.resolve() for name, path in of_data.items() if path}
    absolute["mixture"] = tuple(_absolute(source) for source in data.mixture)
    settled: dict[str, Any] = {"data": data.model_copy(update=absolute)}
    if weights := getattr(experiment.method, "weights", None):
        absolute = {name: named_model(path).resolve() for name, path in weights if path}
        settled["method"] = experiment.method.model_copy(update={"weights": weights.model_copy(update=absolute)})
    return experiment.model_copy(update=settled)


def _absolute(source: SourceConfig) -> SourceConfig:
    named = {name: path.resolve() for name, path in (("volumes", source.volumes), ("labels", source.labels)) if path}
    return source.model_copy(update=named)


def check_start(experiment: Experiment, records: PreparedSet | None, run_dir: Path) -> None:
    """Whether training can begin, or go on, on `records`, of which there need be no record yet.

    Raises: as `train` before its first step, but for what a checkpoint or the set's files say.
    """
    experiment = fitted(_settled(experiment), records)
    if was_begun(run_dir / "checkpoints"):
        _check_config(run_dir, experiment)
    encoding = records.manifest.encoding if records else None
    load_needed(experiment, build_method(experiment), abstract_batch(experiment, records), encoding)


def _check_config(run_dir: Path, experiment: Experiment) -> None:
    path = run_dir / "config.yaml"
    if path.exists():
        _check_same(experiment, _settled(load_experiment(path)), run_dir)


def _check_set(run_dir: Path, experiment: Experiment, subjects: Subjects | PreparedSet) -> None:
    """Refuses to go on with other files than the run began with."""
    if _of_files(experiment.data):
        _check_volumes(run_dir / VOLUMES, subjects.ids)
    if experiment.data.unpaired:
        _check_volumes(run_dir / UNPAIRED, unpaired_scans(experiment.data).ids)
    path = run_dir / MANIFEST_SUM
    if isinstance(subjects, PreparedSet) and path.exists() and path.read_text().split()[:1] != [subjects.sha256]:
        raise ConfigError(
            f"{run_dir} was begun with another prepared set: the SHA-256 of {experiment.data.manifest} is not what {path} says; choose "
            "another folder, or put the set back as it was"
        )


def _check_volumes(path: Path, names: Sequence[str]) -> None:
    """Refuses to go on with other volumes than the run began with, which `path` names: the order of all would be another."""
    if path.exists():
        before = path.read_text(encoding="utf-8").splitlines()
        changed = [f"- {name}" for name in before if name not in set(names)] + [f"+ {name}" for name in names if name not in set(before)]
        if changed:
            shown = "\n  ".join([*changed[:10], *(["…"] if len(changed) > 10 else [])])
            raise ConfigError(
                f"{path.parent} was begun with other volumes; choose another folder, or put {_keys(path)} back as it was "
                f"({len(changed)} differences, - missing, + new):\n  {shown}"
            )


def _of_files(data: DataConfig) -> bool:
    """Whether who is in the set depends on what is in folders."""
    return bool(data.volumes or data.labels or any(source.volumes or source.labels for source in data.mixture))


def _keys(path: Path) -> str:
    return "data.unpaired" if path.name == UNPAIRED else "data.volumes (or data.labels)"


def _claim(run_dir: Path, experiment: Experiment, subjects: Subjects | PreparedSet) -> None:
    """Writes what the run is of, once all processes have read what was there."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("run directory read")
    if is_first():
        run_dir.mkdir(parents=True, exist_ok=True)
        write_text(run_dir / "config.yaml", dump(experiment))
        names = "".join(f"{name}\n" for name in subjects.ids) if _of_files(experiment.data) else ""
        checksum = f"{subjects.sha256}  {experiment.data.manifest}\n" if isinstance(subjects, PreparedSet) else ""
        scans = "".join(f"{name}\n" for name in unpaired_scans(experiment.data).ids) if experiment.data.unpaired else ""
        for path, text in ((run_dir / VOLUMES, names), (run_dir / UNPAIRED, scans), (run_dir / MANIFEST_SUM, checksum)):
            if text:
                write_text(path, text)
            else:
                path.unlink(missing_ok=True)  # of another experiment, which got no further than that


def _check_same(now: Experiment, before: Experiment, run_dir: Path) -> None:
    decays = {settings.decay for settings in (now.optimizer, now.optimizer.discriminator) if settings}
    by_length = decays != {"constant"} or getattr(now.method, "by_progress", False)
    free = tuple(name for name in FREE_ON_RESUME if name != "train.steps" or not by_length)
    changed = [d for d in differences(before, now) if not d.startswith(free)]
    if changed:
        lines = "\n  ".join(changed)
        raise ConfigError(f"{run_dir} holds another experiment; choose another folder, or set back:\n  {lines}")


def _diverged(error: NotFinite, subjects: Subjects | PreparedSet, run_dir: Path, latest: int | None) -> str:
    last = f"the last good checkpoint is of step {latest}" if latest is not None else "there is no checkpoint yet"
    slices = "\n  ".join(sample_ids(error.origin, subjects))
    return (
        f"training diverged at step {error.step}: {error} ({last}). The same command again would come to the same step: train with a lower "
        f"optimizer.learning_rate in another folder than {run_dir}, or without a volume that is at fault. The batch was:\n  {slices}"
    )
