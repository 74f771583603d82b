"""Launch scripts: what they set is accepted, and what fails is told."""

import importlib.util
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from jaxsr.evaluate.protocol import load_protocol
from jaxsr.experiment import load_experiment
from jaxsr.runtime.cache import cache_folder

LAUNCH = Path(__file__).parents[1] / "launch"


@pytest.mark.parametrize("deterministic", ["0", "1"])
def test_every_variable_and_flag_that_is_set_is_accepted_by_jax(deterministic, tmp_path, monkeypatch):
    """An unknown XLA flag aborts the process; an unknown JAX_ variable is silently ignored, so its value is read back."""
    program = "import jax; jax.numpy.ones(3) + 1; print(jax.config.jax_optimization_level, jax.config.jax_compilation_cache_dir)"
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "JAX_PLATFORMS": "cpu", "JAXSR_DETERMINISTIC": deterministic}
    answer = subprocess.run(
        ["bash", "-c", f"source {LAUNCH}/environment.sh && exec {sys.executable} -c '{program}'"],
        capture_output=True, text=True, env=environment, check=True,
    )  # fmt: skip
    for name in ("JAX_COMPILATION_CACHE_DIR", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert answer.stdout.split() == ["O1", str(cache_folder())]


@pytest.fixture
def stub(tmp_path):
    """A stand-in for the python that the scripts start, running `body` in place of `-m …`."""

    def stub(body: str) -> dict[str, str]:
        path = tmp_path / "python"
        path.write_text(f'#!/usr/bin/env bash\n[[ $1 == -c ]] && exec {sys.executable} "$@"\n{body}\n')
        path.chmod(0o755)
        return {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "TMPDIR": str(tmp_path), "PYTHON": str(path)}

    return stub


def test_local_processes_get_their_number_and_share_a_coordinator_and_the_gpus(stub):
    environment = stub('for i in 1 2 3; do echo "$JAXSR_PROCESS/$JAXSR_PROCESSES $JAXSR_COORDINATOR gpu $CUDA_VISIBLE_DEVICES"; done')
    answer = subprocess.run(
        [LAUNCH / "local.sh", "2", "train"], capture_output=True, text=True, env={**environment, "CUDA_VISIBLE_DEVICES": "4,5"}, timeout=120
    )
    assert answer.returncode == 0
    assert re.fullmatch(r"(0/2 localhost:\d+ gpu 4\n){3}", answer.stdout)


def test_a_local_process_that_fails_takes_the_others_with_it(stub):
    environment = stub("[[ $JAXSR_PROCESS == 1 ]] && exit 6; exec sleep 60")
    answer = subprocess.run([LAUNCH / "local.sh", "3", "train"], capture_output=True, text=True, env=environment, timeout=120)
    assert answer.returncode == 6
    assert "ended with status 6" in answer.stderr


def test_local_processes_that_upscale_go_on_without_one_that_fails(stub):
    environment = stub('[[ $JAXSR_PROCESS == 1 ]] && echo "why it failed" && exit 5; sleep 1; echo "went on"')
    answer = subprocess.run([LAUNCH / "local.sh", "3", "upscale"], capture_output=True, text=True, env=environment, timeout=120)
    assert (answer.returncode, answer.stdout) == (5, "went on\n")
    assert "why it failed" in answer.stderr


@pytest.fixture
def benchmarks(monkeypatch):
    """launch/benchmarks.py, as a module."""
    spec = importlib.util.spec_from_file_location("benchmarks", LAUNCH / "benchmarks.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "benchmarks", module)
    spec.loader.exec_module(module)
    return module


LIST = """
gpu:
  first:
    - {name: fails, run: "-c 'raise SystemExit(4)'", seconds: 60}
    - {name: small, run: count configs/demo.yaml, seconds: 120}
    - {name: lacks, run: count configs/demo.yaml, seconds: 60, needs: [no_such_module]}
  second:
    - {name: sleeps, run: "-c 'import time; time.sleep(100)'", seconds: 1}
    - {name: refused, run: count configs/no-such.yaml, seconds: 60}
"""


def test_a_benchmark_that_fails_is_told_and_does_not_stop_the_others(benchmarks, tmp_path, capsys):
    (tmp_path / "list.yaml").write_text(LIST)
    assert benchmarks.main([str(tmp_path / "out"), "--list", str(tmp_path / "list.yaml")]) == 1
    said = capsys.readouterr().out
    for line in (
        "first: fails: status 4", "first: lacks: left out, as no_such_module is not here", "second: sleeps: not done after 1 s",
        "second: refused: status 2: jaxsr: cannot read the config configs/no-such.yaml: No such file or directory",
    ):  # fmt: skip
        assert f"\n  {line}\n" in said
    [result] = map(json.loads, (tmp_path / "out/results.jsonl").read_text().splitlines())
    assert (result["benchmark"], result["command"]) == ("small", "jaxsr bench count configs/demo.yaml")
    assert f"| first: small | {result['parameters']:,} |" in (tmp_path / "out/table.md").read_text()


def test_benchmarks_end_in_their_time_and_tell_what_they_left_out(benchmarks, tmp_path, capsys):
    (tmp_path / "list.yaml").write_text(LIST)
    assert benchmarks.main([str(tmp_path / "out"), "second", "--list", str(tmp_path / "list.yaml"), "--seconds", "8"]) == 1
    assert capsys.readouterr().out.count("left out, as 8 s are over") == 2


def test_a_step_gets_what_is_left_of_the_time(benchmarks, tmp_path, capsys):
    """Of 14 seconds 5 are kept for its end."""
    (tmp_path / "list.yaml").write_text("gpu: {one: [{name: sleeps, run: -c 'import time; time.sleep(100)', seconds: 60}]}")
    began = time.monotonic()
    assert benchmarks.main([str(tmp_path / "out"), "--list", str(tmp_path / "list.yaml"), "--seconds", "14"]) == 1
    assert time.monotonic() - began < 14
    assert "one: sleeps: not done after 9 s" in capsys.readouterr().out


def test_by_itself_the_script_ends_within_eight_minutes():
    assert int(re.search(r'"--seconds", type=float, default=(\d+)', (LAUNCH / "benchmarks.py").read_text())[1]) < 480


@pytest.mark.parametrize("text", ["gpu: [1]", "cpu: {}", "gpu: {a: [{name: b}]}", "gpu: {", "[]"])
def test_a_list_that_is_none_is_refused_in_a_sentence(text, benchmarks, tmp_path, capsys):
    (tmp_path / "list.yaml").write_text(text)
    with pytest.raises(SystemExit):
        benchmarks.main([str(tmp_path / "out"), "--list", str(tmp_path / "list.yaml")])
    assert "is no list of benchmarks for a gpu" in " ".join(capsys.readouterr().err.split())


def test_an_unknown_part_is_refused_before_anything_is_run(benchmarks, tmp_path, capsys):
    with pytest.raises(SystemExit):
        benchmarks.main([str(tmp_path / "out"), "moediff"])
    assert "moediff: the parts for a gpu are targets, tests, peers" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("machine", ["gpu", "cpu"])
def test_every_benchmark_that_is_listed_is_a_command_that_there_is(benchmarks, machine):
    """Its config and settings load, its options are known, and it has a name of its own."""
    import typer

    from jaxsr.cli import app

    command = typer.main.get_command(app).commands["bench"]
    steps = benchmarks.steps_of(LAUNCH / "benchmarks.yaml", machine)
    assert len({(step.part, step.name) for step in steps}) == len(steps)
    for step in steps:
        if step.bench is None:
            assert step.run[0] == "-m"
            continue
        context = command.commands[step.bench].make_context(step.bench, step.run[1:])  # raises for what it does not know
        if config := context.params.get("config"):
            load_experiment(LAUNCH.parent / config, context.params["overrides"] or [])


def test_the_tables_have_medians_spread_floors_and_ratios(benchmarks):
    times = {"median": 2.0, "lower_quartile": 1.5, "upper_quartile": 2.5, "repeats": 5}
    rates = {"slices_per_second": 4.0, "floor_seconds": 0.5, "flops_per_second": 3e12, "share_of_peak": None, "share_of_matrix_rate": 0.25}
    memory = {"peak_memory_bytes": 2**30, "peak_memory_of": "device"}
    machine = {"device": "chip", "devices": 2, "processor": "host", "versions": {"jax": "1.2"}}
    about = {"precision": "bf16", "batch_size": 8, "compile_seconds": 9.0, **rates, **memory, **machine}
    named = {"part": "a", "benchmark": "b", "bench": "train", "command": "c"}
    peer = {"slices_per_second": 2.0, "versions": {"torch": "3.4"}}
    one = {**named, **about, "step_seconds": times, "seconds_per_step": 2.0, "peer": peer, "ratios": {"slices_per_second": 2.0}}
    table = benchmarks.tables([one])
    assert "| a: b | bf16 | 8 | 2 (1.5–2.5) | 4 | 0.5 s, × 4.00 | 3 T | – | 25% | 1.00 GiB of the device | 9.0 s | 2 | 2.00 |" in table
    assert "with jax 1.2, torch 3.4" in benchmarks.heading([one])


def test_the_student_s_experiments_train_what_their_tables_name_and_their_protocols_load(stub, tmp_path):
    """Each model of a table is one that an earlier command trained; what is not trained on is a head of another seed (test_generate.py)."""
    answer = '{"parameters": 1, "multiply_adds": 2, "device_bytes": 3, "seconds_per_volume": 4}'
    environment = stub(
        f'[[ $1 == - ]] && exec {sys.executable} "$@"; [[ $3 == bench ]] && echo \'{answer}\'; echo "$@" >>{tmp_path}/said; exit 0'
    )
    out = tmp_path / "out"
    done = subprocess.run(
        [LAUNCH / "students.sh", out], capture_output=True, text=True, env={**environment, "STAGES": "2 3", "HEADS": "1"}, timeout=120
    )
    assert done.returncode == 0, done.stderr
    commands = [line.split() for line in (tmp_path / "said").read_text().splitlines()]
    trained = set()
    for words in commands:
        if words[2] == "train":
            load_experiment(Path(words[3]), [word for word in words[4:] if word.startswith("method.") and ".weights." not in word])
            trained.add(words[words.index("--run-dir") + 1])
        if words[2] == "evaluate":
            protocol = load_protocol(Path(words[words.index("--protocol") + 1])).protocol
            assert protocol.heads.count == 1
            assert {word.partition("=")[2] for word in words if word.count("=") == 1} <= trained
    tables = [words[words.index("-o") + 1].rpartition("/")[2] for words in commands if words[2] == "evaluate"]
    assert tables == ["students", "choices", "choices-10-steps", "scales-1.5T-3T", "scales-3T-7T"]
    assert load_protocol(out / "choices-10-steps.yaml").protocol.steps == 10
    assert len(trained) == 3 + 2 + 7
    assert "| one-step | 1 | 2e-09 G |" in done.stdout


def test_the_mixture_s_experiments_train_what_their_tables_name(stub, tmp_path):
    """A mixture works in the latents of a VQ-VAE that was trained before it and shown the same maps; latents are brought to one."""
    body = f"""[[ $1 == -c ]] && exec {sys.executable} "$@"
echo "$@" >>{tmp_path}/said
for word; do
  if [[ ${{next:-}} ]]; then mkdir -p "$word" && echo '{{"latent_std": 0.5}}' >"$word/metrics.jsonl"; fi
  next=
  if [[ $word == --run-dir ]]; then next=yes; fi
done
if [[ $3 == generate ]]; then mkdir -p "$5/middle/high" && touch "$5/middle/high/sub-0000.nii.gz"; fi
if [[ $3 == upscale ]]; then mkdir -p "$7"; fi"""
    out = tmp_path / "out"
    done = subprocess.run([LAUNCH / "experts.sh", out], capture_output=True, text=True, env={**stub(body), "HEADS": "1"}, timeout=120)
    assert done.returncode == 0, done.stderr
    commands = [line.split() for line in (tmp_path / "said").read_text().splitlines()]
    trained = {}
    for words in (words for words in commands if words[2] == "train"):
        named = dict(word.split("=", 1) for word in words if "=" in word)
        overrides = [f"{key}={value}" for key, value in named.items() if ".weights." not in key]
        experiment = load_experiment(Path(words[3]), overrides)
        trained[words[words.index("--run-dir") + 1]] = experiment
        if experiment.method.kind == "moediff":
            vqvae = trained[named["method.weights.vqvae"]].method
            own = experiment.method.vqvae
            assert (vqvae.network, vqvae.maps, own.latent_scale) == (own.network, own.maps, 2.0)
    assert len(trained) == 2 + 3 + 8
    upscaled = [words for words in commands if words[2] == "upscale"]
    assert len(upscaled) == 2 + 3 * 5 + 1 + 4
    assert {words[words.index("--model") + 1] for words in upscaled} <= trained.keys()
    evaluated = [words for words in commands if words[2] == "evaluate"]
    assert [words[words.index("-o") + 1].rpartition("/")[2] for words in evaluated] == [
        "table-head", "table-white", "table-cortex", "table-junction", "table1",
    ]  # fmt: skip


@pytest.fixture
def commands(tmp_path, monkeypatch):
    """Stand-ins for the commands of a cluster: `commands(srun="…")` is a folder of scripts that comes first in PATH."""

    def commands(**bodies):
        folder = tmp_path / "bin"
        folder.mkdir(exist_ok=True)
        for name, body in bodies.items():
            (folder / name).write_text(f"#!/usr/bin/env bash\n{body}\n")
            (folder / name).chmod(0o755)
        return {"PATH": f"{folder}:{os.environ['PATH']}", "HOME": str(tmp_path)}

    return commands


@pytest.mark.parametrize(
    "words, status, together, requeued",
    [(["train", "a.yaml", "seed=1"], 143, 1, True), (["train", "a.yaml"], 6, 1, False), (["upscale", "-i", "a b"], 0, 0, False)],
)
def test_a_slurm_job_runs_its_command_and_is_queued_again_only_where_it_was_stopped(words, status, together, requeued, commands, tmp_path):
    said = tmp_path / "said"
    environment = commands(srun=f'printf "%s|" "$@" >>{said}; exit {status}', scontrol=f'echo "$@" >>{said}.requeued')
    environment |= {"SLURM_SUBMIT_DIR": str(LAUNCH.parent), "SLURM_JOB_ID": "7"}
    done = subprocess.run(["bash", LAUNCH / "slurm.sbatch", *words], capture_output=True, text=True, env=environment)
    assert done.returncode == status, done.stderr
    assert said.read_text().split("|")[:-1] == [f"--kill-on-bad-exit={together}", "--gpu-bind=none", "jaxsr", *words]
    assert Path(f"{said}.requeued").exists() == requeued


def test_hosts_of_a_tpu_pod_know_their_number_and_share_a_coordinator(commands):
    """What each host would run, run here: its number is from its metadata, words with blanks stay one."""
    ssh = 'while [[ $1 != --command ]]; do shift; done; for NUMBER in 0 1 2; do export NUMBER; FOLDER=x bash -c "$2"; done'
    environment = commands(
        gcloud=f'if [[ $4 == describe ]]; then echo "10.0.0.1 10.0.0.2 10.0.0.3"; else {ssh}; fi',
        curl="[[ ${*: -1} == */agent-worker-number ]] && echo $NUMBER",
        jaxsr='echo "$JAXSR_PROCESS/$JAXSR_PROCESSES $JAXSR_COORDINATOR $JAX_OPTIMIZATION_LEVEL" "$#" "$3"',
    )
    words = [LAUNCH / "tpu_pod.sh", "pod", "zone", "train", "a.yaml", "--run-dir=my run"]
    done = subprocess.run(words, capture_output=True, text=True, env={**environment, "FOLDER": str(LAUNCH.parent)})
    assert done.stdout.splitlines() == [f"{i}/3 10.0.0.1:8476 O1 3 --run-dir=my run" for i in range(3)], done.stderr
    dry = subprocess.run(words, capture_output=True, text=True, env={**environment, "DRY_RUN": "1"})
    assert dry.stdout.startswith("gcloud compute tpus tpu-vm ssh pod --zone zone --worker all --command ")
    none = subprocess.run(words, capture_output=True, text=True, env=commands(gcloud="echo"))
    assert (none.returncode, "READY" in none.stderr) == (2, True)


@pytest.mark.parametrize("words", [["train", "configs/sr3.yaml", "--run-dir", "/data/runs/sr3"], ["upscale", "-i", "/data/scans"]])
def test_a_job_set_is_what_kubernetes_takes(words):
    """Its job against Kubernetes' own schema; of the set, which is an extension, what the job's pods rely on."""
    validate = pytest.importorskip("kubernetes_validate").validate
    flags = ["--name", "sr3", "--image", "image:1", "--nodes", "3", "--claim", "claim"]
    done = subprocess.run([sys.executable, LAUNCH / "kubernetes.py", *flags, "--", *words], capture_output=True, text=True, check=True)
    made = yaml.safe_load(done.stdout)
    [replicated] = made["spec"]["replicatedJobs"]
    job = replicated["template"]["spec"]
    validate({"apiVersion": "batch/v1", "kind": "Job", "metadata": made["metadata"], "spec": job}, "1.33", strict=True)
    [container] = job["template"]["spec"]["containers"]
    assert container["command"] == ["jaxsr", *words]
    assert (job["completions"], job["parallelism"], job["completionMode"]) == (3, 3, "Indexed")
    environment = {entry["name"]: entry.get("value") for entry in container["env"]}
    assert environment["JAXSR_PROCESSES"] == "3"
    sourced = (LAUNCH / "environment.sh").read_text()
    for name in ("JAX_OPTIMIZATION_LEVEL", "XLA_PYTHON_CLIENT_MEM_FRACTION", "NCCL_NVLS_ENABLE"):
        assert f"{name}:-{environment[name]}}}" in sourced, name
    # A training's processes wait for one another: they find the first by the name that the set gives it, and fail and start as one.
    together = words[0] == "train"
    assert environment.get("JAXSR_COORDINATOR") == (f"sr3-{replicated['name']}-0-0.sr3:8476" if together else None)
    assert (job.get("backoffLimit") == 0, made["spec"]["failurePolicy"]["maxRestarts"] > 0) == (together, together)
    assert made["spec"]["network"]["enableDNSHostnames"]
    final = job["podFailurePolicy"]["rules"][0]["onExitCodes"]["values"]
    assert 143 not in final
    assert (1 in final) != together  # a traceback, where another process has died: then all are to be started again


@pytest.mark.parametrize("words", [["sr3"], ["pod", "zone", "a.yaml", "b"]])
def test_a_launcher_that_is_called_wrongly_says_how_it_is_called(words, commands):
    for script in ("tpu_pod.sh", "slurm.sbatch"):
        done = subprocess.run(["bash", LAUNCH / script, *words[-2:]], capture_output=True, text=True, env=commands())
        assert (done.returncode, f"launch/{script}" in done.stderr) == (2, True)


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_spcdd_s_study_trains_what_its_tables_name(jobs, stub, tmp_path):
    """Every ablation in every seed, on one set; what is told by an extractor or a teacher comes after it; all that is trained is scored."""
    body = f"""echo "$@" >>{tmp_path}/said
previous=
for word; do
  if [[ $previous == --run-dir || $previous == -o && $3 == upscale ]]; then mkdir -p "$word"; fi
  previous=$word
done"""
    out = tmp_path / "out"
    settings = {"HEADS": "1", "SEEDS": "7 8", "JOBS": jobs}
    done = subprocess.run([LAUNCH / "spcdd.sh", out], capture_output=True, text=True, env={**stub(body), **settings}, timeout=120)
    assert done.returncode == 0, done.stderr
    commands = [line.split() for line in (tmp_path / "said").read_text().splitlines() if line.startswith("-m jaxsr")]
    trained = {}
    for words in (words for words in commands if words[2] == "train"):
        named = dict(word.split("=", 1) for word in words if "=" in word)
        overrides = [f"{key}={value}" for key, value in named.items() if ".weights." not in key and key != "data.manifest"]
        experiment = load_experiment(Path(words[3]), overrides)
        if experiment.method.kind == "spcdd":
            frozen = experiment.method.build().frozen(None) | ({"teacher": None} if experiment.method.distill else {})
            assert frozen.keys() == {key.rpartition(".")[2] for key in named if ".weights." in key}
        assert {Path(value) for key, value in named.items() if ".weights." in key} <= {*trained}
        trained[Path(words[words.index("--run-dir") + 1])] = experiment
    names = {path.name.rpartition("-")[0] for path in trained if path.parent.name == "runs"}
    assert len([path for path in trained if path.parent.name == "runs"]) == 2 * len(names) == 2 * (5 + 4 + 4 + 5)
    spec = importlib.util.spec_from_file_location("make_spcdd_tables", LAUNCH.parent / "docs" / "make_spcdd_tables.py")
    tables = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tables)
    assert {name for rows in tables.TABLES.values() for name in rows} - names == {"tricubic", "kspace"}
    for command in ("upscale", "segment"):
        made = {words[words.index("-o") + 1].rpartition("/")[2] for words in commands if words[2] == command}
        assert {name for name in made if not name.startswith(("truth-", "low-"))} == {
            path.name for path in trained if path.parent.name == "runs"
        }
    assert [words[2] for words in commands].count("evaluate") == 2


def test_a_training_that_fails_stops_the_study_and_those_beside_it(stub, tmp_path):
    """With JOBS=2 the second fails at once: the first is stopped, the third is never begun."""
    body = f"""[[ $3 == train ]] && echo "$@" >>{tmp_path}/said
[[ $* == *seed=1* ]] && {{ sleep 2; exit 3; }}
sleep 60; echo "$@" >>{tmp_path}/ended"""
    settings = {"SEEDS": "0 1 2", "JOBS": "2"}
    started = time.monotonic()
    done = subprocess.run(
        [LAUNCH / "spcdd.sh", tmp_path / "out", "paper"], capture_output=True, text=True, env={**stub(body), **settings}, timeout=120
    )
    assert (done.returncode, time.monotonic() - started < 50) == (3, True), done.stderr
    assert [line for line in (tmp_path / "said").read_text().splitlines() if "seed=2" in line] == []
    assert not (tmp_path / "ended").exists()


@pytest.mark.parametrize("script", ["experts.sh", "spcdd.sh"])
@pytest.mark.parametrize("words", [["out", "nothing"], []])
def test_experiments_know_their_parts(script, words, stub, tmp_path):
    done = subprocess.run([LAUNCH / script, *words], capture_output=True, text=True, env=stub("exit 1"), cwd=tmp_path)
    assert (done.returncode, "PART" in done.stderr, (tmp_path / "out").exists()) == (2, True, False)


@pytest.mark.parametrize("words, settings", [(["out", "nothing"], {}), ([], {}), (["out"], {"STAGES": "5"})])
def test_the_student_s_experiments_know_their_parts(words, settings, stub, tmp_path):
    done = subprocess.run(
        [LAUNCH / "students.sh", *words], capture_output=True, text=True, env={**stub("exit 1"), **settings}, cwd=tmp_path
    )
    assert (done.returncode, "PART" in done.stderr, (tmp_path / "out").exists()) == (2, True, False)


@pytest.mark.parametrize("words", [[], ["heads"], ["heads", "out", "nothing"]])
def test_the_shipped_model_s_script_knows_its_parts(words, stub, tmp_path):
    done = subprocess.run([LAUNCH / "standard.sh", *words], capture_output=True, text=True, env=stub("exit 1"), cwd=tmp_path)
    assert (done.returncode, "PART" in done.stderr, (tmp_path / "out").exists()) == (2, True, False)


def test_nobody_is_trained_on_and_held_out_and_a_head_that_is_not_there_is_named(stub, tmp_path):
    """A person is known by the name that split gives to each of their contrasts."""
    script = (LAUNCH / "standard.sh").read_text()
    files = {line.split()[-1] for line in script.splitlines() if line.strip().startswith("place ")}
    for name in files:
        for contrast in ("T1", "T2", "FLAIR"):
            path = tmp_path / "heads" / name.strip('"').replace("${contrast}", contrast)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()

    def run():
        words = [LAUNCH / "standard.sh", "heads", "out", "split"]
        return subprocess.run(words, capture_output=True, text=True, env=stub(""), cwd=tmp_path)

    assert run().returncode == 0
    who = {side: {path.name.split("_")[0] for path in (tmp_path / "out" / side).rglob("sub-*")} for side in ("heads", "held_out")}
    assert who["held_out"] == {"sub-fnndsc", "sub-clinical", "sub-freesurfer", "sub-openms19"}
    assert who["heads"] == {"sub-pysynthsr", "sub-uih", "sub-openms07", "sub-openmslong12"}
    (tmp_path / "heads" / "uih_t1" / "T1w_0p5mm_defaced.nii.gz").unlink()
    done = run()
    assert done.returncode == 2
    assert "uih_t1/T1w_0p5mm_defaced.nii.gz is not there" in done.stderr
