"""A benchmark as one file: how heads are degraded, which of them enter, and how what comes back is scored.

configs/protocols/*.yaml; configs/ablations/*.yaml have heads rendered, and run one model several times, each time guided by other maps.
"""

import hashlib
import re
from pathlib import Path
from typing import Any, Literal, NamedTuple

import pydantic

from jaxsr.config import ConfigError, Strict, load, to_dict
from jaxsr.evaluate.scores import DEFAULT, DataRange, Rules, check_metrics
from jaxsr.physics.protocol import Acquisition

Region = Literal["foreground", "mask", "image"]
Guide = Literal["bias", "gradient"]
Cell = tuple[Guide, ...]  # of an ablation: the maps that guide
Axis = Literal["sagittal", "coronal", "axial"]

SAME = 1.01  # ratio of voxel sizes up to which an axis is not degraded


class RenderedHeads(Strict):
    """Heads of the embedded anatomy, which `generate` renders.

    Attributes:
      count: how many.
      voxel_size: mm.
      contrast: T1w, T2w, PDw, or random, one of its own for each.
      carries: what of their scanner shows in the heads and is not in what is acquired: its bias field, its displacement.
    """

    count: int = pydantic.Field(ge=1)
    voxel_size: float = pydantic.Field(1.0, ge=0.3, le=10)
    contrast: Literal["random", "T1w", "T2w", "PDw"] = "random"
    carries: Cell = ()


class Protocol(Strict):
    """Attributes:
    name: of the benchmark.
    acquisition: what each head is degraded by (physics/protocol.py), its voxel size without a range.
    seed: of what is drawn for each head, with the name of its file (as `jaxsr simulate` draws it), and of what models draw.
    voxel_size: 'native', any head, brought back to its own voxels; or mm, only heads of that size, within the share `tolerance`.
    least_ratio: a head enters if the acquisition is at least so many times coarser on every axis that it degrades.
    regions: where metrics are taken; foreground is that of the head, mask needs --mask; the data range is taken inside the first of these
      two, else inside the foreground.
    data_range: robust, 99.9 % minus 0.1 % percentile, or full, largest minus smallest.
    metrics: names in evaluate/metrics/registry.py, of two images.
    against: the method that others are tested against: an interpolation, a model's name or, with guidance, what a cell is called, as 'none'
      or 'bias-gradient': that of the first model.
    heads: null, heads are given; or what heads are rendered.
    guidance: of an ablation, cells: by which of the maps that the heads carry each model is guided, one run for each.
    flat: what the heads are known not to show: models that are guided by it are told so, as a model that is not told draws one of its own.
    axes: across which slices are upscaled, and averaged.
    steps: sampling steps of the models that sample; null: each model's own.
    """

    name: str = pydantic.Field(min_length=1)
    acquisition: Acquisition
    seed: int = pydantic.Field(0, ge=0)
    voxel_size: float | Literal["native"] = "native"
    tolerance: float = pydantic.Field(0.05, ge=0, lt=1)
    least_ratio: float = pydantic.Field(1.3, gt=1)
    regions: tuple[Region, ...] = ("foreground", "image")
    data_range: DataRange = "robust"
    metrics: tuple[str, ...] = DEFAULT
    against: str = "tricubic"
    heads: RenderedHeads | None = None
    guidance: tuple[Cell, ...] = ()
    flat: Cell = ()
    axes: tuple[Axis, ...] = ("sagittal", "coronal", "axial")
    steps: int | None = pydantic.Field(None, ge=1)

    @pydantic.field_validator("metrics")
    @classmethod
    def _known_metrics(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        return check_metrics(names)

    @pydantic.model_validator(mode="after")
    def _fits_together(self) -> "Protocol":
        if not self.acquisition.settled:
            raise ValueError("acquisition.voxel_size and gap have no range in a protocol: every head is degraded to one voxel size")
        if not self.regions or len(set(self.regions)) < len(self.regions) or {"foreground", "mask"} <= set(self.regions):
            raise ValueError(f"regions are image and one of foreground and mask, each once, got {', '.join(self.regions) or 'none'}")
        if self.heads is not None and (why := self.refusal((self.heads.voxel_size,) * 3)):
            raise ValueError(f"heads do not enter: {why}")
        if self.heads is not None and "mask" in self.regions:
            raise ValueError("regions: heads that are rendered come without masks: take foreground")
        if unknown := {guide for cell in self.guidance for guide in cell} - set(self.heads.carries if self.heads else ()):
            raise ValueError(
                f"guidance names {' and '.join(sorted(unknown))}, which heads.carries does not: a map can tell only what shows in the heads"
            )
        if self.flat and self.guidance:
            raise ValueError("flat and guidance do not go together: in the cells of an ablation a map is given or left out")
        if both := {*self.flat} & set(self.heads.carries if self.heads else ()):
            raise ValueError(f"flat names {' and '.join(sorted(both))}, which heads.carries does, too: the heads show it, or they do not")
        if not self.axes or len({*self.axes}) < len(self.axes):
            raise ValueError(f"axes are some of sagittal, coronal and axial, each once, got {', '.join(self.axes) or 'none'}")
        cells = [cell_name(cell) for cell in self.guidance]
        if len({*cells}) < len(cells) or any(len({*cell}) < len(cell) for cell in self.guidance):
            raise ValueError(f"guidance names a cell, or a map in one, twice: {', '.join(cells)}")
        return self

    @property
    def rules(self) -> Rules:
        return Rules(self.metrics, tuple("image" if region == "image" else "inside" for region in self.regions), self.data_range)

    def refusal(self, voxel_size: tuple[float, float, float]) -> str | None:
        """Why a head of these voxels, mm to the right, front and top, does not enter; None if it does."""
        size = " × ".join(f"{mm:.3g}" for mm in voxel_size)
        if self.voxel_size != "native" and any(abs(mm / self.voxel_size - 1) > self.tolerance for mm in voxel_size):
            return f"its voxels are {size} mm, the protocol takes {self.voxel_size:g} mm within {self.tolerance:.0%}"
        ratios = [coarse / mm for coarse, mm in zip(self.acquisition.spacing, voxel_size, strict=True)]
        degraded = [ratio for ratio in ratios if ratio > SAME]
        spacing = " × ".join(f"{mm:g}" for mm in self.acquisition.spacing)
        if not degraded:
            return f"its voxels, {size} mm, are no finer than the acquisition's {spacing} mm"
        if min(degraded) < self.least_ratio:
            return (
                f"its voxels are {size} mm, the acquisition's {spacing} mm: {min(degraded):.2f} times coarser, "
                f"{self.least_ratio:g} are asked for on every axis that gets coarser"
            )
        return None


def cell_name(cell: Cell) -> str:
    """'bias-gradient', 'bias', 'gradient' or 'none'."""
    return "-".join(sorted(cell)) or "none"


class ProtocolFile(NamedTuple):
    """A protocol, and the file that defines it, word for word."""

    protocol: Protocol
    text: str
    sha256: str

    def facts(self) -> dict[str, Any]:
        """For metrics.json; `settings` are those that hold, defaults and named acquisitions resolved."""
        return {"name": self.protocol.name, "sha256": self.sha256, "text": self.text, "settings": to_dict(self.protocol)}


def load_protocol(path: Path) -> ProtocolFile:
    """The protocol in a YAML file. Raises ConfigError with everything that is wrong; also for one with a base, as it would not be whole."""
    protocol = load(path, (), Protocol)
    data = path.read_bytes()
    if re.search(rb"^base\s*:", data, re.MULTILINE):
        raise ConfigError(f"{path}: base: a protocol is one file that says everything: write the base's settings into it")
    return ProtocolFile(protocol, data.decode("utf-8-sig"), hashlib.sha256(data).hexdigest())
