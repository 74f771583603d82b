"""The command that shows an evaluation: report."""

from pathlib import Path
from typing import Annotated

import typer

from jaxsr.cli.options import bare
from jaxsr.cli.output import open_console


def report(
    evaluation: Annotated[Path, typer.Argument(help="The folder that `jaxsr evaluate -o` wrote, or its metrics.json.", show_default=False)],
    out: Annotated[Path | None, bare("--output", "-o", help="The page. [default: report.html in that folder]")] = None,
    subjects: Annotated[int, typer.Option(min=1, help="Montages: so many subjects evenly chosen, and the worst of the best method.")] = 3,
    viewers: Annotated[int, typer.Option(min=0, help="Subjects in the three-plane viewer, the worst first.")] = 1,
    viewer_mm: Annotated[float, typer.Option(help="Finest voxel of the viewer; the size of the file goes with its third power.")] = 1.0,
    title: Annotated[str, typer.Option(help="Of the page.")] = "Super-resolution of brain MRI",
) -> None:
    """Show an evaluation as one HTML file: montages, box plots, tables, tests, a three-plane viewer, and how it was made.

    Everything is inside the file; it opens without a network. The same evaluation gives the same bytes.

    Examples:

        jaxsr report evaluation

        jaxsr report evaluation/metrics.json -o report.html --subjects 5 --viewers 3
    """
    if not 0.3 <= viewer_mm <= 10:
        raise typer.BadParameter(f"{viewer_mm:g} is not a voxel size between 0.3 and 10 mm", param_hint="--viewer-mm")
    from jaxsr.evaluate.report import LARGE, write_report
    from jaxsr.files import shown

    folder = evaluation if evaluation.is_dir() else evaluation.parent
    done = write_report(evaluation, out or folder / "report.html", subjects=subjects, viewers=viewers, viewer_mm=viewer_mm, title=title)
    terminal = open_console()
    for sentence in done.left_out:
        terminal.print(f"note: {sentence}")
    if done.size > LARGE:
        terminal.print(f"note: more than {LARGE / 1e6:.0f} MB: fewer --viewers, a larger --viewer-mm or fewer --subjects make it smaller")
    terminal.print(f"wrote {shown(done.path)}, {done.size / 1e6:.1f} MB")
