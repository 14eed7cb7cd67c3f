"""Features of unit size: the same function, a start that survives training, and nothing where it cannot be."""

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from d2nwg_init import initialize
from d2nwg_init.candidates import solve_in_place
from d2nwg_init.unit_features import bring_features_to_unit_size
from tests.pretrained_generators.small import copied, labelled_images, same
from zoo_builder.backbones import extract_features, predict


class Plain(nn.Module):
    """Layers that are rectified and pooled, as in VGG."""

    def __init__(self):
        super().__init__()
        self.stem, self.conv = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 12, 3, bias=False)
        self.hidden, self.fc = nn.Linear(12 * 4, 16), nn.Linear(16, 3)

    def forward(self, x):
        x = F.max_pool2d(self.stem(x).relu(), 2)
        x = F.adaptive_avg_pool2d(self.conv(x).relu(), 2).flatten(1)
        return self.fc(self.hidden(x).relu())


class Residual(Plain):
    def forward(self, x):
        h = F.max_pool2d(self.stem(x).relu(), 2)
        h = F.adaptive_avg_pool2d(h.repeat(1, 2, 1, 1)[:, :12, 2:] + self.conv(h).relu().mean((2, 3), True), 2)
        return self.fc(self.hidden(h.flatten(1)).relu())


class Bent(Plain):
    def forward(self, x):
        h = self.conv(self.stem(x).relu()).relu().mean((2, 3))
        return self.fc(self.hidden((h[:, :, None] + h[:, :, None].sin()).expand(-1, -1, 4).flatten(1)))


class Twice(Plain):
    def forward(self, x):
        h = self.conv(self.stem(x).relu()).relu().mean((2, 3))
        h = self.hidden(h[:, :, None].expand(-1, -1, 4).flatten(1)).relu()
        return self.fc(self.hidden(h.repeat(1, 3)).relu())


@pytest.fixture
def images():
    return labelled_images(48, 3)[0]


def made(make):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return make()


def inflated(model, factor=3.0):
    with torch.no_grad():
        for layer in model.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear) and len(layer.weight) > 3:  # not the head
                layer.weight *= factor
    return model


PLAIN = [Plain, lambda: torchvision.models.squeezenet1_1(weights=None, num_classes=3)]


@pytest.mark.parametrize("make", PLAIN)
@pytest.mark.parametrize("factor", [0.3, 3.0])
def test_features_get_unit_size_and_the_model_computes_the_same(make, factor, images):
    model = inflated(made(make), factor)
    before = predict(model, images)
    assert bring_features_to_unit_size(model, images)
    torch.testing.assert_close(predict(model, images), before, rtol=1e-3, atol=1e-4 * before.abs().max().item())
    assert 0.5 < extract_features(model, images).abs().mean() < 2


@pytest.mark.parametrize(("make", "factor"), zip(PLAIN, (100.0, 10.0), strict=True))
def test_a_step_of_training_moves_a_solved_heads_logits_less(make, factor, images):
    labels = labelled_images(48, 3)[1]

    def moved_by_a_step(scaled):
        model = inflated(made(make), factor).eval()
        solve_in_place(model, images, labels)
        if scaled:
            assert bring_features_to_unit_size(model, images)
        before = predict(model, images)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()
        return (predict(model, images) - before).abs().mean()

    assert moved_by_a_step(True) < moved_by_a_step(False) / 3


@pytest.mark.parametrize(
    "make",
    [
        Residual,
        Bent,
        Twice,
        lambda: timm.create_model("test_resnet", num_classes=3),
        lambda: timm.create_model("test_convnext", num_classes=3),
        lambda: timm.create_model("test_vit", img_size=32, num_classes=3),
    ],
)
def test_where_it_would_change_what_is_computed_every_bit_stays(make, images):
    model = made(make)
    before = copied(model.state_dict())
    assert not bring_features_to_unit_size(model, images)
    assert same(copied(model.state_dict()), before)


def test_parameters_out_of_the_scope_stay(images):
    model = made(Plain)
    before = copied(model.state_dict())
    assert not bring_features_to_unit_size(model, images, {"stem.weight", "stem.bias", "conv.weight"})
    assert same(copied(model.state_dict()), before)


def test_a_dead_body_stays(images):
    model = made(Plain)
    with torch.no_grad():
        model.stem.weight.zero_()
        model.stem.bias.fill_(-1.0)
    before = copied(model.state_dict())
    assert not bring_features_to_unit_size(model, images)
    assert same(copied(model.state_dict()), before)


@pytest.mark.parametrize(("head", "scaled"), [("solve", True), ("keep", False)])
def test_initialize_leaves_features_of_unit_size_under_a_head_that_it_solved(head, scaled, images):
    model = inflated(made(Plain), 10.0)
    loader = DataLoader(TensorDataset(*labelled_images(48, 3)), batch_size=16)
    initialize(model, loader, generator=None, head=head)
    assert (extract_features(model, images).abs().mean() < 2) == scaled
