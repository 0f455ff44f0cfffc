"""Normalisation of x * h_q on the GPU from one pass over x: moments of its patches, and what follows from them.

Each thread walks down one column of one map with the nine values of a patch in registers, less a number near the mean
of x, and adds up p and p p' (`_sums`). One small program adds the parts up in float64 and makes the normalised
filters (`_normalise`). Backward, the gradient of h and of the moments is another small program (`_filter_gradient`);
that of x is a convolution with a 5 x 5 kernel, one for each kind of place at the border (`_map_gradient`), added to
what arrives from the convolution of x in the same pass.

Everything is added up in an order that depends on shapes alone: the same step gives the same bits.
"""

from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch.autograd.function import once_differentiable

from hcnn.operators.elu_triton import accumulator

PROGRAMS = 396  # at most, that share the pass over x: three for each multiprocessor of an H100
SAMPLES = 256  # values whose mean is near that of x
LANES = 256  # columns of maps that one program walks down at a time


@triton.jit
def _columns(lane, V, H, W, LAST: tl.constexpr):
    """Where column `lane` of all maps begins in memory, its place in the image, the steps to the next row, column."""
    if LAST:  # the maps are the fastest axis
        return lane // (V * W) * (V * W * H) + lane % V, lane // V % W, V * W, V
    return lane // W * (W * H), lane % W, W, 1


@triton.jit
def _row(x, base, row, column, there, by_row, by_column, H, W, centre, REACH: tl.constexpr, PERIODIC: tl.constexpr):
    """The 2 REACH + 1 values around `column` in one row, less `centre`; outside of the image the boundary's value."""
    values = ()
    for i in tl.static_range(2 * REACH + 1):
        r, c, read = row + 0 * column, column + (i - REACH), there
        if PERIODIC:
            r, c = (r + REACH * H) % H, (c + REACH * W) % W
        else:
            read = there & (r >= 0) & (r < H) & (c >= 0) & (c < W)
        value = tl.load(x + base + r * by_row + c * by_column, mask=read, other=0.0).to(centre.dtype) - centre
        values += (tl.where(there, value, 0.0),)
    return values


@triton.jit
def _sums(x, sums, total, step, lanes, V, H, W, ACC: tl.constexpr, LAST: tl.constexpr, PERIODIC: tl.constexpr,
          SAMPLES: tl.constexpr, LANES: tl.constexpr):
    """sums[program]: the sums of p p' over its patches, (16, 16); row and column 9: of p. Last of all: the centre."""
    some = tl.arange(0, SAMPLES) * step
    centre = tl.sum(tl.load(x + some, mask=some < total, other=0.0).to(ACC), 0) / tl.sum((some < total).to(ACC), 0)
    acc = ()
    for _ in tl.static_range(54):
        acc += (tl.zeros((LANES,), ACC),)
    for first in range(tl.program_id(0) * LANES, lanes, tl.num_programs(0) * LANES):
        lane = first + tl.arange(0, LANES)
        base, column, by_row, by_column = _columns(lane, V, H, W, LAST)
        above = _row(x, base, -1, column, lane < lanes, by_row, by_column, H, W, centre, 1, PERIODIC)
        here = _row(x, base, 0, column, lane < lanes, by_row, by_column, H, W, centre, 1, PERIODIC)
        below = _row(x, base, 1, column, lane < lanes, by_row, by_column, H, W, centre, 1, PERIODIC)
        for row in range(H):
            # of the next round, meanwhile
            after = _row(x, base, row + 2, column, lane < lanes, by_row, by_column, H, W, centre, 1, PERIODIC)
            p, added = above + here + below, ()
            for s in tl.static_range(9):
                added += (acc[s] + p[s],)
            for s in tl.static_range(9):
                for t in tl.static_range(s, 9):
                    added += (acc[len(added)] + p[s] * p[t],)
            acc, above, here, below = added, here, below, after
    sums += tl.program_id(0) * 256
    for s in tl.static_range(9):
        value = tl.sum(acc[s], 0)
        tl.store(sums + s * 16 + 9, value)
        tl.store(sums + 9 * 16 + s, value)
        for t in tl.static_range(s, 9):
            value = tl.sum(acc[9 + s * 9 - s * (s - 1) // 2 + t - s], 0)
            tl.store(sums + s * 16 + t, value)
            tl.store(sums + t * 16 + s, value)
    tl.store(sums + (tl.num_programs(0) - tl.program_id(0)) * 256, centre)


@triton.jit
def _statistics(h, mu, C, eps, ACC: tl.constexpr):
    """h_q' C, the mean and variance of x * h_q and 1 / sigma_q."""
    hC = tl.dot(h, C, input_precision="ieee", out_dtype=ACC)
    var = tl.maximum(tl.sum(hC * h, 1), 0.0)
    return hC, tl.sum(h * mu[None, :], 1), var, 1 / tl.sqrt(var + eps)


@triton.jit
def _normalise(sums, programs, n, h, scale, shift, running_mean, running_var, out, moments, Q, momentum, eps,
               ACC: tl.constexpr, N: tl.constexpr, BLOCK: tl.constexpr):
    """out (Q, 10): the normalised filters and their b. moments: mu, C and the number of patches, as rows of 16."""
    t, flat = tl.arange(0, 16), tl.arange(0, 256)
    known = (flat // 16 < 10) & (flat % 16 < 10) & (flat != 153)
    parts = tl.zeros((BLOCK, 256), tl.float64)
    for first in range(0, programs, BLOCK):
        part = first + tl.arange(0, BLOCK)
        parts += tl.load(sums + part[:, None] * 256 + flat[None, :], mask=(part < programs)[:, None] & known[None, :],
                         other=0.0).to(tl.float64)
    E = tl.reshape(tl.sum(parts, 0), (16, 16)) / n
    by_row, by_column = tl.sum(tl.where((t == 9)[None, :], E, 0.0), 1), tl.sum(tl.where((t == 9)[:, None], E, 0.0), 0)
    C = tl.where((t < 9)[:, None] & (t < 9)[None, :], E - by_row[:, None] * by_column[None, :], 0.0).to(ACC)
    mu = tl.where(t < 9, by_column + tl.load(sums + programs * 256).to(tl.float64), 0.0).to(ACC)
    tl.store(moments + t, mu)
    tl.store(moments + 16 + t[:, None] * 16 + t[None, :], C)
    tl.store(moments + 272, tl.cast(n, ACC))
    q = tl.arange(0, N)
    taps = (q < Q)[:, None] & (t < 9)[None, :]
    filters = tl.load(h + q[:, None] * 9 + t[None, :], mask=taps, other=0.0)
    _, mean, var, inverse = _statistics(filters, mu, C, eps, ACC)
    gain = tl.load(scale + q, mask=q < Q, other=0.0) * inverse
    b = tl.load(shift + q, mask=q < Q, other=0.0) - gain * mean
    made = tl.where((t == 9)[None, :], b[:, None], gain[:, None] * filters)
    tl.store(out + q[:, None] * 10 + t[None, :], made, mask=(q < Q)[:, None] & (t < 10)[None, :])
    old_mean = tl.load(running_mean + q, mask=q < Q, other=0.0)
    old_var = tl.load(running_var + q, mask=q < Q, other=0.0)
    unbiased = var * (tl.cast(n, ACC) / tl.maximum(n - 1, 1).to(ACC))
    tl.store(running_mean + q, old_mean + momentum * (mean - old_mean), mask=q < Q)
    tl.store(running_var + q, old_var + momentum * (unbiased - old_var), mask=q < Q)


@triton.jit
def _filter_gradient(grad, moments, h, scale, grad_h, grad_scale, grad_shift, grad_moments, Q, eps, ACC: tl.constexpr,
                     N: tl.constexpr):
    """From grad (Q, 10) of `_normalise` those of h, scale, shift, and of a patch p: grad_moments (17, 16) (p, 1)."""
    t, q = tl.arange(0, 16), tl.arange(0, N)
    taps, there = (q < Q)[:, None] & (t < 9)[None, :], q < Q
    mu, n = tl.load(moments + t), tl.load(moments + 272)
    C = tl.load(moments + 16 + t[:, None] * 16 + t[None, :])
    filters = tl.load(h + q[:, None] * 9 + t[None, :], mask=taps, other=0.0)
    hC, mean, var, inverse = _statistics(filters, mu, C, eps, ACC)
    s = tl.load(scale + q, mask=there, other=0.0)
    from_h = tl.load(grad + q[:, None] * 10 + t[None, :], mask=taps, other=0.0)
    from_b = tl.load(grad + q * 10 + 9, mask=there, other=0.0)
    from_gain = tl.sum(from_h * filters, 1) - from_b * mean
    from_mean = -from_b * s * inverse
    from_var = tl.where(var > 0, -0.5 * from_gain * s * inverse * inverse * inverse, 0.0)
    made = (s * inverse)[:, None] * from_h + from_mean[:, None] * mu[None, :] + 2 * from_var[:, None] * hC
    tl.store(grad_h + q[:, None] * 9 + t[None, :], made, mask=taps)
    tl.store(grad_scale + q, from_gain * inverse, mask=there)
    tl.store(grad_shift + q, from_b, mask=there)
    pairs = 2 / n * tl.dot(tl.trans(filters * from_var[:, None]), filters, input_precision="ieee", out_dtype=ACC)
    constant = tl.sum(filters * from_mean[:, None], 0) / n - tl.sum(pairs * mu[:, None], 0)
    tl.store(grad_moments + t[:, None] * 16 + t[None, :], pairs)
    tl.store(grad_moments + 256 + t, constant)


@triton.jit
def _map_gradient(x, g, kernels, out, lanes, V, H, W, ACC: tl.constexpr, LAST: tl.constexpr, PERIODIC: tl.constexpr,
                  LANES: tl.constexpr):
    """out = g + x convolved with the 5 x 5 kernel of each place, kernels (16, 32) of `border_sums`."""
    lane, zero = tl.program_id(0) * LANES + tl.arange(0, LANES), tl.zeros((), ACC)
    there = lane < lanes
    base, column, by_row, by_column = _columns(lane, V, H, W, LAST)
    rows = ()
    for i in tl.static_range(4):
        rows += _row(x, base, i - 2, column, there, by_row, by_column, H, W, zero, 2, PERIODIC)
    for part in tl.static_range(3):  # the first row, those between, the last one: each has one kernel a column
        first = 0 if part == 0 else 1 if part == 1 else tl.maximum(H - 1, 1)
        end = H if part == 2 else H - 1 if part == 1 else 1
        kind = tl.full((LANES,), 15, tl.int32)
        if not PERIODIC:
            kind = (first > 0) + 2 * (first < H - 1) + 4 * (column > 0) + 8 * (column < W - 1)
        taps = ()
        for d in tl.static_range(26):
            taps += (tl.load(kernels + kind * 32 + d),)
        for row in range(first, end):
            p = rows + _row(x, base, row + 2, column, there, by_row, by_column, H, W, zero, 2, PERIODIC)
            acc = taps[25]
            for d in tl.static_range(25):
                acc += taps[d] * p[d]
            at = base + row * by_row + column * by_column
            acc += tl.load(g + at, mask=there, other=0.0).to(ACC)
            tl.store(out + at, acc.to(out.dtype.element_ty), mask=there)
            rows = p[5:]


@lru_cache
def border_sums(dtype, device):
    """The matrix (16 * 32, 17 * 16) from the gradient of one patch, (17, 16), to the kernels of `_map_gradient`.

    x at v stands at place t of the patch around v - t. Its neighbour at v + d stands there at t + d. Kind of v: 1
    where it has a neighbour above, 2 below, 4 left, 8 right; the patches around neighbours that it has not do not
    exist.
    """
    made = torch.zeros(16, 32, 17, 16)
    for kind in range(16):
        for t in range(9):
            y, x = t // 3 - 1, t % 3 - 1  # the patch stands at v - (y, x)
            needed = {1: 1, -1: 2}.get(y, 0) | {1: 4, -1: 8}.get(x, 0)
            if needed & ~kind:
                continue
            made[kind, 25, 16, t] = 1
            for s in range(9):
                d = (s // 3 - 1 - y + 2) * 5 + s % 3 - 1 - x + 2
                made[kind, d, t, s] += 1
    return made.view(16 * 32, 17 * 16).to(device, dtype)


class _Normalised(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, h, scale, shift, running_mean, running_var, momentum, eps, periodic):
        (n, V, H, W), acc, Q = x.shape, accumulator(x), len(h)
        last = V > 1 and x.is_contiguous(memory_format=torch.channels_last)
        x = x if last else x.contiguous()
        lanes = n * V * W
        programs = triton.cdiv(lanes, LANES)
        programs = triton.cdiv(programs, triton.cdiv(programs, PROGRAMS))  # all with as many columns
        sums, out, moments = h.new_empty(programs * 256 + 1), h.new_empty(Q, 10), h.new_empty(273)
        shape, N = dict(ACC=acc, LAST=last, PERIODIC=periodic, LANES=LANES), max(16, triton.next_power_of_2(Q))
        _sums[(programs,)](x, sums, x.numel(), max(1, x.numel() // SAMPLES), lanes, V, H, W, SAMPLES=SAMPLES,
                           num_warps=8, **shape)
        _normalise[(1,)](sums, programs, x.numel(), h, scale, shift, running_mean, running_var, out, moments, Q,
                         momentum, eps, ACC=acc, N=N, BLOCK=32, num_warps=16)
        torch.autograd.graph.increment_version([running_mean, running_var])
        ctx.save_for_backward(x, h, scale, moments)
        ctx.N, ctx.eps, ctx.shape = N, eps, shape
        return x, out

    @staticmethod
    @once_differentiable
    def backward(ctx, g, grad):
        (x, h, scale, moments), shape = ctx.saved_tensors, ctx.shape
        made = [torch.empty_like(t) for t in (h, scale, scale)]  # gradients of h, scale and shift
        patch = h.new_empty(17 * 16)
        _filter_gradient[(1,)](grad.contiguous(), moments, h, scale, *made, patch, len(h), ctx.eps, ACC=shape["ACC"],
                               N=ctx.N)
        grad_x = None
        if ctx.needs_input_grad[0]:
            kernels, grad_x = border_sums(h.dtype, h.device) @ patch, torch.empty_like(x)
            form = torch.channels_last if shape["LAST"] else torch.contiguous_format
            n, V, H, W = x.shape
            _map_gradient[(triton.cdiv(n * V * W, LANES),)](
                x, g.contiguous(memory_format=form), kernels, grad_x, n * V * W, V, H, W, num_warps=8, **shape)
        return grad_x, *made, *[None] * 5


def normalised(x, h, scale, shift, running_mean, running_var, momentum, eps, periodic):
    """x itself and (h, b): filters and bias such that x * h + b = scale (x * h_q - m_q) / sigma_q + shift, as (Q, 10).

    m_q and sigma_q are those of x * h_q over batch, maps and all positions; the running ones follow. x (n, V, height,
    width); h (Q, 3, 3), scale, shift (Q,), of float32, or float64 as x. What uses the x that is returned gets its
    gradient in one pass.
    """
    return _Normalised.apply(x, h.contiguous(), scale, shift, running_mean, running_var, momentum, eps, periodic)
