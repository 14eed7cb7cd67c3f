"""A build that is killed, crowded out, out of disk or met by bad data: nothing is lost and nothing is half there."""

import contextlib
import dataclasses
import functools
import os
import random
import resource
import shutil
import signal
import statistics
import subprocess
import sys
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file

from tests.zoo_builder.synthetic import random_body, striped_dataset, write_npz
from tests.zoo_builder.test_rescaling import leaning_on_its_means
from zoo_builder import survey
from zoo_builder.backbones import BackboneSpec
from zoo_builder.build import begin_zoo, build
from zoo_builder.checkpoint import write_atomically
from zoo_builder.errors import DataError, ModelError, RecipeError, ZooError
from zoo_builder.executors.processes import process_executor
from zoo_builder.job import Device
from zoo_builder.rescore import rescore
from zoo_builder.store import Zoo
from zoo_builder.tasks import Plan, Training, ZooRecipe

TRUNK = Plan("trunk", "episodic", Training(2, batch_size=16), over="cluster")
BRANCH = Plan(
    "branch",
    "episodic",
    Training(2, batch_size=16, rate_of_start=0.5),
    domains=("plain", "invert"),
    start="trunk",
)
PLAIN = Plan("finetune", "finetune", Training(2, batch_size=16))
RECIPE = ZooRecipe((TRUNK, BRANCH, PLAIN), held_out=("secret",), size=32, support=24)
FOUR = Device(at_once=4)
TASKS = 1 + 2 * (2 + 1)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    write_base(root)
    for seed, name in enumerate(("stripes", "bands", "secret")):
        write_npz(root / f"{name}.npz", striped_dataset(name, seed=100 * seed))
    return root


def write_base(root: Path) -> None:
    write_atomically(root / "base.safetensors", random_body().state_dict())


def run_build(data: Path, out: Path, recipe: ZooRecipe = RECIPE, executor=None, **options) -> dict[str, str]:
    zoo, tasks, sources = begin_zoo(out, BackboneSpec("test_resnet"), data / "base.safetensors", recipe, data)
    return build(zoo, tasks, sources, data, executor or ThreadPoolExecutor(1), **options)


@pytest.fixture(scope="module")
def built(data, tmp_path_factory):
    """The zoo of a build that nothing interrupted, the seconds that it took, and the datasets as they were read."""
    out, read, load = tmp_path_factory.mktemp("whole") / "zoo", [], survey.load_dataset
    began = time.monotonic()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(survey, "load_dataset", lambda name, *a, **k: read.append(name) or load(name, *a, **k))
        assert run_build(data, out) == {}
    return Zoo.open(out), time.monotonic() - began, read


@pytest.fixture(scope="module")
def whole(built):
    return built[0]


@pytest.fixture
def at_once(beside, tmp_path):
    """A copy of `beside`, to be built on."""
    return Zoo.open(shutil.copytree(beside, tmp_path / "at-once"))


@pytest.fixture(scope="module")
def beside(data, tmp_path_factory):
    """The folder of a zoo whose models were trained four at once: all branches are of one group."""
    out = tmp_path_factory.mktemp("beside") / "zoo"
    assert run_build(data, out, device=FOUR) == {}
    return out


def bits(zoo: Zoo) -> dict[str, str]:
    """Every entry by the hash of its file, which is read and found to be that."""
    found = {}
    for entry in zoo.entries():
        assert load_file(entry.path)
        found[entry.id] = entry.sha256
    return found


@contextlib.contextmanager
def child(work):
    """A forked process that does `work`; its id. Killed at the end, if it is still there."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    try:
        yield pid
    finally:
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def test_every_task_is_there_and_its_hash_is_its_files(whole):
    assert len(bits(whole)) == TASKS
    assert whole.failures() == {}
    plans = [e.task.plan for e in whole.entries()]
    assert (plans.count("trunk"), plans.count("branch"), plans.count("finetune")) == (1, 4, 2)
    about = next(whole.entries()).about
    assert about["sources"].keys() >= {"bands"}
    assert about["versions"].keys() == {"d2nwg-init", "torch", "timm"}
    assert about["backbone"].items() >= {"model": "test_resnet", "in_chans": 3, "stem": "as it is"}.items()


def test_killed_twenty_times_it_is_the_zoo_of_an_uninterrupted_build(data, built, tmp_path):
    """SIGKILL at random moments, from before the first file to after the last."""
    whole, length, _ = built
    rng = random.Random(0)
    out = tmp_path / "zoo"
    seen = set()
    for _ in range(20):
        with child(functools.partial(run_build, data, out)):
            time.sleep(rng.uniform(0, length / 4))
        if (out / "zoo.json").exists():
            zoo = Zoo.open(out)
            found = bits(zoo)
            assert found.items() <= bits(whole).items()
            assert seen <= found.keys()  # nothing that was there is lost
            seen = set(found)
    assert seen
    assert run_build(data, out) == {}
    assert bits(Zoo.open(out)) == bits(whole)


def test_killed_with_its_worker_processes_it_goes_on(data, whole, tmp_path):
    """Not forked: what starts the worker processes is not a fork's own, if a test before started some."""
    out = tmp_path / "zoo"
    work = (
        "if __name__ == '__main__':\n"  # the workers import nothing of this
        "    import sys; from pathlib import Path; from zoo_builder.executors.processes import process_executor\n"
        "    from tests.zoo_builder.test_build import run_build\n"
        "    run_build(*map(Path, sys.argv[1:]), executor=process_executor(2))\n"
    )
    (tmp_path / "work.py").write_text(work)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, tmp_path / "work.py", data, out]
    with subprocess.Popen(command, env=environment, start_new_session=True) as building:
        while not list((out / "rows").glob("*.parquet")):
            assert building.poll() is None
            time.sleep(0.05)
        os.killpg(building.pid, signal.SIGKILL)
    assert 0 < len(bits(Zoo.open(out))) < TASKS
    assert run_build(data, out, executor=process_executor(1)) == {}
    assert bits(Zoo.open(out)) == bits(whole)


def test_two_builders_on_one_store_give_the_same_zoo(data, whole, tmp_path):
    work = functools.partial(run_build, data, tmp_path / "zoo")
    with child(work) as first, child(work) as second:
        assert [os.waitpid(pid, 0)[1] for pid in (first, second)] == [0, 0]
    assert bits(Zoo.open(tmp_path / "zoo")) == bits(whole)


def test_a_full_disk_stops_the_build_and_is_no_failure_of_a_task(data, whole, tmp_path):
    out = tmp_path / "zoo"
    entry = next(whole.entries())
    with pytest.raises(KeyboardInterrupt):
        run_build(data, out, executor=StopAfter(2))

    def work():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # writing past the limit is an OSError then, as on a full disk
        resource.setrlimit(resource.RLIMIT_FSIZE, (entry.path.stat().st_size // 2,) * 2)
        with pytest.raises(ZooError, match="free space, then run again"):
            run_build(data, out)

    before = bits(Zoo.open(out))
    with child(work) as pid:
        assert os.waitpid(pid, 0)[1] == 0
    assert bits(Zoo.open(out)) == before
    assert Zoo.open(out).failures() == {}
    assert not list(out.rglob(".*"))  # no temporary file stays
    assert run_build(data, out) == {}
    assert bits(Zoo.open(out)) == bits(whole)


class StopAfter(ThreadPoolExecutor):
    """Ctrl-C once `count` tasks are done."""

    def __init__(self, count):
        super().__init__(1)
        self.left = count

    def submit(self, fn, *args):
        if self.left == 0:
            raise KeyboardInterrupt
        self.left -= 1
        return super().submit(fn, *args)


def test_ctrl_c_keeps_what_is_done(data, whole, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run_build(data, tmp_path, executor=StopAfter(3))
    assert 1 <= len(bits(Zoo.open(tmp_path))) <= 3  # what ran is finished, what waited is given up
    assert run_build(data, tmp_path) == {}
    assert bits(Zoo.open(tmp_path)) == bits(whole)


def spoiled(data: Path, root: Path) -> Path:
    """A data folder whose bands have no test images to be scored on."""
    root.mkdir()
    for path in data.iterdir():
        (root / path.name).write_bytes(path.read_bytes())
    arrays = dict(np.load(data / "bands.npz"))
    np.savez(root / "bands.npz", **arrays | {"x_test": arrays["x_test"][:0], "y_test": arrays["y_test"][:0]})
    return root


def test_a_failing_task_is_recorded_and_the_others_go_on(data, tmp_path):
    bad, out = spoiled(data, tmp_path / "data"), tmp_path / "zoo"
    alone = ZooRecipe((PLAIN,), held_out=("secret",), size=32, support=24)
    failed = run_build(bad, out, alone)
    assert [key.split("-")[1] for key in failed] == ["bands"]
    assert "without test images" in next(iter(failed.values()))
    zoo = Zoo.open(out)
    assert "Traceback" in zoo.failures()[next(iter(failed))]
    assert [e.task.datasets for e in zoo.entries()] == [("stripes",)]


def test_what_goes_on_from_a_failed_task_fails_with_it(data, tmp_path):
    bad, out = spoiled(data, tmp_path / "data"), tmp_path / "zoo"
    failed = run_build(bad, out)
    assert len(failed) == 1 + 4 + 1  # the trunk over both, its branches, and the plain task of the bad one
    assert sum("that it goes on from failed" in error for error in failed.values()) == 4


def test_a_failed_task_is_run_again_only_when_asked(data, tmp_path):
    bad, out = spoiled(data, tmp_path / "data"), tmp_path / "zoo"
    alone = ZooRecipe((PLAIN,), held_out=("secret",), size=32, support=24)
    (failed,) = run_build(bad, out, alone)
    row = Zoo.open(out).row_path(failed)
    before = row.stat().st_mtime_ns
    assert run_build(bad, out, alone).keys() == {failed}
    assert row.stat().st_mtime_ns == before
    assert run_build(bad, out, alone, retry_failed=True).keys() == {failed}
    assert row.stat().st_mtime_ns > before


def test_a_dataset_that_changed_is_refused(data, tmp_path):
    changed, out = spoiled(data, tmp_path / "data"), tmp_path / "zoo"
    with pytest.raises(KeyboardInterrupt):
        run_build(data, out, executor=StopAfter(0))
    failed = run_build(changed, out)
    assert all("'bands' has changed" in e or "goes on from" in e for e in failed.values())


def test_lost_entry_comes_back_with_equal_bits(data, whole, tmp_path):
    out = tmp_path / "zoo"
    zoo = Zoo.open(shutil.copytree(whole.path, out))
    lost = [zoo.entry_path(i) for i in bits(zoo)][::3]
    for path in lost:
        path.unlink()
    assert run_build(data, out) == {}
    assert bits(zoo) == bits(whole)


def test_workers_share_the_decoded_images(built):
    """Each dataset is read once to look at it, once to look for leaks, and once for all tasks together."""
    assert sorted(built[2]) == ["bands"] * 3 + ["secret"] + ["stripes"] * 3


def test_models_trained_at_once_are_the_same_after_an_interruption(data, at_once):
    """A group of which some are there already is trained whole, since a sum of floats depends on what is beside it."""
    zoo = at_once
    first = bits(zoo)
    assert len(first) == TASKS
    (about,) = {str(e.about["device"]) for e in zoo.entries()}
    assert "4" in about
    lost = next(zoo.entries(plans=["branch"]))
    zoo.row_path(lost.id).unlink()
    lost.path.unlink()
    assert run_build(data, zoo.path, device=FOUR) == {}
    assert bits(zoo) == first


def test_a_task_that_fails_beside_others_does_not_stop_them(data, tmp_path):
    plan = dataclasses.replace(PLAIN, training=Training(2, batch_size=16, learning_rates=(1e30,)), name="wild")
    recipe = dataclasses.replace(RECIPE, plans=(TRUNK, plan, BRANCH))
    failed = run_build(data, tmp_path, recipe, device=Device(at_once=8))
    assert {i.split("-")[0] for i in failed} == {"wild"}
    assert len(failed) == 2
    assert len(bits(Zoo.open(tmp_path))) == TASKS - 2


def test_trying_again_beside_entries_that_are_done_loses_none_of_them(data, at_once, monkeypatch):
    """A group is trained whole, and a device that is full fails it whole."""
    zoo = at_once
    before, branches = bits(zoo), list(zoo.entries(plans=["branch"]))
    trunk = next(zoo.entries(plans=["trunk"])).task
    zoo.write_failure(branches[0].task, "it broke")

    def full(*_, **__):
        raise MemoryError

    monkeypatch.setattr("zoo_builder.job.run_tasks", full)
    assert run_build(data, zoo.path, device=FOUR, retry_failed=True) == {branches[0].id: "MemoryError"}
    assert bits(zoo) == {i: sha256 for i, sha256 in before.items() if i != branches[0].id}
    zoo.write_failure(trunk, "it broke")  # what goes on from it and is done stays too
    assert run_build(data, zoo.path, device=FOUR).keys() == {trunk.id, branches[0].id}
    assert bits(zoo) == {i: sha256 for i, sha256 in before.items() if i not in (trunk.id, branches[0].id)}


def test_a_leak_is_refused_before_any_task(data, tmp_path):
    leaky = tmp_path / "data"
    leaky.mkdir()
    for name in ("base.safetensors", "bands.npz", "stripes.npz"):
        (leaky / name).write_bytes((data / name).read_bytes())
    write_npz(leaky / "secret.npz", striped_dataset("secret"))  # what stripes.npz holds
    recipe = dataclasses.replace(RECIPE, plans=(PLAIN,))
    with pytest.raises(DataError, match=r"images of stripes are in secret \(exact\)"):
        run_build(leaky, tmp_path / "zoo", recipe)
    assert not list((tmp_path / "zoo").glob("entries/*"))
    assert run_build(leaky, tmp_path / "zoo", dataclasses.replace(recipe, leakage="report")) == {}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"plans": ()}, "no plans"),
        ({"support": 0}, "support must be 1"),
        ({"plans": (dataclasses.replace(PLAIN, domains=("rotat",)),)}, "unknown domain 'rotat'"),
        ({"plans": (dataclasses.replace(PLAIN, seeds=0),)}, "seeds must be 1"),
    ],
)
def test_a_recipe_that_cannot_be_built_leaves_no_zoo(data, tmp_path, changes, words):
    with pytest.raises(RecipeError, match=words):
        run_build(data, tmp_path / "zoo", dataclasses.replace(RECIPE, **changes))
    assert not (tmp_path / "zoo").exists()


def leaning_base(data, folder):
    state = leaning_on_its_means(BackboneSpec("test_resnet").create(data / "base.safetensors")).state_dict()
    write_atomically(folder / "leaning.safetensors", state)
    return folder / "leaning.safetensors"


def test_a_base_that_rescaling_would_destroy_absorbs_statistics_and_is_worth_what_it_was(data, tmp_path):
    spec, path = BackboneSpec("test_resnet"), leaning_base(data, tmp_path)
    zoo, tasks, sources = begin_zoo(tmp_path / "zoo", spec, path, RECIPE, data)
    assert zoo.batchnorm == "absorbed"
    assert build(zoo, tasks, sources, data, ThreadPoolExecutor(1)) == {}
    assert zoo == Zoo.open(zoo.path) == begin_zoo(zoo.path, spec, path, RECIPE, data)[0]
    rescored, problems = rescore(zoo, list(zoo.entries()), data)
    assert (len(rescored), problems) == (TASKS, [])
    rescaled = dataclasses.replace(zoo, batchnorm="rescaled")
    destroyed, _ = rescore(rescaled, list(rescaled.entries()), data)
    worth, without = (statistics.mean(r.measured_base for r in rows) for rows in (rescored, destroyed))
    assert worth > without + 10


@pytest.mark.parametrize("value", [0.0, float("nan")])
def test_a_base_that_sees_nothing_is_refused(data, tmp_path, value):
    state = BackboneSpec("test_resnet").create(data / "base.safetensors").state_dict()
    dead = {k: v.fill_(value) if v.is_floating_point() else v for k, v in state.items()}
    write_atomically(tmp_path / "dead.safetensors", dead)
    with pytest.raises(ModelError, match="are all zero, or no numbers"):
        begin_zoo(tmp_path / "zoo", BackboneSpec("test_resnet"), tmp_path / "dead.safetensors", RECIPE, data)


def test_a_sound_base_is_rescaled_and_a_zoo_that_was_begun_so_stays_so(data, tmp_path, caplog):
    zoo, _, _ = begin_zoo(tmp_path / "sound", BackboneSpec("test_resnet"), data / "base.safetensors", RECIPE, data)
    assert zoo.batchnorm == "rescaled"
    assert "lost base" not in caplog.text
    more = begin_zoo(tmp_path / "lost", BackboneSpec("test_resnet"), leaning_base(data, tmp_path), RECIPE, data)[0]
    dataclasses.replace(more, batchnorm="rescaled").write_description()  # as one that was begun with other datasets
    (more.path / "datasets.json").write_text("{}")
    again = begin_zoo(more.path, BackboneSpec("test_resnet"), leaning_base(data, tmp_path), RECIPE, data)[0]
    assert again.batchnorm == "rescaled"
    assert "lost base" in caplog.text
