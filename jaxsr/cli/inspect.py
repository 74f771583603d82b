"""Commands that look: inspect, doctor, config, bench."""

import json
from pathlib import Path
from typing import Annotated

import typer

from jaxsr.cli.options import (
    AsJson,
    Config,
    Device,
    Overrides,
    bare,
    check_voxel_size,
    choice,
    failed,
    select_device,
)
from jaxsr.cli.output import open_console
from jaxsr.cli.status import Exit
from jaxsr.weights.standard import named_model


def inspect(
    files: Annotated[list[Path], typer.Argument(help="Volumes, folders of them, or .txt lists.", show_default=False)],
    to_mm: Annotated[float | None, bare(help="Voxel size of the output. [default: the model's, or as it is]")] = None,
    model: Annotated[Path | None, bare("--model", "-m", help="The run directory or exported file whose voxel size is meant.")] = None,
    volume: Annotated[int | None, bare(help="Which volume of a 4-D file, from 0.")] = None,
    nan: Annotated[str, typer.Option(help="refuse, or zero: what to do with NaN and Inf.")] = "refuse",
    as_json: AsJson = False,
) -> None:
    """Say what `upscale` would make of each file: how it is stored, what is odd, and whether it can be used. Nothing is computed.
    Of a folder that `prepare` wrote, whether its shards are as they were written, and what is in them.

    Exit status 0 where all can be used, 2 where the only one cannot, 1 where some of several cannot.

    Examples:

        jaxsr inspect scan.nii.gz --to-mm 0.7

        jaxsr inspect scans/ --json
    """
    choice("--nan", nan, ("refuse", "zero"))
    check_voxel_size(to_mm)
    if len(files) == 1 and (files[0].name == "manifest.json" or (files[0] / "manifest.json").is_file()):
        _inspect_set(files[0], as_json)
        return
    from jaxsr.upscale import inspect as job
    from jaxsr.upscale.inputs import find_sources

    paths = [path for given in files for path in find_sources(given)[0]]
    if not paths:
        raise Exit(3, "no volumes to inspect (.nii, .nii.gz, .mgz, .mgh)")
    target = to_mm or (_voxel_size_of(named_model(model)) if model else None)
    reports = []
    for path in paths:
        report = job.inspect(path, to_mm=target, volume=volume, nan=nan)  # type: ignore[arg-type]
        reports.append(report)
        if not as_json:
            print(report["path"])
            print("\n".join(f"  {name:>14}  {value}" for name, value in job.lines(report)))
    if as_json:
        print(json.dumps(reports, indent=2, allow_nan=False))
    wrong = [(path, report["problem"]) for path, report in zip(paths, reports, strict=True) if not report["usable"]]
    if wrong:
        raise Exit(1, failed(wrong, len(paths))) if len(paths) > 1 else Exit(2, wrong[0][1])


def _inspect_set(path: Path, as_json: bool) -> None:
    """Reads a prepared set to its last byte and says what it is."""
    from jaxsr.data.records import verify
    from jaxsr.prepare.summary import split_counts

    manifest = verify(path)
    counts = split_counts(manifest)
    if as_json:
        facts = {"maps": manifest.maps, "voxel_size": manifest.voxel_size, "dtype": manifest.dtype, "made_by": manifest.made_by}
        print(json.dumps({**facts, "splits": counts, "shards": len(manifest.shards)}))
        return
    print(f"{path}: {len(manifest.shards)} shards as they were written, {manifest.voxel_size:g} mm, {', '.join(manifest.maps)}")
    for split, (people, scans, slices) in counts.items():
        print(f"  {split:>14}  {people} people, {scans} scans, {slices} slices")


def _voxel_size_of(model: Path) -> float:
    from jaxsr.upscale.model import read_experiment

    return read_experiment(model).data.voxel_size


def doctor(as_json: AsJson = False, device: Device = "auto") -> None:
    """Say what this machine offers, and what is wrong with it. Exit status 1 if something is."""
    select_device(device, check=device != "auto")
    from jaxsr.doctor import problems, report

    found = report()
    wrong = problems(found)
    if as_json:
        print(json.dumps({**found, "problems": wrong}, indent=2, default=str))
    else:
        terminal = open_console()
        for key, value in found.items():
            terminal.print(f"{key:>20}  {json.dumps(value, default=str) if isinstance(value, dict | list) else value}")
        for sentence in wrong:
            terminal.print(f"problem: {sentence}", style="red")
        if not wrong:
            terminal.print("no problems found")
    raise typer.Exit(1 if wrong else 0)


def config_show(config: Config, overrides: Overrides = None) -> None:
    """Print the whole configuration, with bases, overrides and defaults resolved."""
    from jaxsr.config import dump
    from jaxsr.experiment import load_experiment

    print(dump(load_experiment(config, overrides or [])), end="")


def config_validate(configs: Annotated[list[Path], typer.Argument(help="YAML files.", show_default=False)]) -> None:
    """Check configurations; every error at once, each with its path."""
    from jaxsr.config import ConfigError
    from jaxsr.experiment import load_experiment

    wrong = []
    for path in configs:
        try:
            load_experiment(path)
            print(f"{path}: fine")
        except ConfigError as error:
            wrong.append(f"{path}:\n{error}")
    if wrong:
        raise Exit(2, "\n".join(wrong))
