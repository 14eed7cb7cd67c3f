"""What is exported is what timm and torchvision load, and does what the zoo says."""

import csv
import json
from dataclasses import replace

import pyarrow.parquet
import pytest
import timm
import torch
import torchvision
from safetensors import safe_open
from safetensors.torch import load_file

from tests.zoo_builder.synthetic import seeded, striped_dataset, striped_images, tiny_task
from tests.zoo_builder.tiny_zoo import ENTRIES, RECIPE, build_zoo, rewrite, write_data
from zoo_builder.backbones import BackboneSpec, extract_features, load_body, predict, prepare_images
from zoo_builder.build import begin_zoo
from zoo_builder.checkpoint import read_tensors
from zoo_builder.errors import RecipeError, ZooError
from zoo_builder.export import export, export_table
from zoo_builder.finetune_result import FineTuneResult
from zoo_builder.model_stack import shifted
from zoo_builder.rescaling import batchnorm_rescaling
from zoo_builder.store import Zoo
from zoo_builder.tasks import ZooRecipe


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    root = tmp_path_factory.mktemp("export")
    return build_zoo(write_data(root / "data"), root / "zoo")


@pytest.fixture
def out(tmp_path):
    return tmp_path / "new" / "weights.safetensors"


def about(path):
    with safe_open(path, framework="pt") as file:
        return json.loads(file.metadata()["zoo_entry"])


@pytest.mark.parametrize("strength", [0.25, 1.0])
def test_a_body_is_the_base_and_the_delta_at_its_best_strength(zoo, out, strength):
    entry = next(zoo.entries(plans=["branch"]))
    rewrite(entry, metrics=entry.metrics | {"best_strength": strength})
    assert export(zoo, entry.id, out) == 0
    model = timm.create_model("test_resnet", num_classes=0, checkpoint_path=str(out))
    body, delta = zoo.backbone.create(), entry.delta()
    load_body(body, zoo.base(), "zoo")
    rescaling = batchnorm_rescaling(body, prepare_images(body, entry.support()[0]))
    base = shifted(body.state_dict(), rescaling)
    assert len(rescaling) > 5
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.detach(), base[name] + strength * delta[name], rtol=0, atol=1e-6)
    assert about(out)["strength"] == strength
    assert about(out)["sources"].keys() == set(entry.about["sources"])


def test_it_is_a_base_that_knows_what_all_its_weights_were_trained_on(zoo, out, tmp_path):
    data = write_data(tmp_path / "data", ("another",))
    entry = next(zoo.entries(plans=["branch"]))
    export(zoo, entry.id, out)
    assert entry.task.datasets == ("bands",)
    assert list(entry.ancestry())[-1].task.datasets == ("bands", "stripes")
    for held_out in ("bands", "stripes"):
        with pytest.raises(RecipeError, match=f"was pretrained on {held_out}, which the recipe holds out"):
            begin_zoo(tmp_path / "zoo", zoo.backbone, out, replace(RECIPE, held_out=(held_out,)), data)
    begun = Zoo.create(tmp_path / "zoo", zoo.backbone, zoo.base(), RECIPE, read_tensors(out)[1]["pretraining"])
    assert begun.base_pretrained_on() == "unknown, bands, stripes"


def test_a_body_goes_into_a_classifier_whose_head_stays(zoo, out):
    export(zoo, next(zoo.entries(plans=["branch"])).id, out)
    model = timm.create_model("test_resnet", num_classes=7)
    missing, unexpected = model.load_state_dict(load_file(out), strict=False)
    assert unexpected == []
    assert set(missing) == {"fc.weight", "fc.bias"}


def test_a_fine_tuned_classifier_scores_what_is_on_record(zoo, out):
    """With its head, at full strength, whatever strength serves a solved head best."""
    entry = next(e for e in zoo.entries(plans=["finetune"]) if e.task.domains == ("plain",))
    rewrite(entry, metrics=entry.metrics | {"best_strength": 0.25})
    assert export(zoo, entry.id, out) == 3
    model = timm.create_model("test_resnet", num_classes=3, checkpoint_path=str(out)).eval()
    (name,) = entry.task.datasets
    dataset = striped_dataset(name, seed={"stripes": 0, "bands": 100}[name])
    with torch.no_grad():
        logits = model(prepare_images(model, torch.from_numpy(dataset.x_test).permute(0, 3, 1, 2)))
    accuracy = 100 * (logits.argmax(1).numpy() == dataset.y_test).mean()
    assert abs(accuracy - entry.metrics["head_accuracy"]) <= 100 / len(dataset.y_test) + 1e-3  # delta is kept in half
    assert torch.equal(model.get_classifier().weight, entry.heads()[f"{name}/weight"])


def test_of_several_heads_none_goes_along(zoo, out):
    entry = next(zoo.entries(plans=["mix"]))
    assert len(entry.heads()) == 4
    assert export(zoo, entry.id, out) == 0
    timm.create_model("test_resnet", num_classes=0, checkpoint_path=str(out))


@pytest.mark.parametrize("name", ["shufflenet_v2_x0_5", "squeezenet1_1"])
def test_models_of_torchvision_load_it(tmp_path, out, name):
    spec = BackboneSpec(f"torchvision:{name}")
    body = spec.create()
    zoo = Zoo.create(tmp_path / "zoo", spec, body.state_dict(), ZooRecipe((), (), size=64, support=6))
    images, labels = striped_images(6, size=64)
    width = body(torch.zeros(2, 3, 64, 64)).shape[1]
    heads = {"stripes/weight": torch.randn(5, width, generator=seeded(0)), "stripes/bias": torch.arange(5.0)}
    metrics = {"gain": 1.0, "seconds": 1.0, "best_strength": 0.5}
    support = torch.from_numpy(images).permute(0, 3, 1, 2), torch.from_numpy(labels)
    task = tiny_task("finetune", scope="head", size=64)
    zoo.write(task, FineTuneResult({}, heads, *support, torch.ones(4), metrics, []))
    assert export(zoo, task.id, out) == 5
    model = torchvision.models.get_model(name, num_classes=5)
    model.load_state_dict(load_file(out))
    batch = prepare_images(model, support[0])
    wanted = extract_features(model, batch) @ heads["stripes/weight"].T + heads["stripes/bias"]
    torch.testing.assert_close(predict(model, batch).log_softmax(1), wanted.log_softmax(1), rtol=1e-3, atol=1e-3)


def test_an_entry_that_is_not_there_is_refused(zoo, out):
    with pytest.raises(ZooError, match="no entry 'absent'"):
        export(zoo, "absent", out)
    assert not out.exists()


def test_the_index_is_one_parquet_file(zoo, tmp_path):
    assert export_table(zoo, tmp_path / "index.parquet") == ENTRIES
    assert pyarrow.parquet.read_table(tmp_path / "index.parquet").equals(zoo.table())


def test_the_index_is_one_csv_file(zoo, tmp_path):
    assert export_table(zoo, tmp_path / "index.csv") == ENTRIES
    with (tmp_path / "index.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for row, entry in zip(rows, zoo.entries(), strict=True):
        assert row["id"] == entry.id
        assert row["datasets"].split(";") == list(entry.task.datasets)
        assert float(row["gain"]) == entry.metrics["gain"]
        assert json.loads(row["metrics"]) == entry.metrics


def test_another_kind_of_table_is_refused(zoo, tmp_path):
    with pytest.raises(ZooError, match=r"'index\.xlsx'"):
        export_table(zoo, tmp_path / "index.xlsx")
    assert not list(tmp_path.iterdir())
