"""Checkpoints: one composite item a step, written by Orbax in the background, restored onto any mesh.

    state    step, parameters, EMA, optimiser, running statistics
    about    configuration, position of the input pipeline, code version: what the state means without the files beside it

The position of the input is the step: batch k is a function of k alone, on any number of hosts.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
import orbax.checkpoint as ocp

HOW = "train with `jaxsr train CONFIG --run-dir DIR` first"


class CheckpointError(ValueError):
    """A checkpoint that is missing or does not fit; one sentence with the way out."""


class Checkpoints:
    """The checkpoints under `folder`, of which the newest `keep` stay; leaving the context waits for what is being written."""

    def __init__(self, folder: Path, *, keep: int = 3):
        options = ocp.CheckpointManagerOptions(preservation_policy=ocp.checkpoint_managers.LatestN(keep), create=True)
        self._manager = ocp.CheckpointManager(folder.resolve(), options=options, handler_registry=_handlers())

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


def read_checkpoint(folder: Path, abstract: Any, note: Callable[[str], None] = lambda text: None) -> tuple[int, Any]:
    """The newest step that can be read, and the part of its state that `abstract` names, e.g. only `{"ema": …}`; the rest is not read.

    Raises:
      CheckpointError: where there is no complete checkpoint, none can be read, or shapes or dtypes differ.
    """
    if not folder.is_dir():
        raise CheckpointError(f"{folder} holds no checkpoint: {HOW}")
    # The handler of what is not read is named too: Orbax would warn people about it otherwise.
    handlers = {"state": ocp.PyTreeCheckpointHandler(), "about": ocp.JsonCheckpointHandler()}
    with ocp.CheckpointManager(folder.resolve(), item_handlers=handlers) as manager:
        for step in sorted(manager.all_steps(), reverse=True):
            try:
                saved = manager.item_metadata(step)["state"]
                _check(step, {name: saved[name] for name in abstract}, abstract)
                restore = ocp.args.PyTreeRestore(
                    item=abstract, restore_args=ocp.checkpoint_utils.construct_restore_args(abstract), partial_restore=True
                )
                return step, manager.restore(step, args=ocp.args.Composite(state=restore))["state"]
            except CheckpointError:
                raise
            except (OSError, ValueError, KeyError, TypeError) as error:  # what Orbax raises for damaged files
                note(f"{folder / str(step)} cannot be read and is skipped ({str(error).splitlines()[0]})")
    raise CheckpointError(f"{folder} holds no checkpoint that can be read: {HOW}")


def newest_checkpoint(folder: Path) -> int:
    """The newest complete step under `folder`, whose state is not read.

    Raises:
      CheckpointError: where there is none.
    """
    if folder.is_dir():
        with ocp.CheckpointManager(folder.resolve(), item_handlers={"about": ocp.JsonCheckpointHandler()}) as manager:
            if (step := manager.latest_step()) is not None:
                return step
    raise CheckpointError(f"{folder} holds no checkpoint: {HOW}")


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
