"""What people see: tables, and progress (a bar with time left on a terminal, a line now and then in a log)."""

import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # rich takes 0.15 s to import, too long for --help
    from rich.console import Console

LOG_WIDTH = 160  # of tables in a log, where nobody says how wide it is
LINE_EVERY = 10.0  # seconds between lines where there is no terminal

Advance = Callable[..., None]  # advance(done, text="", total=None)
Note = Callable[[str], None]


def open_console(quiet: bool = False) -> "Console":
    """Where commands write; lines are as long as they are."""
    from rich.console import Console

    width = None if sys.stdout.isatty() or "COLUMNS" in os.environ else LOG_WIDTH
    return Console(quiet=quiet, width=width, soft_wrap=True, highlight=False, markup=False)  # paths and extras have brackets


def print_table(target: "Console", rows: Sequence[Mapping[str, str]], title: str | None = None) -> None:
    """Rows with the same keys, which are the column heads; numbers to the right."""
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for name in rows[0] if rows else ():
        named = name in ("subject", "method", "region")  # names stay whole where lines are short: two methods may begin alike
        table.add_column(name, justify="left" if named else "right", no_wrap=named)
    for row in rows:
        table.add_row(*row.values())
    target.print(table)


def print_result(result: Mapping[str, Any], rows: Sequence[tuple[str, str]], as_json: bool) -> None:
    """One JSON object, or lines of name and value."""
    if as_json:
        print(json.dumps(result))
        return
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        print(f"{name:<{width}}  {value}")


@contextlib.contextmanager
def progress(console: "Console", title: str, total: int | None) -> Iterator[tuple[Advance, Note]]:
    """Yields `advance(done, text, total)` and `note(sentence)`, which may be called at any rate."""
    if not console.is_terminal:
        yield _lines(console, title, total), lambda text: console.print(text)
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    counts = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(TextColumn("{task.description}"), *counts, TextColumn("{task.fields[text]}"), console=console, transient=True) as bar:
        task = bar.add_task(title, total=total, text="", start=False)

        def advance(done: int, text: str = "", total: int | None = None) -> None:
            if not bar.tasks[task].started:  # what an earlier run did took no time of this one
                bar.start_task(task)
            bar.update(task, completed=done, text=text, total=total or bar.tasks[task].total)

        yield advance, lambda text: bar.console.print(text)


def _lines(console: "Console", title: str, total: int | None) -> Advance:
    last = -LINE_EVERY
    limit, first = total, (0, time.monotonic())

    def advance(done: int, text: str = "", total: int | None = None) -> None:
        nonlocal last, limit, first
        limit, now = total or limit, time.monotonic()
        if last < 0:
            first = (done, now)  # a resumed run starts here, and the first step is mostly compilation
        if now - last < LINE_EVERY and done != limit:
            return
        last = now
        since, then = first
        left = f", {(now - then) / (done - since) * (limit - done):.0f} s left" if limit and done > since else ""
        console.print(f"{title}: {done}{f'/{limit}' if limit else ''} {text}{left}")

    return advance
