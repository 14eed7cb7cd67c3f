"""Functions that a model holds, which its copies hold too: those that run parts of the model itself are refused."""

import functools
import types

import pytest
import torch

from d2nwg_init import initialize
from tests.d2nwg_init.conftest import new_model
from tests.pretrained_generators.small import copied, same
from zoo_builder.errors import ModelError


def compiled(model):
    model.layer1.forward = torch.compile(model.layer1.forward, backend="eager")


def replaced(model):
    forward = model.fc.forward
    model.fc.forward = lambda x: forward(x)


def in_a_partial(model):
    forward = model.forward
    model.forward = functools.partial(lambda first, x: forward(x), None)


def in_a_hook(model):
    model.conv1.register_forward_hook(lambda module, args, out: model.bn1(out))


@pytest.mark.parametrize("head", ["auto", "keep"])
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (compiled, r"forward of layer1 was replaced by runs the model itself.*part\.compile\(\)"),
        (replaced, r"forward of fc was replaced by.*model's fc\.weight"),
        (in_a_partial, "forward of ResNet was replaced by"),
        (in_a_hook, r"that ResNet or a hook on it holds.*model's bn1\."),
    ],
)
def test_a_function_that_runs_the_model_itself_is_refused(change, words, head, loader):
    model, ran = new_model(), []

    def note(module, args, out):
        if module is model.bn1:  # and not that of a copy
            ran.append(module)

    change(model)
    model.bn1.register_forward_hook(note)
    before = copied(model.state_dict())
    with pytest.raises(ModelError, match=words):
        initialize(model, loader, generator=None, head=head)
    assert not ran
    assert same(model.state_dict(), before)


def bound(model):
    model.layer1.forward = types.MethodType(type(model.layer1).forward, model.layer1)


def without_weights(model):
    model.act1.forward = torch.compile(lambda x: x.relu(), backend="eager")


def compiled_in_place(model):
    model.layer1.compile(backend="eager")


@pytest.mark.parametrize("change", [bound, without_weights, compiled_in_place])
def test_a_forward_that_is_replaced_otherwise_is_taken(change, loader, bundle):
    plain, model = new_model(), new_model()
    change(model)
    for each in (plain, model):
        loader.generator.manual_seed(7)
        initialize(each, loader, generator=bundle, num_candidates=1)
    assert same(model.state_dict(), plain.state_dict())


def test_a_compiled_forward_that_takes_any_model_runs_as_it_is_written(loader, bundle):
    model, graphs = new_model(), []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    model.forward = types.MethodType(torch.compile(type(model).forward, backend=backend), model)
    model.eval()(loader.dataset.tensors[0])
    before = len(graphs)
    assert initialize(model, loader, generator=bundle, num_candidates=1).chosen != "as_passed"
    assert len(graphs) == before > 0
