"""Which heads enter a benchmark, and why others do not."""

import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import NamedTuple

import numpy as np

from jaxsr.data.people import person_of
from jaxsr.evaluate.compare import dependence
from jaxsr.evaluate.files import pair_files, subjects_of, volume_files
from jaxsr.evaluate.grids import EvaluationError, check_mask
from jaxsr.evaluate.protocol import Protocol
from jaxsr.files import shown
from jaxsr.upscale.guides import Guides
from jaxsr.upscale.inputs import find_sources
from jaxsr.upscale.sidecar import read_sidecar
from jaxsr.volume.decode import load_data, open_image
from jaxsr.volume.header import place
from jaxsr.volume.io import VolumeError
from jaxsr.volume.orientation import turn_of

FEWEST = 64  # distinct values: label maps of a head's structures have fewer, images of 8 bits more
ALIKE = 0.5  # of neighbours off the background: in label maps nearly all are of one structure, in images of 8 bits a tenth


class NoHeads(EvaluationError):
    """Nothing to do: no head is there, or none enters."""


class Heads(NamedTuple):
    """Attributes:
    source: file, folder or list.
    entered: subject → file.
    left_out: subject → why it does not enter.
    acquired: subject → the file that is degraded in place of the head, where it is another.
    guides: subject → the maps of what shows in the head and not in what is acquired.
    """

    source: Path
    entered: dict[str, Path]
    left_out: dict[str, str]
    acquired: Mapping[str, Path] = {}
    guides: Mapping[str, Guides] = {}


def find_heads(source: Path, protocol: Protocol, out: Path | None = None) -> Heads:
    """The head in a file, those in a folder and its subfolders, or those that a `.txt` list names.

    Masks, segmentations, label maps and what jaxsr made are none; what lies below `out`, where an earlier run put it, is not even named.
    Of a head that may enter, the voxels are read: no header says that they are labels.

    Raises:
      EvaluationError: where there is no such path; NoHeads: where there is no volume. VolumeError: for a list that is none, and where
        `source` is a single volume that cannot be read.
    """
    if not source.exists():
        raise EvaluationError(f"{shown(source)} does not exist: check the path")
    paths = list(dict.fromkeys(path.absolute() for path in find_sources(source)[0])) if _is_list(source) else volume_files(source)
    paths = [path for path in paths if out is None or not path.resolve().is_relative_to(out.resolve())]
    if not paths:
        raise NoHeads(f"{shown(source)}: no heads there (.nii, .nii.gz, .mgz, .mgh): name a volume, a folder or a list of them, not in -o")
    heads = Heads(source, {}, {})
    for path, subject in subjects_of(paths, _root(source, paths)).items():
        try:
            why = _made_here(path) or protocol.refusal(voxel_size(path)) or _no_image(path)
        except VolumeError as error:
            if path == source:  # the single input is unusable, which is another thing than nothing to do
                raise VolumeError(f"{shown(path)}: {error}") from None
            why = str(error)
        if why:
            heads.left_out[subject] = f"does not enter: {why}"
        else:
            heads.entered[subject] = path
    return heads


def voxel_size(path: Path) -> tuple[float, float, float]:
    """Of one volume, mm to the right, front and top, by its header alone. VolumeError, without the file's name, for another array."""
    image = open_image(path)
    if len(image.shape) < 3 or np.prod(image.shape[3:]) != 1:
        raise VolumeError(f"an array of {' × '.join(map(str, image.shape))} is not one volume")
    affine = place(image).affine
    x, y, z = np.linalg.norm(affine[:3, :3], axis=0)[list(turn_of(affine).order)].tolist()
    return x, y, z


def masks_of(heads: Heads, masks: Path) -> dict[Path, Path]:
    """Head → its mask in a file or folder, by name. Of a list each head is looked for alone; a mask that fits two is of none.

    Those of heads that enter are read: none is an image.

    Raises:
      EvaluationError: where there is no such path, one file for the heads of a list, or a mask is an image. VolumeError: for one that
        cannot be read.
    """
    found = _paired_masks(heads, masks)
    for head in heads.entered.values():
        if head in found:
            check_mask(found[head], head)
    return found


def _paired_masks(heads: Heads, masks: Path) -> dict[Path, Path]:
    if not masks.exists():
        raise EvaluationError(f"--mask {shown(masks)} does not exist: check the path")
    if not _is_list(heads.source):
        return dict(pair_files(heads.source, masks, masks=True).matched.values())
    if masks.is_file():
        raise EvaluationError(f"--mask {shown(masks)} is one file, and the heads are a list: name a folder of masks")
    found = {head: mask for path in heads.entered.values() for head, mask in pair_files(path, masks, masks=True).matched.values()}
    count = Counter(found.values())
    return {head: mask for head, mask in found.items() if count[mask] == 1}


def people_note(heads: Heads, scored: list[str]) -> str | None:
    """A sentence where names and folders say that several of the heads `scored` are of one person; of BIDS names the comparison says it."""
    root = _root(heads.source, list(heads.entered.values()))
    inside = {s: PurePath(heads.entered[s].name) if root.is_file() else heads.entered[s].relative_to(root) for s in scored}
    people = {person_of(path) for path in inside.values()}
    if len(people) == len(scored) or all(subject.startswith("sub-") for subject in scored):
        return None
    return f"by their names and folders, {dependence(len(scored), len(people))}"


def _is_list(source: Path) -> bool:
    return source.suffix.lower() == ".txt" and source.is_file()


def _root(source: Path, paths: list[Path]) -> Path:
    return Path(os.path.commonpath([path.parent for path in paths])) if _is_list(source) and paths else source


def _made_here(path: Path) -> str | None:
    """Why a file that jaxsr wrote is no head; what `jaxsr generate` rendered is one, its maps are not."""
    if read_sidecar(path) is not None:
        return "jaxsr made it, as the sidecar beside it says"
    if (
        path.parent.name in ("reference", "bias", "gradient", "labels", "mask", "plain")
        and (path.parent.parent / "generated.json").is_file()
    ):
        return f"a map ({path.parent.name}) of a generated head, which lies in high/"
    return None


def _no_image(path: Path) -> str | None:
    """Why the voxels are no image of a head."""
    data, _ = load_data(open_image(path), None)
    return labelled(data) if np.isfinite(data).all() else None  # reading it to degrade it says what is wrong


def labelled(data: np.ndarray) -> str | None:
    """Why voxels are those of a mask or a label map; None where they are an image's."""
    planes = [np.take(data, n // 2, axis) for axis, n in enumerate(data.shape)]
    values, counts = np.unique(np.concatenate([plane.ravel() for plane in planes]), return_counts=True)
    if len(values) < FEWEST and (distinct := len(np.unique(data))) < FEWEST:
        return f"a mask or label map: {distinct} distinct value{'s' * (distinct != 1)}, an image has {FEWEST} or more"
    if (values != np.rint(values)).any():
        return None
    background, alike, pairs = values[counts.argmax()], 0, 0
    for plane in planes:
        for first, second in ((plane[1:], plane[:-1]), (plane[:, 1:], plane[:, :-1])):
            off = (first != background) | (second != background)
            alike, pairs = alike + int((first == second)[off].sum()), pairs + int(off.sum())
    if alike > ALIKE * pairs:
        return f"a label map: whole numbers, {alike / pairs:.0%} of neighbours alike"
    return None
