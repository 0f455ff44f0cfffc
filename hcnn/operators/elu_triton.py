"""ELU and the mean or sum over v_{j-3} in one pass on the GPU: x_j itself, K / 4 times as large, is never in memory."""

import torch
import triton
import triton.language as tl
from torch.autograd.function import once_differentiable

BLOCK = 1024


@triton.jit
def _elu_mean(y, out, total, inner, factor, A: tl.constexpr, ACC: tl.constexpr, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    first = i // inner * (A * inner) + i % inner
    acc = tl.zeros((BLOCK,), ACC)
    for a in tl.static_range(A):
        s = tl.load(y + first + a * inner, mask=i < total, other=0.0).to(ACC)
        acc += tl.where(s > 0, s, tl.exp(tl.minimum(s, 0.0)) - 1)
    tl.store(out + i, (acc * factor).to(out.dtype.element_ty), mask=i < total)


@triton.jit
def _elu_mean_gradient(y, g, out, total, inner, factor, A: tl.constexpr, ACC: tl.constexpr, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    first = i // inner * (A * inner) + i % inner
    grad = tl.load(g + i, mask=i < total, other=0.0).to(ACC) * factor
    for a in tl.static_range(A):
        s = tl.load(y + first + a * inner, mask=i < total, other=0.0).to(ACC)
        tl.store(out + first + a * inner, (grad * tl.exp(tl.minimum(s, 0.0))).to(out.dtype.element_ty), mask=i < total)


class _EluOver(torch.autograd.Function):
    @staticmethod
    def forward(ctx, y, mean):
        (n, A, *rest), maps = y.shape, y.flatten(1, -3)
        last = maps.is_contiguous(memory_format=torch.channels_last) and not maps.is_contiguous()
        form = torch.channels_last if last else torch.contiguous_format
        maps, channels, area = maps.contiguous(memory_format=form), maps.shape[1] // A, maps.shape[2] * maps.shape[3]
        out = torch.empty(n, channels, *maps.shape[2:], dtype=y.dtype, device=y.device, memory_format=form)
        ctx.save_for_backward(maps)
        ctx.shape, ctx.form = y.shape, form
        ctx.rule = out.numel(), channels if last else channels * area, 1 / A if mean else 1.0
        _elu_mean[(triton.cdiv(out.numel(), BLOCK),)](maps, out, *ctx.rule, A=A, ACC=_acc(y), BLOCK=BLOCK)
        return out.view(n, *rest)

    @staticmethod
    @once_differentiable
    def backward(ctx, g):
        (maps,), g = ctx.saved_tensors, g.flatten(1, -3).contiguous(memory_format=ctx.form)
        out = torch.empty_like(maps)
        _elu_mean_gradient[(triton.cdiv(g.numel(), BLOCK),)](maps, g, out, *ctx.rule, A=ctx.shape[1], ACC=_acc(g),
                                                             BLOCK=BLOCK)
        return out.view(ctx.shape), None


def _acc(x):
    return tl.float64 if x.dtype == torch.float64 else tl.float32


def elu_over(y, mean):
    """The mean or sum over the first attribute of ELU(y): (n, A, *grid, height, width) -> (n, *grid, height, width)."""
    return _EluOver.apply(y, mean)
