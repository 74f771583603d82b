"""The persistent compilation cache: what was compiled once is not compiled again by the next command."""

import os
from pathlib import Path

import jax


def cache_folder() -> Path:
    """`JAX_COMPILATION_CACHE_DIR`, else `jaxsr` under the user's cache folder."""
    if named := os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "jaxsr" / "compiled"


def use_compilation_cache() -> None:
    """Turns it on for programs that take 0.2 s or more to compile, or as long as `JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS` says."""
    jax.config.update("jax_compilation_cache_dir", str(cache_folder()))
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
