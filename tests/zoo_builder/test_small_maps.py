"""Gradients of depthwise kernels larger than their map."""

import pytest
import timm
import torch
from torch import nn

from zoo_builder import small_maps
from zoo_builder.small_maps import SmallMaps


@pytest.fixture
def taken(monkeypatch):
    """The shapes of the kernels whose gradient was computed here."""
    shapes = []

    def kernel_gradient(x, gradient, shape, stride, padding, computed=small_maps._kernel_gradient):
        shapes.append(tuple(shape))
        return computed(x, gradient, shape, stride, padding)

    monkeypatch.setattr(small_maps, "_kernel_gradient", kernel_gradient)
    return shapes


def gradients(conv, images, inside):
    conv.zero_grad()
    images = images.clone().requires_grad_()
    if inside:
        with SmallMaps():
            out = conv(images)
    else:
        out = conv(images)
    (out * torch.randn(out.shape, generator=torch.Generator().manual_seed(1))).sum().backward()
    return [images.grad, *(p.grad.clone() for p in conv.parameters())], out.detach()


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "padding"),
    [
        ((2, 2), (5, 5), (1, 1), (2, 2)),
        ((4, 4), (5, 5), (2, 2), (2, 2)),
        ((2, 2), (3, 3), (1, 1), (1, 1)),
        ((1, 1), (3, 3), (2, 2), (1, 1)),
        ((3, 5), (7, 5), (2, 1), (3, 1)),
        ((6, 2), (7, 3), (3, 2), (5, 1)),
        ((4, 4), (5, 5), (1, 1), (1, 1)),
    ],
)
@pytest.mark.parametrize("bias", [True, False])
def test_gradients_are_those_of_the_convolution(taken, size, kernel, stride, padding, bias):
    torch.manual_seed(0)
    conv = nn.Conv2d(6, 6, kernel, stride, padding, groups=6, bias=bias).double()
    images = torch.randn(5, 6, *size, dtype=torch.double)
    exact, _ = gradients(conv, images, inside=False)
    single = conv.float()
    got, out = gradients(single, images.float(), inside=True)
    assert taken == [(6, 1, *kernel)]
    for one, other in zip(got, exact, strict=True):
        torch.testing.assert_close(one.double(), other, atol=1e-5, rtol=1e-5)
    assert torch.equal(out, single(images.float()))


@pytest.mark.parametrize(
    ("conv", "size"),
    [
        (nn.Conv2d(6, 6, 3, padding=1, groups=6), (3, 3)),  # a kernel no larger than the map
        (nn.Conv2d(6, 12, 5, padding=2, groups=6), (2, 2)),  # two channels of each
        (nn.Conv2d(6, 6, 5, padding=2), (2, 2)),  # not depthwise
        (nn.Conv2d(6, 6, 3, padding=2, dilation=2, groups=6), (2, 2)),
        (nn.Conv2d(6, 6, 5, padding="same", groups=6), (2, 2)),
        (nn.Conv2d(6, 6, 5, padding=2, groups=6).double(), (2, 2)),
        (nn.Conv2d(6, 6, (5, 3), padding=(2, 1), groups=6), (2, 40)),  # more places than the kernel has
        (nn.Conv2d(6, 6, 13, padding=6, groups=6), (8, 8)),  # a kernel of too many weights
    ],
)
def test_other_convolutions_are_left_as_they_are(taken, conv, size):
    images = torch.randn(3, 6, *size, dtype=conv.weight.dtype)
    for one, other in zip(gradients(conv, images, True)[0], gradients(conv, images, False)[0], strict=True):
        assert torch.equal(one, other)
    assert taken == []


def test_a_frozen_kernel_and_a_pass_without_gradients_are_left_as_they_are(taken):
    conv = nn.Conv2d(6, 6, 5, padding=2, groups=6)
    conv.weight.requires_grad_(False)
    images = torch.randn(3, 6, 2, 2, requires_grad=True)
    with SmallMaps():
        conv(images).sum().backward()
        with torch.no_grad():
            assert not conv(images).requires_grad
    assert images.grad is not None
    assert conv.bias.grad is not None
    assert taken == []


def test_numbers_in_place_of_pairs_are_left_as_they_are(taken):
    weight, images = torch.randn(6, 1, 5, 5, requires_grad=True), torch.randn(3, 6, 2, 2)
    with SmallMaps():
        out = torch.conv2d(images, weight, None, 1, 2, 1, 6)
    out.sum().backward()
    assert weight.grad is not None
    assert taken == []


def test_functional_transforms_and_second_derivatives_are_those_of_the_convolution(taken):
    torch.manual_seed(0)
    conv, images = nn.Conv2d(6, 6, 5, padding=2, groups=6), torch.randn(3, 6, 4, 4)

    def loss(weight, image):
        return torch.func.functional_call(conv, {"weight": weight}, (image[None],)).pow(2).sum()

    def derivatives():
        yield torch.vmap(lambda image: conv(image[None])[0])(images)
        yield torch.vmap(torch.func.grad(loss), (None, 0))(conv.weight, images)
        yield torch.func.jvp(conv, (images,), (torch.ones_like(images),))[1]
        along = (conv.weight, images[0]), (torch.ones_like(conv.weight), images[1])
        yield torch.func.jvp(loss, *along)[1]
        x = images.clone().requires_grad_()
        (first,) = torch.autograd.grad(conv(x).pow(3).sum(), x, create_graph=True)
        yield from torch.autograd.grad(first.pow(2).sum(), [x, conv.weight])

    plain = list(derivatives())
    assert taken == []
    with SmallMaps():
        for one, other in zip(derivatives(), plain, strict=True):
            torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)
    assert taken


def test_autocast_keeps_its_own(taken):
    conv = nn.Conv2d(6, 6, 5, padding=2, groups=6)
    with SmallMaps(), torch.autocast("cpu", torch.bfloat16):
        out = conv(torch.randn(3, 6, 2, 2))
    assert out.dtype == torch.bfloat16
    out.float().sum().backward()
    assert taken == []


def test_a_model_of_timm_takes_the_same_step(taken):
    torch.manual_seed(0)
    model = timm.create_model("mobilenetv3_small_050", num_classes=3).train().to(memory_format=torch.channels_last)
    images = torch.randn(8, 3, 64, 64).to(memory_format=torch.channels_last)
    state = {k: v.clone() for k, v in model.state_dict().items()}

    def step(inside):
        model.load_state_dict(state)
        got, _ = gradients(model, images, inside)
        return dict(zip(("images", *dict(model.named_parameters())), got, strict=True))

    plain, quick = step(False), step(True)
    assert len(taken) == 7
    assert {shape[2:] for shape in taken} == {(5, 5)}
    for name, gradient in plain.items():
        torch.testing.assert_close(quick[name], gradient, atol=2e-4, rtol=1e-3, msg=lambda m, n=name: f"{n}: {m}")
