"""For every test: one thread, so that figures do not depend on the machine's cores and tests can run side by side; a
small zoo, for those that read one; and little refining, but for those of refining, and little of what a training of a
generator repeats."""

import functools
import shutil
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import typer.testing

from d2nwg_init import refine
from d2nwg_init.benchmarks.generator import benchmark
from pretrained_generators.training import diffusion, train
from tests.zoo_builder.tiny_zoo import build_zoo, write_data
from zoo_builder.store import Zoo

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """The data folder of the zoo."""
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="session")
def whole(data, tmp_path_factory):
    """The zoo, to be read."""
    return build_zoo(data, tmp_path_factory.mktemp("whole") / "zoo")


@pytest.fixture(autouse=True, scope="session")
def little_repeated():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(diffusion, "VIEWS", 4)
        for module in (train, benchmark):
            patch.setattr(module, "MEASURED_ENTRIES", 2)
            patch.setattr(module, "MEASURED_SAMPLES", 1)
        # A third of the time of so short a training. That and what is drawn has tests of its own.
        patch.setattr(train, "draw_training", lambda losses, *_: f"<svg>{len(losses)} losses</svg>")
        # The tree of commands is made once, not for each that is run.
        patch.setattr(typer.testing, "_get_command", functools.cache(typer.main.get_command), raising=False)
        yield


@pytest.fixture(autouse=True, scope="module")
def short_refining():
    """In what the tests of a module share too. A module whose tests are about what refining gives has a fixture of this
    name that does nothing."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(refine, "MOST_STEPS", 2)
        patch.setattr(refine, "TRAININGS_OF_FEW", 1)
        yield


@pytest.fixture
def no_worker_processes(monkeypatch):
    """What workers would do is done by a thread: to start one and import all takes longer than what it does here, and
    that it does the same as this process is what other tests are about."""
    for module in ("benchmarks.sensitivity", "benchmarks.transfer.benchmark", "benchmarks.zoo"):
        monkeypatch.setattr(f"d2nwg_init.{module}.process_executor", lambda _: ThreadPoolExecutor(1))
    monkeypatch.setattr("zoo_builder.executors.processes.process_executor", lambda _: ThreadPoolExecutor(1))


@pytest.fixture
def zoo(whole, tmp_path):
    """A copy of it, to be damaged."""
    shutil.copytree(whole.path, tmp_path / "zoo")
    return Zoo.open(tmp_path / "zoo")
