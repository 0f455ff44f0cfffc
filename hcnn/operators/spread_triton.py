"""The filters of a convolution along attributes as its matrix on the GPU, ready for the product that reads it.

`folding.spread_taps` in one launch each way: gathers, no atomics.
"""

import torch
import triton
import triton.language as tl
from torch.autograd.function import once_differentiable


@triton.jit
def _spread(w, bias, table, reads, out, constant, F, C, T, P, I, tables, width, by_input, by_channel, inputs, channels,
            IB: tl.constexpr, CB: tl.constexpr, TB: tl.constexpr, CONSTANT: tl.constexpr):
    line = tl.program_id(0)  # of output position o and filter f
    o, f = line // F, line % F
    i, c = tl.program_id(1) * IB + tl.arange(0, IB), tl.arange(0, CB)
    w += f * (C + CONSTANT) * T
    acc = tl.zeros((IB, CB), w.dtype.element_ty)
    for m in range(tables):
        t = tl.load(table + (m * P + o) * I + i, mask=i < tl.where(o < P, I, 0), other=T)
        acc += tl.load(w + c[None, :] * T + t[:, None], mask=(t < T)[:, None] & (c < C)[None, :], other=0.0)
    kept = (i < inputs)[:, None] & (c < channels)[None, :]
    tl.store(out + line * width + i[:, None] * by_input + c[None, :] * by_channel, acc.to(out.dtype.element_ty),
             mask=kept)
    if CONSTANT:
        t = tl.arange(0, TB)
        read = tl.load(reads + o * T + t, mask=t < T, other=-1) >= 0
        b = tl.load(bias + f) + tl.sum(tl.load(w + C * T + t, mask=read, other=0.0), 0)
        tl.store(constant + line, b.to(constant.dtype.element_ty), mask=tl.program_id(1) == 0)


@triton.jit
def _collect(g, constant, reads, out, F, C, T, P, width, by_input, by_channel, TB: tl.constexpr, OB: tl.constexpr):
    f, c, t = tl.program_id(0), tl.program_id(1), tl.arange(0, TB)
    acc = tl.zeros((TB,), out.dtype.element_ty)
    for first in range(0, P, OB):
        o = first + tl.arange(0, OB)
        i = tl.load(reads + o[:, None] * T + t[None, :], mask=(o < P)[:, None] & (t < T)[None, :], other=-1)
        line = (o * F + f)[:, None]
        if c < C:
            value = tl.load(g + line * width + i * by_input + c * by_channel, mask=i >= 0, other=0.0).to(acc.dtype)
        else:
            value = tl.load(constant + line + 0 * i, mask=i >= 0, other=0.0).to(acc.dtype)
        acc += tl.sum(value, 0)
    tl.store(out + (f * tl.num_programs(1) + c) * T + t, acc, mask=t < T)


def spread(w, table, reads, out, steps, sizes, bias=None, constant=None):
    """out[(o, f), i, c] = w[f, c, t(o, i)], summed over the taps t through which o reads i.

    w (filters, channels, taps); out: lines of (o, f) `steps[0]` apart, inputs `steps[1]`, channels `steps[2]`;
    `sizes` of each are written, with 0 where w has none. With `constant` (o, f) w has one channel more, whose sum
    over the taps inside of the grid is added to bias (filters,).
    """
    (F, C, T), (tables, P, I), more = w.shape, table.shape, constant is not None
    grid = sizes[0], triton.cdiv(sizes[1], 64)
    _spread[grid](w, bias if more else w, table, reads, out, constant if more else out, F, C - more, T, P, I, tables,
                  *steps, *sizes[1:], IB=64, CB=triton.next_power_of_2(sizes[2]), TB=triton.next_power_of_2(T),
                  CONSTANT=more)


def collect(g, reads, out, steps, constant=None):
    """The adjoint: out[f, c, t] = sum over o of g[(o, f), reads[o, t], c], for one channel more of constant[o, f]."""
    F, C, T = out.shape
    _collect[F, C](g, g if constant is None else constant, reads, out, F, C - (constant is not None), T, len(reads),
                   *steps, TB=triton.next_power_of_2(T), OB=32)


class _FoldedKernel(torch.autograd.Function):
    @staticmethod
    def forward(ctx, w, bias, table, reads, dtype, k):
        F, (_, P, I) = len(w), table.shape
        kernel = torch.empty(P * F, I, k, k, dtype=dtype, device=w.device, memory_format=torch.channels_last)
        constant = w.new_empty(P * F)
        w = w.contiguous()
        spread(w, table, reads, kernel, (I * k * k, 1, I), (P * F, I, k * k), bias, constant)
        ctx.save_for_backward(reads)
        ctx.shape, ctx.dtype = w.shape, w.dtype
        return kernel, constant

    @staticmethod
    @once_differentiable
    def backward(ctx, g, constant):
        (reads,), F = ctx.saved_tensors, ctx.shape[0]
        g, out = g.contiguous(memory_format=torch.channels_last), g.new_empty(ctx.shape, dtype=ctx.dtype)
        collect(g, reads, out, (g.stride(0), g.stride(1), g.stride(3)), constant.contiguous())
        return out, constant.view(-1, F).sum(0, dtype=ctx.dtype), *[None] * 4


def folded_operator(hb, g, bias, table, reads, dtype):
    """`folding.folded_operator` from (h, b) as (Q, k * k + 1): kernel, channels last, in `dtype`, and its bias."""
    F, Q = g.shape[:2]
    w = torch.bmm(hb.T.expand(F, -1, Q), g.flatten(2))
    return _FoldedKernel.apply(w, bias, table, reads, dtype, round((hb.shape[1] - 1) ** 0.5))
