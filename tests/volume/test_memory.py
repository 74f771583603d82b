"""How much memory is free: what the system has, within what the container may."""

import pytest

from jaxsr.volume import memory


@pytest.mark.parametrize("limit, free", [("3000", 1500), ("max", 8000 * 1024), ("9223372036854771712", 8000 * 1024), ("1000", 0)])
def test_the_smaller_of_system_and_container_counts(limit, free, tmp_path, monkeypatch):
    """2000 bytes are used, of which 500 are a file cache that can be given back."""
    for name, text in {"limit": limit, "used": "2000", "stat": "anon 1500\ninactive_file 500\n"}.items():
        (tmp_path / name).write_text(text + "\n")
    monkeypatch.setattr(memory, "_available", lambda: 8000 * 1024)
    monkeypatch.setattr(memory, "_CGROUPS", ((*(str(tmp_path / n) for n in ("limit", "used", "stat")), "inactive_file"),))
    assert memory.free_memory() == free


def test_what_nobody_says_is_not_made_up(monkeypatch):
    monkeypatch.setattr(memory, "_available", lambda: None)
    monkeypatch.setattr(memory, "_CGROUPS", (("nowhere", "nowhere", "nowhere", "x"),))
    assert memory.free_memory() is None


def test_here_it_is_known():
    assert memory.free_memory() > 1e6
