"""What the environment says of processes is believed only where it can be."""

import os

import pytest

from jaxsr.runtime.distributed import Place, place
from jaxsr.runtime.mesh import MeshError


@pytest.fixture
def said(monkeypatch):
    for name in [name for name in os.environ if name.startswith(("JAXSR_", "SLURM_", "OMPI_"))]:
        monkeypatch.delenv(name)

    def say(**variables):
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        return place()

    return say


def test_without_a_launcher_there_is_one_process(said):
    assert said() == Place(0, 1)


@pytest.mark.parametrize("process, processes, message", [
    ("x", "2", "JAXSR_PROCESS=x, which is not a number"),
    ("0", "two", "JAXSR_PROCESSES=two"),
    ("-1", "2", "JAXSR_PROCESS=-1"),
    ("2", "2", "JAXSR_PROCESS=2 must lie below JAXSR_PROCESSES=2"),
])  # fmt: skip
def test_a_number_of_a_process_that_cannot_be_is_refused_by_name(process, processes, message, said):
    with pytest.raises(MeshError, match=message):
        said(JAXSR_PROCESS=process, JAXSR_PROCESSES=processes)
