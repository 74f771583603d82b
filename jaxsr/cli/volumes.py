"""Commands that compare volumes: evaluate."""

import json
from pathlib import Path
from typing import Annotated

import typer

from jaxsr.cli.options import AsJson, bare, select_device
from jaxsr.cli.output import open_console, print_table
from jaxsr.cli.status import Exit


def evaluate(
    outputs: Annotated[list[str], bare("--input", "-i", help="Output file or folder; NAME=PATH to name a method; repeatable.")],
    reference: Annotated[Path, bare("--reference", "-r", help="The truth: a file, or a folder with the same names.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Where tables and pictures go.")] = Path("evaluation"),
    low: Annotated[Path | None, bare("--low", "-l", help="The low-resolution input. [default: what the sidecar names]")] = None,
    mask: Annotated[Path | None, bare("--mask", help="Voxels that count. [default: the reference's foreground]")] = None,
    as_json: AsJson = False,
) -> None:
    """Compare outputs with a reference: RMSE, PSNR, SSIM beside four interpolations, as CSV, JSON and a picture.

    Examples:

        jaxsr evaluate -i out.nii.gz -r truth.nii.gz

        jaxsr evaluate -i sr3=a/ -i student=b/ -r truth/ -l low/ -o comparison
    """
    select_device("cpu")
    from jaxsr.evaluate.compare import compare_files
    from jaxsr.files import shown

    named = [_named(text) for text in outputs]
    methods = dict(named)
    if len(methods) < len(named):
        raise typer.BadParameter("several inputs of one name: give each its own, as in -i sr3=a/ -i student=b/", param_hint="--input")
    comparison = compare_files(methods, reference, out, low=low, mask=mask)
    if as_json:
        print(json.dumps(comparison.table(), indent=2, ensure_ascii=False))
    else:
        terminal = open_console()
        print_table(terminal, comparison.table())
        for sentence in comparison.notes:
            terminal.print(f"note: {sentence}")
        terminal.print(f"wrote {', '.join(shown(path) for path in comparison.files)}")
    if comparison.failures:
        raise Exit(1, "\n".join(["some subjects failed:", *(f"  {name}: {why}" for name, why in comparison.failures.items())]))


def _named(text: str) -> tuple[str, Path]:
    """`NAME=PATH`, or a path that goes by the name 'output'."""
    name, equals, path = text.partition("=")
    return (name, Path(path)) if equals and not Path(text).exists() else ("output", Path(text))
