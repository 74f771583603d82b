"""What is run in a benchmark: each model once, or, in an ablation, once for each set of maps that guide it."""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from jaxsr.evaluate.grids import EvaluationError
from jaxsr.evaluate.interpolation import INTERPOLATIONS
from jaxsr.evaluate.protocol import Cell, Protocol, cell_name
from jaxsr.evaluate.rendered import WORDS
from jaxsr.experiment import Experiment
from jaxsr.files import shown
from jaxsr.upscale.guides import Guides, guided_by


class Run(NamedTuple):
    """`model`: the name that it was given; `cell`: by what it is guided, None where the protocol does not say."""

    model: str
    cell: Cell | None = None

    def guides(self, maps: Guides, flat: Sequence[str] = ()) -> Guides:
        """Those of the maps that guide this run; of `flat`, the model is told that there is nothing to show."""
        cell = self.cell or ()
        bias, gradient = maps.bias if "bias" in cell else None, maps.gradient if "gradient" in cell else None
        return maps._replace(bias=bias, gradient=gradient, flat=tuple(flat))


def runs_of(protocol: Protocol, models: Iterable[str]) -> dict[str, Run]:
    """Name → run; with guidance the name is that of the model and the cell, as teacher-bias.

    Raises:
      EvaluationError: for a name that could not be a folder's, is an interpolation's, or that of two runs.
    """
    runs: dict[str, Run] = {}
    for model in models:
        if model in INTERPOLATIONS or not model.replace("-", "").replace("_", "").replace(".", "").isalnum():
            raise EvaluationError(
                f"a model cannot go by the name {shown(model)!r}: use letters, digits, -, _ and ., and no interpolation's name"
            )
        of_model = {f"{model}-{cell_name(cell)}": Run(model, cell) for cell in protocol.guidance} or {model: Run(model)}
        if both := of_model.keys() & runs:
            name = sorted(both)[0]
            raise EvaluationError(f"{name} would be a run of {runs[name].model} and one of {model}: give one of them another name")
        runs |= of_model
    return runs


def against_of(protocol: Protocol, runs: Mapping[str, Run]) -> str:
    """The interpolation, or the run's name, that others are tested against. EvaluationError where there is no such method."""
    cells = {cell_name(run.cell): name for name, run in reversed(list(runs.items())) if run.cell is not None}  # the first model's stay
    for found in (protocol.against, cells.get(protocol.against)):
        if found in (*INTERPOLATIONS, *runs):
            return found
    what = "no interpolation, no cell of its guidance" if protocol.guidance else "no interpolation"
    raise EvaluationError(f"the protocol tests against {protocol.against!r}, which is {what} and no name of a model given here")


def check_guided(name: str, experiment: Experiment, protocol: Protocol) -> None:
    """Raises EvaluationError where the model is not guided by a map that the protocol gives it."""
    takes = guided_by(experiment)
    missing = sorted({guide for cell in protocol.guidance for guide in cell} - {*takes})
    if missing:
        by = f"{' and '.join(takes)} only" if takes else "no maps"
        raise EvaluationError(
            f"{shown(name)} is guided by {by}, and the protocol's guidance has {' and '.join(missing)}: name a teacher that was trained "
            "with it, or leave the model out"
        )


def guidance_notes(runs: Mapping[str, Run]) -> list[str]:
    """A sentence for each model of an ablation: which of its runs had what."""
    said: dict[str, list[str]] = {}
    for name, run in runs.items():
        if run.cell is not None:
            words = [WORDS[guide] for guide in sorted(run.cell)]
            said.setdefault(run.model, []).append(f"{name} with {' and '.join(words)}" if words else f"{name} without maps")
    return [f"{model} is one set of weights in {len(parts)} runs: {', '.join(parts)}" for model, parts in said.items()]
