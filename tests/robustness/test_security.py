"""What a hostile file, list, config or name can do: nothing but be refused. And what the package does not do by itself."""

import ast
import gzip
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

import jaxsr as package

SOURCE = Path(package.__file__).parent
DATA = np.random.default_rng(0).integers(1, 1000, (16, 17, 18)).astype(np.int16)


def scan(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.Nifti1Image(DATA, np.diag([6.0, 6, 6, 1])).to_filename(path)
    return path


# --- code that is not run ---

FORBIDDEN = {  # names that load code, or run it
    *("eval", "exec", "compile", "__import__", "pickle.load", "pickle.loads", "pickle.Unpickler", "cloudpickle.load", "cloudpickle.loads"),
    *("marshal.load", "marshal.loads", "shelve.open", "joblib.load", "torch.load", "yaml.load", "yaml.full_load", "yaml.unsafe_load"),
    *("yaml.load_all", "os.system", "os.popen", "tempfile.mktemp", "dill.load", "dill.loads"),
}


def calls(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), {word.arg: ast.unparse(word.value) for word in node.keywords}, node.lineno


def imports(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield from [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]


def offences(text):
    tree = ast.parse(text)
    found = [f"{line}: {name}" for name, words, line in calls(tree) if name in FORBIDDEN or words.get("shell") == "True"]
    found += [f"{line}: {name} with allow_pickle" for name, words, line in calls(tree) if words.get("allow_pickle", "False") != "False"]
    found += [f"imports {name}" for name in imports(tree) if name.split(".")[0] in ("pickle", "marshal", "shelve", "dill", "cloudpickle")]
    return found


def test_nothing_in_the_package_loads_code_from_data():
    wrong = {path.relative_to(SOURCE).as_posix(): offences(path.read_text("utf-8")) for path in SOURCE.rglob("*.py")}
    # The one reader of pickles looks no name up: tests/weights/test_pickled.py, with files that would run something.
    assert {path: found for path, found in wrong.items() if found} == {"weights/pickled.py": ["imports pickle"]}


@pytest.mark.parametrize(
    "text", ["eval('1')", "import pickle", "np.load(p, allow_pickle=True)", "yaml.load(f)", "run(c, shell=True)", "torch.load(p)"]
)
def test_and_it_would_be_noticed(text):
    assert offences(text)


CHAIN = """
import json, sys
seen = {"sockets": [], "pickles": []}

def watch(event, args):
    local = event == "socket.bind" and args[1][0] in ("::1", "127.0.0.1")  # libraries ask which addresses there are
    if event in ("socket.connect", "socket.getaddrinfo", "socket.bind", "socket.sendto") and not local:
        seen["sockets"].append(f"{event} {args[1:]}")
    if event == "pickle.find_class":
        seen["pickles"].append(f"{args}")

sys.addaudithook(watch)
from jaxsr.cli import app
from jaxsr.cli.status import run
statuses = {}
for words in json.loads(sys.argv[1]):
    statuses[" ".join(words[:2])] = run(lambda: app(words, standalone_mode=False))
    if words[0] == "train":
        assert run(lambda: app(["inspect", "-h"], standalone_mode=False)) == 0
        seen["pickles"].clear()  # what is trained is made here; what is loaded comes after
with open(sys.argv[2], "w") as file:
    json.dump([statuses, seen], file)
import pickle, socket
seen["sockets"].clear(), seen["pickles"].clear()
socket.socket().connect_ex(("127.0.0.1", 9)), pickle.loads(pickle.dumps(Exception))
assert seen["sockets"] and seen["pickles"], "nothing is recorded"
"""


def test_no_command_opens_a_connection_and_no_model_is_unpickled(tiny, tmp_path):
    """Train, inspect, upscale, evaluate, config and doctor in one process that records every connection and every unpickling."""
    source = scan(tmp_path / "v.nii.gz")
    run_dir, out = str(tmp_path / "run"), str(tmp_path / "out.nii.gz")
    commands = [
        ["train", str(tiny), "--run-dir", run_dir],
        ["inspect", str(source), "--model", run_dir],
        ["upscale", "-i", str(source), "-o", out, "--model", run_dir, "--no-montage"],
        ["evaluate", "-i", out, "-r", out, "-o", str(tmp_path / "evaluation")],
        ["config", "show", str(tiny)],
        ["doctor"],
    ]
    words = [sys.executable, "-c", CHAIN, json.dumps(commands), str(tmp_path / "seen.json")]
    done = subprocess.run(words, capture_output=True, text=True, env={**os.environ, "JAX_PLATFORMS": "cpu"}, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    statuses, seen = json.loads((tmp_path / "seen.json").read_text())
    assert {name: status for name, status in statuses.items() if name != "doctor"} == {
        " ".join(c[:2]): 0 for c in commands if c[0] != "doctor"
    }
    assert seen["sockets"] == []
    assert seen["pickles"] == []


def test_a_checkpoint_is_arrays_and_json(run_dir):
    files = [p for p in (run_dir / "checkpoints").rglob("*") if p.is_file()]
    assert files
    for path in files:
        head = path.read_bytes()[:2]
        assert head[:1] != b"\x80" or head[1:2] not in b"\x02\x03\x04\x05", f"{path} is a pickle"
        assert path.suffix not in (".pkl", ".pickle", ".py", ".pyc", ".so", ".pt", ".msgpack")


# --- configs ---


@pytest.mark.parametrize(
    "text, sentence",
    [
        ("seed: !!python/object/apply:os.system ['touch ran']", "tag"),
        ("method: !!python/object/new:os.system [touch ran]", "tag"),
        ("!!python/module:os.path\n", "tag|mapping"),
        ("seed: &a [1]\nmethod: *a", "alias"),
        ("base: evil.yaml", "on top of each other"),
        ("base: other.yaml", "on top of each other"),
        ("a: " + "[" * 5000, "not readable"),
        ("base: /etc/shadow-that-is-not-there", "cannot read"),
    ],
)
def test_a_config_is_data_and_ends(text, sentence, call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "evil.yaml").write_text(text)
    (tmp_path / "other.yaml").write_text("base: evil.yaml")
    for words in (["config", "validate", "evil.yaml"], ["config", "show", "evil.yaml"]):
        done = call(*words)
        assert done.status == 2
        assert sentence.split("|")[0] in done.err or sentence.split("|")[-1] in done.err
    assert not (tmp_path / "ran").exists()


# --- paths ---


def test_outputs_of_a_list_stay_in_the_output_folder_whatever_the_list_says(call, identity, tmp_path):
    outside, lists = scan(tmp_path / "outside" / "a.nii"), tmp_path / "lists"
    scan(lists / "sub" / "b.nii")
    (lists / "list.txt").write_text(f"# comment\n{outside}\nsub/../sub/b.nii\n../outside/../outside/c.nii\n")
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    done = call("upscale", "-i", lists / "list.txt", "-o", tmp_path / "out", "-m", identity, "--no-montage")
    assert done.status == 1, done.err
    assert "c.nii: no such file" in done.err.splitlines()[-1]
    after = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    made = {str(p.relative_to(tmp_path)) for p in after.keys() - before.keys()}
    assert made == {"out/a.nii", "out/a.json", "out/b.nii", "out/b.json"}
    assert all(after[p] == content for p, content in before.items())


@pytest.mark.parametrize("line", ["..", ".", "sub/..", "/"])
def test_a_folder_in_a_list_is_refused_and_nothing_is_written_beside_the_output(line, call, identity, tmp_path):
    scan(tmp_path / "sub" / "b.nii")
    (tmp_path / "list.txt").write_text(f"{line}\n")
    done = call("upscale", "-i", tmp_path / "list.txt", "-o", tmp_path / "out", "-m", identity)
    assert done.status == 2
    assert "a folder" in done.err
    assert not (tmp_path / "out").exists()


def test_a_list_that_is_no_list_is_refused(call, identity, tmp_path):
    for content, sentence in (
        (b"\xff\xfe\x00\x80" * 100, "binary"),
        (b"a" * (1 << 24) + b"aa", "too long"),
        (b"a\0b.nii\n", "cannot be opened"),
    ):
        (tmp_path / "list.txt").write_bytes(content)
        done = call("upscale", "-i", tmp_path / "list.txt", "-o", tmp_path / "out", "-m", identity)
        assert done.status == 2
        assert sentence in done.err
        assert done.err.count("\n") == 1


def test_a_link_at_the_output_is_replaced_and_what_it_leads_to_is_not_written(call, identity, tmp_path):
    source, victim = scan(tmp_path / "in" / "v.nii"), tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "v.nii").symlink_to(victim)
    done = call("upscale", "-i", source, "-o", tmp_path / "out", "-m", identity, "--overwrite")
    assert done.status == 0, done.err
    assert victim.read_text() == "precious"
    assert not (tmp_path / "out" / "v.nii").is_symlink()


def test_a_link_where_the_picture_would_be_is_not_ours_and_refused(call, identity, tmp_path):
    source, victim = scan(tmp_path / "in" / "v.nii"), tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "v.png").symlink_to(victim)
    done = call("upscale", "-i", source, "-o", tmp_path / "out", "-m", identity)
    assert done.status == 2
    assert "not written by jaxsr" in done.err
    assert victim.read_text() == "precious"
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["v.png"]


NASTY = [
    *("line\nbreak.nii", "\x1b[31mred\x1b[0m.nii", "bell\x07.nii", "right\u202eto-left.nii"),
    *(os.fsdecode(b"latin\xe9.nii"), "sp ace [bold]x.nii", "pri$ce_{$.nii"),
]


def test_names_are_shown_without_what_a_terminal_obeys(call, identity, tmp_path):
    for name in NASTY:
        scan(tmp_path / "in" / name)
        (tmp_path / "in" / f"bad {name}").write_bytes(b"no volume")
    words = [tmp_path / "in", "--json"], [tmp_path / "in"]
    said = [call("inspect", *w) for w in words]
    said.append(call("upscale", "-i", tmp_path / "in", "-o", tmp_path / "out", "-m", identity))
    for done in said:
        assert done.status == 1
        text = done.out + done.err
        assert not [c for c in text if not (c.isprintable() or c == "\n")]
        assert text.encode("utf-8")
        assert r"\x1b[31mred" in text
        assert r"line\nbreak.nii" in text.replace(r"\\n", r"\n")
        assert len(done.err.splitlines()) == 1 + len(NASTY)
    assert {p.name for p in (tmp_path / "out").iterdir() if p.suffix == ".nii"} == set(NASTY)
    for path in (tmp_path / "out").glob("*.json"):
        assert json.loads(path.read_bytes())["JaxSR"]


@pytest.mark.parametrize("kind", ["fifo", "device", "socket"])
def test_what_is_no_file_is_refused_and_does_not_hang(kind, call, tmp_path, monkeypatch):
    path = {"fifo": tmp_path / "v.nii", "device": Path("/dev/zero"), "socket": tmp_path / "v.nii"}[kind]
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as server:
            monkeypatch.chdir(tmp_path)  # a socket's name is short
            server.bind("v.nii")
    done = call("inspect", path)
    assert done.status == 2
    assert "not a regular file" in done.err


# --- bombs ---


def test_a_gzip_file_that_unpacks_to_far_more_than_its_header_promises_is_refused(call, tmp_path):
    """2 MB that would become 2 GB."""
    zeros = gzip.compress(bytes(1 << 20))
    path = tmp_path / "v.nii.gz"
    path.write_bytes(gzip.compress(nib.Nifti1Image(DATA, np.eye(4)).to_bytes()) + zeros * 2000)
    started = time.monotonic()
    done = call("inspect", path)
    assert done.status == 2
    assert "unpacks to far more than" in done.err
    assert time.monotonic() - started < 10


def test_a_header_that_promises_more_than_memory_holds_is_refused_before_it_is_allocated(tmp_path):
    """40 MB of gzip could hold the 40 GB promised; 3 GB of address space cannot, and the process stays small."""
    raw = bytearray(nib.Nifti1Image(DATA, np.eye(4)).to_bytes()[:352])
    raw[42:48] = np.array([27000, 27000, 27], "<i2").tobytes()
    path = tmp_path / "v.nii.gz"
    path.write_bytes(gzip.compress(bytes(raw)) + gzip.compress(bytes(1 << 20)) * 40_000)
    words = [sys.executable, "-c", MEASURED, "inspect", str(path)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, env={**os.environ, "OPENBLAS_NUM_THREADS": "1"})
    assert done.returncode == 2, done.stderr
    assert "GB are free" in done.stderr or "does not fit in memory" in done.stderr
    assert int(done.stdout.splitlines()[-1]) < 600_000  # kB


MEASURED = """
import resource, sys
resource.setrlimit(resource.RLIMIT_AS, (3 << 30, 3 << 30))
from jaxsr.cli import app
from jaxsr.cli.status import run
status = run(lambda: app(sys.argv[1:], standalone_mode=False))
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))  # ru_maxrss holds the forking process's too
sys.exit(status)
"""


def test_what_holds_no_volume_is_refused_unparsed(call, tmp_path):
    """XML that grows without end inside an image format that nibabel knows, and jaxsr does not read."""
    entities = "".join(f'<!ENTITY e{i} "{f"&e{i - 1};" * 10 if i else "ha"}">' for i in range(30))
    (tmp_path / "v.gii").write_text(f'<?xml version="1.0"?><!DOCTYPE GIFTI [{entities}]><GIFTI>&e29;</GIFTI>')
    done = call("inspect", tmp_path / "v.gii")
    assert done.status == 2
    assert "a Gifti file" in done.err
