"""Prepared sets on disk: a folder of ArrayRecord shards, one for each scan, and `manifest.json`, which lists them.

    OUT/manifest.json                       what there is, who is in which split, where it came from, how it was made
    OUT/shards/sub-01_ses-1.array_record    the slices of one scan, those across one axis after those across another

A record is one slice: its maps (see `jaxsr.data.pairs`) as safetensors, zstd inside the shard. Intensities, fields and displacements are
float16 by default: 11 bits of the window, where scanners store 12. One shard a scan makes a set resumable and parallel to write, and every
byte of it depends on that scan and the settings alone.

An encoded set (`prepare --encode`) is of the same format; a record of it is a crop of a slice, flipped or not for good, as networks see it:

    latents       mean and logarithm of the variance of E_1(high), one after the other     [h, w, 2 z]
    low_latents   the mode of E_1(low), not scaled                                          [h, w, z]
    pooled        what the image encoder sees in `low`: the class token, projected          [D]
    tokens        all of its tokens, the class token first                                  [1 + P, width]

with the other maps cropped alike, and of `high` and `low` those that were to be kept. A distilled set (`distill`) likewise has, of a crop,

    output        what the teacher makes of it                                              [H, W]
    mean_map      the mean of its denoised images on the way there                          [H, W]
    spread        their mean squared distance from it, over images and pixels               scalar

and `low`.
"""

import errno
import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import pydantic
import safetensors
from array_record.python import array_record_module
from safetensors import numpy as arrays

from jaxsr.config import Strict
from jaxsr.data.augmentation import AugmentConfig
from jaxsr.data.splits import Split
from jaxsr.files import Writer, shown, write_text, write_whole
from jaxsr.volume.errors import VolumeError

MANIFEST = "manifest.json"
SUFFIX = ".array_record"
_SAID = {errno.ENOSPC: "No space left", errno.EFBIG: "File too large", errno.EDQUOT: "quota"}
_OPTIONS = "group_size:1,zstd:1"  # records are read one by one, in any order

Role = Literal["high", "low", "reference", "bias", "gradient", "labels", "mask"]


class Source(Strict):
    """A file that went into a scan's records; `path` is relative to the folder that was prepared."""

    role: Role
    path: str
    sha256: str


class Shard(Strict):
    """The records of one scan.

    Attributes:
      file: relative to the manifest's folder.
      subject: the scan's name, unique in the set.
      person: who must be in one split only.
      visit: which simulated acquisition of the scan; 0 where there is a real one.
      records: slices.
      split: decided when the manifest is written; what is in a shard does not depend on it.
      slices: of them across the sagittal, coronal and axial axis, in that order in the file.
      planes: which ones, as in '12-140,142', across each axis.
      shape: voxels of the grid they were cut from.
      affine: of that grid, voxel index → scanner mm: the first three rows.
      window: the intensities of `low` that are -1 and 1.
      acquired: voxel size of the low-resolution volume as acquired, mm.
      notes: sentences about what was done to this scan, or found odd in it.
    """

    file: str
    sha256: str
    subject: str
    person: str
    visit: int = 0
    split: Split = "train"
    records: int
    slices: tuple[int, int, int]
    shape: tuple[int, int, int]
    window: tuple[float, float]
    acquired: tuple[float, float, float]
    sources: tuple[Source, ...]
    planes: tuple[str, str, str] = ("", "", "")
    affine: tuple[tuple[float, float, float, float], ...] = ()
    notes: tuple[str, ...] = ()


class Rejected(Strict):
    """A scan that could not be prepared (`kind` 'scan'), or a file that is in none (`kind` as in `layouts.base.Problem`), and why."""

    what: str
    why: str
    kind: str = "scan"


class Encoding(Strict):
    """What an encoded set was encoded with, and how.

    Attributes:
      source: SHA-256 of the manifest of the set that was encoded.
      autoencoder, image_encoder: SHA-256 of their parameters, as checkpoints record them.
      crop: side of its slices in pixels, before they were encoded.
      copies: records of each slice.
      augment: how each was varied before.
      latents, low_latents, pooled, tokens: the shape of each, of one slice.
    """

    source: str
    autoencoder: str
    image_encoder: str | None = None
    crop: int
    copies: int
    augment: AugmentConfig
    latents: tuple[int, int, int]
    low_latents: tuple[int, int, int]
    pooled: tuple[int] | None = None
    tokens: tuple[int, int] | None = None


class Distillation(Strict):
    """Which teacher made a distilled set, and how.

    Attributes:
      source: SHA-256 of the manifest of the set that it was shown.
      teacher, frozen: SHA-256 of its parameters, and of the networks that it was trained with.
      steps, eta: of its sampling.
      every: of the images on the way, each so many-th was looked at.
      guided: maps of the target's scanner that it was shown.
      flat: those that it was told are flat.
      crop: side of the slices in pixels.
      copies: records of each slice.
    """

    source: str
    teacher: str
    frozen: tuple[tuple[str, str], ...] = ()
    steps: int
    eta: float
    every: int
    guided: tuple[str, ...] = ()
    flat: tuple[str, ...] = ()
    crop: int
    copies: int


class Manifest(Strict):
    """A prepared set.

    Attributes:
      maps: names of the maps that every record has.
      settings: what `prepare` was asked for, as JSON; sets made with other settings differ.
      shards: sorted by file.
      encoding: of an encoded set; None of all others.
      distillation: of a distilled set; None of all others.
    """

    format: Literal["jaxsr-slices"] = "jaxsr-slices"
    version: int = pydantic.Field(1, ge=1, le=1)
    made_by: str
    voxel_size: float
    dtype: Literal["float16", "float32"]
    maps: tuple[str, ...]
    settings: str
    shards: tuple[Shard, ...]
    rejected: tuple[Rejected, ...] = ()
    encoding: Encoding | None = None
    distillation: Distillation | None = None

    @property
    def precomputed(self) -> Literal["encoded", "distilled"] | None:
        """What kind of set this is, if networks made it."""
        return "encoded" if self.encoding else "distilled" if self.distillation else None


def encode(maps: Mapping[str, np.ndarray]) -> bytes:
    """One slice's maps as a record; the same maps give the same bytes."""
    return arrays.save({name: np.asarray(maps[name], order="C") for name in sorted(maps)})


def decode(record: bytes) -> dict[str, np.ndarray]:
    """The maps of a record, as stored; VolumeError where it is none."""
    try:
        return arrays.load(record)
    except safetensors.SafetensorError as error:
        raise VolumeError(f"a record is damaged ({error})") from error


def record_writer(records: Iterable[bytes]) -> Writer:
    """Writes `records` to a path as a shard."""

    def write(path: Path) -> None:
        writer = array_record_module.ArrayRecordWriter(str(path), _OPTIONS)
        try:
            try:
                for record in records:
                    writer.write(record)
            finally:
                writer.close()
        except RuntimeError as error:  # how the writer says that the disk is full
            number = next((code for code, said in _SAID.items() if said in str(error)), errno.EIO)
            raise OSError(number, os.strerror(number), str(path)) from error

    return write


def write_shard(path: Path, records: Iterable[bytes]) -> str:
    """Writes `records` whole or not at all; returns the file's SHA-256."""
    write_whole(path, record_writer(records))
    return file_sha256(path)


def file_sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_manifest(folder: Path, manifest: Manifest) -> Path:
    return write_text(folder / MANIFEST, manifest.model_dump_json(indent=1, exclude_none=True) + "\n")


def read_manifest(path: Path) -> Manifest:
    """The manifest at `path`, or in the folder `path`.

    Raises:
      VolumeError: where there is none, or it is not one that this version reads.
    """
    file = path / MANIFEST if path.is_dir() else path
    try:
        return Manifest.model_validate_json(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not text"
        raise VolumeError(
            f"{shown(file)} is no manifest of a prepared set ({reason}): give the folder that `jaxsr prepare` wrote"
        ) from error
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        said = f"{where}: {first['msg']}"
        raise VolumeError(
            f"{shown(file)} is no manifest that this version reads ({said}): run `jaxsr prepare` again into another folder"
        ) from error


def shards_of(manifest: Manifest, split: Split) -> Sequence[Shard]:
    """The shards of one split, in the manifest's order."""
    return [shard for shard in manifest.shards if shard.split == split]


def verify(path: Path) -> Manifest:
    """Reads every shard of the set `path`, a manifest or its folder, and compares its SHA-256; returns the manifest.

    Raises:
      VolumeError: where some are missing or not as they were written; names them.
    """
    manifest, folder = read_manifest(path), path if path.is_dir() else path.parent
    faults = []
    for shard in manifest.shards:
        file = folder / shard.file
        if not file.is_file():
            faults.append(f"{shown(file)} is missing")
        elif file_sha256(file) != shard.sha256:
            faults.append(f"{shown(file)} is not what was written: its SHA-256 differs")
    if faults:
        listed = "\n  ".join(faults)
        raise VolumeError(
            f"{len(faults)} of {len(manifest.shards)} shards in {shown(folder)} are missing or damaged: run the same `jaxsr prepare` "
            f"again, or copy the set again:\n  {listed}"
        )
    return manifest
