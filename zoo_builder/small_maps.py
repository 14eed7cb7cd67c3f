"""Depthwise convolutions whose kernel is larger than their input, on a CPU: the kernel's gradient by matrix products.

Of small images that is every depthwise layer near the head. oneDNN, which PyTorch calls, has no code of its own for
that gradient and multiplies two small matrices for each image and channel, which takes many times as long as the rest
of the layer; here it is one product a channel.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch.nn.grad import conv2d_input
from torch.overrides import TorchFunctionMode

LARGEST = 121  # weights of a kernel, and so places of its input: all pairs of more places take too much memory and time


class SmallMaps(TorchFunctionMode):
    """Inside, the kernels of such layers get the same gradient, but for rounding, several times as fast. All else is
    as without."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.conv2d and not kwargs and len(args) == 7 and _applies(*args):
            return _Depthwise.apply(*args[:5])
        return func(*args, **(kwargs or {}))


def _applies(
    x: torch.Tensor, weight: torch.Tensor, bias: Any, stride: Any, padding: Any, dilation: Any, groups: int
) -> bool:
    return (
        groups > 1
        and x.ndim == 4
        and x.shape[1] == groups == len(weight)
        and (x.shape[2] < weight.shape[2] or x.shape[3] < weight.shape[3])
        and x.shape[2:].numel() <= weight.shape[2:].numel() <= LARGEST
        and dilation == (1, 1)
        and isinstance(stride, tuple)
        and isinstance(padding, tuple)
        and weight.requires_grad
        and torch.is_grad_enabled()
        and x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and not torch.is_autocast_enabled("cpu")
    )


class _Depthwise(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        stride: tuple[int, int],
        padding: tuple[int, int],
    ) -> torch.Tensor:
        return F.conv2d(x, weight, bias, stride, padding, 1, len(weight))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: torch.Tensor) -> None:
        x, weight, _, ctx.stride, ctx.padding = inputs
        ctx.save_for_backward(x, weight)
        ctx.save_for_forward(x, weight)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple:
        x, weight = ctx.saved_tensors
        to_input = None
        if ctx.needs_input_grad[0]:
            to_input = conv2d_input(x.shape, weight, gradient, ctx.stride, ctx.padding, groups=len(weight))
        to_kernel = _kernel_gradient(x, gradient, weight.shape, ctx.stride, ctx.padding)
        to_bias = gradient.sum((0, 2, 3)) if ctx.needs_input_grad[2] else None
        return to_input, to_kernel, to_bias, None, None

    @staticmethod
    def jvp(ctx: Any, x_: torch.Tensor, weight_: torch.Tensor, bias_: torch.Tensor | None, *_: None) -> torch.Tensor:
        x, weight = ctx.saved_tensors
        of_x, of_weight = (
            F.conv2d(i, k, None, ctx.stride, ctx.padding, 1, len(k)) for i, k in ((x_, weight), (x, weight_))
        )
        return of_x + of_weight + (0 if bias_ is None else bias_[:, None, None])


def _kernel_gradient(
    x: torch.Tensor, gradient: torch.Tensor, shape: torch.Size, stride: tuple[int, int], padding: tuple[int, int]
) -> torch.Tensor:
    """Each place of the input [B, C, H, W] times each of the output [B, C, P, Q], and the sum of the pairs that a
    weight of the kernel joins."""
    rows, columns = (
        _joined(x.shape[2 + i], gradient.shape[2 + i], shape[2 + i], stride[i], padding[i]).to(x) for i in range(2)
    )
    joined = torch.einsum("hpk,wql->hwpqkl", rows, columns).flatten(0, 3).flatten(1)
    pairs = torch.bmm(x.permute(1, 2, 3, 0).flatten(1, 2), gradient.permute(1, 0, 2, 3).flatten(2))  # [C, HW, PQ]
    return (pairs.flatten(1) @ joined).view(shape)


def _joined(size: int, out: int, kernel: int, stride: int, padding: int) -> torch.Tensor:
    """[size, out, kernel], of one axis: whether this weight takes this place of the input to that of the output."""
    weight = torch.arange(size)[:, None] + padding - stride * torch.arange(out)
    return weight[:, :, None] == torch.arange(kernel)
