import copy
import multiprocessing
import os
import shutil
from concurrent.futures import ProcessPoolExecutor

import pytest

from pretrained_generators.bundle import TrainedOn
from tests.hub.client import digest, refine_little, with_token
from tests.hub.server import TOKEN, Hub
from tests.pretrained_generators.small import random_generator, save_random_bundle, write_measured_card


@pytest.fixture(scope="session")
def server():
    hub = Hub()
    yield hub
    hub.close()


@pytest.fixture(scope="session")
def home(tmp_path_factory):
    """The client's, with its cache."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="session")
def processes(server, home):
    """Makes a process whose client knows the server alone: `processes(HF_HUB_OFFLINE="1")`."""
    pools = []

    def start(**more):
        environment = {
            "HF_ENDPOINT": server.endpoint,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_HUB_OFFLINE": "0",
        } | more
        with pytest.MonkeyPatch.context() as patch:
            patch.delenv("HF_TOKEN", raising=False)
            for name, value in environment.items():
                patch.setenv(name, value)
            pool = ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))
            pool.submit(refine_little).result()  # started, with this environment
        pools.append(pool)
        return lambda does, *args, **how: pool.submit(does, *args, **how).result()

    yield start
    for pool in pools:
        pool.submit(os._exit, 0)  # to free all that was imported takes a second of each
    for pool in pools:
        pool.shutdown()


@pytest.fixture(scope="session")
def client(processes):
    """client(function, ...) runs it in a process of its own."""
    return processes()


@pytest.fixture(scope="session")
def owner(client):
    """The client with a token of its own, which is looked for at each call."""
    return lambda does, *args, **how: client(with_token, TOKEN, does, *args, **how)


@pytest.fixture
def hub(server):
    """The server, empty."""
    return emptied(server)


def emptied(server):
    for kept in (server.repos, server.objects, server.faults, server.asked):
        kept.clear()
    return server


@pytest.fixture(scope="session")
def saved(tmp_path_factory):
    """A bundle's folder, with results and a card."""
    folder = tmp_path_factory.mktemp("saved") / "bundle"
    save_random_bundle(folder, trained_on=(TrainedOn("stripes", 4, "MIT"),), base_licence="MIT")
    write_measured_card(folder)
    return folder


@pytest.fixture(scope="session")
def whole():
    """The digest of that bundle's generator."""
    return digest(random_generator())


@pytest.fixture(scope="session")
def left_by_a_push(server, client, saved):
    """What the Hub holds then, and the commit."""
    from tests.hub.client import push

    commit = client(push, saved, "org/tiny", token=TOKEN)
    left = copy.deepcopy((server.repos, server.objects))
    emptied(server)
    return *left, commit


@pytest.fixture
def pushed(hub, left_by_a_push):
    """ORG/NAME of the bundle on the Hub, with its commit."""
    repos, objects, commit = copy.deepcopy(left_by_a_push)
    hub.repos.update(repos)
    hub.objects.update(objects)
    return "org/tiny", commit


@pytest.fixture
def folder(saved, tmp_path):
    """A copy of the bundle, to be changed."""
    return shutil.copytree(saved, tmp_path / "copy")
