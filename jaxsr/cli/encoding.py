"""`jaxsr prepare --encode`: a prepared set, encoded."""

import json
from pathlib import Path
from typing import Any

import typer

from jaxsr.cli.options import choice, choices, select_device
from jaxsr.cli.output import open_console, print_table, progress
from jaxsr.cli.status import Exit

# Options of `prepare` that say how a set is encoded, and those that mean the same whatever is made; of all others one or the other kind
# of set is made.
OF_ENCODING = ("encode", "image_encoder", "tokens", "crop", "copies", "augment", "keep", "batch_size", "precision", "device")
OF_BOTH = ("root", "out", "dtype", "seed", "dry_run", "as_json", "quiet")


def check_options(context: typer.Context, encoding: bool) -> None:
    """Refuses options that were given and would change nothing."""
    for parameter in context.command.params:
        name = str(parameter.name)
        given = getattr(context.get_parameter_source(name), "name", "DEFAULT") == "COMMANDLINE"
        if given and name not in OF_BOTH and (name in OF_ENCODING) != encoding:
            why = "says how scans are prepared, and with --encode they are already" if encoding else "means something with --encode only"
            raise typer.BadParameter(f"{why}: leave it out", param_hint=parameter.opts[0])


def encode(
    source: Path,
    out: Path,
    autoencoder: Path,
    *,
    image_encoder: Path | None,
    tokens: str,
    crop: int | None,
    copies: int,
    augment: str,
    keep: str | None,
    dtype: str,
    precision: str,
    batch_size: int,
    seed: int,
    device: str,
    dry_run: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """What `prepare` does with --encode; see there."""
    choice("--tokens", tokens, ("pooled", "patches"))
    choice("--precision", precision, ("f32", "bf16"))
    kept = choices("--keep", keep, ("high", "low")) if keep else ()
    if tokens == "patches" and not image_encoder:
        raise typer.BadParameter("all tokens of which image encoder? Name it with --image-encoder", param_hint="--tokens")
    varied = augmentation(augment)
    select_device(device)
    from jaxsr.bench.count import quantity
    from jaxsr.config import from_dict
    from jaxsr.data.augmentation import AugmentConfig
    from jaxsr.files import shown
    from jaxsr.precompute.encoders import load_encoders, plan_encoding
    from jaxsr.precompute.job import make_set
    from jaxsr.precompute.plan import describe
    from jaxsr.prepare.summary import split_counts

    terminal = open_console(quiet=quiet or as_json)
    encoders = load_encoders(autoencoder, image_encoder, precision)  # type: ignore[arg-type]
    how = {"tokens": tokens, "copies": copies, "augment": from_dict(varied, AugmentConfig), "dtype": dtype, "precision": precision}
    plan = plan_encoding(source, out, encoders, crop=crop, keep=kept, seed=seed, **how)
    what = describe(plan)
    terminal.print(
        f"{len(plan.tasks)} scans, {what['slices']} squares of {what['crop']} × {what['crop']}: {', '.join(what['maps'])}; "
        f"{quantity(what['bytes'], 'B', 1024)} before compression, the set's own maps not counted"
    )
    if plan.done:
        terminal.print(f"{plan.done} of {len(plan.tasks)} are there already; kept if their files have not changed since")
    if dry_run:
        if as_json:
            print(json.dumps(what, indent=2))
        else:
            scans = what["scans"]
            terminal.print("\n".join(f"  {scan['id']} (person {scan['person']}, {scan['split']}): {scan['slices']}" for scan in scans[:20]))
            if len(scans) > 20:
                terminal.print(f"  … and {len(scans) - 20} more (--json lists all)")
        return
    with progress(terminal, "encoding", plan.slices) as (advance, note):
        manifest = make_set(plan, batch_size=batch_size, advance=advance, note=note)
    assert manifest
    counts, failed = split_counts(manifest), len(plan.tasks) - len(manifest.shards)
    if as_json:
        print(json.dumps({"manifest": str(out / "manifest.json"), "splits": counts, "rejected": failed}))
    else:
        names = ("people", "scans", "slices")
        print_table(terminal, [{"split": split, **dict(zip(names, map(str, numbers), strict=True))} for split, numbers in counts.items()])
        terminal.print(f"Train a teacher with {' '.join(overrides(out, what['crop'], autoencoder, image_encoder))}")
    if failed:
        raise Exit(1, f"{failed} of {len(plan.tasks)} scans could not be encoded: prepare {shown(source)} again, then run this again")


def overrides(out: Path, crop: int, autoencoder: Path, image_encoder: Path | None) -> list[str]:
    """What a teacher's config is told of the set `out` and of the networks that encoded it, with which it is used later."""
    from jaxsr.files import shown

    named = {"autoencoder": autoencoder, **({"image_encoder": image_encoder} if image_encoder else {})}
    weights = [f"method.weights.{name}={shown(path)}" for name, path in named.items()]
    return [f"data.manifest={shown(out)}", f"data.crop={crop}", *weights]


def augmentation(text: str) -> dict[str, Any]:
    """'flip', 'off', or as in 'rotation=5,scale=0.1', which flips too unless it says flip=false."""
    if text in ("flip", "off"):
        return {"flip": text == "flip"}
    found: dict[str, Any] = {}
    for part in text.split(","):
        name, equals, value = (word.strip() for word in part.partition("="))
        try:
            found[name] = {"true": True, "false": False}[value] if name == "flip" else float(value)
        except (KeyError, ValueError):
            equals = ""
        if not equals or name not in ("flip", "rotation", "scale", "elastic", "gamma"):
            raise typer.BadParameter(
                f"'{part}' is neither flip nor off nor a setting of flip, rotation, scale, elastic, gamma, as in rotation=5,scale=0.1",
                param_hint="--augment",
            )
    return found
