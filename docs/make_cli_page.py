"""Writes docs/cli.md from the command line itself: `python docs/make_cli_page.py`. A test keeps the page true."""

from pathlib import Path
from typing import Any

import typer

from jaxsr.cli import app

PAGE = Path(__file__).with_name("cli.md")


def page() -> str:
    """The page: every command with its arguments, flags, defaults and examples."""
    lines = ["# The command line", "", "Made by `python docs/make_cli_page.py`; do not edit by hand.", ""]
    lines += ["Exit status: 0 done, 1 some inputs failed, 2 usage, config or input, 3 nothing to do, 4 no model, 5 out of memory,"]
    lines += ["6 training diverged, 130 interrupted, 143 stopped by SIGTERM.", ""]
    for name, command in _commands(typer.main.get_command(app), "jaxsr"):
        lines += [f"## `{name}`", "", *(line.rstrip() for line in (command.help or "").strip().splitlines()), ""]
        rows = [_row(parameter) for parameter in command.params if parameter.name != "help"]
        if rows:
            lines += ["| argument or flag | default | meaning |", "| --- | --- | --- |", *rows, ""]
    return "\n".join(lines).rstrip() + "\n"


def _commands(command: Any, name: str):  # type: ignore[no-untyped-def]
    yield name, command
    for sub in getattr(command, "commands", {}).values():
        yield from _commands(sub, f"{name} {sub.name}")


def _row(parameter: Any) -> str:
    option = parameter.param_type_name == "option"
    names = ", ".join([*parameter.opts, *parameter.secondary_opts]) if option else str(parameter.name).upper()
    default = parameter.default if isinstance(parameter.default, str | int | float | Path) and parameter.default is not False else ""
    return f"| `{names}` | {default} | {(getattr(parameter, 'help', '') or '').replace('|', '/')} |"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
