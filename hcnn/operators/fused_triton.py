"""HCNN(+) on the GPU as one matrix product whose left factor is made on the way: kernels for Triton and their
autograd function.

out[n, o, u] = bias[o] + sum_{v, q} M[o, (v, q)] z[n, v, q, u],  z = ELU(x_v * h_q (s u) + b_q), with s the spatial
stride.

z has Q numbers for each one of x. It is made tile by tile, inside the product that consumes it, and again in each of
the two products of the backward pass: only x, h, b and M are kept. A tile of z is itself a small product, of the k x
k patches of x (`_gather`) with the filters; b_q stands in two more rows of the filters, as the sum of two numbers of
the precision of x, and meets patches that end in 1, 1. Blocks of M that no tap reaches are never visited (`Plan`).
Sums are accumulated in float32, in an order that depends on the shapes and the GPU alone: no atomics, so that the
same step gives the same bits.

A loop never computes a tile of z while a product that reads the previous one from registers is still under way: the
product with the filters, which is waited for, stands between the two. Triton before 3.7 does not guard that
(https://github.com/triton-lang/triton/issues/9433).
"""

from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch.autograd.function import once_differentiable
from triton.language.extra import libdevice

INTERPRETED = tl.constexpr(bool(triton.knobs.runtime.interpret))  # TRITON_INTERPRET=1: the kernels run on the CPU, slowly, for tests
SPLITS = 16  # of the positions in the sums over them that give the gradients of h and b


@triton.jit
def _exp(s):
    if s.dtype == tl.float32 and not INTERPRETED:
        return libdevice.fast_expf(s)  # tl.exp spends three more instructions on results below 1e-38
    return tl.exp(s)


@triton.jit
def _elu(s):
    return tl.where(s > 0, s, _exp(s) - 1.0)


@triton.jit
def _gather(x, corner, inside, block, V, area, row, K: tl.constexpr, T: tl.constexpr, VN: tl.constexpr, RAGGED: tl.constexpr):
    """Patches of the VN maps of a block at some positions: (positions, VN * T), the last columns of each map 1, 1, 0,
    ...
    """
    c = tl.arange(0, VN * T)
    t = c % T
    read = inside[:, None] & (t < K * K)[None, :]
    if RAGGED:  # the last block has maps that are not there
        read &= (block * VN + c // T < V)[None, :]
    offsets = corner[:, None] + (c // T * area + t // K * row + t % K)[None, :]  # the same for every block
    values = tl.load(x + block * VN * area + offsets, mask=read, other=0.0)
    ones = tl.where((t >= K * K) & (t < K * K + 2), 1.0, 0.0).to(values.dtype)
    return tl.where(read, values, tl.broadcast_to(ones[None, :], read.shape))


@triton.jit
def _corners(tile, tiles: tl.constexpr, V, area, row, L, width: tl.constexpr, stride: tl.constexpr, BP: tl.constexpr):
    """Image, positions u in it, whether they exist, and where their patches begin. A tile never crosses two images."""
    image, u = tile // tiles, (tile % tiles) * BP + tl.arange(0, BP)
    return image, u, u < L, image * V * area + (u // width) * stride * row + (u % width) * stride


@triton.jit
def _forward(x, hh, m, bias, out, blocks, V, area, row, O, L, R, width: tl.constexpr, stride: tl.constexpr, tiles: tl.constexpr,
             listed, groups, ACC: tl.constexpr, K: tl.constexpr, T: tl.constexpr, VN: tl.constexpr, RAGGED: tl.constexpr,
             N: tl.constexpr, BP: tl.constexpr, BO: tl.constexpr):
    group = tl.program_id(0) % groups  # the programs that share positions are neighbours
    image, u, inside, corner = _corners(tl.program_id(0) // groups, tiles, V, area, row, L, width, stride, BP)
    o, r, c = group * BO + tl.arange(0, BO), tl.arange(0, N), tl.arange(0, VN * T)
    h = tl.load(hh + c[:, None] * N + r[None, :])
    first = blocks + group * listed
    patches = _gather(x, corner, inside, tl.load(first + 1), V, area, row, K, T, VN, RAGGED)
    acc = tl.zeros((BP, BO), ACC)
    for i in range(tl.load(first)):
        s = tl.dot(patches, h, input_precision="ieee", out_dtype=ACC)
        w = tl.load(m + o[None, :] * R + tl.load(first + i + 1) * N + r[:, None])
        acc = tl.dot(_elu(s).to(w.dtype), w, acc, input_precision="ieee", out_dtype=ACC)
        patches = _gather(x, corner, inside, tl.load(first + i + 2), V, area, row, K, T, VN, RAGGED)  # of the next round, meanwhile
    acc += tl.load(bias + o, mask=o < O, other=0.0)[None, :]
    there = inside[:, None] & (o < O)[None, :]
    tl.store(out + image * O * L + o[None, :] * L + u[:, None], acc.to(out.dtype.element_ty), mask=there)


@triton.jit
def _backward_maps(x, hh, m, g, taps, sums, chunks, V, area, row, O, L, R, width: tl.constexpr, stride: tl.constexpr,
                   tiles: tl.constexpr, listed, total, each, ACC: tl.constexpr, K: tl.constexpr, T: tl.constexpr,
                   VN: tl.constexpr, RAGGED: tl.constexpr, N: tl.constexpr, BP: tl.constexpr, BK: tl.constexpr):
    block, split = tl.program_id(0), tl.program_id(1)
    r, c = tl.arange(0, N), tl.arange(0, VN * T)
    v, t = block * VN + c // T, c % T
    h = tl.load(hh + c[:, None] * N + r[None, :])
    first = chunks + block * listed
    count = tl.load(first)
    filters = tl.zeros((VN * T, N), ACC)
    for tile in range(split * each, tl.minimum((split + 1) * each, total)):
        image, u, inside, corner = _corners(tile, tiles, V, area, row, L, width, stride, BP)
        acc = tl.zeros((BP, N), ACC)  # gradient of z
        for i in range(count):
            o = tl.load(first + i + 1) * BK + tl.arange(0, BK)
            there = inside[:, None] & (o < O)[None, :]
            grad = tl.load(g + image * O * L + o[None, :] * L + u[:, None], mask=there, other=0.0)
            w = tl.load(m + o[:, None] * R + block * N + r[None, :])
            acc = tl.dot(grad, w, acc, input_precision="ieee", out_dtype=ACC)
        patches = _gather(x, corner, inside, block, V, area, row, K, T, VN, RAGGED)
        s = tl.dot(patches, h, input_precision="ieee", out_dtype=ACC)
        before = (acc * tl.where(s > 0, 1.0, _exp(s))).to(h.dtype)  # gradient of x_v * h_q + b_q
        patch = tl.dot(before, tl.trans(h), input_precision="ieee", out_dtype=ACC)
        there = inside[:, None] & ((t < K * K) & (v < V))[None, :]
        tl.store(taps + ((image * V + v) * K * K + t)[None, :] * L + u[:, None], patch.to(taps.dtype.element_ty), mask=there)
        filters = tl.dot(tl.trans(patches), before, filters, input_precision="ieee", out_dtype=ACC)
    at = (split * tl.num_programs(0) + block) * (VN * T * N)
    tl.store(sums + at + c[:, None] * N + r[None, :], filters)


@triton.jit
def _backward_matrix(x, hh, g, sums, pairs, V, area, row, O, L, R, width: tl.constexpr, stride: tl.constexpr,
                     tiles: tl.constexpr, columns, total, each, ACC: tl.constexpr, K: tl.constexpr, T: tl.constexpr,
                     VN: tl.constexpr, RAGGED: tl.constexpr, N: tl.constexpr, BP: tl.constexpr, BO: tl.constexpr):
    group, block = tl.load(pairs + 2 * tl.program_id(0)), tl.load(pairs + 2 * tl.program_id(0) + 1)
    split = tl.program_id(1)
    o, r, c = group * BO + tl.arange(0, BO), tl.arange(0, N), tl.arange(0, VN * T)
    h = tl.load(hh + c[None, :] * N + r[:, None])  # transposed: (N, VN * T)
    acc = tl.zeros((N, BO), ACC)
    for tile in range(split * each, tl.minimum((split + 1) * each, total)):
        image, u, inside, corner = _corners(tile, tiles, V, area, row, L, width, stride, BP)
        patches = _gather(x, corner, inside, block, V, area, row, K, T, VN, RAGGED)
        s = tl.dot(h, tl.trans(patches), input_precision="ieee", out_dtype=ACC)
        there = inside[:, None] & (o < O)[None, :]
        grad = tl.load(g + image * O * L + o[None, :] * L + u[:, None], mask=there, other=0.0)
        acc = tl.dot(_elu(s).to(grad.dtype), grad, acc, input_precision="ieee", out_dtype=ACC)
    tl.store(sums + (split * R + block * N + r)[:, None] * columns + o[None, :], acc)


@dataclass(frozen=True)
class Plan:
    """Sizes of the tiles, and which blocks of the matrix are visited.

    T taps a patch and Q filters are rounded up to Qn; VN maps make a block of N = VN * Qn columns, in the forward
    pass (VN[0]) and in the backward pass (VN[1]); BO outputs make a group, BK a chunk. The lists are int32 tensors on
    the device: the blocks that each group reads, the chunks that read each block, (group, block) pairs; a list begins
    with its length.
    """

    T: int
    Qn: int
    VN: tuple[int, int]
    BO: int
    BK: int
    blocks: torch.Tensor
    chunks: torch.Tensor
    pairs: torch.Tensor


@lru_cache(maxsize=256)
def plan(reads, V, O, Q, k):
    """The Plan for a table `reads` (output positions, taps) of `tap_reads`, on its device; O outputs, the filter
    fastest.
    """
    T, Qn, BO = _up(k * k + 2), _up(Q), min(256, _up(O))
    VN, BK = (max(1, 64 // Qn), min(4, max(1, 128 // Qn))), min(64, BO)
    live = torch.zeros(len(reads), V + 1, dtype=torch.bool).scatter_(1, reads.where(reads >= 0, V).cpu(), True)[:, :V]
    live = live.repeat_interleave(O // len(reads), 0)  # (O, V)

    def tiled(rows, columns):
        padded = F.pad(live, (0, -V % columns, 0, -O % rows))
        return padded.view(-(-O // rows), rows, -(-V // columns), columns).any(3).any(1)

    def lists(mask):
        rows = [row.nonzero()[:, 0].tolist() for row in mask]
        longest = max(map(len, rows)) + 1  # one more, which the forward pass gathers in advance and does not use
        return torch.tensor([[len(row), *row, *[0] * (longest - len(row))] for row in rows], dtype=torch.int32)

    made = lists(tiled(BO, VN[0])), lists(tiled(BK, VN[1]).T), tiled(BO, VN[1]).nonzero().int()
    return Plan(T, Qn, VN, BO, BK, *(t.contiguous().to(reads.device) for t in made))


def _up(n):
    """The least power of 2 that is n or more, at least 16: the smallest side of a product."""
    return max(16, triton.next_power_of_2(n))


def _filters(h, b, p, VN, dtype):
    """The filters and b as columns that patches multiply, once for each of VN maps along the diagonal: (VN * T, VN *
    Qn).
    """
    Q, taps = len(h), h[0].numel()
    rows = h.new_zeros(p.T, p.Qn)
    high = b.to(dtype).to(b.dtype)
    rows[:taps, :Q], rows[taps, :Q], rows[taps + 1, :Q] = h.flatten(1).T, high, b - high
    return torch.block_diag(*[rows] * VN).to(dtype)


class _MixedELU(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, h, b, matrix, bias, reads, stride):
        (n, V, height, width), (O, _), (Q, k, _) = x.shape, matrix.shape, h.shape
        p = plan(reads, V, O, Q, k)
        x = x.contiguous()
        m = F.pad(matrix.view(O, V, Q), (0, p.Qn - Q, 0, -V % 4, 0, -O % p.BO)).to(x.dtype).flatten(1)
        out = x.new_empty(n, O, (height - k) // stride + 1, (width - k) // stride + 1)
        ctx.save_for_backward(x, h, b, m)
        ctx.plan, ctx.stride, ctx.out_shape, ctx.dtypes = p, stride, out.shape, (matrix.dtype, bias.dtype)
        BP, sizes = _sizes(x, m, out.shape, stride, 128)
        groups = len(p.blocks)
        _forward[(n * sizes[-1] * groups,)](
            x, _filters(h, b, p, p.VN[0], x.dtype), m, bias.contiguous(), out, p.blocks, *sizes, p.blocks.shape[1], groups,
            ACC=_acc(x), K=k, T=p.T, VN=p.VN[0], RAGGED=V % p.VN[0] > 0, N=p.VN[0] * p.Qn, BP=BP, BO=p.BO,
            num_warps=8 if BP * p.BO > 16384 else 4, num_stages=3)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, g):
        (x, h, b, m), p, (n, O, *size) = ctx.saved_tensors, ctx.plan, ctx.out_shape
        g, (V, Q, k), VN, (matrix_dtype, bias_dtype) = g.contiguous(), (x.shape[1], len(h), h.shape[-1]), p.VN[1], ctx.dtypes
        hh, acc, L = _filters(h, b, p, VN, x.dtype), _acc(x), size[0] * size[1]
        sum_dtype = torch.promote_types(x.dtype, torch.float32)

        BP, sizes = _sizes(x, m, ctx.out_shape, ctx.stride, 128)
        total, blocks, shape = n * sizes[-1], len(p.chunks), dict(ACC=acc, K=k, T=p.T, VN=VN, RAGGED=V % VN > 0, N=VN * p.Qn)
        taps = x.new_empty(n * V, k * k, L)
        splits = min(total, SPLITS)
        sums = x.new_empty(splits, blocks, VN, p.T, VN, p.Qn, dtype=sum_dtype)
        _backward_maps[(blocks, splits)](
            x, hh, m, g, taps, sums, p.chunks, *sizes, p.chunks.shape[1], total, -(-total // splits), **shape, BP=BP, BK=p.BK,
            num_warps=8 if BP == 128 else 4, num_stages=3)
        grad_x = F.fold(taps, x.shape[2:], k, stride=ctx.stride).view_as(x)
        filters = sums.sum((0, 1)).diagonal(dim1=0, dim2=2).sum(2)[:, :Q]  # (T, Q)

        BP, sizes = _sizes(x, m, ctx.out_shape, ctx.stride, 64)
        total, pairs = n * sizes[-1], len(p.pairs)
        splits = min(total, max(1, round(2 * _processors(x.device) / pairs)))  # two waves of programs
        sums = x.new_zeros(splits, *m.shape[::-1], dtype=sum_dtype)
        _backward_matrix[(pairs, splits)](
            x, hh, g, sums, p.pairs, *sizes, len(m), total, -(-total // splits), **shape, BP=BP, BO=p.BO,
            num_warps=8 if p.BO == 256 else 4, num_stages=3)
        matrix = sums.sum(0).view(-1, p.Qn, len(m))[:V, :Q, :O].permute(2, 0, 1).reshape(O, V * Q)
        grad_h, grad_b = filters[: k * k].T.reshape(h.shape).to(h.dtype), filters[k * k].to(b.dtype)
        return grad_x, grad_h, grad_b, matrix.to(matrix_dtype), g.sum((0, 2, 3), dtype=sum_dtype).to(bias_dtype), None, None


def _sizes(x, m, out_shape, stride, most):
    """Positions in a tile, and what every kernel is told of the arrays: V, area, row, O, L, R, width, stride, tiles."""
    L = out_shape[2] * out_shape[3]
    BP = min(most, _up(L))
    return BP, (x.shape[1], x.shape[2] * x.shape[3], x.shape[3], out_shape[1], L, m.shape[1], out_shape[3], stride, -(-L // BP))


def _acc(x):
    return tl.float64 if x.dtype == torch.float64 else tl.float32


@lru_cache
def _processors(device):
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 2


def mixed_elu(x, h, b, matrix, bias, reads, stride):
    """out[n, o, u] = bias[o] + sum over (v, q) of matrix[o, (v, q)] ELU(x_v * h_q (stride u) + b_q), valid along space.

    x (n, V, height, width), already extended at its boundaries, h (Q, k, k), b (Q,), matrix (outputs, V * Q) as from
    `mixing_matrix`, bias (outputs,), reads (output positions, taps) of `tap_reads`: outputs are positions times
    filters. Returns (n, outputs, height', width') of the dtype of x. Differentiable once in x, h, b, matrix and bias;
    the gradient of `matrix` is meant for the places that `reads` names and is zero or partial elsewhere.
    """
    return _MixedELU.apply(x, h, b, matrix, bias, reads, stride)
