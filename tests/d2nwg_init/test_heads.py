"""What users put in a head's place, and around a model: solved where a solution holds what it promises, or refused."""

import pytest
import torch
from torch import nn
from torch.nn.utils import prune
from torch.utils.checkpoint import checkpoint

from d2nwg_init import initialize
from tests.d2nwg_init.conftest import new_model
from tests.pretrained_generators.small import copied, same
from zoo_builder.errors import ModelError


class Tokens(nn.Module):
    """Whose head sees each of them, before they are pooled."""

    def __init__(self):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 8, 8, stride=8), nn.Linear(8, 3)

    def forward(self, x):
        return self.fc(self.conv(x).flatten(2).mT).mean(1)


def test_a_head_that_sees_more_than_one_vector_an_image_is_refused(loader):
    with pytest.raises(ModelError, match="are not those of its last layer"):
        initialize(Tokens(), loader)


class Flipped(nn.Module):
    """Whose logits are the mean of two calls of its head."""

    def __init__(self):
        super().__init__()
        self.model = new_model()

    def forward(self, x):
        return (self.model(x) + self.model(x.flip(3))) / 2


class HeldWeights(nn.Module):
    """Which has a head and never calls it."""

    def __init__(self):
        super().__init__()
        self.body, self.fc = new_model(classes=0), nn.Linear(96, 3)

    def forward(self, x):
        return nn.functional.linear(self.body(x), self.fc.weight, self.fc.bias)


@pytest.mark.parametrize("made", [Flipped, HeldWeights])
def test_a_head_that_is_not_called_once_is_kept_or_refused(made, loader):
    with pytest.raises(ModelError, match="are not those of its last layer"):
        initialize(made(), loader, generator=None)
    assert initialize(made(), loader, generator=None, head="keep").head == "keep"


class ConvHead(nn.Module):
    """A 1x1 convolution of which `pool` makes the logits."""

    def __init__(self, pool):
        super().__init__()
        self.conv, self.norm, self.head, self.pool = nn.Conv2d(3, 8, 4, 4), nn.BatchNorm2d(8), nn.Conv2d(8, 3, 1), pool

    def forward(self, x):
        return self.pool(self.head(self.norm(self.conv(x)).relu()))


def test_logits_of_a_convolution_are_raised_only_where_they_are_rectified(loader):
    lowest = {}
    for name, pool in {"plain": lambda v: v.mean((2, 3)), "rectified": lambda v: v.relu().mean((2, 3))}.items():
        model = ConvHead(pool)
        initialize(model, loader, generator=None)
        images, labels = loader.dataset.tensors
        logits = model.eval()(images)
        assert (logits.argmax(1) == labels).float().mean() > 0.9
        lowest[name] = logits.min()
    assert lowest["plain"] < 0 <= lowest["rectified"]
    for pool in (lambda v: v.amax((2, 3)), lambda v: v.mean((2, 3)).sigmoid()):
        with pytest.raises(ModelError, match="are not those of its last layer"):
            initialize(ConvHead(pool), loader, generator=None)


class Caching(nn.Module):
    """Which keeps what it computed, as models keep the embeddings of positions."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.fc, self.scale = nn.Conv2d(3, 8, 4, 4), nn.BatchNorm2d(8), nn.Linear(8, 3), None

    def forward(self, x):
        x = self.conv(x)
        self.scale = torch.ones_like(x[:1]) if self.scale is None else self.scale
        return self.fc(self.norm(x * self.scale).relu().mean((2, 3)))


def test_a_model_that_keeps_what_it_computed_can_be_refined(loader):
    model = Caching()
    nn.init.normal_(model.norm.running_mean)  # else it would count as one that was never trained
    assert initialize(model, loader, generator=None).refinement


class LinearProbe(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.fc = new_model(classes=0), nn.Linear(96, 3)

    def forward(self, x):
        with torch.no_grad():
            features = self.body(x)
        return self.fc(features)


class SmallNeckFirst(nn.Module):
    """Of what has a gradient, nothing is trained: in the order of the model it is among the first layers."""

    def __init__(self):
        super().__init__()
        self.neck, self.body, self.fc = nn.BatchNorm1d(96), new_model(classes=0), nn.Linear(96, 3)

    def forward(self, x):
        with torch.no_grad():
            features = self.body(x)
        return self.fc(self.neck(features))


class CheckpointAfterSmallStem(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.body, self.fc = nn.Conv2d(3, 3, 1), new_model(classes=0), nn.Linear(96, 3)

    def forward(self, x):
        return self.fc(checkpoint(self.body, self.stem(x), use_reentrant=True))


@pytest.mark.parametrize("make", [LinearProbe, SmallNeckFirst, CheckpointAfterSmallStem])
def test_a_body_that_is_run_without_gradients_gets_a_head_and_is_not_refined(make, loader):
    model = make()
    report = initialize(model, loader, generator=None, refining_steps=2)
    assert report.refinement is None
    assert "not refined: no gradient comes from the features to the body" in report.notes
    images, labels = loader.dataset.tensors
    assert (model.eval()(images).argmax(1) == labels).float().mean() > 0.9


class CosineHead(nn.Linear):
    def forward(self, x):
        return nn.functional.linear(nn.functional.normalize(x), nn.functional.normalize(self.weight), self.bias)


HEADS = {
    "not linear": (lambda: CosineHead(96, 3), "are not those of its last layer"),
    "no bias": (lambda: nn.Linear(96, 3, bias=False), "no bias"),
    "pruned": (lambda: prune.l1_unstructured(nn.Linear(96, 3), "weight", 0.5), "parametrized"),
    "computed weights": (lambda: nn.utils.parametrizations.weight_norm(nn.Linear(96, 3)), "parametrized"),
}


@pytest.mark.parametrize("case", HEADS)
def test_a_head_that_a_solution_does_not_fit_is_refused(case, loader):
    make, words = HEADS[case]
    model = new_model()
    model.fc = make()
    before = copied(model.state_dict())
    with pytest.raises(ModelError, match=words):
        initialize(model, loader, generator=None)
    assert same(model.state_dict(), before)


def test_the_last_linear_layer_of_what_a_user_put_in_the_heads_place_is_solved(loader):
    model = new_model()
    model.fc = nn.Sequential(nn.Dropout(0.5), nn.Linear(96, 3))
    before = copied(model.state_dict())
    initialize(model, loader, generator=None, head="solve")
    assert not torch.equal(model.fc[1].weight, before["fc.1.weight"])
    images, labels = loader.dataset.tensors
    assert (model.eval()(images).argmax(1) == labels).float().mean() > 0.9


def test_a_head_that_is_kept_may_do_what_it_likes(loader):
    model = new_model()
    model.fc = CosineHead(96, 3)
    before = copied(model.fc.state_dict())
    initialize(model, loader, generator=None, head="keep")
    assert same(model.fc.state_dict(), before)
