import torch

from d2nwg_init.candidates import generated_bodies
from pretrained_generators.probes import Probes
from tests.pretrained_generators.small import labelled_images, random_generator, seeded
from zoo_builder.support_set import SupportSet


def test_base_probes_and_samples_compete_in_this_order():
    generator = random_generator()
    support = SupportSet(*labelled_images(24, 3), 3)
    assert [b.kind for b in generated_bodies(generator, support, 2, 0)] == ["base", "generated", "generated"]

    generator.probes = Probes(2, generator.config.layout.num_chunks, generator.config.vae.latent)
    generator.probes.latents.copy_(torch.randn(generator.probes.latents.shape, generator=seeded(0)))
    generator.embed = lambda *_: None  # what is sampled is of no matter here
    bodies = list(generated_bodies(generator, support, 1, 0))
    assert [b.kind for b in bodies] == ["base", "probe", "probe", "generated"]
    first, second = (b.parameters for b in bodies[1:3])
    for name, value in generator.base_parameters().items():
        torch.testing.assert_close(first[name], value + generator.probe_deltas()[0][name])
        assert torch.equal(bodies[0].parameters[name], value)
    assert any(not torch.equal(first[n], second[n]) for n in first)
