"""What a bundle says of its training: all that had a part in its weights, and nothing that could not be read again."""

import json
import shutil
from dataclasses import replace

import pytest

from pretrained_generators.bundle import load_bundle, load_config
from pretrained_generators.training.audit_zoo import audit_zoo, write_audit
from pretrained_generators.training.train import train_generator
from tests.pretrained_generators.small import RECIPE, small_zoo
from zoo_builder.errors import BundleError, ZooError
from zoo_builder.finetune_result import FineTuneResult
from zoo_builder.store import Zoo, files_sha256
from zoo_builder.tasks import ZooRecipe


def add(zoo, entry, licences=None, **changes):
    """An entry like another one, of another task; returns its id."""
    task = replace(entry.task, **changes)
    result = FineTuneResult(entry.delta(), {}, *entry.support(), entry.embedding(), entry.metrics, entry.curve)
    zoo.write(task, result, {"sources": {n: {"licence": text} for n, text in (licences or {}).items()}})
    return task.id


@pytest.fixture
def started(tmp_path):
    """A zoo whose branches went on from a trunk over other datasets too; one of them with a related one."""
    zoo = small_zoo(tmp_path)
    entries = list(zoo.entries())
    licences = {"stripes": "MIT", "trees": "research only"}
    trunk = add(zoo, entries[0], licences, plan="trunk", datasets=("stripes", "trees"))
    for i, entry in enumerate(entries):
        add(zoo, entry, {"stripes": "MIT", "blobs": "MIT"}, seed=50 + i, start=trunk, related=("waves",) * (i == 3))
        zoo.row_path(entry.id).unlink()
    return zoo


def test_datasets_that_entries_went_on_from_or_are_related_to_count_as_trained_on(started, tmp_path):
    config = train_generator(started, replace(RECIPE, held_back=1), tmp_path / "bundle")
    assert {t.name: t.licence for t in config.trained_on if t.name != "waves"} == {
        "blobs": "MIT",
        "stripes": "MIT",
        "trees": "research only",
    }
    known = {e.id: e for e in started.entries()}
    related = any(known[i].task.related for i in config.learnt)
    assert related == ("waves" in {t.name for t in config.trained_on})
    assert {t.name: t.entries for t in config.trained_on}["trees"] == 0
    assert not config.commercial


def test_an_entry_whose_start_is_not_there_is_refused_before_any_work(started, tmp_path):
    (trunk,) = (e for e in started.entries() if e.task.plan == "trunk")
    started.row_path(trunk.id).unlink()
    with pytest.raises(ZooError, match="trunk"):
        train_generator(started, RECIPE, tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize("licence", ["CC\nBY", "x" * 1001])
def test_a_licence_that_no_config_holds_is_refused_before_any_work(licence, tmp_path):
    zoo = small_zoo(tmp_path)
    for i, entry in enumerate(list(zoo.entries())):
        add(zoo, entry, {"stripes": licence}, seed=50 + i)
    with pytest.raises(BundleError, match="licences"):
        train_generator(zoo, RECIPE, tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


def test_a_base_beyond_half_precision_is_refused_before_any_stage(tmp_path):
    zoo = small_zoo(tmp_path)
    base = zoo.base()
    name = next(n for n in base if n.endswith("running_var"))
    base[name][0] = 1e5
    other = Zoo.create(
        tmp_path / "large", zoo.backbone, base, ZooRecipe(plans=(), held_out=(), size=zoo.size, support=12)
    )
    for entry in zoo.entries():
        add(other, entry)
    with pytest.raises(ZooError, match=f"{name} has values beyond 65504"):
        train_generator(other, RECIPE, tmp_path / "bundle")
    assert not list((tmp_path / "bundle").rglob("*.safetensors"))


def test_a_zoo_that_was_built_again_to_other_weights_is_another_one(zoo, trained, tmp_path):
    zoo, config = Zoo.open(shutil.copytree(zoo.path, tmp_path / "zoo")), load_config(trained)
    assert config.zoo_sha256 == files_sha256(zoo.entry(i) for i in config.learnt)
    entry = zoo.entry(config.learnt[0])
    moved = {k: v * 1.01 for k, v in entry.delta().items()}
    zoo.write(entry.task, FineTuneResult(moved, {}, *entry.support(), entry.embedding(), entry.metrics, entry.curve))
    with pytest.raises(BundleError, match="built again"):
        audit_zoo(load_bundle(trained), zoo)
    again = train_generator(zoo, RECIPE, tmp_path / "again")
    assert again.trained_with != config.trained_with


def test_an_audit_against_models_that_are_not_known_for_those_trained_on_says_so(zoo, trained, tmp_path):
    bundle, config = shutil.copytree(trained, tmp_path / "bundle"), load_config(trained)
    found = audit_zoo(load_bundle(bundle), zoo, samples=1)
    texts = [write_audit(found, c, bundle)["verdict"]["text"] for c in (config, replace(config, zoo_sha256=None))]
    assert ["trained again" in text for text in texts] == [False, True]
    assert json.loads((bundle / "audit.json").read_text())["verdict"]["text"] == texts[1]
