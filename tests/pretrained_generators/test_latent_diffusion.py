import pytest
import torch

from pretrained_generators.latent_diffusion import DiffusionConfig, LatentDiffusion
from tests.pretrained_generators.small import seeded, shaken

CONDITION = torch.linspace(-1, 1, 8)


@pytest.fixture
def diffusion():
    torch.manual_seed(0)
    model = LatentDiffusion(5, 3, 8, DiffusionConfig(width=16, depth=2, heads=2))
    return shaken(model, 0.2).requires_grad_(False)


def sample(diffusion, condition=CONDITION, seed=0, num_samples=2, **how):
    return diffusion.sample(condition, num_samples, seeded(seed), steps=6, **how)


def test_equal_seeds_give_equal_bits_and_others_do_not(diffusion):
    assert torch.equal(sample(diffusion), sample(diffusion))
    assert (sample(diffusion) - sample(diffusion, seed=1)).abs().max() > 1e-2


def test_samples_of_one_call_differ(diffusion):
    first, second = sample(diffusion)
    assert (first - second).abs().max() > 1e-2


@pytest.mark.parametrize("num_samples", [1, 4])
def test_there_are_as_many_samples_as_were_asked_for(diffusion, num_samples):
    assert sample(diffusion, num_samples=num_samples).shape == (num_samples, 5, 3)


def test_condition_changes_the_sample(diffusion):
    assert (sample(diffusion) - sample(diffusion, -CONDITION)).abs().max() > 1e-2


def test_an_untrained_model_ignores_the_condition_at_first():
    """adaLN-Zero: blocks and output start at zero."""
    diffusion = LatentDiffusion(5, 3, 8, DiffusionConfig(width=16, depth=2, heads=2))
    assert torch.equal(sample(diffusion), sample(diffusion, -CONDITION))


def test_no_condition_is_the_learnt_null_condition(diffusion):
    given = sample(diffusion, diffusion.null_condition.clone())
    assert torch.equal(sample(diffusion, None), given)
    diffusion.null_condition.add_(1)
    assert not torch.equal(sample(diffusion, None), given)


def test_guidance_of_one_is_conditional_only(diffusion):
    plain, strong = sample(diffusion), sample(diffusion, guidance=2.0)
    assert torch.equal(sample(diffusion, guidance=1.0), plain)
    diffusion.null_condition.add_(1)
    assert torch.equal(sample(diffusion, guidance=1.0), plain)
    assert not torch.equal(sample(diffusion, guidance=2.0), strong)


def test_guidance_of_zero_is_unconditional(diffusion):
    torch.testing.assert_close(sample(diffusion, guidance=0.0), sample(diffusion, None))


def test_guidance_moves_away_from_the_unconditional_sample(diffusion):
    free, plain, strong = sample(diffusion, None), sample(diffusion), sample(diffusion, guidance=2.0)
    assert (strong - free).norm() > 1.2 * (plain - free).norm()


def test_samples_are_in_the_scale_of_the_zoo(diffusion):
    unit = sample(diffusion)
    diffusion.latent_mean.normal_(generator=seeded(1))
    diffusion.latent_std.uniform_(0.1, 10, generator=seeded(2))
    torch.testing.assert_close(sample(diffusion), unit * diffusion.latent_std + diffusion.latent_mean)


def test_sampling_leaves_the_global_random_state(diffusion):
    before = torch.get_rng_state()
    sample(diffusion)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_model_that_knows_the_answer_samples_it(diffusion, monkeypatch):
    """Whatever the noise, the solver ends at the clean latent that the network predicts."""
    answer = torch.randn(5, 3, generator=seeded(3))
    monkeypatch.setattr(diffusion, "forward", lambda noisy, t, condition: answer.expand_as(noisy))
    torch.testing.assert_close(sample(diffusion), answer.expand(2, 5, 3), rtol=1e-2, atol=1e-2)


def test_timesteps_have_influence(diffusion):
    noisy = torch.randn(2, 5, 3, generator=seeded(4))
    out = diffusion(noisy[:1].expand(2, -1, -1), torch.tensor([10, 900]), CONDITION.expand(2, -1))
    assert (out[0] - out[1]).abs().max() > 1e-2
