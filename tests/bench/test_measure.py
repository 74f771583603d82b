"""How times and memory are taken. What they are is never asserted."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsr.bench import measure
from jaxsr.experiment import Experiment
from jaxsr.methods.sr3 import Sr3Config
from jaxsr.runtime.memory import program_memory


def test_quartiles_are_those_of_the_sample():
    assert measure.summary([4.0, 1.0, 2.0, 3.0, 5.0]) == {"median": 3.0, "lower_quartile": 2.0, "upper_quartile": 4.0, "repeats": 5}


def test_steps_of_the_warm_up_and_one_more_are_run_but_not_timed():
    calls = []
    times = measure.step_times(lambda: calls.append(jnp.zeros(())) or calls[-1], repeats=4, warmup=2)
    assert (len(times), len(calls)) == (4, 4 + 2 + 1)
    assert min(times) >= 0


def test_the_next_step_is_dispatched_before_the_last_is_waited_for(monkeypatch):
    events: list[str] = []
    monkeypatch.setattr(jax, "block_until_ready", lambda result: events.append(f"wait {result}"))
    numbers = iter(range(9))
    measure.step_times(lambda: events.append(f"start {(n := next(numbers))}") or n, repeats=1, warmup=1)
    assert events == ["start 0", "start 1", "wait 0", "start 2", "wait 1", "wait 2"]


@pytest.mark.parametrize("repeats, warmup", [(0, 1), (1, -1)])
def test_nothing_to_time_is_refused(repeats, warmup):
    with pytest.raises(ValueError, match=f"got {repeats} and {warmup}"):
        measure.step_times(lambda: None, repeats, warmup)


def test_a_program_needs_at_least_its_arguments_and_results():
    program, facts = measure.compiled(jax.jit(lambda x: x @ x), jnp.ones((64, 64)))
    assert program_memory(program) >= 2 * 4 * 64**2
    assert min(facts["compile_seconds"], facts["trace_seconds"]) > 0


def test_a_program_from_the_compilation_cache_says_so(tmp_path):
    from jax.experimental.compilation_cache import compilation_cache

    settings = {"jax_compilation_cache_dir": str(tmp_path), "jax_persistent_cache_min_compile_time_secs": 0.0}
    before = {name: getattr(jax.config, name) for name in settings}
    try:
        compilation_cache.reset_cache()
        for name, value in settings.items():
            jax.config.update(name, value)
        cached = []
        for _ in range(2):
            jax.clear_caches()
            cached.append(measure.compiled(jax.jit(lambda x: jnp.sin(x) @ x), jnp.ones((8, 8)))[1]["compile_cached"])
        assert cached == [False, True]
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()


@pytest.mark.parametrize(
    "kind, precision, peak",
    [
        ("NVIDIA H200", "bf16", 989.5e12),
        ("NVIDIA H100 80GB HBM3", "bf16", 989.5e12),
        ("NVIDIA H100 PCIe", "bf16", 756e12),
        ("NVIDIA A100-SXM4-80GB", "bf16", 312e12),
        ("NVIDIA A100-SXM4-80GB", "f32", 156e12),
        ("cpu", "f32", None),
        ("TPU v5p", "f32", None),
    ],
)
def test_the_peak_of_a_known_device_is_that_of_its_data_sheet(kind, precision, peak):
    assert measure.device_peak(kind, precision) == peak


def test_float32_without_tensor_float_has_a_peak_of_its_own():
    with jax.default_matmul_precision("highest"):
        assert measure.device_peak("NVIDIA A100-SXM4-80GB", "f32") == 19.5e12


def test_unknown_work_has_no_rate():
    rates = measure.rates(None, 1.0, "f32")
    assert (rates["flops_per_second"], rates["share_of_matrix_rate"]) == (None, None)
    assert rates["matrix_flops_per_second"] > 0


def test_a_multiply_add_is_two_operations():
    assert measure.rates(10**9, 2.0, "f32")["flops_per_second"] == 1e9


def test_equal_experiments_have_equal_digests_and_others_do_not():
    one, other, different = (Experiment(method=Sr3Config(), seed=seed) for seed in (0, 0, 1))
    assert measure.config_digest(one) == measure.config_digest(other) != measure.config_digest(different)


def test_memory_is_of_this_process_and_not_of_the_one_that_started_it():
    """Linux hands getrusage's down to what is started; this one holds 400 MB of its own."""
    held = np.ones(50_000_000)
    program = "from jaxsr.bench.measure import peak_memory; print(peak_memory()['peak_memory_bytes'])"
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert int(told) < measure.peak_memory()["peak_memory_bytes"]
    assert measure.peak_memory()["peak_memory_bytes"] > held.nbytes


def test_the_floor_is_what_the_work_takes_at_a_matrix_products_rate(monkeypatch):
    monkeypatch.setattr(measure, "matrix_rate", lambda precision: 100.0)
    devices = jax.process_count() if jax.default_backend() == "cpu" else jax.device_count()
    found = measure.rates(1000, 40.0, "f32")
    assert found["floor_seconds"] == 2 * 1000 / (100 * devices)
    assert found["share_of_matrix_rate"] == pytest.approx(found["floor_seconds"] / 40)
    assert measure.rates(None, 40.0, "f32")["floor_seconds"] is None


def test_intervals_of_a_library_of_its_own_go_from_end_to_end(monkeypatch):
    """A step is given before the one before it is waited for; of six ends the last three intervals count."""
    said, clock = [], iter([10.0, 11.0, 13.0, 16.0, 20.0])
    monkeypatch.setattr(measure.time, "perf_counter", lambda: next(clock))
    steps = iter("abcde")

    def dispatch():
        said.append(step := next(steps))
        return step

    assert measure.interval_times(dispatch, lambda step: said.append(step.upper()), 3, 1) == [2.0, 3.0, 4.0]
    assert "".join(said) == "abAcBdCeDE"
