"""Models whose tensors are of several types: each keeps its own, and what it held."""

import copy

import pytest
import torch
from torch import nn

from d2nwg_init import initialize
from d2nwg_init.accepted_model import working_copy
from pretrained_generators.bundle import load_bundle
from tests.d2nwg_init.conftest import new_model
from tests.pretrained_generators.small import copied, same
from zoo_builder.errors import BundleError


class WithFilter(nn.Module):
    """A body that multiplies spectra by a complex parameter, as GFNet does, and looks into a table."""

    def __init__(self, persistent=True):
        super().__init__()
        self.table = nn.Parameter(torch.arange(4), requires_grad=False)
        self.filter = nn.Parameter(torch.randn(3, 32, 17, dtype=torch.complex64, generator=seeded()))
        self.register_buffer("phase", torch.randn(3, 1, 1, dtype=torch.complex64, generator=seeded()), persistent)
        self.exact = nn.Parameter(torch.full((1,), 1 + 1e-12, dtype=torch.float64))
        self.body = new_model()

    def forward(self, images):
        seen = torch.fft.irfft2(torch.fft.rfft2(images) * self.filter * self.phase, s=images.shape[-2:])
        return self.body(seen * self.exact.float() + self.table[0])


def seeded():
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize("scope", ["auto", "head"])
@pytest.mark.parametrize("persistent", [True, False])
def test_complex_integer_and_double_tensors_keep_their_values(scope, persistent, loader):
    model = WithFilter(persistent)
    phase = model.phase.clone()
    before = copied(model.state_dict())
    report = initialize(model, loader, generator=None, scope=scope, refining_steps=2, progress=False)
    assert report.chosen != "as_passed"
    assert torch.equal(model.phase, phase)
    assert torch.equal(model.table, before["table"])
    assert {k: v.dtype for k, v in model.state_dict().items()} == {k: v.dtype for k, v in before.items()}
    if scope == "head":
        assert torch.equal(model.filter, before["filter"])
        assert torch.equal(model.exact, before["exact"])
    images, labels = loader.dataset.tensors
    with torch.no_grad():
        assert (model.eval()(images).argmax(1) == labels).float().mean() > 0.9  # the head is of what the model computes


def test_only_half_precision_is_widened_in_the_copy():
    model = WithFilter()
    model.body.half()
    work = working_copy(model)
    types = {name: tensor.dtype for name, tensor in (*work.named_parameters(), *work.named_buffers())}
    own = ("table", "filter", "phase", "exact")
    assert [types.pop(name) for name in own] == [torch.int64, torch.complex64, torch.complex64, torch.float64]
    assert set(types.values()) == {torch.float32, torch.int64}  # the latter counts batches
    assert next(model.body.parameters()).dtype == torch.float16


def test_a_generator_in_training_mode_is_left_as_it_is_and_gives_the_same(bundle_path, loader):
    generator = load_bundle(bundle_path).generator
    expected = initialize(new_model(), loader, generator=generator, progress=False)
    before = copied(generator.state_dict())
    generator.train()
    report = initialize(new_model(), loader, generator=generator, progress=False)
    assert [(c.name, c.loss) for c in report.candidates] == [(c.name, c.loss) for c in expected.candidates]
    assert same(generator.state_dict(), before)
    assert generator.base.training


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_a_generator_of_another_precision_is_refused(dtype, bundle_path, loader):
    model = new_model()
    before = copied(model.state_dict())
    generator = copy.deepcopy(load_bundle(bundle_path).generator).to(dtype)
    with pytest.raises(BundleError, match=rf"is in {dtype} on cpu, expected torch.float32 on cpu"):
        initialize(model, loader, generator=generator)
    assert same(model.state_dict(), before)
