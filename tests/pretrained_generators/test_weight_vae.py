import torch

from pretrained_generators.weight_vae import VAEConfig, WeightVAE
from tests.pretrained_generators.small import seeded

CONFIG = VAEConfig(latent=6, width=16, depth=1, heads=2)


def zoo_chunks(entries=7, places=3, chunk=40, seed=0):
    scale = torch.tensor([1.0, 1e-2, 30.0]).repeat(places)[:places].view(1, -1, 1)
    return 0.5 + scale * torch.randn(entries, places, chunk, generator=seeded(seed))


def test_svd_start_rebuilds_the_zoo_when_the_latent_has_room_for_it():
    chunks = zoo_chunks(entries=6)  # six dimensions
    vae = WeightVAE(3, 40, CONFIG)
    assert (vae.decode(vae.encode(chunks)[0]) - chunks).abs().max() > 1  # before, it does not
    vae.start_at_svd(chunks)
    rebuilt = vae.decode(vae.encode(chunks)[0])
    error = (rebuilt - chunks).flatten(2).norm(dim=2) / chunks.flatten(2).norm(dim=2)
    assert error.max() < 1e-3


def test_svd_start_is_the_best_linear_one_when_the_latent_is_too_small():
    chunks = zoo_chunks(entries=20)
    vae = WeightVAE(3, 40, CONFIG)
    vae.start_at_svd(chunks)
    error = (vae.decode(vae.encode(chunks)[0]) - chunks).square().sum((0, 2))
    for place in range(3):
        values = torch.linalg.svdvals(chunks[:, place])
        torch.testing.assert_close(error[place], values[6:].square().sum(), rtol=1e-3, atol=1e-5)


def test_latents_of_the_zoo_have_unit_mean_square_at_the_svd_start():
    chunks = zoo_chunks(entries=7)
    vae = WeightVAE(3, 40, CONFIG)
    vae.start_at_svd(chunks)
    mean, log_variance = vae.encode(chunks)
    torch.testing.assert_close(mean.square().mean(0), torch.ones(3, 6), rtol=1e-3, atol=1e-3)
    assert (0.5 * log_variance).exp().max() < 0.1


def test_fewer_entries_than_latent_numbers_leave_the_rest_unused():
    chunks = zoo_chunks(entries=3)
    vae = WeightVAE(3, 40, CONFIG)
    vae.start_at_svd(chunks)
    assert not vae.basis[:, 3:].any()
    torch.testing.assert_close(vae.decode(vae.encode(chunks)[0]), chunks, rtol=1e-3, atol=1e-3)


def test_latent_grows_with_the_weights_and_not_with_the_chunk():
    for places, chunk in ((1, 40), (5, 40), (5, 80)):
        mean, log_variance = WeightVAE(places, chunk, CONFIG).encode(zoo_chunks(2, places, chunk))
        assert mean.shape == log_variance.shape == (2, places, 6)


def test_decoding_gives_the_shape_that_was_encoded():
    vae = WeightVAE(5, 40, CONFIG)
    assert vae.decode(torch.zeros(2, 5, 6)).shape == (2, 5, 40)


def test_no_delta_has_the_zero_latent_at_the_svd_start():
    vae = WeightVAE(3, 40, CONFIG)
    vae.start_at_svd(zoo_chunks())
    assert not vae.encode(torch.zeros(1, 3, 40))[0].any()
    assert not vae.decode(torch.zeros(1, 3, 6)).any()
