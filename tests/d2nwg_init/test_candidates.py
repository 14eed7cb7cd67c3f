import torch
import torch.nn.functional as F

from d2nwg_init.accepted_model import working_copy
from d2nwg_init.candidates import FINALISTS, become, generated_bodies, propose
from pretrained_generators.probes import Probes
from tests.d2nwg_init.conftest import new_model
from tests.pretrained_generators.small import copied, labelled_images, random_generator, seeded
from zoo_builder.backbones import extract_features
from zoo_builder.solved_head import solve_head
from zoo_builder.support_set import SupportSet


def test_base_probes_and_samples_compete_in_this_order():
    generator = random_generator()
    support = SupportSet(*labelled_images(24, 3), 3)
    assert [b.kind for b in generated_bodies(generator, support, 2, 0)] == ["base", "generated", "generated"]

    generator.probes = Probes(2, generator.config.layout.num_chunks, generator.config.vae.latent)
    generator.probes.latents.copy_(torch.randn(generator.probes.latents.shape, generator=seeded(0)))
    generator.embed = lambda *_: None  # what is sampled is of no matter here
    bodies = list(generated_bodies(generator, support, 1, 0, finalists=3))
    assert [b.kind for b in bodies] == ["base", "probe", "probe", "generated"]
    first, second = (b.parameters for b in bodies[1:3])
    for name, value in generator.fitted_base(support.images).items():
        torch.testing.assert_close(first[name], value + generator.probe_deltas()[0][name])
        assert torch.equal(bodies[0].parameters[name], value)
    assert any(not torch.equal(first[n], second[n]) for n in first)


def test_of_many_bodies_the_better_ones_reach_the_final():
    """Some samples are ruined; no ruined one is judged on all images while a whole one is not."""
    generator = random_generator()
    images, labels = labelled_images(60, 3)
    support = SupportSet(images + 2 * torch.randn(images.shape, generator=seeded(0)), labels, 3)
    whole = generator.sample_deltas(None, 2, 0)
    gone = {k: -v for k, v in generator.base_parameters().items()}
    deltas = [gone, whole[0], gone, gone, {k: v / 0 for k, v in gone.items()}, whole[1]]
    generator.sample_latents = lambda *_: range(6)
    generator.decoded = lambda i: deltas[i]
    names = [b.name for b in generated_bodies(generator, support, 6, 0)]
    assert len(names) == 1 + FINALISTS
    assert names == ["base", "generated_1_x0.5", "generated_5_x0.5"]
    assert len(list(generated_bodies(generator, support, 6, 0, finalists=6))) == 7


def test_a_probe_that_does_harm_is_tried_at_other_strengths():
    generator = random_generator()
    images, labels = labelled_images(60, 3)
    support = SupportSet(images + 2 * torch.randn(images.shape, generator=seeded(0)), labels, 3)
    delta = generator.sample_deltas(None, 1, 0)[0]
    generator.probes = Probes(1, generator.config.layout.num_chunks, generator.config.vae.latent)
    generator.probes.latents.fill_(1.0)
    generator.probes.mean.fill_(1.0)
    generator.embed = lambda *_: torch.zeros(generator.probes.size)
    generator.sample_latents = lambda *_: torch.zeros(3, 1)  # which decode to nothing of use
    generator.decoded = lambda z: delta if z.any() else {k: v / 0 for k, v in delta.items()}
    base, *bodies = generated_bodies(generator, support, 3, 0, finalists=3)
    assert [b.name for b in bodies] == ["probe_0_x0.5", "probe_0_x2", "probe_0_x3"]
    for body, strength in zip(bodies, (0.5, 2.0, 3.0), strict=True):
        for name, value in body.parameters.items():
            torch.testing.assert_close(value, base.parameters[name] + strength * delta[name])


def test_where_batchnorm_must_not_change_it_is_tried_as_it_is_of_few_images_alone():
    images, labels = labelled_images(300, 3)
    model = new_model()
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            if name.endswith(("running_mean", "running_var")):
                buffer.add_(0.3)
    before = copied(model.state_dict())

    def names(count):
        support = SupportSet(images[:count], labels[:count], 3)
        return [c.name for c in propose(working_copy(model), support, [], names={"conv1.weight"})]

    assert names(255) == ["as_passed", "own_body_as_is", "own_body"]
    assert names(256) == ["as_passed", "own_body"]
    few = SupportSet(images[:60], labels[:60], 3)
    as_is = list(propose(working_copy(model), few, [], names={"conv1.weight"}))[1]
    become(model, as_is, few)
    changed = {k for k, v in model.state_dict().items() if not torch.equal(v, before[k])}
    assert changed == {"fc.weight", "fc.bias"}
    solved = solve_head(extract_features(model, few.images), few.labels, 3)
    torch.testing.assert_close(as_is.losses, F.cross_entropy(solved.left_out_logits, few.labels, reduction="none"))
