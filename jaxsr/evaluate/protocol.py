"""A benchmark as one file: how heads are degraded, which of them enter, and how what comes back is scored. configs/protocols/*.yaml."""

import hashlib
import re
from pathlib import Path
from typing import Any, Literal, NamedTuple

import pydantic

from jaxsr.config import ConfigError, Strict, load, to_dict
from jaxsr.evaluate.scores import DEFAULT, DataRange, Rules, check_metrics
from jaxsr.physics.protocol import Acquisition

Region = Literal["foreground", "mask", "image"]

SAME = 1.01  # ratio of voxel sizes up to which an axis is not degraded


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
    against: the method that others are tested against, an interpolation or a model's name.
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
