import pytest
import timm
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st

from d2nwg_init.candidates import Candidate
from d2nwg_init.select import OWN, compete, select
from d2nwg_init.untrained import is_untrained
from tests.pretrained_generators.small import seeded
from zoo_builder.errors import ModelError

IMAGES = 100
HARD = torch.rand(IMAGES, generator=seeded(0)) * 4  # some images are hard for every candidate


def candidate(kind, losses, name=None):
    return Candidate(kind, name or kind, {}, losses, 50.0)


def differing(by, spread, seed=1):
    """Losses that differ from HARD by exactly `by` in the mean, with exactly this standard error."""
    noise = torch.randn(IMAGES, generator=seeded(seed))
    noise = (noise - noise.mean()) / noise.std()
    return HARD + by + spread * IMAGES**0.5 * noise


@pytest.mark.parametrize("better", ["base", "generated"])
@pytest.mark.parametrize("own", OWN)
def test_own_weights_win_within_one_standard_error(own, better):
    """The difference is paired: that all losses vary much among the images plays no part."""
    for by, winner in ((0.9, own), (1.1, better)):
        candidates = [candidate(own, differing(by * 0.05, 0.05)), candidate(better, HARD)]
        assert select(candidates).name == winner


def test_generated_wins_where_it_is_clearly_better():
    candidates = [candidate(k, differing(0.5, 0.01, seed=i)) for i, k in enumerate((*OWN, "base"))]
    assert select([*candidates, candidate("generated", HARD, "generated_3")]).name == "generated_3"


def test_own_body_wins_where_the_model_as_passed_is_too_far():
    candidates = [
        candidate("as_passed", differing(0.5, 0.01)),
        candidate("own_body", differing(0.04, 0.05)),
        candidate("base", differing(0.01, 0.05)),
        candidate("generated", HARD),
    ]
    assert select(candidates).name == "own_body"


def test_best_sample_wins_however_close():
    near = candidate("generated", differing(1e-4, 0.05), "generated_0")
    assert select([near, candidate("generated", HARD, "generated_1")]).name == "generated_1"


def test_base_and_samples_compete_as_equals():
    for name, other in (("base", "generated"), ("generated", "base")):
        assert select([candidate(name, HARD), candidate(other, differing(1e-4, 0.05))]).name == name


def test_better_and_simpler_wins_whatever_the_error():
    assert select([candidate("as_passed", HARD), candidate("generated", differing(0.01, 1.0))]).name == "as_passed"


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_candidate_without_finite_losses_is_discarded(bad):
    broken = HARD - 3
    broken[5] = bad
    candidates = [candidate("as_passed", broken), candidate("base", HARD), candidate("generated", broken)]
    assert select(candidates).name == "base"


def test_nothing_usable_is_an_error():
    broken = torch.full((IMAGES,), float("nan"))
    with pytest.raises(ModelError, match="finite"):
        select([candidate("as_passed", broken), candidate("own_body", broken)])


@settings(max_examples=50, deadline=None)
@given(
    kinds=st.lists(st.sampled_from([*OWN, "base", "generated"]), min_size=1, max_size=8),
    offsets=st.lists(st.floats(-1, 1), min_size=8, max_size=8),
)
def test_chosen_is_never_worse_than_the_best_by_more_than_its_error(kinds, offsets):
    candidates = [candidate(k, differing(offsets[i], 0.1, seed=i), str(i)) for i, k in enumerate(kinds)]
    chosen, best = select(candidates), min(candidates, key=lambda c: c.losses.mean())
    excess = chosen.losses - best.losses
    assert excess.mean() <= excess.std() / IMAGES**0.5 + 1e-6
    assert chosen is best or chosen.kind in OWN


@pytest.mark.parametrize("judged", [False, True])
@pytest.mark.parametrize(("loss", "knows"), [(0.5, True), (2.3, False), (4.0, False)])
def test_a_model_as_it_was_passed_is_in_question_only_if_it_knows_the_images(loss, knows, judged):
    """Ten images of ten classes; chance is log 10 = 2.30. Not judged, the solved heads have seen what they predict."""
    passed = loss + 0.1 * torch.randn(10, generator=seeded(0))
    candidates = [
        Candidate("as_passed", "as_passed", {}, passed, 50.0, judged=judged),
        *(Candidate(kind, kind, {}, torch.full((10,), 2.2), 10.0, judged=judged) for kind in ("own_body", "generated")),
    ]
    left = compete(candidates, 10, own_is_untrained=False)
    assert ("as_passed" in {c.kind for c in left}) == knows
    assert select(left).name == ("as_passed" if knows else "own_body")


def test_an_untrained_body_is_in_question_only_where_there_is_no_other():
    own = [candidate("own_body", HARD - 1, "own_body_as_is"), candidate("own_body", HARD)]
    base, broken = candidate("base", HARD), candidate("base", torch.full((IMAGES,), float("nan")))
    assert compete([*own, base], 10, own_is_untrained=False) == [*own, base]
    assert compete([*own, base], 10, own_is_untrained=True) == [base]
    assert compete(own, 10, own_is_untrained=True) == own
    assert own[0] in compete([*own, broken], 10, own_is_untrained=True)
    assert compete([broken], 10, own_is_untrained=True) == [broken]


@pytest.mark.parametrize("name", ["resnet18", "mobilenetv3_small_050", "vit_tiny_patch16_224", "convnext_atto"])
def test_models_of_timm_are_untrained_until_they_are_trained(name):
    model = timm.create_model(name, num_classes=3)
    assert is_untrained(model)
    vectors = [p for n, p in model.named_parameters() if "norm" in n]
    vector = next((b for n, b in model.named_buffers() if n.endswith("running_mean")), None)
    vector = vectors[0] if vector is None else vector
    with torch.no_grad():
        vector += 0.01 * torch.randn(len(vector))
    assert not is_untrained(model)


@pytest.mark.parametrize("name", ["resnet18", "squeezenet1_1", "swin_t", "vit_b_16"])
def test_models_of_torchvision_begin_untrained(name):
    assert is_untrained(torchvision.models.get_model(name, num_classes=3))


def test_a_model_whose_statistics_moved_is_not_untrained():
    model = torchvision.models.resnet18(num_classes=3).train()
    model(torch.randn(2, 3, 32, 32))
    assert not is_untrained(model)


def test_batchnorm_whose_weights_begin_at_random_is_untrained():
    assert is_untrained(timm.create_model("repvgg_a0", num_classes=3))


def test_a_model_that_begins_with_random_biases_counts_as_trained():
    assert not is_untrained(torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Flatten(), torch.nn.Linear(4, 2)))
