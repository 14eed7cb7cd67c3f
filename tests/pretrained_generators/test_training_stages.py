"""Each stage learns what it is for."""

import json

import pytest
import torch

from pretrained_generators.dataset_encoder import DatasetEncoder, EncoderConfig
from pretrained_generators.latent_diffusion import DiffusionConfig, LatentDiffusion
from pretrained_generators.training import loop
from pretrained_generators.training.diffusion import train_diffusion
from pretrained_generators.training.encoder import train_encoder
from pretrained_generators.training.recipe import DiffusionStage, EncoderStage, VAEStage
from pretrained_generators.training.vae import encode_all, mix_entries, train_vae
from pretrained_generators.training.zoo_data import ZooData
from pretrained_generators.weight_vae import VAEConfig, WeightVAE
from tests.pretrained_generators.small import interrupted_stage, same, seeded

SUPPORTS = EncoderStage(steps=60, batch_size=8, learning_rate=3e-3, shots=4)


@pytest.fixture
def encoder():
    torch.manual_seed(0)
    return DatasetEncoder(6, EncoderConfig(width=16, inducing=4, heads=2, embedding=8))


def zoo_data(entries=8):
    """Datasets whose features lie at places of their own, three classes each."""
    features, labels = [], torch.arange(24) % 3
    for i in range(entries):
        place = 3 * torch.randn(6, generator=seeded(i))
        features.append(place + torch.randn(24, 6, generator=seeded(50 + i)))
    chunks = torch.randn(entries, 2, 20, generator=seeded(99))
    return ZooData([], chunks, features, [labels] * entries, torch.zeros(entries, 0))


def test_vae_keeps_what_the_svd_start_already_rebuilds(tmp_path):
    torch.manual_seed(0)
    data = zoo_data()
    vae = WeightVAE(2, 20, VAEConfig(latent=7, width=16, depth=1, heads=2))
    train_vae(vae, data.chunks, VAEStage(steps=30, batch_size=8), tmp_path, 0)
    latents = encode_all(vae, data.chunks)
    assert latents.shape == (8, 2, 7)
    error = (vae.decode(latents) - data.chunks).square().mean() / (data.chunks - data.chunks.mean(0)).square().mean()
    assert error < 0.05


def test_vae_that_has_begun_goes_on_to_equal_bits_without_another_svd(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "CHECKPOINT_EVERY", 2)
    chunks, stage = zoo_data().chunks, VAEStage(steps=8, batch_size=8)

    def trained(folder):
        torch.manual_seed(0)
        vae = WeightVAE(2, 20, VAEConfig(latent=7, width=16, depth=1, heads=2))
        train_vae(vae, chunks, stage, folder, 0)
        return vae.state_dict()

    whole = trained(tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr("pretrained_generators.training.vae.train_stage", interrupted_stage)
        with pytest.raises(KeyboardInterrupt):
            trained(tmp_path / "parts")
    monkeypatch.setattr(WeightVAE, "start_at_svd", None)
    assert same(trained(tmp_path / "parts"), whole)  # from a checkpoint
    assert same(trained(tmp_path / "parts"), whole)  # from the result


def test_vae_of_a_place_of_which_few_weights_ever_change_stays_finite(tmp_path):
    torch.manual_seed(0)
    chunks = 500 * zoo_data().chunks
    chunks[:, 1, 2:] = 0  # two directions, and a latent of seven
    vae = WeightVAE(2, 20, VAEConfig(latent=7, width=16, depth=1, heads=2))
    train_vae(vae, chunks, VAEStage(steps=60, batch_size=8, learning_rate=5e-3), tmp_path, 0)
    error = (vae.decode(encode_all(vae, chunks)) - chunks).square().mean() / chunks.square().mean()
    assert error < 0.05


@pytest.mark.parametrize("entries", [(10.0,), (10.0, 5.0)])
def test_mixtures_lie_between_entries_and_the_base(entries):
    chunks = torch.stack([torch.full((2, 3), value) for value in entries])
    mixed = mix_entries(chunks, 200, seeded(0))
    assert mixed.shape == (200, 2, 3)
    assert torch.equal(mixed, mixed[:, :1, :1].expand(-1, 2, 3))  # one share for the whole of an entry
    values = mixed[:, 0, 0]
    assert values.min() == 0
    assert values.max() == 10
    assert ((values > 0) & (values < 10)).sum() > 20


def test_encoder_learns_which_latents_belong_to_a_dataset(encoder, tmp_path):
    data = zoo_data()
    latents = torch.randn(8, 2, 5, generator=seeded(7))
    train_encoder(encoder, data, latents, SUPPORTS, tmp_path, 0)
    loss = json.loads((tmp_path / "encoder.jsonl").read_text().splitlines()[-1])["loss"]
    assert loss < 0.5 * torch.tensor(8.0).log()  # of a guess among eight
    gathered = torch.cat(data.features)
    torch.testing.assert_close(encoder.feature_mean, gathered.mean(0))
    torch.testing.assert_close(encoder.feature_std, gathered.std(0))


def test_diffusion_learns_which_latents_belong_to_a_dataset(encoder, tmp_path):
    """Two kinds of datasets, each with latents of its own: samples are nearer to those of the kind asked for."""
    torch.manual_seed(0)
    encoder.eval().requires_grad_(False)
    places = [torch.full((6,), -3.0), torch.full((6,), 3.0)]
    features = [places[i % 2] + torch.randn(24, 6, generator=seeded(i)) for i in range(8)]
    data = ZooData([], torch.zeros(8, 2, 4), features, [torch.arange(24) % 3] * 8, torch.zeros(8, 0))
    centres = torch.randn(2, 2, 4, generator=seeded(3))
    latents = torch.stack([100 + 5 * (centres[i % 2] + 0.1 * torch.randn(2, 4)) for i in range(8)])
    diffusion = LatentDiffusion(2, 4, 8, DiffusionConfig(width=32, depth=1, heads=2))
    stage = DiffusionStage(steps=300, batch_size=8, learning_rate=5e-3, ema_decay=0.95)
    train_diffusion(diffusion, encoder, data, latents, stage, SUPPORTS, tmp_path, 0)
    torch.testing.assert_close(diffusion.latent_mean, latents.mean(0))
    for kind in (0, 1):
        condition = encoder(features[kind], data.labels[kind], 3)[1]
        samples = diffusion.sample(condition, 4, seeded(0), steps=10)
        distance = [(samples - (100 + 5 * c)).flatten(1).norm(dim=1).mean() for c in centres]
        assert distance[kind] < 0.25 * distance[1 - kind]


def test_diffusion_without_steps_imitates_nothing_and_gives_zero(encoder, tmp_path):
    data = zoo_data()
    latents = 3 + torch.randn(8, 2, 4, generator=seeded(0))
    diffusion = LatentDiffusion(2, 4, 8, DiffusionConfig(width=16, depth=1, heads=2))
    train_diffusion(diffusion, encoder, data, latents, DiffusionStage(steps=0), SUPPORTS, tmp_path, 0)
    torch.testing.assert_close(diffusion.latent_std, latents.std(0))
    condition = encoder(data.features[0], data.labels[0], 3)[1]
    assert not diffusion.sample(condition, 2, seeded(0), steps=3).any()
