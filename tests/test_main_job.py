"""The promises of the main job, on the embedded bundle and real images: scikit-learn's digits."""

import copy
import random

import numpy as np
import pytest
import timm
import torch
import torchvision
from torch.utils.data import DataLoader, TensorDataset

import d2nwg_init
from d2nwg_init.benchmarks.fine_tuning import train_loader
from d2nwg_init.candidates import Candidate
from d2nwg_init.select import select
from pretrained_generators.bundle import Bundle, load_bundle, save_bundle
from pretrained_generators.weight_layout import WeightLayout
from zoo_builder.datasets import load_dataset

BUNDLE = "test_resnet-64"


@pytest.fixture(scope="module")
def bundle():
    return load_bundle(BUNDLE)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return timm.create_model("test_resnet", num_classes=10)


@pytest.fixture
def loader(model):
    return train_loader(load_dataset("digits"), model, size=64, batch_size=64, seed=0)


def state_of(model):
    return {k: v.clone() for k, v in model.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def random_states():
    return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()


@pytest.mark.parametrize(
    "make",
    [
        lambda: timm.create_model("mobilenetv3_small_050", num_classes=3),
        lambda: timm.create_model("test_vit", num_classes=3),
        lambda: torchvision.models.squeezenet1_1(num_classes=3),
    ],
    ids=["batchnorm_cnn", "vit", "batchnorm_free_torchvision"],
)
def test_layout_round_trip_is_exact(make):
    model = make()
    parameters = dict(model.named_parameters())
    layout = WeightLayout.of(model, chunk=1000).scaled_to([parameters])
    assert len({b.exponent for b in layout.blocks}) > 1
    back = layout.to_tensors(layout.to_chunks(parameters))
    assert same({k: v.detach() for k, v in parameters.items()}, back)


def test_embedding_ignores_image_order_and_class_order(bundle, loader):
    images, labels = next(iter(loader))
    encoder, features = bundle.generator.encoder, bundle.generator.features(images)
    classes, dataset = encoder(features, labels, 10)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(1))
    shuffled_classes, shuffled = encoder(features[order], labels[order], 10)
    torch.testing.assert_close(shuffled, dataset, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(shuffled_classes, classes, atol=1e-4, rtol=1e-4)
    renamed = torch.randperm(10, generator=torch.Generator().manual_seed(2))
    renamed_classes, again = encoder(features, renamed[labels], 10)
    torch.testing.assert_close(renamed_classes[renamed], classes, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(again, dataset, atol=1e-4, rtol=1e-4)


def test_saved_and_reloaded_bundle_samples_equal_bits(bundle, tmp_path):
    about = {
        k: getattr(bundle.config, k) for k in ("name", "trained_on", "held_out", "base_sha256", "base_pretrained_on")
    }
    save_bundle(bundle.generator, tmp_path, **about)
    again = load_bundle(tmp_path)
    embedding = torch.linspace(-1, 1, bundle.config.generator.encoder.embedding)
    first, second = (g.sample_deltas(embedding, 2, seed=3) for g in (bundle.generator, again.generator))
    assert all(same(a, b) for a, b in zip(first, second, strict=True))
    assert not same(first[0], first[1])


def test_generated_weights_beat_the_solved_base_on_digits(model, loader):
    report = d2nwg_init.initialize(model, loader, num_candidates=2, num_support=512)
    scores = {c.kind: c for c in report.candidates}
    assert report.chosen.startswith("generated")
    assert scores["generated"].loss < scores["base"].loss < scores["as_passed"].loss
    assert "generated_0" in str(report)


def test_same_seed_gives_equal_bits_and_leaves_random_state(model, loader):
    other = timm.create_model("test_resnet", num_classes=10)
    other.load_state_dict(model.state_dict())
    other.layer1.eval()  # a mixture of modes is the user's business too
    before, generator = random_states(), loader.generator.get_state()
    modes = [m.training for m in other.modules()]
    for m in (model, other):
        d2nwg_init.initialize(m, loader, num_candidates=1, num_support=128, seed=5)
    assert same(state_of(model), state_of(other))
    assert random_states() == before
    assert torch.equal(loader.generator.get_state(), generator)
    assert [m.training for m in other.modules()] == modes


def batch(images=32, channels=3, size=64, labels=None):
    x = torch.randn(images, channels, size, size, generator=torch.Generator().manual_seed(0))
    return x, torch.arange(images) % 10 if labels is None else labels


WRONG = {
    "empty": ([], "no images"),
    "one class": ([batch(labels=torch.zeros(32, dtype=torch.long))], "two classes"),
    "label too large": ([batch(labels=torch.arange(32) % 11)], "0..9"),
    "negative label": ([batch(labels=torch.arange(32) % 10 - 1)], "0..9"),
    "gray": ([batch(channels=1)], "1 channels"),
    "NaN": ([(batch()[0].index_fill(0, torch.tensor([3]), float("nan")), batch()[1])], "NaN"),
    "uint8": ([(batch()[0].byte(), batch()[1])], "uint8"),
    "soft labels": ([(batch()[0], torch.rand(32, 10))], "Mixup"),
    "no labels": ([batch()[0]], "pair or in a dict"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_input_is_named_and_leaves_the_model(case, model):
    batches, words = WRONG[case]
    before = state_of(model)
    with pytest.raises(d2nwg_init.DataError, match=words):
        d2nwg_init.initialize(model, batches, num_candidates=1)
    assert same(state_of(model), before)


def test_wrong_image_size_is_named_and_leaves_the_model():
    vit = timm.create_model("test_vit", num_classes=10)
    before = state_of(vit)
    with pytest.raises(d2nwg_init.DataError, match="3x32x32"):
        d2nwg_init.initialize(vit, [batch(size=32)])
    assert same(state_of(vit), before)


@pytest.mark.parametrize("stage", ["propose", "select", "find_bundle", "_check_fit"])
def test_a_fault_at_any_stage_leaves_the_model(stage, model, loader, monkeypatch):
    def fault(*_args, **_kwargs):
        raise RuntimeError("injected")

    monkeypatch.setattr(f"d2nwg_init.hook.{stage}", fault)
    before, states = state_of(model), random_states()
    with pytest.raises(RuntimeError, match="injected"):
        d2nwg_init.initialize(model, loader, num_candidates=1, num_support=64)
    assert same(state_of(model), before)
    assert random_states() == states


def test_exploding_samples_are_discarded(model, loader, bundle):
    generator = copy.deepcopy(bundle.generator)
    generator.diffusion.latent_mean.fill_(1e30)
    report = d2nwg_init.initialize(
        model, loader, generator=Bundle(bundle.config, generator), num_candidates=2, num_support=128
    )
    assert not report.chosen.startswith("generated")
    assert all(torch.isfinite(v).all() for v in model.state_dict().values())


def candidate(kind, losses, name=None):
    return Candidate(kind, name or kind, {}, torch.tensor(losses), 0.0)


def test_selection_prefers_the_simpler_kind_within_one_standard_error():
    base, much_better = candidate("base", [1.0, 1.2, 0.8]), candidate("generated", [0.1, 0.3, 0.0])
    hardly_better = candidate("generated", [1.0, 1.1, 0.89])
    assert select([base, much_better]) is much_better
    assert select([base, hardly_better]) is base
    assert select([candidate("base", [float("nan")] * 3), hardly_better]) is hardly_better
    with pytest.raises(d2nwg_init.ModelError, match="finite"):
        select([candidate("base", [float("nan")])])


def test_a_loaders_own_error_passes_untouched(model):
    class Failing(torch.utils.data.Dataset):
        def __len__(self):
            return 4

        def __getitem__(self, index):
            raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match="mine"):
        d2nwg_init.initialize(model, DataLoader(Failing()))


def test_uncovered_model_still_gets_a_solved_head(loader):
    torch.manual_seed(0)
    other = torchvision.models.shufflenet_v2_x0_5(num_classes=10)
    report = d2nwg_init.initialize(other, loader, num_support=256)
    assert report.bundle is None
    assert "no embedded bundle covers" in report.reason
    assert {c.kind for c in report.candidates} == {"as_passed", "own_body"}
    assert report.chosen == "own_body"


def test_unknown_bundle_and_unfit_bundle_are_named(loader, tmp_path):
    other = timm.create_model("mobilenetv3_small_050", num_classes=10)
    with pytest.raises(d2nwg_init.BundleError, match="test_resnet"):
        d2nwg_init.initialize(other, loader, generator=BUNDLE)
    with pytest.raises(d2nwg_init.BundleError, match=BUNDLE):
        d2nwg_init.initialize(other, loader, generator="test_resnet-46")


def test_loader_is_read_no_further_than_asked(model):
    images, labels = batch(100)
    read = []

    def batches():
        for i in range(10):
            read.append(i)
            yield images[i * 10 : i * 10 + 10], labels[i * 10 : i * 10 + 10]

    report = d2nwg_init.initialize(model, batches(), generator=None, num_support=25)
    assert report.images_read == 25
    assert read == [0, 1, 2]


def test_dict_batches_give_the_same_model_as_pairs(model):
    images, labels = batch(40)
    other = timm.create_model("test_resnet", num_classes=10)
    other.load_state_dict(model.state_dict())
    d2nwg_init.initialize(model, DataLoader(TensorDataset(images, labels), 20), num_candidates=1)
    d2nwg_init.initialize(other, [{"pixel_values": images, "labels": labels}], num_candidates=1)
    assert same(state_of(model), state_of(other))
