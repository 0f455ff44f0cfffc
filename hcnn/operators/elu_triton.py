"""ELU and the mean or sum over v_{j-3} in one pass on the GPU: x_j itself, K / 4 times as large, is never in memory.

A program goes over tiles of the result, `rows` x `columns` numbers: positions x maps where the maps are the fastest
axis, images x (maps and positions) elsewhere. In the first layout it can add a constant of each map of y on the way,
the bias of the operator before, and the sums that are its gradient, in an order that depends on shapes alone.
"""

import torch
import triton
import triton.language as tl
from torch.autograd.function import once_differentiable

TILE = 1024  # numbers of the result
PROGRAMS = 264  # at most, that share the gradient of the constant: two for each multiprocessor of an H100


@triton.jit
def _tile(first, rows, columns, stride, R: tl.constexpr, C: tl.constexpr):
    """Where the tile of R rows from `first` on, `stride` apart, stands in memory; what of it exists; its columns."""
    row, column = first + tl.arange(0, R), tl.program_id(1) * C + tl.arange(0, C)
    there = (row < rows)[:, None] & (column < columns)[None, :]
    return row[:, None] * stride + column[None, :], there, column


@triton.jit
def _elu_mean(y, bias, out, rows, columns, factor, A: tl.constexpr, ACC: tl.constexpr, BIAS: tl.constexpr,
              R: tl.constexpr, C: tl.constexpr):
    first = tl.program_id(0) * R
    at, there, column = _tile(first, rows, columns, A * columns, R, C)
    acc = tl.zeros((R, C), ACC)
    for a in tl.static_range(A):
        s = tl.load(y + at + a * columns, mask=there, other=0.0).to(ACC)
        if BIAS:
            s += tl.load(bias + a * columns + column, mask=column < columns, other=0.0).to(ACC)[None, :]
        acc += tl.where(s > 0, s, tl.exp(tl.minimum(s, 0.0)) - 1)
    at, there, column = _tile(first, rows, columns, columns, R, C)
    tl.store(out + at, (acc * factor).to(out.dtype.element_ty), mask=there)


@triton.jit
def _elu_mean_gradient(y, bias, g, out, sums, rows, columns, factor, A: tl.constexpr, ACC: tl.constexpr,
                       BIAS: tl.constexpr, R: tl.constexpr, C: tl.constexpr):
    added, constants = (), ()
    column = tl.program_id(1) * C + tl.arange(0, C)
    for a in tl.static_range(A):
        added += (tl.zeros((R, C), ACC),)
        if BIAS:
            constants += (tl.load(bias + a * columns + column, mask=column < columns, other=0.0).to(ACC)[None, :],)
    for first in range(tl.program_id(0) * R, rows, tl.num_programs(0) * R):
        at, there, _ = _tile(first, rows, columns, columns, R, C)
        grad, more = tl.load(g + at, mask=there, other=0.0).to(ACC) * factor, ()
        at, there, _ = _tile(first, rows, columns, A * columns, R, C)
        for a in tl.static_range(A):
            s = tl.load(y + at + a * columns, mask=there, other=0.0).to(ACC)
            if BIAS:
                s += constants[a]
            made = grad * tl.exp(tl.minimum(s, 0.0))
            tl.store(out + at + a * columns, made.to(out.dtype.element_ty), mask=there)
            more += (added[a] + made,) if BIAS else (added[a],)
        added = more
    if BIAS:
        for a in tl.static_range(A):
            tl.store(sums + (tl.program_id(0) * A + a) * columns + column, tl.sum(added[a], 0), mask=column < columns)


class _EluOver(torch.autograd.Function):
    @staticmethod
    def forward(ctx, y, mean, bias):
        (n, A, *rest), maps = y.shape, y.flatten(1, -3)
        last = bias is not None or (maps.is_contiguous(memory_format=torch.channels_last) and not maps.is_contiguous())
        form = torch.channels_last if last else torch.contiguous_format
        maps, channels, area = maps.contiguous(memory_format=form), maps.shape[1] // A, maps.shape[2] * maps.shape[3]
        out = torch.empty(n, channels, *maps.shape[2:], dtype=y.dtype, device=y.device, memory_format=form)
        rows, columns = (n * area, channels) if last else (n, channels * area)
        C = min(TILE, triton.next_power_of_2(columns))
        ctx.save_for_backward(maps, bias)
        ctx.shape, ctx.form, ctx.rule = y.shape, form, (rows, columns, 1 / A if mean else 1.0)
        ctx.tile = dict(A=A, ACC=accumulator(y), BIAS=bias is not None, R=TILE // C, C=C)
        ctx.grid = triton.cdiv(rows, TILE // C), triton.cdiv(columns, C)
        _elu_mean[ctx.grid](maps, maps if bias is None else bias, out, *ctx.rule, **ctx.tile)
        return out.view(n, *rest)

    @staticmethod
    @once_differentiable
    def backward(ctx, g):
        (maps, bias), g = ctx.saved_tensors, g.flatten(1, -3).contiguous(memory_format=ctx.form)
        out, sums, grid = torch.empty_like(maps), maps, ctx.grid
        if bias is not None:
            grid = min(PROGRAMS, grid[0]), grid[1]
            sums = bias.new_empty(grid[0], len(bias))
        _elu_mean_gradient[grid](maps, maps if bias is None else bias, g, out, sums, *ctx.rule, **ctx.tile)
        return out.view(ctx.shape), None, None if bias is None else sums.sum(0)


def accumulator(x):
    """The type in which a kernel adds up numbers of x."""
    return tl.float64 if x.dtype == torch.float64 else tl.float32


def elu_over(y, mean, bias=None):
    """The mean or sum over the first attribute of ELU(y + bias): y (n, A, *grid, height, width) -> (n, *grid, ...).

    bias (A * grid,): a constant of each map of y, whose memory is then that of channels last.
    """
    return _EluOver.apply(y, mean, bias)
