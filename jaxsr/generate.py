"""Synthetic heads as files, in the tree that `prepare --layout folder` reads.

    OUT/high/NAME.nii.gz         the head, 0…1000
    OUT/reference/NAME.nii.gz    a second contrast of it
    OUT/bias/NAME.nii.gz         the bias field that is in `high`, where it was asked for: what multiplies, not its logarithm
    OUT/gradient/NAME.nii.gz     displacement in mm along right, anterior, superior; in `high` only where it is to carry that
    OUT/labels/NAME.nii.gz       structures
    OUT/mask/NAME.nii.gz         0 where skull or face were taken off
    OUT/plain/NAME.nii.gz        the head with neither field nor displacement in it, whatever `high` shows: what another scanner acquires

NAME begins with the person whose label map a head comes from: heads of one map are one person's, and no split may part them. No head is
one that training with `data.labels` or on the embedded set renders with the same seed.
"""

import functools
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

import jaxsr
from jaxsr.data.acquired import carrying
from jaxsr.data.anatomy import Head
from jaxsr.data.people import person_of
from jaxsr.data.subjects import AnatomySubjects, stable_hash
from jaxsr.data.synthetic import LabelSubjects, find_label_maps
from jaxsr.files import write_text, write_whole
from jaxsr.physics.protocol import named_acquisition
from jaxsr.volume.errors import VolumeError
from jaxsr.volume.geometry import Grid
from jaxsr.volume.io import Volume, save_image, write_volume

SCALE = 1000.0
WARNING = "Synthetic: rendered from label maps or tissue averages; no scanner measured it. For research only, not for diagnosis."


def generate(
    out: Path,
    count: int,
    *,
    labels: Path | None = None,
    voxel_size: float = 1.0,
    contrast: str = "random",
    maps: Sequence[str] = (),
    carries: Sequence[str] | None = None,
    seed: int = 0,
    held_out: bool = False,
    source_sha256: str | None = None,
    advance: Callable[[int, str], None] = lambda done, name: None,
    note: Callable[[str], None] = lambda text: None,
) -> list[Path]:
    """Writes `count` heads; those that are there already stay. Returns the paths of their `high`.

    Args:
      labels: a folder of label maps; the embedded tissue maps where there is none.
      maps: of those of a pair, and plain, what they come with.
      carries: of bias and gradient, what shows in the image; None: bias, where it is one of the maps.
      held_out: none of the heads is one that any seed draws without this: what was trained on those has not seen them.
      source_sha256: of the program's source, where heads that another state of it made are none of these. What is in `out` and was
        generated in another way is made again then, if it was known by that digest, too.

    Raises:
      VolumeError: where `labels` holds no label map, or `out` heads generated in another way.
      FileError: where they cannot be written.
    """
    shown_in = tuple({"bias"} & {*maps}) if carries is None else tuple(carries)
    about = {
        "Description": WARNING,
        "JaxSR": {
            "Version": jaxsr.__version__,
            "Labels": labels.name if labels else None,
            "VoxelSize": voxel_size,
            "Contrast": contrast,
            "Maps": sorted(maps),
            "Carries": sorted(shown_in),
            "Seed": seed,
            **({"HeldOut": True} if held_out else {}),
            **({"SourceSHA256": source_sha256} if source_sha256 else {}),
        },
    }
    _claim(out, about)
    how: dict[str, Any] = {
        "voxel_size": voxel_size,
        "acquisition": named_acquisition("1.5T"),
        "seed": stable_hash(f"{'held out' if held_out else 'generate'}/{seed}"),
        "contrast": contrast,
        "maps": tuple(name for name in maps if name != "plain"),
        "carries": shown_in,
    }
    subjects: AnatomySubjects | LabelSubjects
    if labels is None:
        subjects = AnatomySubjects(count, "train", **how)
        names = embedded_names(count)
    else:
        paths, left_out = find_label_maps(labels)
        for sentence in left_out:
            note(f"left out: {sentence}")
        subjects = LabelSubjects(paths, labels, count, "train", **how)
        inside = [path.relative_to(labels) for path in subjects.paths]
        names = [
            f"sub-{_word(person_of(path).removeprefix('sub-'))}_acq-{_word(path.as_posix())}_run-{i:04d}" for i, path in enumerate(inside)
        ]
    written = []
    for i, name in enumerate(names):
        path = out / "high" / f"{name}.nii.gz"
        if not path.exists():
            _write(out, name, subjects.head(i), subjects.grid, maps, shown_in)
        written.append(path)
        advance(i + 1, name)
    return written


def embedded_names(count: int) -> list[str]:
    """What heads of the embedded tissue maps are called."""
    return [f"sub-{i:04d}" for i in range(count)]


def _write(out: Path, name: str, head: Head, grid: Grid, maps: Sequence[str], carries: tuple[str, ...]) -> None:
    """All files of one head, `high` last: where it is, all are."""
    affine, image = grid.affine, carrying(head, grid.voxel_size, carries)
    volumes = {
        "reference": None if head.reference is None else np.asarray(head.reference) * SCALE,
        "bias": None if head.bias is None else np.exp(np.asarray(head.bias)),
        "labels": np.asarray(head.labels, np.float32),
        "mask": None if head.mask is None else np.asarray(head.mask, np.float32),
        "plain": np.asarray(head.image) * SCALE,
    }
    for role in ("reference", "bias", "labels", "mask", "plain"):
        if role in maps:
            write_volume(out / role / f"{name}.nii.gz", Volume(volumes[role], affine), description="jaxsr: synthetic")  # type: ignore[arg-type]
    if "gradient" in maps:
        vectors = nib.Nifti1Image(np.asarray(head.gradient, np.float32)[:, :, :, None], affine)
        vectors.header.set_intent("vector")
        vectors.header.set_xyzt_units("mm")
        write_whole(out / "gradient" / f"{name}.nii.gz", functools.partial(save_image, vectors))
    write_volume(out / "high" / f"{name}.nii.gz", Volume(image * SCALE, affine), description="jaxsr: synthetic")


def _claim(out: Path, about: dict[str, Any]) -> None:
    """Says what the heads in `out` are; refuses to mix two kinds, or to write among something else. See `generate` of `source_sha256`."""
    path, text = out / "generated.json", json.dumps(about, indent=2) + "\n"
    if path.exists():
        said = path.read_text(encoding="utf-8", errors="replace")
        if said != text and not ("SourceSHA256" in about["JaxSR"] and '"SourceSHA256"' in said):
            raise VolumeError(f"{out} holds heads that were generated in another way (see {path}): choose another folder")
        for old in (out / "high").glob("sub-*.nii.gz") if said != text else ():
            old.unlink()  # before the claim is written: who is killed between the two begins with this again
    elif out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise VolumeError(f"{out} is there and holds no generated heads: choose a new folder")
    write_text(path, text)


def _word(text: str) -> str:
    """Letters and digits of a name without suffixes, as a BIDS label has them."""
    return re.sub(r"[^A-Za-z0-9]", "", re.sub(r"\.(nii(\.gz)?|mg[hz])$", "", text)) or "map"
