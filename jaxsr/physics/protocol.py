"""What a scanner is set to: named acquisitions, and how a config changes one or writes its own.

    acquisition: 64mT                                      one that acquisitions.yaml, beside this file, describes
    acquisition: {name: thick-slice, snr: [10, 20]}        one with settings of one's own on top
    acquisition: {voxel_size: [1, 1, 4], slice_axis: 2}    one's own

What has a range is drawn anew for every volume, uniformly. What has none, or is null, is off and costs nothing. Needs no JAX.
"""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic

from jaxsr.config import ConfigError, Strict, from_dict, load
from jaxsr.config.document import merge, plain, plant, read_file, read_overrides

SIZES = 5  # values that a range of millimetres is drawn from

_FILE = Path(__file__).with_name("acquisitions.yaml")


def _as_range(value: Any) -> Any:
    """A number is a range that ends where it starts."""
    return (value, value) if isinstance(value, int | float) and not isinstance(value, bool) else value


def _in_order(ends: tuple[float, float]) -> tuple[float, float]:
    if ends[0] > ends[1]:
        raise ValueError(f"a range goes from low to high, not {list(ends)}")
    return ends


Axis = Annotated[int, pydantic.Field(ge=0, le=2)]
Positive = Annotated[float, pydantic.Field(gt=0)]
NotNegative = Annotated[float, pydantic.Field(ge=0)]
Millimetres = Annotated[float, pydantic.Field(ge=0.1, le=50)]
Range = Annotated[tuple[NotNegative, NotNegative], pydantic.BeforeValidator(_as_range), pydantic.AfterValidator(_in_order)]
PositiveRange = Annotated[tuple[Positive, Positive], pydantic.BeforeValidator(_as_range), pydantic.AfterValidator(_in_order)]
SignedRange = Annotated[tuple[float, float], pydantic.BeforeValidator(_as_range), pydantic.AfterValidator(_in_order)]
Size = Millimetres | Annotated[tuple[Millimetres, Millimetres], pydantic.AfterValidator(_in_order)]


class PartialFourier(Strict):
    """The `fraction` of the lines along `axis` that is acquired, and whether the rest is zero or its mirror image's conjugate."""

    fraction: float = pydantic.Field(0.75, gt=0.5, le=1)
    axis: Axis = 1
    fill: Literal["zero", "conjugate"] = "zero"


class Motion(Strict):
    """A head that moves `jumps` times while the lines along `axis` are acquired.

    Attributes:
      rotation: standard deviation of the angle about each axis, degrees.
      translation: standard deviation of the shift along each axis, mm.
    """

    jumps: int = pydantic.Field(3, ge=1, le=16)
    rotation: Range = (0.0, 1.0)
    translation: Range = (0.0, 1.0)
    axis: Axis = 1


class Ghosting(Strict):
    """Ghosts along `axis`, at every `every`-th part of the field of view, `intensity` times as strong as the image, of random phase."""

    every: int = pydantic.Field(2, ge=2, le=16)
    intensity: Range = (0.0, 0.1)
    axis: Axis = 1


class Acquisition(Strict):
    """A scanner's settings, with ranges where scanners differ. Axes are 0 to the right, 1 to the front, 2 to the top.

    Attributes:
      name: which named acquisition the others are settings on top of, or any other name for one's own.
      voxel_size: mm along the three axes of the acquired voxels; across slices their thickness. Each may be a range, of which one of 5
        equidistant values is drawn, as each makes a program of its own; equal ranges draw the same value.
      gap: mm between slices, or a range like that; below zero they overlap. The distance of slices is thickness + gap.
      slice_axis: 0, 1 or 2 for a two-dimensional acquisition with slices across that axis; null for a three-dimensional one.
      profile: of a slice: rectangular, gaussian, or sinc; its FWHM is the thickness.
      time_bandwidth: product of the RF pulse of a sinc profile.
      window: of k-space, of the plane or the volume: box, ellipse, hamming or tukey.
      partial_fourier: null, or which lines are acquired.
      blur: FWHM in mm of the point spread of the plane or the volume, beside that of sampling.
      snr: mean foreground signal over the noise's standard deviation a channel and coil in the image; null for none. The foreground is what
        is brighter than a tenth of the maximum, single hot voxels aside.
      coils: 1 for Rician noise, more for non-central χ noise, the root of the sum of squares over as many equal coils.
      bias: standard deviation of the logarithm of the bias field.
      warp: longest displacement in mm by the gradient coils' nonlinearity, signal conserved; the image is not undistorted again.
      gamma: contrast: x becomes max · (x / max)^gamma; its logarithm is drawn. 1 for none.
      motion: null, or how the head moves.
      ghosting: null, or which ghosts there are.
    """

    name: str = "custom"
    voxel_size: tuple[Size, Size, Size]
    gap: float | SignedRange = 0.0
    slice_axis: Axis | None = None
    profile: Literal["rectangular", "gaussian", "sinc"] = "gaussian"
    time_bandwidth: float = pydantic.Field(4.0, ge=1, le=32)
    window: Literal["box", "ellipse", "hamming", "tukey"] = "box"
    partial_fourier: PartialFourier | None = None
    blur: Range = (0.0, 0.0)
    snr: PositiveRange | None = None
    coils: int = pydantic.Field(1, ge=1, le=128)
    bias: Range = (0.0, 0.0)
    warp: Range = (0.0, 0.0)
    gamma: PositiveRange = (1.0, 1.0)
    motion: Motion | None = None
    ghosting: Ghosting | None = None

    @pydantic.model_validator(mode="before")
    @classmethod
    def _on_top_of_the_named(cls, data: Any) -> Any:
        if isinstance(data, str):
            data = {"name": _known(data)}
        if not isinstance(data, dict):
            return data
        if (name := data.get("name")) in _shipped():
            return plain(merge(plant(_shipped()[name], ""), plant(data, "")))
        if "voxel_size" not in data:
            raise ValueError(f"needs the name of an acquisition that it changes ({', '.join(_shipped())}), or a voxel_size of its own")
        return data

    @pydantic.model_validator(mode="after")
    def _fits_together(self) -> "Acquisition":
        low, high = _ends(self.gap)
        if self.slice_axis is None:
            if (low, high) != (0, 0):
                raise ValueError("gap is between slices: give a slice_axis, or no gap")
            return self
        thinnest = _ends(self.voxel_size[self.slice_axis])[0]
        if low <= -thinnest:
            raise ValueError(f"gap must be above -{thinnest:g}, the slice thickness, or slices would not advance, got {low:g}")
        for part in ("partial_fourier", "motion", "ghosting"):
            if (setting := getattr(self, part)) and setting.axis == self.slice_axis:
                raise ValueError(f"{part}.axis must not be the slice_axis, {self.slice_axis}: across slices there is no k-space")
        return self

    @property
    def settled(self) -> bool:
        """Whether nothing that decides the shape has a range."""
        return not any(isinstance(size, tuple) for size in (*self.voxel_size, self.gap))

    @property
    def spacing(self) -> tuple[float, float, float]:
        """mm between the centres of acquired voxels. Raises ValueError where a range decides (`settle` or `typical` settle it)."""
        if not self.settled:
            raise ValueError(f"the acquisition {self.name} has ranges of voxel sizes: settle it before asking for its grid")
        x, y, z = (_ends(size)[0] + (_ends(self.gap)[0] if axis == self.slice_axis else 0) for axis, size in enumerate(self.voxel_size))
        return x, y, z

    @property
    def in_plane(self) -> tuple[int, ...]:
        """The axes along which there is k-space."""
        return tuple(axis for axis in range(3) if axis != self.slice_axis)

    def with_sizes(self, share: dict[tuple[float, float], float]) -> "Acquisition":
        """With each range of sizes settled at the value that `share` gives for it."""

        def settled(size: Any) -> Any:
            return share[size] if isinstance(size, tuple) else size

        return self.model_copy(update={"voxel_size": tuple(settled(size) for size in self.voxel_size), "gap": settled(self.gap)})

    @property
    def ranges(self) -> tuple[tuple[float, float], ...]:
        """The ranges of sizes, each once, in the order of the settings."""
        return tuple(dict.fromkeys(size for size in (*self.voxel_size, self.gap) if isinstance(size, tuple)))

    @property
    def typical(self) -> "Acquisition":
        """With each range of sizes settled at its middle."""
        return self.with_sizes({ends: sum(ends) / 2 for ends in self.ranges})


def named_acquisition(name: str) -> Acquisition:
    """The acquisition called `name`; ValueError with the known names otherwise."""
    return from_dict({"name": _known(name)}, Acquisition)


def load_acquisition(source: str, overrides: Sequence[str] = ()) -> Acquisition:
    """The acquisition of that name, or in the YAML file of that name, with `a.b=c` overrides on top.

    Raises:
      ConfigError: with everything that is wrong.
    """
    if source not in _shipped():
        if not source.endswith((".yaml", ".yml")):
            raise ConfigError(f"unknown acquisition {source!r}; known: {', '.join(_shipped())}, or a .yaml file of your own")
        return load(source, overrides, Acquisition)
    problems: list[str] = []
    tree = merge(plant({"name": source}, ""), read_overrides(overrides, problems))
    if problems:
        raise ConfigError(*problems)
    return from_dict(plain(tree), Acquisition)


def known_acquisitions() -> tuple[str, ...]:
    """The names that `named_acquisition` knows."""
    return tuple(_shipped())


@functools.cache
def _shipped() -> dict[str, dict[str, Any]]:
    return plain(read_file(_FILE, []))  # type: ignore[no-any-return]


def _known(name: str) -> str:
    if name not in _shipped():
        raise ValueError(f"unknown acquisition {name!r}; known: {', '.join(_shipped())}")
    return name


def _ends(size: float | tuple[float, float]) -> tuple[float, float]:
    return size if isinstance(size, tuple) else (size, size)
