"""Whatever ends a call, wherever: the model's bits, its modes and every random state are as they were."""

import random
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from d2nwg_init import hook, initialize
from tests.d2nwg_init.conftest import new_model
from tests.pretrained_generators.small import copied, labelled_images, same, seeded
from zoo_builder.errors import D2NWGError

FEW = {"num_candidates": 1, "num_support": 12, "refining_steps": 2}
OURS = ("d2nwg_init.", "zoo_builder.", "pretrained_generators.")


class Injected:
    """Raises an error at the n-th call of one of the project's functions, a resumed generator counting as a call. Not
    in a generator expression: one left early is entered once more as it is collected, and lets no error out."""

    def __init__(self, at=None, error=KeyboardInterrupt):
        self.at, self.error, self.calls = at, error, []

    def __enter__(self):
        sys.settrace(self)  # setprofile would be told of every call into C too
        return self

    def __exit__(self, *_):
        sys.settrace(None)

    def __call__(self, frame, event, _):
        name = frame.f_code.co_name
        if event == "call" and name != "<genexpr>" and frame.f_globals.get("__name__", "").startswith(OURS):
            self.calls.append(name)
            if len(self.calls) - 1 == self.at:
                sys.settrace(None)
                raise self.error("injected")


def everything(model, loader):
    return (
        copied(model.state_dict()),
        [m.training for m in model.modules()],
        [p.requires_grad for p in model.parameters()],
        repr((random.getstate(), np.random.get_state())),
        torch.get_rng_state().tolist(),
        loader.generator.get_state().tolist(),
    )


def assert_unchanged(before, model, loader):
    after = everything(model, loader)
    assert same(after[0], before[0])
    assert after[1:] == before[1:]


@pytest.fixture
def mixed_modes(model):
    model.layer1.eval()
    return model


@pytest.fixture
def calls(bundle, loader):
    initialize(new_model(), loader, generator=bundle, **FEW)  # fills what is cached
    with Injected() as seen:
        initialize(new_model(), loader, generator=bundle, **FEW)
    return seen.calls


def test_a_fault_at_any_call_leaves_all_as_it_was(calls, mixed_modes, bundle, loader):
    """At the first call of every function there is, and at calls spread over the whole of it."""
    first = {name: i for i, name in reversed(list(enumerate(calls)))}
    assert {"read_support_set", "find_bundle", "propose", "compete", "select", "refine", "_score"} <= first.keys()
    points = sorted({*first.values(), *range(5, len(calls), max(1, len(calls) // 10)), len(calls) - 1})
    before = everything(mixed_modes, loader)
    for i, at in enumerate(points):
        error = (KeyboardInterrupt, MemoryError, torch.OutOfMemoryError, SystemError)[i % 4]
        with pytest.raises(error, match="injected"), Injected(at, error):
            initialize(mixed_modes, loader, generator=bundle, **FEW)
        assert_unchanged(before, mixed_modes, loader)


def test_a_fault_amid_the_writing_leaves_all_as_it_was(mixed_modes, loader, bundle, monkeypatch):
    """The body is written by then, and the head is not."""
    load, before = nn.Linear._load_from_state_dict, everything(mixed_modes, loader)
    written = []

    def interrupted(layer, *args):
        if layer is mixed_modes.fc and not written:
            written.append(not same(copied(mixed_modes.state_dict()), before[0]))
            raise KeyboardInterrupt
        load(layer, *args)

    monkeypatch.setattr(nn.Linear, "_load_from_state_dict", interrupted)
    monkeypatch.setattr(hook, "select", lambda candidates: next(c for c in candidates if c.kind == "base"))
    with pytest.raises(KeyboardInterrupt):
        initialize(mixed_modes, loader, generator=bundle, num_candidates=1)
    assert written == [True]
    assert_unchanged(before, mixed_modes, loader)


def test_out_of_memory_is_not_taken_for_a_wrong_image_size(model, loader, monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(type(model), "forward", full)
    with pytest.raises(torch.OutOfMemoryError):
        initialize(model, loader)


def test_the_users_own_model_is_never_run(model, loader, bundle):
    """A model may keep what it computed: levit's attention biases, a counter."""
    model.register_forward_pre_hook(lambda module, _: ran.append(module))
    ran = []
    initialize(model, loader, generator=bundle, num_candidates=1)
    assert ran
    assert not any(module is model for module in ran)


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_error_of_an_infinite_loader_passes_untouched(error, model):
    def batches():
        yield labelled_images(8, 3)
        raise error("mine")

    with pytest.raises(error, match="mine"):
        initialize(model, batches())


DTYPES = (torch.float32, torch.float16, torch.float64, torch.bfloat16, torch.uint8, torch.int64, torch.bool)


@settings(max_examples=60, deadline=None)
@given(
    classes=st.integers(0, 4),
    shape=st.lists(st.sampled_from([0, 1, 2, 3, 8, 16]), min_size=1, max_size=5),
    plain=st.booleans(),
    dtype=st.sampled_from(DTYPES),
    target_dtype=st.sampled_from(DTYPES),
    target_shape=st.sampled_from(["labels", "one more", "scalar", "shares", "square"]),
    scale=st.sampled_from([0.0, 1.0, 1e4, 1e30, float("nan")]),
    low=st.integers(-1, 2),
    seed=st.integers(0, 9),
)
def test_whatever_a_batch_holds_it_is_used_or_refused(
    classes, shape, plain, dtype, target_dtype, target_shape, scale, low, seed
):
    model = new_model(classes=classes)
    before = copied(model.state_dict())
    shape = [12, 3, 16, 16] if plain else shape
    images = (scale * torch.randn(shape, generator=seeded(seed))).to(dtype)
    sizes = {"labels": [shape[0]], "one more": [shape[0] + 1], "scalar": [], "shares": [shape[0], classes]}
    targets = torch.randint(low, low + 3, sizes.get(target_shape, shape[:2]), generator=seeded(seed))
    try:
        initialize(model, [(images, targets.to(target_dtype))], generator=None)
    except D2NWGError:
        assert same(model.state_dict(), before)
    assert all(torch.isfinite(v).all() for v in model.state_dict().values())
