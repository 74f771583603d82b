"""Which jaxsr this is: for what a result must be known by, where the version alone does not tell two states of the source apart."""

import functools
import hashlib
import subprocess
from pathlib import Path

import jaxsr

_PACKAGE = Path(jaxsr.__file__).resolve().parent


@functools.cache
def source_sha256() -> str:
    """SHA-256 over the names and the bytes of all .py and .yaml files of the package, in the order of their names."""
    sums = hashlib.sha256()
    for path in sorted(p for p in _PACKAGE.rglob("*") if p.suffix in (".py", ".yaml")):
        data = path.read_bytes()
        sums.update(f"{path.relative_to(_PACKAGE).as_posix()}\0{len(data)}\0".encode())
        sums.update(data)
    return sums.hexdigest()


@functools.cache
def git_commit() -> str | None:
    """Of the checkout that the package lies in; None where it lies in none, or git does not say."""
    checkout = _PACKAGE.parent
    if not (checkout / ".git").exists():  # or git would find a repository further up, of something else
        return None
    command = ["git", f"--git-dir={checkout / '.git'}", "rev-parse", "--verify", "HEAD"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
    return said or None


def origin() -> dict[str, str | None]:
    """For metrics.json."""
    return {"version": jaxsr.__version__, "commit": git_commit(), "source_sha256": source_sha256()}
