"""The model that comes with jaxsr: where it lies, and how it is named in place of a path."""

from pathlib import Path

STANDARD = Path("standard")  # what it is called wherever a model is named
SHIPPED = Path(__file__).with_name("standard.safetensors")


def named_model(path: Path) -> Path:
    """`path`, or where the model lies that comes with jaxsr: that is called `standard`, where nothing else here is."""
    return SHIPPED if path == STANDARD and not path.exists() else path
