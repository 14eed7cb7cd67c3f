"""A real Ray cluster of two nodes on this machine, one of which dies during the build."""

import os
import threading
import time

import pytest

from tests.zoo_builder.test_build import TASKS, bits, built, data, run_build, whole  # noqa: F401
from zoo_builder.errors import ZooError
from zoo_builder.executors.processes import telling_of_dead_workers
from zoo_builder.executors.ray import RayExecutor
from zoo_builder.store import Zoo

ray = pytest.importorskip("ray")


@pytest.fixture
def cluster():
    from ray.cluster_utils import Cluster

    soon = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 500, "health_check_failure_threshold": 4}
    head = {"num_cpus": 1, "include_dashboard": False, "_system_config": soon}  # a dead node is noticed in seconds
    started = Cluster(initialize_head=True, head_node_args=head)
    yield started
    ray.shutdown()
    started.shutdown()


def test_a_node_that_dies_loses_nothing(cluster, data, whole, tmp_path):  # noqa: F811
    node = cluster.add_node(num_cpus=1)
    ray.init(cluster.address, log_to_driver=False)
    out = tmp_path / "zoo"

    def kill():
        while not list((out / "rows").glob("*.parquet")):
            time.sleep(0.05)
        cluster.remove_node(node, allow_graceful=False)

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    assert run_build(data, f"file://{out}", executor=RayExecutor()) == {}
    killer.join(60)
    assert not node.any_processes_alive()
    assert len(bits(Zoo.open(out))) == TASKS
    assert bits(Zoo.open(out)) == bits(whole)


def test_no_cluster_at_the_address_is_an_error():
    with pytest.raises(ZooError, match=r"127\.0\.0\.1:1.*ray start"):
        RayExecutor("127.0.0.1:1")


def test_a_new_cluster_has_the_cores_asked_for_and_a_worker_that_dies_at_each_try_is_told_with_advice(monkeypatch):
    monkeypatch.setattr("zoo_builder.executors.ray.RETRIES", 1)
    with RayExecutor(workers=3) as executor:
        assert ray.cluster_resources()["CPU"] == 3
        assert executor.submit(sum, [1, 2]).result() == 3
        with pytest.raises(ZooError, match=r"A worker died .*fewer --workers"), telling_of_dead_workers(ZooError):
            executor.submit(os._exit, 1).result()
        with pytest.raises(ZeroDivisionError):
            executor.submit(divmod, 1, 0).result()


def test_a_cluster_that_is_there_has_the_cores_that_it_has():
    with pytest.raises(ZooError, match="Leave --workers out"):
        RayExecutor("127.0.0.1:1", workers=3)
