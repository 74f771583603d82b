"""What `jaxsr upscale` is given: which files, where each goes, and everything about one that is checked before anything is computed.

Needs no JAX, so that what cannot be used is said within a second.
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from jaxsr.evaluate.files import sidecar_path
from jaxsr.files import shown
from jaxsr.volume.decode import HOLD
from jaxsr.volume.geometry import Grid, target_grid
from jaxsr.volume.intensity import fit_window
from jaxsr.volume.io import SMALLEST_SIDE, SUFFIXES, Volume, VolumeError, read_volume, straighten
from jaxsr.volume.memory import free_memory
from jaxsr.volume.slices import AXES

# Of the output, on the host, beside the input: measured, and held by a test.
BYTES_A_VOXEL = 18  # the interpolated input and the mean in float32, the sum in float64, and what interpolation holds on its way
BYTES_A_VOXEL_SAMPLED = 16  # beside those: two sums over samples in float64
BYTES_A_VOXEL_COMPARED = 28  # while the consistency map is made: the output and its deviation, and on a CPU what degrades it
BYTES_OF_THE_INPUT_COMPARED = 26  # a voxel of the input, then: where its head is, what is compared
BYTES_A_VOXEL_EXPLAINED = 44  # beside either: the output, where each expert looks, what it weighs and what it makes, the truth
BYTES_A_VOXEL_PICTURED = 32  # while the picture is made: two interpolations, the output, and what finds the head in it
IN_PLANE_SIDE = 16  # voxels
_READ = (*SUFFIXES, ".hdr", ".img", ".hdr.gz", ".img.gz", ".nii.bz2", ".nii.zst")
_NOT_WRITTEN = (".hdr", ".img", ".gz", ".bz2", ".zst", ".nrrd", ".mha", ".mhd", ".mnc", ".mif", ".dcm", ".json", ".png", ".txt")
_WAYS = ("from left to right", "from back to front", "from bottom to top")
COARSER, UNLIKE = 1.01, 1.25  # ratios of voxel sizes above which it is said
_LONGEST_LIST = 1 << 24  # bytes

Sizes = tuple[float, float, float]  # mm along the axes of a volume


class Derivative(NamedTuple):
    """What a sidecar in a BIDS derivative says of its source: the URI, and keys that hold of the output as well."""

    root: Path
    uri: str
    keys: Mapping[str, Any]


class Job(NamedTuple):
    """One input and where its output goes; `derivative` where that is in a BIDS derivative."""

    source: Path
    output: Path
    derivative: Derivative | None = None


def find_jobs(source: Path, output: Path) -> list[Job]:
    """Inputs and outputs: a file to a file, a folder (its volumes, not those of folders in it) to a folder, a `.txt` list to a folder.

    An output in a folder has the name of its input, or `.nii.gz` for formats that are only read, and so never lies outside that folder.

    Raises:
      VolumeError: for inputs that are not there, an output that is an input or a folder, or a folder without volumes.
    """
    paths, several = find_sources(source)
    if several or output.is_dir() or not output.name.lower().endswith(SUFFIXES):
        jobs = [Job(path, output / _output_name(path)) for path in paths]
    else:
        jobs = [Job(path, output) for path in paths]
    if not several and not output.is_dir() and output.suffix.lower() in _NOT_WRITTEN and not output.name.lower().endswith(SUFFIXES):
        raise VolumeError(f"{shown(output)}: the suffix names no format that is written; use one of {', '.join(SUFFIXES)}, or a folder")
    for job in jobs:
        if _exists(job.output) and _exists(job.source) and job.output.samefile(job.source):
            raise VolumeError(f"{shown(job.output)}: the output is the input; choose another -o")
        if _exists(job.output) and job.output.is_dir():
            raise VolumeError(f"{shown(job.output)}: the output is a folder; choose another -o")
    count = Counter(sidecar_path(job.output) for job in jobs)  # a.nii and a.nii.gz would share theirs
    repeated = sorted({shown(job.output) for job in jobs if count[sidecar_path(job.output)] > 1})
    if repeated:
        raise VolumeError(f"several inputs would be written to {', '.join(repeated)}: give them different names")
    return jobs


def find_sources(source: Path) -> tuple[list[Path], bool]:
    """The file itself, the volumes in a folder, or what a `.txt` list names (`#` starts a comment); and whether there may be several."""
    if source.suffix.lower() == ".txt" and source.is_file():
        return _listed(source), True
    if source.is_dir():
        return sorted(p for p in source.iterdir() if p.name.lower().endswith(SUFFIXES) and not p.name.startswith(".")), True
    return [source], False


def is_done(job: Job) -> bool:
    """The output is there: it is written whole or not at all, after its sidecar; and what is there is never ours to replace unasked."""
    return _exists(job.output)


def read_input(
    path: Path,
    *,
    to_mm: float | None = None,
    axes: Sequence[str] = tuple(AXES),
    volume: int | None = None,
    nan: Literal["refuse", "zero"] = "refuse",
    picture: bool = True,
    samples: int = 1,
    consistency: bool = False,
    explain: bool = False,
    note: Callable[[str], None] = lambda text: None,
) -> Volume:
    """The volume, on right-angled axes, with everything checked that can be before anything is computed.

    Args:
      to_mm: the voxel size wanted; None where it is not known yet.
      picture: with a montage, which takes memory, as do more than one of `samples`, and with their maps `consistency` and `explain`.
      note: given what is odd but usable.

    Raises:
      VolumeError: as `read_volume`, and as `check_target`; where there is no contrast, or no axis of `axes` serves.
    """
    read = read_scan(path, axes, volume, nan, note)
    check_target(read, to_mm, picture=picture, samples=samples, consistency=consistency, explain=explain)
    return read


def read_scan(
    path: Path, axes: Sequence[str], volume: int | None, nan: Literal["refuse", "zero"], note: Callable[[str], None] = lambda text: None
) -> Volume:
    """What `read_input` does whatever the volume is for, and with which target: all but `check_target`."""
    read = straighten(read_volume(path, volume=volume, nan=nan))
    for sentence in read.notes:
        note(f"{shown(path.name)}: {sentence}")
    try:
        fit_window(read.data)
        _, left_out = serving_axes(read.data.shape, axes)
    except VolumeError as error:
        raise VolumeError(f"{shown(path)}: {error}") from None
    for sentence in left_out:
        note(f"{shown(path.name)}: {sentence}, so that axis is left out")
    return read


def check_target(volume: Volume, to_mm: float | None, **wanted: Any) -> Grid:
    """The grid of the output (its own where `to_mm` is None), with what is `wanted` beside it, as `memory_needed` takes it.

    Raises:
      VolumeError: where it is out of proportion to the head or to this machine.
    """
    target = target_grid(volume.grid, to_mm) if to_mm else volume.grid
    at = f"{shown(volume.path or 'the volume')}: at {to_mm or min(volume.voxel_size):g} mm the volume would have"
    sides = " × ".join(map(str, target.shape))
    if min(target.shape) < SMALLEST_SIDE:
        raise VolumeError(f"{at} only {sides} voxels: choose a smaller --to-mm")
    needed = memory_needed(volume, target, **wanted)
    free = free_memory()
    if free is not None and needed > free:
        raise VolumeError(
            f"{at} {sides} voxels, which needs {needed / 1e9:.1f} GB of memory, and {free / 1e9:.1f} GB are free: "
            "choose a larger --to-mm, or a larger machine"
        )
    return target


def scale_notes(
    volume: Volume, to_mm: float | None, trained: Sequence[float] | None = None, resolves: Sequence[float] | None = None
) -> tuple[str, ...]:
    """What voxel sizes give cause to say: axes that get coarser, and a scan unlike those `trained` on.

    Args:
      trained, resolves: mm to the right, front, top; `resolves` None: the voxels'.
    """
    notes, resolves = [], resolves or volume.voxel_size
    coarser = [f"{mm:.3g} mm {way}" for mm, way in zip(resolves, _WAYS, strict=True) if to_mm and to_mm > COARSER * mm]
    if coarser:
        notes.append(
            f"{to_mm:.3g} mm is coarser than the scan ({', '.join(coarser)}): what it resolves there is lost, unless --to-mm is less"
        )
    if trained and any(max(mm / of, of / mm) > UNLIKE for mm, of in zip(resolves, trained, strict=True)):
        notes.append(f"the model was trained on scans of {_millimetres(trained)}, this one has {_millimetres(resolves)}")
    return tuple(notes)


def resolving(voxel_size: Sizes, from_mm: Sizes | None) -> Sizes:
    """mm that a scan of voxels of `voxel_size` mm is taken to resolve, if `from_mm` was said: never less than its voxels."""
    x, y, z = (max(pair) for pair in zip(voxel_size, from_mm or voxel_size, strict=True))
    return x, y, z


def resolution_notes(
    voxel_size: Sizes, found: Sizes, said: Sizes | Literal["found"] | None = None, *, told: bool = True
) -> tuple[str, ...]:
    """What the end of a scan's k-space gives cause to say.

    Args:
      voxel_size, found: mm to the right, front, top: of the voxels, and what `resolved_mm` says of them.
      said: by --from-mm.
      told: whether what is done depends on it, so that there is a way out.
    """
    if said == "found":
        return (f"taken for a scan of {_millimetres(found)}, where its k-space ends",) if found != voxel_size else ()
    notes, resolves = [], resolving(voxel_size, said)
    if said and any(mm < of / COARSER for mm, of in zip(said, voxel_size, strict=True)):
        notes.append(
            f"--from-mm says {_millimetres(said)}, no scan resolves less than its voxels: taken for one of {_millimetres(resolves)}"
        )
    least = UNLIKE if said else 1
    coarser = [f"{mm:.3g} mm {way}" for mm, of, way in zip(found, resolves, _WAYS, strict=True) if mm > least * of]
    if coarser:
        way_out = "; --from-mm found goes by that" if told else ""
        notes.append(f"it seems to have been interpolated, and to resolve {', '.join(coarser)}, where its k-space ends{way_out}")
    return tuple(notes)


def memory_needed(
    volume: Volume, target: Grid, *, picture: bool = True, samples: int = 1, consistency: bool = False, explain: bool = False
) -> int:
    """Bytes of the host's memory that upscaling `volume` to `target` takes, itself among them, beside the model; the rest: `read_input`."""
    voxels = math.prod(int(n) for n in target.shape)
    explained = BYTES_A_VOXEL_EXPLAINED * explain
    phases = [(BYTES_A_VOXEL + max(BYTES_A_VOXEL_SAMPLED * (samples > 1), explained)) * voxels]
    phases.append((BYTES_A_VOXEL_PICTURED + explained) * voxels * picture)
    phases.append((BYTES_A_VOXEL_COMPARED * voxels + BYTES_OF_THE_INPUT_COMPARED * volume.data.size) * consistency)
    return max(HOLD * volume.data.nbytes, volume.data.nbytes + max(phases))


def serving_axes(shape: Sequence[int], axes: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Those of `axes` along whose slices both sides have at least 16 voxels, and a sentence for each other.

    Raises:
      VolumeError: where there is none.
    """
    thin = {a for a, n in enumerate(shape) if n < IN_PLANE_SIDE}
    serving = tuple(name for name in axes if not thin - {AXES[name]})
    left_out = tuple(
        f"{name} slices would be only {min(shape[a] for a in thin - {AXES[name]})} voxels wide" for name in axes if name not in serving
    )
    if not serving:
        raise VolumeError(f"no axis of {', '.join(axes)} serves: {'; '.join(left_out)}")
    return serving, left_out


def _millimetres(sizes: Sequence[float]) -> str:
    """As in '2 mm' or '10 × 1.95 × 1.28 mm'."""
    said = [f"{mm:.3g}" for mm in sizes]
    return f"{said[0] if len(set(said)) == 1 else ' × '.join(said)} mm"


def _listed(path: Path) -> list[Path]:
    try:
        with path.open("rb") as file:
            text = file.read(_LONGEST_LIST + 1).decode("utf-8-sig")
    except OSError as error:
        raise VolumeError(f"{shown(path)}: cannot be read ({error.strerror}): check its permissions") from error
    except UnicodeDecodeError as error:
        raise VolumeError(f"{shown(path)}: not a list but binary data; a .txt list names one volume a line, in UTF-8") from error
    if len(text) > _LONGEST_LIST:
        raise VolumeError(f"{shown(path)}: too long for a list of volumes; name one volume a line")
    lines = [line.strip() for line in text.splitlines()]
    return [path.parent / line for line in lines if line and not line.startswith("#")]  # an absolute line stays what it is


def _output_name(source: Path) -> str:
    name = source.name
    if name.lower().endswith(SUFFIXES):
        return name
    known = max((s for s in _READ if name.lower().endswith(s)), key=len, default="")
    return name[: len(name) - len(known)] + ".nii.gz"


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # a name too long, or with a zero in it: reading says so
        return False
