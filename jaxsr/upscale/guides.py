"""Which files guide a model on which input: the target's bias field and gradient nonlinearity. Needs no JAX; guide_maps.py reads them."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from jaxsr.data.pairs import made_of
from jaxsr.evaluate.files import pair_files
from jaxsr.files import shown
from jaxsr.upscale.inputs import Job
from jaxsr.volume.io import VolumeError

if TYPE_CHECKING:
    from jaxsr.experiment import Experiment

Convention = Literal["ras", "lps", "fsl", "fsl-absolute"]  # those of `jaxsr.data.gradients`

OPTIONS = {"bias": "--bias-field", "gradient": "--gradient-map"}
FLAT = Path("flat")  # in place of a file: the target shows no such field


class Guides(NamedTuple):
    """Files of one input; None where there is none.

    Attributes:
      bias: a volume of the field that multiplies the intensities, about 1, as N4 writes it.
      gradient: a displacement volume in mm, or a coil's coefficients; `convention` as in `jaxsr.data.gradients`.
      isocentre: of the magnet in scanner mm, for coefficients.
      flat: of bias and gradient, what the target is known not to show; a model that is not told draws one of its own.
      lacking: why this scan cannot be upscaled, or '': a folder of maps that has others has none for it.
    """

    bias: Path | None = None
    gradient: Path | None = None
    convention: Convention = "ras"
    isocentre: tuple[float, float, float] = (0.0, 0.0, 0.0)
    flat: tuple[str, ...] = ()
    lacking: str = ""

    @property
    def named(self) -> dict[str, Path]:
        """The files, by what they are of."""
        return {name: path for name, path in (("bias", self.bias), ("gradient", self.gradient)) if path}

    @property
    def told(self) -> dict[str, Path]:
        """The files, and FLAT for what there is no file of because there is nothing to show."""
        return self.named | dict.fromkeys(self.flat, FLAT)


def guides_of(
    jobs: Sequence[Job],
    source: Path,
    bias: Path | None,
    gradient: Path | None,
    convention: Convention,
    isocentre: tuple[float, float, float],
) -> dict[Path, Guides]:
    """Job's source → its maps. Those in a folder are matched to the sources by name (`pair_files`); a gradient's file is that of all, as is
    FLAT, where no file goes by that name. An input that a folder has no map for is `lacking` it, and the others are none the worse.

    Raises:
      VolumeError: where a map is not there, no input has one, or one bias field is given for several scans.
    """
    found: dict[str, dict[Path, Path]] = {}
    lacking: dict[Path, str] = {}
    flat = tuple(name for name, path in (("bias", bias), ("gradient", gradient)) if path == FLAT and not path.exists())
    for name, path in (("bias", bias), ("gradient", gradient)):
        if path is None or name in flat:
            continue
        option = OPTIONS[name]
        if not path.exists():
            raise VolumeError(f"{option} {shown(path)} is not there: check the path")
        if path.is_file():
            if name == "bias" and len(jobs) > 1:
                raise VolumeError(
                    f"{option} {shown(path)} is the field of one scan, and there are {len(jobs)}: name a folder with one of each"
                )
            found[name] = {job.source: path for job in jobs}
            continue
        folder = source if source.is_dir() else Path(os.path.commonpath([job.source.absolute().parent for job in jobs]))
        named = {job.source.absolute() if folder != source else job.source: job.source for job in jobs}
        pairs = pair_files(folder, path, only=list(named)).matched.values()
        found[name] = {named[scan]: field for scan, field in pairs}
        missing = [job.source for job in jobs if job.source not in found[name]]
        if len(missing) == len(jobs):
            raise VolumeError(_lacks(option, path, name, missing[:5]))
        lacking |= {scan: _lacks(option, path, name, [scan]) for scan in missing}
    bias_of, gradient_of = found.get("bias", {}), found.get("gradient", {})
    return {
        scan: Guides(bias_of.get(scan), gradient_of.get(scan), convention, isocentre, flat, lacking.get(scan, ""))
        for scan in (job.source for job in jobs)
    }


def _lacks(option: str, folder: Path, name: str, scans: Sequence[Path]) -> str:
    named = ", ".join(shown(scan.name) for scan in scans)
    return f"{option} {shown(folder)} has no map for {named} by its name: add it, as in scan01_{name}.nii.gz"


def maps_to_upscale(experiment: "Experiment") -> tuple[str, ...]:
    """Of a condition's maps, those that upscaling takes beside the scan: those of training, unless the method's config says others."""
    return tuple(getattr(experiment.method, "guided_by", getattr(experiment.method, "maps", ())))


def guided_by(experiment: "Experiment") -> tuple[str, ...]:
    """Which of `Guides`' files the model takes; a displacement also where its Jacobian is what guides."""
    return tuple(made_of(name) for name in maps_to_upscale(experiment))


def check_guides(experiment: "Experiment", guides: Guides) -> None:
    """Raises VolumeError where a map is given that the model is not guided by."""
    takes = guided_by(experiment)
    for name, path in guides.told.items():
        if name not in takes:
            what = "no maps" if not takes else " and ".join(takes) + " only"
            raise VolumeError(f"{shown(path)}: this model is guided by {what}: leave {OPTIONS[name]} out, or use a teacher trained with it")
