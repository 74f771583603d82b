"""Tasks in processes of their own, which may die without taking the rest with them."""

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

DIED = "the process that prepared it died, most likely for want of memory: see that 4 GB are free for each of --workers"

_ONE_THREAD = {
    "JAX_PLATFORMS": "cpu",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
}


def run(tasks: Sequence[Item], workers: int, attempt: Callable[[Item], Result]) -> Iterator[tuple[Item, Result | str]]:
    """Each task with what `attempt` returns for it, in the order in which they end; `DIED` where its process did.

    A process that dies takes down the whole pool. The tasks that it may have been at are then tried one at a time, and one that dies alone
    is given up; the others go on side by side.
    """
    left = list(tasks)
    while left:
        ended: set[int] = set()
        try:
            with _pool(min(workers, len(left))) as pool:
                futures: dict[Future[Result], int] = {pool.submit(attempt, task): i for i, task in enumerate(left)}
                for future in as_completed(futures):
                    result = future.result()
                    ended.add(futures[future])
                    yield left[futures[future]], result
        except BrokenProcessPool:
            left = [task for i, task in enumerate(left) if i not in ended]  # tasks are begun in order
            if workers == 1:
                yield left.pop(0), DIED
            else:
                suspects, left = left[: 2 * workers], left[2 * workers :]
                yield from run(suspects, 1, attempt)
        else:
            return


@contextlib.contextmanager
def _pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    """Processes that have not inherited JAX's threads, whose libraries use one thread each, and that do not outlive this one."""
    before = {name: os.environ.get(name) for name in (*_ONE_THREAD, "XLA_FLAGS")}
    os.environ.update(_ONE_THREAD)
    os.environ["XLA_FLAGS"] = f"{before['XLA_FLAGS'] or ''} --xla_cpu_multi_thread_eigen=false".strip()
    pool = ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"), initializer=_start_worker)
    try:
        yield pool
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        for process in multiprocessing.active_children():
            process.kill()  # nothing is lost: a part appears whole or not at all
        raise
    finally:
        pool.shutdown()
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _start_worker() -> None:
    from jaxsr.runtime.cache import use_compilation_cache

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    use_compilation_cache()
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
