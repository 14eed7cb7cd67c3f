"""Models of timm's --split-bn, in training of which each part of a batch has a BatchNorm of its own."""

import pytest
import timm
import torch
from timm.layers import convert_splitbn_model
from timm.layers.split_batchnorm import SplitBatchNorm2d

from d2nwg_init import initialize
from d2nwg_init.accepted_model import working_copy
from tests.d2nwg_init.conftest import new_model
from tests.pretrained_generators.small import copied, labelled_images, same
from zoo_builder.errors import ModelError


def split(name="test_resnet", splits=2):
    """One that was trained: its parts have each other weights and statistics."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = convert_splitbn_model(timm.create_model(name, num_classes=3), splits)
        with torch.no_grad():
            for layer in (m for m in model.modules() if isinstance(m, SplitBatchNorm2d)):
                for part in (layer, *layer.aux_bn):
                    part.running_mean.normal_(std=0.1)
                    part.weight.mul_(1 + 0.1 * torch.randn(part.weight.shape))
    return model


@pytest.mark.parametrize(("splits", "images"), [(2, 48), (2, 47), (3, 48)])
def test_what_the_first_part_gets_the_others_get(splits, images, tmp_path):
    model = split(splits=splits)
    before = copied(model.state_dict())
    x, y = labelled_images(images, 3)
    report = initialize(model, [(x, y)], generator=None, head="solve", refining_steps=4)
    assert report.refinement is not None
    changed = 0
    for name, layer in model.named_modules():
        if isinstance(layer, SplitBatchNorm2d):
            assert len(layer.aux_bn) == splits - 1
            own = {k: v for k, v in layer.state_dict().items() if not k.startswith("aux_bn.")}
            assert all(same(aux.state_dict(), own) for aux in layer.aux_bn)
            changed += not torch.equal(layer.weight, before[f"{name}.weight"])
    assert changed
    assert (model.eval()(x).argmax(1) == y).float().mean() > 0.9
    logits = model.train()(x[: 6 * splits])
    assert logits.isfinite().all()
    again = split(splits=splits)
    again.load_state_dict(model.state_dict())
    with pytest.raises(ModelError, match="timm cannot describe"):
        report.save(tmp_path)
    report.revert()
    assert same(model.state_dict(), before)


@pytest.mark.parametrize("name", ["test_resnet", "test_byobnet"])
def test_the_copy_computes_what_the_model_does_and_takes_its_state(name):
    model, images = split(name), labelled_images(8, 3)[0]
    work = working_copy(model)
    assert not any(isinstance(m, SplitBatchNorm2d) for m in work.modules())
    torch.testing.assert_close(work.eval()(images), model.eval()(images))  # it is channels last, and rounds otherwise
    assert work.state_dict().keys() == model.state_dict().keys()
    work.load_state_dict(model.state_dict())
    torch.testing.assert_close(work(images), model(images))


def test_a_model_that_stays_as_it_was_passed_keeps_its_parts(loader):
    model = split()
    initialize(model, loader, generator=None, head="solve", refining_steps=0)
    with torch.no_grad():
        for layer in (m for m in model.modules() if isinstance(m, SplitBatchNorm2d)):
            layer.aux_bn[0].weight.mul_(2)
    before = copied(model.state_dict())
    assert initialize(model, loader, generator=None, head="keep").chosen == "as_passed"
    assert same(model.state_dict(), before)


def test_a_bundle_fits_a_model_whose_batchnorm_was_split(loader, bundle):
    plain, model = new_model(), convert_splitbn_model(new_model())
    for m in (plain, model):
        assert initialize(m, loader, generator=bundle, num_candidates=1, select=False).chosen == "generated_0"
    state = model.state_dict()
    assert all(torch.equal(state[k], v) for k, v in plain.state_dict().items())
