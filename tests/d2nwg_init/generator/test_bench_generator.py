import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from d2nwg_init.benchmarks.generator import benchmark, recall
from d2nwg_init.benchmarks.generator.benchmark import ALL, SEED, GeneratorRow, merged, shuffled_drop
from d2nwg_init.benchmarks.generator.recall import descent, keys_of, recall_at_1
from d2nwg_init.benchmarks.transfer.report import TransferRow, merge_report
from pretrained_generators.bundle import load_bundle
from pretrained_generators.training.episodes import Episode
from pretrained_generators.training.functional import episode_loss
from pretrained_generators.training.gates import GATES
from pretrained_generators.training.zoo_data import target_delta
from tests.cli.conftest import fail, succeed
from tests.pretrained_generators.small import copied, random_generator, same, save_random_bundle, seeded
from tests.zoo_builder.synthetic import striped_dataset, striped_images, write_npz
from zoo_builder.backbones import load_body
from zoo_builder.errors import DataError
from zoo_builder.sources import read_sources


def save_bundle_of(zoo, path, **changes):
    """A random bundle that says it learnt from all but two entries of a zoo."""
    generator = random_generator()
    load_body(generator.base, zoo.base(), "the zoo's base")
    ids = [e.id for e in zoo.entries()]
    kept_back = [i for i in ids if i.startswith("finetune")][:2]
    about = {"learnt": tuple(i for i in ids if i not in kept_back), "kept_back": tuple(kept_back)}
    save_random_bundle(path, generator=generator, base_sha256=zoo.base_sha256, **about | changes)
    return path


@pytest.fixture(scope="module")
def bundle(whole, tmp_path_factory):
    return save_bundle_of(whole, tmp_path_factory.mktemp("bundle"))


@pytest.fixture(scope="module")
def written(whole, data, bundle, tmp_path_factory):
    """The results file of the command, and what it printed."""
    out = tmp_path_factory.mktemp("results") / "generator.json"
    text = succeed("bench", "generator", "--zoo", whole.path, "--bundle", bundle, "--data", data, "--out", out)
    return out, text


def values(rows, **wanted):
    return [r["value"] for r in rows if all(r.get(k) == v for k, v in wanted.items())]


def test_every_gate_is_measured_and_printed(written):
    out, text = written
    rows = json.loads(out.read_text())["rows"]
    for gate in GATES:
        assert gate in text
        assert values(rows, metric=gate, method="generator")
    assert "not measured" in text
    assert values(rows, metric="condition_shuffled_drop", split="development") == [None]
    assert [r["match"] for r in rows if r["metric"] == "recall_at_1"] == [
        "entry", "dataset", "kept_back", "base_gradient",
    ]  # fmt: skip
    (z,), (p,) = (values(rows, metric=f"memorisation_{m}") for m in "zp")
    assert (z < 0) == (p < 0.5)
    assert {r["method"] for r in rows if r["metric"] == "nearest_distance"} >= {"generated", "held_out", "zoo_mean"}
    assert {r["codec"] for r in rows if r["metric"] == "gain_kept"} == {"vae", "svd", "pca", "pca_chunks"}


def test_results_tell_what_they_are_of(written, whole, bundle):
    report = json.loads(written[0].read_text())
    assert report["name"] == "generator"
    assert {d["name"] for d in report["data"]} == {"stripes", "bands"}
    (run,) = report["runs"]
    assert run["weights_sha256"] == load_bundle(bundle).config.weights_sha256
    assert "<svg" in written[0].with_name("generator-tiny-random-compression.svg").read_text()


def test_another_bundle_is_added_and_the_same_one_replaced(written, whole, bundle, tmp_path):
    out = tmp_path / "generator.json"
    out.write_text(written[0].read_text())
    other = save_bundle_of(whole, tmp_path / "other", name="another")
    report = json.loads(succeed("bench", "generator", "--zoo", whole.path, "--bundle", other, "--out", out, "--json"))
    assert report == json.loads(out.read_text())
    assert [r["bundle"] for r in report["runs"]] == ["tiny-random", "another"]
    before = json.loads(written[0].read_text())["rows"]
    assert [r for r in report["rows"] if r["bundle"] == "tiny-random"] == before
    assert values(report["rows"], bundle="another", metric="recall_at_1") == [None]
    new = GeneratorRow("another", ALL, "generator", SEED, "compression", 2.0, "ratio")
    again = merged(out, load_bundle(other), whole, [new])
    assert [r["bundle"] for r in again["runs"]] == ["tiny-random", "another"]
    assert [r["value"] for r in again["rows"] if r["bundle"] == "another"] == [2.0]
    assert [r for r in again["rows"] if r["bundle"] == "tiny-random"] == before


def test_bundle_of_another_zoo_is_refused(whole, tmp_path):
    save_random_bundle(tmp_path)
    assert "another base" in fail("bench", "generator", "--zoo", whole.path, "--bundle", tmp_path)


def test_keys_tell_the_weights_that_follow_from_embeddings_and_no_others():
    noise = seeded(0)
    embeddings = torch.randn(60, 8, generator=noise)
    latents = embeddings @ torch.randn(8, 500, generator=noise)
    everyone = torch.ones(60, dtype=torch.bool)

    def found(latents, fitted=everyone):
        return (cosines_of(keys_of(latents, embeddings, fitted), embeddings).argmax(0) == torch.arange(60)).float()

    assert found(latents).mean() > 0.9
    assert found(torch.randn(60, 500, generator=noise)).mean() < 0.1  # nor if there are more numbers than entries
    some = everyone.clone()
    some[:20] = False
    assert found(latents, some)[:20].mean() > 0.9


def cosines_of(keys, queries):
    return F.normalize(keys - keys.mean(0), dim=1) @ F.normalize(queries - keys.mean(0), dim=1).T


def test_queries_are_counted_by_whether_their_entries_were_learnt(whole, data, bundle):
    generator = load_bundle(bundle).generator
    entries = list(whole.entries(["finetune"]))
    generator.vae.start_at_svd(torch.stack([generator.config.layout.to_chunks(target_delta(e)) for e in entries]))
    found = recall_at_1(generator, entries, [], data, {})
    assert math.isnan(found["kept_back"])
    assert 0 <= found["entry"] <= found["dataset"] <= 100
    assert recall_at_1(generator, entries[1:], entries[:1], data, {})["kept_back"] in (0, 100)
    generator.vae.basis.zero_()  # all weights are the same
    assert recall_at_1(generator, entries, [], data, {})["entry"] <= 100 / len(entries)


def test_weights_that_follow_the_gradient_of_a_dataset_lower_its_loss_and_are_found_by_its_unseen_images():
    """Two tasks on the same images, with a bright band of columns and one of rows: where the one is, and the other."""
    generator = random_generator()
    pixels, columns = striped_images(240)
    rows = np.random.default_rng(0).permutation(240) % 3
    for image, row in zip(pixels, rows, strict=True):
        image[10 * row : 10 * row + 10] += 60
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2)
    tasks, before = (torch.from_numpy(columns), torch.from_numpy(rows)), copied(generator.base.state_dict())
    keys = torch.stack([descent(generator, images[:120], labels[:120]) for labels in tasks])
    queries = torch.stack([descent(generator, images[120:], labels[120:]) for labels in tasks])
    near = F.normalize(queries.flatten(1), dim=1) @ F.normalize(keys.flatten(1), dim=1).T
    assert near.argmax(1).tolist() == [0, 1]
    assert same(generator.base.state_dict(), before)

    body, base = generator.base_copy(), generator.base.state_dict()
    for key, labels in zip(keys, tasks, strict=True):
        unseen = Episode(images[120:], labels[120:], len(labels.unique()))
        deltas = [generator.to_delta(by * key / key.norm()) for by in (0, 1)]
        before, after = (episode_loss(body, base, delta, unseen, "rescaled") for delta in deltas)
        assert after < before


@pytest.mark.parametrize(("length", "found"), [(1e-6, 100), (1, 100), (-1, 0)])
def test_weights_are_found_by_the_direction_of_a_gradient_whatever_its_length(
    length, found, whole, data, bundle, monkeypatch
):
    generator = load_bundle(bundle).generator
    entries = list(whole.entries(["finetune"]))
    gradients = iter([length * generator.to_chunks(target_delta(e)) for e in entries])
    monkeypatch.setattr(recall, "descent", lambda *_: next(gradients))
    assert recall_at_1(generator, entries, [], data, {})["base_gradient"] == found


def test_entries_over_several_datasets_have_no_recall(whole, data, bundle):
    entries = [e for e in whole.entries() if len(e.task.datasets) > 1]
    found = recall_at_1(load_bundle(bundle).generator, entries, [], data, {})
    assert found.keys() == {"entry", "dataset", "kept_back", "base_gradient"}
    assert all(map(math.isnan, found.values()))


def test_other_images_of_the_same_name_are_refused(whole, bundle, tmp_path):
    for name in ("stripes", "bands"):
        write_npz(tmp_path / f"{name}.npz", striped_dataset(name, seed=9))
    entries = list(whole.entries(["finetune"]))
    with pytest.raises(DataError, match="has changed since this zoo was begun"):
        recall_at_1(load_bundle(bundle).generator, entries, [], tmp_path, read_sources(whole.path))


def transfer_report(tmp_path, config, values, more=()):
    """transfer.json with step 0 of methods on development sets; `more` are of the next seed."""
    rows = [
        TransferRow(
            config.name, dataset, method, seed, "test_accuracy", value, "%", "development", 0, condition=condition
        )
        for seed, found in enumerate((values, dict(more)))
        for (method, condition), by_dataset in found.items()
        for dataset, value in by_dataset.items()
    ]
    header = {"name": "transfer", "data": [], "weights_sha256": config.weights_sha256}
    return merge_report(tmp_path / "transfer.json", header, rows, [])


def test_drop_counts_the_sets_where_there_is_something_to_win(bundle, tmp_path):
    loaded = load_bundle(bundle)
    measured = {
        ("solved", "right"): {"a": 50.0, "b": 50.0, "c": 50.0},
        ("oracle", "right"): {"a": 60.0, "b": 53.0, "c": 52.0},
        ("generated_mean", "right"): {"a": 58.0, "b": 52.0, "c": 90.0},
        ("generated_mean", "shuffled"): {"a": 52.0, "b": 50.0, "c": 10.0},
    }
    report = transfer_report(tmp_path, loaded.config, measured)
    assert shuffled_drop(report, loaded) == pytest.approx((6.0 + 2.0) / 2)
    harder = {("solved", "right"): {"a": 59.0, "b": 51.0, "c": 40.0}}  # of a seed that the oracle was not asked for
    assert shuffled_drop(transfer_report(tmp_path, loaded.config, measured, harder), loaded) == pytest.approx(4.0)
    del measured["oracle", "right"]
    assert math.isnan(shuffled_drop(transfer_report(tmp_path, loaded.config, measured), loaded))


@pytest.mark.parametrize("option", ["--out", "--transfer"])
def test_a_damaged_file_is_told_of_before_anything_is_measured(option, whole, bundle, tmp_path, monkeypatch):
    monkeypatch.setattr(benchmark, "audit_zoo", None)  # measuring would fail
    damaged = tmp_path / "damaged.json"
    files = {"--out": tmp_path / "generator.json", option: damaged}
    arguments = ("bench", "generator", "--zoo", whole.path, "--bundle", bundle, *(a for f in files.items() for a in f))
    damaged.write_text("{")
    assert "does not hold results" in fail(*arguments)
    damaged.unlink()
    if option == "--transfer":
        assert "Give that of bench transfer as --transfer" in fail(*arguments)


def test_drop_of_other_weights_does_not_count(bundle, tmp_path):
    loaded = load_bundle(bundle)
    values = {(m, c): {"a": 50.0} for m in ("solved", "generated_mean") for c in ("right", "shuffled")}
    values["oracle", "right"] = {"a": 60.0}
    other = replace(loaded.config, files=tuple(replace(f, sha256="0" * 64) for f in loaded.config.files))
    assert shuffled_drop(transfer_report(tmp_path, loaded.config, values), loaded) == 0
    assert math.isnan(shuffled_drop(transfer_report(tmp_path, other, values), loaded))
