"""Heads that a protocol asks for itself: of the embedded anatomy, with what their scanner does to them, and the maps of that.

OUT/heads/high/NAME.nii.gz                         the head as its scanner shows it: the truth
OUT/heads/plain/NAME.nii.gz                        without bias field and displacement: what is acquired is simulated of that
OUT/heads/bias/NAME.nii.gz, gradient/NAME.nii.gz   the maps of what `high` carries
"""

from collections.abc import Callable
from pathlib import Path

from jaxsr.evaluate.heads import Heads
from jaxsr.evaluate.origin import source_sha256
from jaxsr.evaluate.protocol import Protocol
from jaxsr.upscale.guides import Guides

FOLDER = "heads"
WORDS = {"bias": "bias field", "gradient": "gradient nonlinearity"}


def planned_heads(protocol: Protocol, out: Path) -> Heads:
    """Where the protocol's heads lie once `render_heads` has made them."""
    from jaxsr.generate import embedded_names

    assert protocol.heads
    folder, carries = out / FOLDER, protocol.heads.carries
    paths = {
        name: {role: folder / role / f"{name}.nii.gz" for role in ("high", "plain", *carries)}
        for name in embedded_names(protocol.heads.count)
    }
    return Heads(
        folder / "high",
        {name: of["high"] for name, of in paths.items()},
        {},
        {name: of["plain"] for name, of in paths.items()} if carries else {},
        {name: Guides(of.get("bias"), of.get("gradient")) for name, of in paths.items()},
    )


def render_heads(protocol: Protocol, out: Path, advance: Callable[[int, str], None]) -> None:
    """Renders those that are not there, made in this way by this state of the source; `jaxsr generate` writes none of them, with any seed.

    Raises:
      VolumeError: where the folder holds something else. FileError: where they cannot be written.
    """
    from jaxsr.generate import generate

    assert protocol.heads
    count, voxel_size, contrast, carries = (getattr(protocol.heads, key) for key in ("count", "voxel_size", "contrast", "carries"))
    maps = ("plain", *carries) if carries else ()
    how = {"voxel_size": voxel_size, "contrast": contrast, "maps": maps, "carries": carries, "seed": protocol.seed, "held_out": True}
    generate(out / FOLDER, count, **how, source_sha256=source_sha256(), advance=advance)


def rendered_note(protocol: Protocol) -> str | None:
    """What readers of the numbers must know of such heads."""
    if protocol.heads is None:
        return None
    carried = " and ".join(WORDS[name] for name in protocol.heads.carries)
    shows = f"; they show their scanner's {carried}, which is not in what was acquired" if carried else ""
    contrast = "contrasts drawn for each" if protocol.heads.contrast == "random" else protocol.heads.contrast
    return f"the heads are synthetic: rendered from the embedded anatomy, {contrast}, {protocol.heads.voxel_size:g} mm{shows}"
