"""Checkpoints: one composite item a step, written by Orbax in the background, restored onto any mesh.

    state    step, parameters, EMA, optimiser, running statistics
    about    configuration, position of the input pipeline, code version: what the state means without the files beside it

The position of the input is the step: batch k is a function of k alone, on any number of hosts.

A checkpoint is written under a temporary name and renamed when it is whole, so what a killed process leaves is no checkpoint. What
happens to it later (a copy cut short, a flipped bit: Orbax keeps no checksum of the arrays) shows in `SHA256SUMS`, which is written before
the renaming and which `sha256sum -c` reads too. A damaged checkpoint is skipped with a note, and the one before it is taken; one that
cannot be read at the moment (a file server that does not answer, a permission) is not damaged, and ends the command.
"""

import hashlib
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from jaxsr.runtime.distributed import is_first

HOW = "train with `jaxsr train CONFIG --run-dir DIR` first"
SUMS = "SHA256SUMS"

_ASIDE = ".corrupt"  # what damaged checkpoints end with, then -2, -3, …
_REWRITTEN = "_CHECKPOINT_METADATA"  # by Orbax at the moment of renaming: times only

Note = Callable[[str], None]


class CheckpointError(ValueError):
    """A checkpoint that does not fit; one sentence with the way out."""


class NoCheckpoint(CheckpointError):
    """No checkpoint where one is needed."""


class Checkpoints:
    """The checkpoints under `folder`, of which the newest `keep` stay; leaving the context waits for what is being written.

    What an interrupted save left behind is deleted.
    """

    def __init__(self, folder: Path, *, keep: int = 3):
        self._folder = folder.resolve()
        options = ocp.CheckpointManagerOptions(
            preservation_policy=ocp.checkpoint_managers.LatestN(keep),
            create=True,
            cleanup_tmp_directories=True,
            async_options=ocp.AsyncOptions(post_finalization_callback=self._sign),  # runs before the renaming
        )
        self._manager = ocp.CheckpointManager(self._folder, options=options, handler_registry=_handlers())

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._manager.wait_until_finished()
        self._manager.close()

    @property
    def latest(self) -> int | None:
        """The newest complete step, or None; waits for one that is being written."""
        self._manager.wait_until_finished()
        return self._manager.latest_step()

    def save(self, step: int, state: Any, about: Mapping[str, Any]) -> None:
        """Starts writing; returns once the state has been copied off the devices."""
        if step in self._manager.all_steps():
            return
        items = {"state": ocp.args.StandardSave(state), "about": ocp.args.JsonSave(dict(about))}
        self._manager.save(step, args=ocp.args.Composite(**items), force=True)

    def newest(self, abstract_state: Any, check: Callable[[dict[str, Any]], None], note: Note) -> tuple[int, Any] | None:
        """The newest step that is not damaged and its state, as `restore`; None where no checkpoint has been.

        Damaged ones are renamed to STEP.corrupt, so that the step can be saved again, and `note` is told.

        Args:
          check: given what was saved beside the state, before the state is read; raises to refuse it.

        Raises:
          CheckpointError: as `restore` and `find_damage`, and whatever `check` raises; where all there were are damaged: hours of training
            are not begun again unasked.
        """
        for step in sorted(self._manager.all_steps(), reverse=True):
            if damage := self._damage(step, note):
                self._set_aside(step, damage, note)
            else:
                check(self.about(step))
                return step, self.restore(step, abstract_state)
        if _from_first(is_first() and any(self._folder.glob(f"*{_ASIDE}*"))):
            raise CheckpointError(
                f"every checkpoint in {self._folder} is damaged and was set aside as *{_ASIDE}: "
                f"delete that folder to begin anew, or choose another --run-dir"
            )
        return None

    def restore(self, step: int, abstract_state: Any) -> Any:
        """The state of `step`, laid out as `abstract_state` (shapes, dtypes, shardings).

        Raises:
          CheckpointError: where trees, shapes or dtypes differ, naming what.
        """
        _check(step, self._manager.item_metadata(step)["state"], abstract_state)
        return self._manager.restore(step, args=ocp.args.Composite(state=ocp.args.StandardRestore(abstract_state)))["state"]

    def about(self, step: int) -> dict[str, Any]:
        """What was saved beside the state of `step`."""
        return self._manager.restore(step, args=ocp.args.Composite(about=ocp.args.JsonRestore()))["about"]

    def _sign(self) -> None:
        """Writes the checksums of the checkpoint that is about to get its name; there is one at a time."""
        if is_first():
            for folder in self._folder.glob("*.orbax-checkpoint-tmp"):
                files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name not in (SUMS, _REWRITTEN))
                lines = [f"{_sha256(path)}  {path.relative_to(folder).as_posix()}\n" for path in files]
                (folder / SUMS).write_text("".join(lines), encoding="utf-8")

    def _damage(self, step: int, note: Note) -> str:
        """As `find_damage`; read by one process, told to all."""
        damage, error = "", None
        if is_first():
            try:
                damage = find_damage(self._folder / str(step), note)
            except CheckpointError as unreadable:
                error = unreadable
        if _from_first(error is not None):
            raise error or CheckpointError(f"{self._folder / str(step)} cannot be read by the first process, which says why")
        return damage or ("damaged" if _from_first(bool(damage)) else "")

    def _set_aside(self, step: int, damage: str, note: Note) -> None:
        damaged = self._folder / str(step)
        aside = next(p for n in range(1, 1000) if not (p := damaged.with_name(f"{step}{_ASIDE}{'' if n == 1 else f'-{n}'}")).exists())
        if is_first():
            damaged.rename(aside)
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("checkpoint set aside")
        self._manager.reload()
        note(f"checkpoint {damaged} is damaged and is skipped ({damage}); it is now {aside.name}")


def was_begun(folder: Path) -> bool:
    """Whether `folder` holds a checkpoint, be it a damaged one."""
    return folder.is_dir() and any(p.name.isdigit() or _ASIDE in p.name for p in folder.iterdir())


def find_damage(checkpoint: Path, note: Note = lambda text: None) -> str:
    """What is wrong with the files of `checkpoint`, by their checksums; empty where nothing is.

    One without checksums, as older versions wrote them, is taken for whole, and `note` is told.

    Raises:
      CheckpointError: where a file is there and cannot be read, which says nothing about what is in it.
    """
    path = checkpoint / SUMS
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        for line in lines:
            saved, _, name = line.partition("  ")
            if not name or not name.isprintable():
                return f"{SUMS} is not what was written"
            path = checkpoint / name
            try:
                if _sha256(path) != saved:
                    return f"{name} is not what was written: its SHA-256 differs"
            except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
                return f"{name} is missing"
        return "" if lines else f"{SUMS} is empty"
    except FileNotFoundError:
        if not checkpoint.is_dir():
            return "it is gone"
        note(f"checkpoint {checkpoint} has no checksums ({SUMS}) and cannot be verified")
        return ""
    except OSError as error:
        raise CheckpointError(
            f"{path} cannot be read ({error.strerror}); nothing was changed: "
            f"run the same command again once it can, or move {checkpoint} away to use the one before"
        ) from error


def newest_checkpoint(folder: Path, note: Note = lambda text: None) -> int:
    """The newest step under `folder` that is not damaged; `note` is told of those that are.

    Raises:
      NoCheckpoint: where there is none.
      CheckpointError: as `find_damage`.
    """
    if not folder.is_dir():
        raise NoCheckpoint(f"{folder} holds no checkpoint: {HOW}")
    with ocp.CheckpointManager(folder.resolve(), item_handlers={"about": ocp.JsonCheckpointHandler()}) as manager:
        for step in sorted(manager.all_steps(), reverse=True):
            if not (damage := find_damage(folder / str(step), note)):
                return step
            note(f"checkpoint {folder / str(step)} is damaged and is skipped ({damage})")
    raise NoCheckpoint(f"{folder} holds no checkpoint that can be read: {HOW}")


def read_checkpoint(folder: Path, abstract: Any, note: Note = lambda text: None, *, without: Collection[str] = ()) -> tuple[int, Any]:
    """The step of `newest_checkpoint`, and the part of its state that `abstract` names, e.g. only `{"ema": …}`.

    Args:
      without: networks that `abstract` leaves out of each of those.

    Raises:
      CheckpointError: as `newest_checkpoint`, and where shapes or dtypes differ.
    """
    step = newest_checkpoint(folder, note)
    # The handler of what is not read is named too: Orbax would warn people about it otherwise.
    handlers = {"state": ocp.PyTreeCheckpointHandler(), "about": ocp.JsonCheckpointHandler()}
    with ocp.CheckpointManager(folder.resolve(), item_handlers=handlers) as manager:
        saved = manager.item_metadata(step)["state"]
        _check(step, {name: {of: tree for of, tree in saved[name].items() if of not in without} for name in abstract}, abstract)
        restore = ocp.args.PyTreeRestore(
            item=abstract, restore_args=ocp.checkpoint_utils.construct_restore_args(abstract), partial_restore=True
        )
        return step, manager.restore(step, args=ocp.args.Composite(state=restore))["state"]


def read_checkpoint_about(folder: Path, step: int) -> dict[str, Any]:
    """What was saved beside the state of `step` under `folder`."""
    with ocp.CheckpointManager(folder.resolve(), item_handlers={"about": ocp.JsonCheckpointHandler()}) as manager:
        about: dict[str, Any] = manager.restore(step, args=ocp.args.Composite(about=ocp.args.JsonRestore()))["about"]
        return about


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _from_first(said: bool) -> bool:
    """What the first process says, told to all."""
    return bool(multihost_utils.broadcast_one_to_all(np.int32(said))) if jax.process_count() > 1 else said


def _handlers() -> Any:
    # Named in advance, so that a manager can say what a checkpoint holds before it has saved one itself.
    registry = ocp.handlers.DefaultCheckpointHandlerRegistry()
    state, about = ocp.StandardCheckpointHandler(), ocp.JsonCheckpointHandler()
    for arguments in (ocp.args.StandardSave, ocp.args.StandardRestore):
        registry.add("state", arguments, state)
    for arguments in (ocp.args.JsonSave, ocp.args.JsonRestore):
        registry.add("about", arguments, about)
    return registry


def _check(step: int, saved_state: Any, wanted: Any) -> None:
    # Orbax casts dtypes silently; a state that changed its precision is another state.
    saved, expected = _leaves(saved_state), _leaves(wanted)
    wrong = [f"{name}: not in the checkpoint" for name in expected.keys() - saved.keys()]
    wrong += [f"{name}: only in the checkpoint" for name in saved.keys() - expected.keys()]
    wrong += [
        f"{name}: {saved[name][1]}{list(saved[name][0])} saved, {expected[name][1]}{list(expected[name][0])} expected"
        for name in expected.keys() & saved.keys()
        if expected[name] != saved[name]
    ]
    if wrong:
        shown = "\n  ".join(sorted(wrong)[:10])
        raise CheckpointError(f"checkpoint {step} does not fit this configuration, in {len(wrong)} places:\n  {shown}")


def _leaves(tree: Any) -> dict[str, tuple[tuple[int, ...], str]]:
    flat = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {_name(path): (tuple(leaf.shape), str(leaf.dtype)) for path, leaf in flat if hasattr(leaf, "shape")}


def _name(path: Any) -> str:
    return "/".join(str(getattr(p, "key", getattr(p, "name", getattr(p, "idx", p)))) for p in path)
