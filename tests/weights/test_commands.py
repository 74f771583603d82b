"""`jaxsr weights` from outside: what it prints, and what it exits with."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from jaxsr.cli import app
from jaxsr.cli.status import run
from jaxsr.weights.clip import transformers_names
from jaxsr.weights.deduced import clip_shapes

SIZES = {"patch": 4, "width": 64, "layers": 1, "heads": 1, "projection": 6, "side": 8}


@pytest.fixture
def jaxsr(capsys, monkeypatch, tmp_path):
    """Runs a command in `tmp_path`: its exit status, and what it printed to either side."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JAXSR_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "200")

    def command(*words):
        status = run(lambda: app(["weights", *map(str, words)], standalone_mode=False))
        said = capsys.readouterr()
        return status, said.out, said.err

    return command


@pytest.fixture
def source(tmp_path):
    """A small CLIP under transformers' names, with a text tower."""
    shapes = clip_shapes(SIZES)
    turned = {2: (1, 0), 4: (3, 2, 0, 1)}
    arrays = {
        theirs: np.ones([shapes[ours][i] for i in turned[len(shapes[ours])]] if ours.endswith("/kernel") else shapes[ours], np.float32)
        for ours, theirs in transformers_names(1).items()
    }
    save_file(arrays | {"text_model.a": np.ones(1, np.float32), "logit_scale": np.ones((), np.float32)}, tmp_path / "clip.safetensors")
    return tmp_path / "clip.safetensors"


def test_import_then_verify(jaxsr, source):
    status, out, _ = jaxsr("import", "clip", source, "ours.safetensors", "--json")
    facts = json.loads(out)
    assert status == 0
    assert facts["configuration"] == SIZES
    assert facts["left_out"] == {"text_model.": 1, "logit_scale": 1}
    status, out, _ = jaxsr("verify", "ours.safetensors")
    assert status == 0
    assert out.startswith("ours.safetensors: whole and as it was written, clip, ")
    assert f" tensors, {facts['parameters']['params']:,} elements" in out
    status, out, _ = jaxsr("import", "clip", source, "ours.safetensors", "--overwrite")
    assert status == 0
    assert "left out  text_model.* (1 tensors)" in out


def test_list_says_of_each_where_it_is_from_and_whether_it_is_here(jaxsr, tmp_path):
    status, out, _ = jaxsr("list")
    assert status == 0
    assert all(
        word in out for word in ("zero123", "ViT-L-14.pt", "licence  MIT", "unknown: download it with --sha256", str(tmp_path / "cache"))
    )
    assert "alex.pth, 5.868 KiB" in out  # of 6,009 bytes
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "ViT-L-14.pt").touch()
    here = {row["name"]: row["here"] for row in json.loads(jaxsr("list", "--json")[1])}
    assert {name for name, there in here.items() if there} == {"clip-vit-l-14"}


@pytest.mark.parametrize("words, status, sentence", [
    (["download", "clip-vit-l-14", "--offline"], 4, "ViT-L-14.pt is not there, and --offline"),
    (["download", "zero123"], 4, "no SHA-256 of zero123 is surely known"),
    (["download", "nonsense"], 2, "'nonsense' is none of zero123"),
    (["download", "zero123", "--sha256", "abc"], 2, "'abc' is no SHA-256"),
    (["import", "nonsense", "clip.safetensors", "x.safetensors"], 2, "'nonsense' is none of unet"),
    (["import", "clip", "absent.pt", "x.safetensors"], 4, "absent.pt is not there"),
    (["import", "unet", "clip.safetensors", "x.safetensors"], 4, "holds none of"),
    (["import", "clip", "clip.safetensors", "clip.safetensors"], 2, "is there already"),
    (["import", "clip", "clip.safetensors", "x.npz"], 2, "name it x.safetensors"),
    (["import", "clip", "folder", "x.safetensors"], 2, "'folder' is a folder"),
    (["verify", "clip.safetensors", "--sha256", "0" * 64], 4, "has the SHA-256"),
    (["verify", "absent.safetensors"], 4, "is not there"),
    (["verify", "folder"], 2, "'folder' is a folder"),
])  # fmt: skip
def test_what_cannot_be_done_is_said_with_its_status(jaxsr, source, words, status, sentence, tmp_path):
    (tmp_path / "folder").mkdir()
    found, _, err = jaxsr(*words)
    assert (found, sentence in err) == (status, True), err
    assert not (tmp_path / "x.safetensors").exists()
