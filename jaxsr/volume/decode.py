"""What stands behind a file's name: opening it as an image, and its voxels as float32, or one clear sentence why not.

nibabel parses; this file decides what is accepted, notices damage nibabel does not (a gzip checksum, a file shorter than its header
says), and turns every failure of foreign code on foreign bytes into a VolumeError.
"""

import bz2
import gzip
import logging
import math
import struct
import threading
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import nibabel as nib
import numpy as np
from nibabel.arrayproxy import ArrayProxy
from nibabel.filebasedimages import ImageFileError
from nibabel.freesurfer.mghformat import MGHError
from nibabel.imageglobals import logger
from nibabel.spatialimages import HeaderDataError, SpatialImage
from nibabel.tripwire import TripWireError

from jaxsr.files import shown
from jaxsr.volume.errors import VolumeError
from jaxsr.volume.memory import free_memory

FORMATS = ".nii, .nii.gz, .hdr/.img, .mgh or .mgz"
_ACCEPTED = (nib.Nifti1Pair, nib.MGHImage, nib.AnalyzeImage)  # NIfTI-1 and -2, single files and pairs, derive from the first
_GZIP = b"\x1f\x8b"
_GZIP_RATIO = 1032  # deflate cannot do better
HOLD = 4  # float32 copies of a volume alive at most while it is read, turned and its window found
_DRAIN = 1 << 20  # bytes read at a time in search of the checksum
_TRAILING = 1 << 26  # bytes after the voxels; far more than the tags that MGH files have there
_PACKED: dict[str, Callable[[Path], Any]] = {".gz": gzip.open, ".mgz": gzip.open, ".bz2": bz2.open}
_SILENT = threading.RLock()
# What nibabel lets through when the bytes make no sense. AttributeError and NameError are left out: those would be ours.
_FOREIGN = (OSError, ValueError, TypeError, LookupError, ArithmeticError, struct.error, RuntimeError, HeaderDataError, MGHError)


def open_image(path: Path) -> SpatialImage:
    """The image of a file, its header parsed and its voxels not yet read. Raises VolumeError, without the file's name."""
    head = _head(path)
    _check_kind(path, head)
    try:
        with _quiet():
            kind = _kind_of(path)
            image = kind.from_filename(path, mmap=False)
    except VolumeError:
        raise
    except FileNotFoundError as error:
        raise VolumeError(_halved(error.filename or "")) from error
    except ImageFileError as error:
        raise VolumeError(f"not a volume in a format that is read ({FORMATS}): {_first_line(error, path)}") from error
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise VolumeError(_damaged(error)) from error
    except TripWireError as error:  # a package for reading it is not there
        raise VolumeError(f"packed in a way that is not read here ({FORMATS} are): unpack it first") from error
    except _FOREIGN as error:
        if "w2 should be positive" in str(error):
            raise VolumeError("the qform's quaternion is no rotation and there is no sform: convert the scan again") from error
        raise VolumeError(f"the header cannot be read ({_first_line(error)}): copy or convert the file again") from error
    for holder in image.file_map.values():
        if holder.filename is not None and not Path(holder.filename).exists() and not holder.filename.endswith(".mat"):
            raise VolumeError(_halved(holder.filename))
    return image


def load_data(image: SpatialImage, volume: int | None) -> tuple[np.ndarray, tuple[str, ...]]:
    """The voxels of one volume, float32 `[X, Y, Z]` in file order, and notes. Raises VolumeError, without the file's name."""
    kind = image.get_data_dtype()
    if kind.fields is not None or kind.kind == "V":
        raise VolumeError("the voxels are colours (RGB), not intensities: give the scan itself, not a picture of it")
    if kind.kind == "c":
        raise VolumeError("the voxels are complex: give the magnitude image")
    if kind.kind not in "iufb":
        raise VolumeError(f"voxels of type {kind} are not read: convert them to float32")
    _check_size(image)
    index = _volume_index(image.shape, volume)
    try:
        with _quiet():
            data, behind = _read(image, index)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise VolumeError(_damaged(error)) from error
    except MemoryError as error:
        raise VolumeError(f"a volume of {_sides(image.shape)} voxels does not fit in memory: use a larger machine or crop it") from error
    except _FOREIGN as error:
        raise VolumeError(f"the voxels cannot be read ({_first_line(error)}): the file is damaged; copy or convert it again") from error
    if behind > 0 and not isinstance(image, nib.MGHImage):  # which keeps its tags there
        return data, (f"{behind} bytes follow the voxels that the header promises: they are ignored, check that its dimensions are right",)
    return data, ()


def _head(path: Path) -> bytes:
    """The first bytes of the file, as they lie on the disk."""
    try:
        if path.is_dir():
            raise VolumeError("a folder, not a file: name a volume in it (for a folder of DICOM files run dcm2niix first)")
        if path.is_symlink() and not path.exists():
            raise VolumeError("a link to a file that is not there: fetch it first (git annex get, datalad get)")
        if path.exists() and not path.is_file():
            raise VolumeError("not a regular file: name a volume")
        with open(path, "rb") as file:
            return file.read(512)
    except FileNotFoundError as error:
        raise VolumeError("no such file: check the path") from error
    except (OSError, ValueError) as error:
        if isinstance(error, VolumeError):
            raise
        raise VolumeError(f"cannot be opened ({getattr(error, 'strerror', None) or error}): check the path and its permissions") from error


def _check_kind(path: Path, head: bytes) -> None:
    name = path.name.lower()
    if not head:
        raise VolumeError("the file is empty: copy or download it again")
    if head[128:132] == b"DICM" or name.endswith((".dcm", ".ima")):
        raise VolumeError("a DICOM file: run dcm2niix on its folder first and give the .nii.gz it makes")
    if head.startswith((b"version https://git-lfs", b"/annex/objects")):
        raise VolumeError("a pointer to the file, not the file: fetch it first (git lfs pull, git annex get)")
    if head.startswith(_GZIP) and not name.endswith((".gz", ".mgz")):
        raise VolumeError(
            "its content is gzip though its name does not say so: either it was renamed (name it .nii.gz) or it was never "
            "unpacked (gunzip it)"
        )
    if name.endswith((".gz", ".mgz")) and not head.startswith(_GZIP):
        plain = "name it .mgh" if name.endswith(".mgz") else "name it without .gz"
        raise VolumeError(
            f"its content is not gzip though its name says so: either it is unpacked already ({plain}) or it is something else "
            "or damaged (download it again)"
        )


def _kind_of(path: Path) -> type[SpatialImage]:
    """nibabel's class for a file, as `nib.load` finds it; other classes than ours, some of which parse XML, never see its content."""
    sniff = None
    for kind in nib.imageclasses.all_image_classes:
        fits, sniff = kind.path_maybe_image(path, sniff)
        if fits and issubclass(kind, _ACCEPTED):
            return kind
        if fits:
            raise VolumeError(f"a {kind.__name__.removesuffix('Image')} file; {FORMATS} are read: convert it first")
    raise VolumeError(f"not a volume in a format that is read ({FORMATS}): convert it first")


def _volume_index(shape: tuple[int, ...], volume: int | None) -> tuple[int, ...]:
    """Which of the trailing axes' entries to read. Only axes after the third are ever dropped."""
    count = math.prod(int(n) for n in shape[3:])
    if count < 1:
        raise VolumeError("the file holds no volume (a dimension is 0): convert the scan again")
    if volume is None and count > 1:
        raise VolumeError(
            f"the file holds {count} volumes: name one (upscale and inspect take --volume K, K from 0 to {count - 1}), or split it"
        )
    if volume is not None and not 0 <= volume < count:
        raise VolumeError(f"there is no volume {volume}: the file holds {count}, counted from 0")
    return tuple(int(i) for i in np.unravel_index(volume or 0, shape[3:], order="F"))


def _read(image: SpatialImage, index: tuple[int, ...]) -> tuple[np.ndarray, int]:
    """The voxels, and how many bytes lie behind those that the header promises."""
    proxy, path = cast(ArrayProxy, image.dataobj), _data_file(image)
    end = _promised(proxy)
    unpack = _PACKED.get(path.suffix.lower())
    if unpack is None:
        return _volume(proxy, index), path.stat().st_size - end if path.suffix.lower() != ".zst" else 0
    with unpack(path) as file:
        again = ArrayProxy(file, (proxy.shape, proxy.dtype, proxy.offset, proxy.slope, proxy.inter), mmap=False)
        data = _volume(again, index)
        while file.read(_DRAIN):  # to the end, where the checksum is
            if file.tell() > end + _TRAILING:
                raise VolumeError(
                    f"the file unpacks to far more than the {end} bytes that its header promises: it is no plain volume; convert it again"
                )
        return data, file.tell() - end


def _promised(proxy: ArrayProxy) -> int:
    """Bytes from the start of the file to the end of the voxels; Python's integers do not overflow, NIfTI-2's can."""
    return int(proxy.offset) + math.prod(int(n) for n in proxy.shape) * proxy.dtype.itemsize


def _volume(proxy: ArrayProxy, index: tuple[int, ...]) -> np.ndarray:
    if math.prod(proxy.shape[3:]) == 1:
        return np.asarray(proxy, np.float32).reshape(proxy.shape[:3], order="F")
    return np.asarray(proxy[(..., *index)], np.float32)


def _check_size(image: SpatialImage) -> None:
    """Refuses what the file cannot hold, before anything is allocated, and what the memory cannot."""
    proxy, path = cast(ArrayProxy, image.dataobj), _data_file(image)
    needed, held, suffix = _promised(proxy), path.stat().st_size, path.suffix.lower()
    packed = suffix in (".gz", ".mgz")
    if suffix not in (".bz2", ".zst") and needed > held * (_GZIP_RATIO if packed else 1):
        raise VolumeError(
            f"truncated: the header promises {needed} bytes for {_sides(proxy.shape)} voxels, the file has {held}"
            f"{' packed' if packed else ''}: copy or download it again"
        )
    memory = free_memory()
    # Voxels as stored, scaled in at most as many bytes, and as float32; or, later, several copies as float32.
    wanted = max(4 * HOLD, 2 * proxy.dtype.itemsize + 4) * math.prod(int(n) for n in proxy.shape[:3])
    if memory is not None and wanted > memory:
        raise VolumeError(
            f"a volume of {_sides(proxy.shape)} voxels needs {wanted / 1e9:.1f} GB and {memory / 1e9:.1f} GB are free: "
            "use a larger machine or crop it"
        )


def _data_file(image: SpatialImage) -> Path:
    name = image.file_map["image"].filename
    assert name is not None  # the image was opened by name
    return Path(name)


@contextmanager
def _quiet() -> Iterator[None]:
    """nibabel logs what it mends in a header, and what overflows warns; `header` and `io` say it in our words.

    Both are the process's, not the thread's: one at a time, or the last to leave would leave them silent.
    """
    with _SILENT:
        level = logger.level
        logger.setLevel(logging.CRITICAL + 1)
        try:
            with np.errstate(all="ignore"), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                yield
        finally:
            logger.setLevel(level)


def _halved(missing: str) -> str:
    return f"its other half {shown(Path(missing).name)} is missing: keep the .hdr and the .img file together"


def _damaged(error: Exception) -> str:
    what = "truncated" if isinstance(error, EOFError) else "damaged"
    return f"the gzip file is {what} ({_first_line(error)}): copy or download it again"


def _first_line(error: BaseException, path: Path | None = None) -> str:
    if isinstance(error, KeyError):  # nibabel looks codes up in tables
        return f"unknown code {error}"
    lines = str(error).replace(f' of "{path}"', "").strip().splitlines()  # the message says it already
    return shown((lines[0] if lines else type(error).__name__).strip().rstrip("."))


def _sides(shape: tuple[int, ...]) -> str:
    return " × ".join(str(n) for n in shape)
