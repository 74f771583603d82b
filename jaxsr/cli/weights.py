"""Commands for weights that others have published: weights list, download, import, verify."""

import json
from pathlib import Path
from typing import Annotated

import typer

from jaxsr.cli.options import AsJson, bare, choice, select_device
from jaxsr.cli.output import open_console, progress
from jaxsr.cli.status import Exit

KINDS = ("unet", "autoencoder", "clip", "lpips", "vgg16")  # of jaxsr.weights.kinds, which is not imported for --help

CacheDir = Annotated[Path | None, bare(help="Where downloads are kept. [default: $JAXSR_CACHE_DIR, or the system's cache folder]")]
Sha256 = Annotated[str | None, bare("--sha256", help="What the SHA-256 of the file must be.")]


def weights_list(cache_dir: CacheDir = None, as_json: AsJson = False) -> None:
    """List the weights that can be downloaded and imported: of what, from where, under which licence."""
    from jaxsr.bench.count import quantity
    from jaxsr.weights.published import PUBLISHED, cache_folder

    folder = cache_folder(cache_dir)
    if as_json:
        rows = [
            {"name": name, **entry._asdict(), "file": entry.file, "here": (folder / entry.file).is_file()}
            for name, entry in PUBLISHED.items()
        ]
        print(json.dumps(rows, indent=2))
        return
    terminal = open_console()
    for name, entry in PUBLISHED.items():
        size = f", {quantity(entry.size, 'B', 1024)}" if entry.size else ""
        terminal.print(f"{name}: {entry.title}")
        terminal.print(f"  imports as  {', '.join(entry.kinds)} ({entry.parameters} parameters)")
        terminal.print(f"     licence  {entry.licence}")
        terminal.print(f"         url  {entry.url}")
        terminal.print(f"        file  {entry.file}{size}{', downloaded' if (folder / entry.file).is_file() else ''}")
        terminal.print(f"      sha256  {entry.sha256 or 'unknown: download it with --sha256 of your own'}")
    terminal.print(
        f"\nDownloads are kept in {folder}. Next: jaxsr weights download NAME, then jaxsr weights import KIND FILE OUT.safetensors"
    )


def weights_download(
    name: Annotated[str, typer.Argument(help="As `jaxsr weights list` names it.", show_default=False)],
    cache_dir: CacheDir = None,
    sha256: Sha256 = None,
    offline: Annotated[bool, typer.Option("--offline", help="Fetch nothing; exit status 4 if it is not there.")] = False,
) -> None:
    """Download published weights, once, and check their SHA-256. The last line printed is the file.

    The same command goes on where a transfer was interrupted. A file whose SHA-256 is unknown is not downloaded without --sha256.

    Examples:

        jaxsr weights download clip-vit-l-14

        jaxsr weights download zero123 --sha256 SUM --cache-dir /data/weights
    """
    if sha256 is not None:
        _check_sum(sha256)
    from jaxsr.weights.published import PUBLISHED, cache_folder, download

    choice("NAME", name, tuple(PUBLISHED))
    terminal = open_console()
    folder = cache_folder(cache_dir)
    with progress(terminal, name, None) as (advance, _):
        path = download(
            name,
            folder,
            sha256=sha256,
            offline=offline,
            report=lambda done, total: advance(done // 1_000_000, "MB", total // 1_000_000 if total else None),
        )
    print(path)


def weights_import(
    kind: Annotated[str, typer.Argument(help=f"{', '.join(KINDS[:-1])} or {KINDS[-1]}.", show_default=False)],
    source: Annotated[Path, typer.Argument(help=".safetensors, *.index.json of shards, or what torch.save wrote.", show_default=False)],
    out: Annotated[Path, typer.Argument(help="A .safetensors file.", show_default=False)],
    beside: Annotated[list[Path] | None, bare("--with", help="More of the source, where it is in several files.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a file that is there.")] = False,
    as_json: AsJson = False,
) -> None:
    """Import published weights into one file under jaxsr's names. Every tensor is used once, or left out under a name that is known, or an
    error. Nothing in SOURCE is run, and torch is not needed.

    Of a whole checkpoint (Stable Diffusion v1, Zero-1-to-3) KIND takes its part.

    Examples:

        jaxsr weights import clip ViT-L-14.pt clip.safetensors

        jaxsr weights import unet 105000.ckpt unet.safetensors && jaxsr weights import autoencoder 105000.ckpt autoencoder.safetensors

        jaxsr weights import lpips alexnet-owt-7be5be79.pth lpips.safetensors --with alex.pth
    """
    choice("KIND", kind, KINDS)
    _check_files("SOURCE", source, *(beside or []))
    if out.exists() and not overwrite:
        raise Exit(2, f"{out} is there already: choose another OUT, or --overwrite")
    select_device("cpu")
    import jax

    from jaxsr.weights.imported import import_weights

    converted = import_weights(kind, [source, *(beside or [])], out)
    parameters = {part: sum(int(leaf.size) for leaf in jax.tree.leaves(tree)) for part, tree in converted.variables.items()}
    facts = {
        "file": str(out),
        "kind": kind,
        "layout": converted.layout,
        "configuration": dict(converted.sizes),
        "parameters": parameters,
        "left_out": converted.left,
    }
    if as_json:
        print(json.dumps(facts))
        return
    terminal = open_console()
    sizes = ", ".join(f"{name} {value}" for name, value in converted.sizes.items())
    beside_it = "".join(f", {part} of {count:,}" for part, count in parameters.items() if part != "params")
    terminal.print(f"wrote {out}: {kind} of {parameters['params']:,} parameters{beside_it}, from {converted.layout}'s names")
    if sizes:
        terminal.print(f"  made with  {sizes}")
    for prefix, count in sorted(converted.left.items()):
        terminal.print(f"   left out  {prefix}* ({count} tensors)")


def weights_verify(
    file: Annotated[Path, typer.Argument(help="A weights file, jaxsr's or another's.", show_default=False)],
    sha256: Sha256 = None,
    as_json: AsJson = False,
) -> None:
    """Read a weights file to its last byte: whether it is whole, finite, and what it says of itself. Exit status 4 if not.

    Example:

        jaxsr weights verify clip.safetensors
    """
    if sha256 is not None:
        _check_sum(sha256)
    _check_files("FILE", file)
    select_device("cpu")
    from jaxsr.weights.imported import verify

    found = verify(file, sha256)
    if as_json:
        print(json.dumps(found))
        return
    terminal = open_console()
    what = f", {found['about']['kind']}" if "kind" in found["about"] else ""
    judged = "as it was written" if found["own_digest"] else "finite (it has no checksum of its own)"
    terminal.print(f"{file}: whole and {judged}{what}, {found['tensors']} tensors, {found['parameters']:,} elements")
    card = found["about"].pop("model_card", None)
    for name, value in {**found["about"], **{f"SHA-256 of {name}": value for name, value in found["sha256"].items()}}.items():
        terminal.print(f"  {name}  {value}")
    if card:
        terminal.print(f"\n{card}")


def _check_files(argument: str, *paths: Path) -> None:
    for path in paths:
        if path.is_dir():
            raise typer.BadParameter(f"'{path}' is a folder: give a file, of shards their *.index.json", param_hint=argument)


def _check_sum(sha256: str) -> None:
    if len(sha256) != 64 or set(sha256.lower()) - set("0123456789abcdef"):
        raise typer.BadParameter(f"'{sha256}' is no SHA-256, which has 64 hexadecimal digits", param_hint="--sha256")
