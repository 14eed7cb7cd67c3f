import dataclasses

import pytest
import torch

from pretrained_generators.bundle import load_bundle
from pretrained_generators.probes import IMAGES, Probes, worth_of
from pretrained_generators.training.audit_zoo import audit_zoo
from pretrained_generators.training.train import train_generator
from tests.pretrained_generators.small import RECIPE, copied, labelled_images, random_generator, same, seeded, small_zoo
from zoo_builder.errors import BundleError, RecipeError
from zoo_builder.finetune_result import FineTuneResult

PROBING = dataclasses.replace(RECIPE, plans=("branch", "trunk"), probes=("trunk",))


def deltas(generator):
    """One that does nothing and one that blinds the body."""
    base = generator.base_parameters()
    return [{}, {k: -v for k, v in base.items()}]


def test_worth_is_of_the_base_and_then_the_change_by_each_delta():
    generator = random_generator()
    images, labels = labelled_images(60, 3)
    loss, accuracy, *others = (
        worth_of(generator.base, deltas(generator), images, labels, 3, "rescaled").flatten().tolist()
    )
    assert loss < 0.5
    assert accuracy > 0.9
    assert others[:2] == pytest.approx([0, 0], abs=1e-6)
    assert others[2] > 0.4
    assert others[3] < -0.4


def test_of_one_class_nothing_can_be_worth_more():
    generator = random_generator()
    images, labels = labelled_images(12, 1)
    worth = worth_of(generator.base, deltas(generator), images, labels, 1, "rescaled")
    assert worth.tolist() == [[0, 1], [0, 0], [0, 0]]


def test_a_delta_that_explodes_is_worth_the_least_and_spoils_no_mean():
    generator = random_generator()
    images, labels = labelled_images(40, 2)
    exploding = {k: torch.full_like(v, torch.inf) for k, v in generator.base_parameters().items()}
    worth = worth_of(generator.base, [exploding, *deltas(generator)], images, labels, 2, "rescaled")
    assert torch.isfinite(worth).all()
    assert worth[1:, 0].argmax() == 0
    assert worth[1, 1] == -worth[0, 1]  # no image is right


def test_trying_leaves_the_base_as_it_was():
    generator = random_generator()
    images, labels = labelled_images(40, 2)
    before, training = copied(generator.base.state_dict()), [m.training for m in generator.base.modules()]
    worth_of(generator.base, deltas(generator), images, labels, 2, "rescaled")
    assert same(generator.base.state_dict(), before)
    assert [m.training for m in generator.base.modules()] == training


def test_of_many_images_some_are_tried_from_all_parts_of_the_set():
    """A sorted loader has each class in a place of its own."""
    generator = random_generator()
    images, labels = labelled_images(3 * IMAGES, 3)
    order = labels.argsort()
    _, accuracy = worth_of(generator.base, [{}], images[order], labels[order], 3, "rescaled")[0].tolist()
    assert accuracy > 0.9


def test_without_probes_nothing_is_tried_or_stored():
    generator = random_generator()
    assert not any(k.startswith("probes.") for k in generator.state_dict())
    assert generator.embed(*labelled_images(8, 2), 2).shape == (generator.config.encoder.embedding,)


@pytest.fixture(scope="module")
def probing(tmp_path_factory):
    """A bundle whose probes are all entries of one plan."""
    folder = tmp_path_factory.mktemp("probing")
    zoo = zoo_with_trunks(folder)
    train_generator(zoo, PROBING, folder / "bundle")
    return zoo, PROBING, folder / "bundle"


def zoo_with_trunks(folder, **kind):
    zoo = small_zoo(folder, **kind)
    for entry in list(zoo.entries())[:2]:
        zoo.write(dataclasses.replace(entry.task, plan="trunk"), _result(entry))
    return zoo


def _result(entry):
    images, labels = entry.support()
    delta = {k: v.half() for k, v in entry.delta().items()}
    return FineTuneResult(delta, {}, images, labels, entry.embedding(), entry.metrics, entry.curve)


def test_probes_travel_with_the_bundle_and_are_part_of_the_condition(probing):
    _, recipe, path = probing
    config, generator = load_bundle(path).config, load_bundle(path).generator
    assert config.generator.probes == 2
    assert not any("trunk" in e for e in config.kept_back)
    images, labels = labelled_images(24, 3)
    condition = generator.embed(images, labels, 3)
    assert condition.shape == (recipe.encoder.embedding + 2 * (2 + 1),)
    worth = generator.probe(images, labels, 3)
    torch.testing.assert_close(condition[recipe.encoder.embedding :], generator.probes.standardised(worth))
    assert generator.probes.latents.abs().max() > 0
    assert generator.probes.std.min() > 0


@pytest.mark.parametrize("channels", [1, 4])
def test_a_stem_of_other_channels_is_trained_on_measured_and_audited(channels, tmp_path):
    zoo = zoo_with_trunks(tmp_path, in_chans=channels)
    train_generator(zoo, PROBING, tmp_path / "bundle")
    found = audit_zoo(load_bundle(tmp_path / "bundle"), zoo, samples=1)
    assert sum(s.method == "generated" for s in found) == PROBING.held_back


def test_a_lying_number_of_probes_is_refused(probing):
    _, _, path = probing
    text = (path / "config.json").read_text()
    (path / "config.json").write_text(text.replace('"probes": 2', '"probes": 3'))
    try:
        with pytest.raises(BundleError, match="its config says"):
            load_bundle(path)
    finally:
        (path / "config.json").write_text(text)


def test_a_plan_without_entries_cannot_probe(zoo, tmp_path):
    with pytest.raises(RecipeError, match="probe"):
        train_generator(zoo, dataclasses.replace(RECIPE, probes=("trunk",)), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_anchor_is_the_best_probe_or_none():
    probes = Probes(2, 3, 4)
    probes.latents.copy_(torch.randn(2, 3, 4, generator=seeded(0)))
    probes.mean.copy_(torch.arange(6.0))
    probes.std.copy_(torch.arange(1.0, 7.0))

    def anchor(*changes):
        """Of probes that change the loss by so much."""
        worth = torch.tensor([[0.5, 0.6], *([c, 0.3] for c in changes)]).flatten()
        return probes.anchor(probes.standardised(worth))

    torch.testing.assert_close(anchor(-0.5, -0.1), probes.latents[0], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(anchor(0.2, -0.2), probes.latents[1], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(anchor(0.3, 0.2), torch.zeros(3, 4), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(anchor(-0.4, -0.4), probes.latents.mean(0), rtol=1e-3, atol=1e-3)


def test_samples_are_around_the_anchor_of_their_condition(probing):
    *_, path = probing
    generator = load_bundle(path).generator
    condition = generator.embed(*labelled_images(24, 3), 3)
    apart = condition.clone()
    apart[-2] -= 1e3  # the last probe lowers the loss beyond all measure
    torch.testing.assert_close(generator.anchor(apart), generator.probes.latents[-1])
    with torch.no_grad():
        generator.diffusion.token_out.weight.zero_()
        generator.diffusion.token_out.bias.zero_()
        generator.diffusion.latent_mean.zero_()
    sampled = generator.sample_deltas(apart, 1, 0, steps=2)[0]
    for name, value in generator.probe_deltas()[-1].items():
        torch.testing.assert_close(sampled[name], value, rtol=1e-4, atol=1e-7)
