"""HCNN(+) on the GPU as one matrix product whose left factor is made on the way: plan and autograd function.

out[n, (o, f), u] = bias[f] + sum_{v, q} M[(o, f), (v, q)] z[n, v, q, u],  z = ELU(x_v * h_q (s u) + b_q), with s the
spatial stride and M the filters g spread along the attributes.

z has Q numbers for each one of x. It is made tile by tile, inside the product that consumes it, and again in each of
the two products of the backward pass: only x, h, b and M are kept. Blocks of M that no tap reaches are never visited
(`Plan`). Sums are accumulated in float32, in an order that depends on the shapes and the GPU alone: no atomics, so
that the same step gives the same bits.
"""

from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
import triton
from torch.autograd.function import once_differentiable

from hcnn.operators import fused_kernels as kernels
from hcnn.operators.elu_triton import accumulator
from hcnn.operators.spread_triton import collect, spread

SPLITS = 16  # of the positions in the sums over them that give the gradients of h and b


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
def plan(reads, V, O, Q, k, L):
    """The Plan for a table of `tap_reads`, on its device; O outputs, the filter fastest, at L positions of an image.

    Where the positions are few, the groups of outputs are more, and keep a large GPU busy.
    """
    T, Qn, BO = _up(k * k + 2), _up(Q), min(256 if L > 64 else 128, _up(O))
    VN, BK = (max(1, 64 // Qn), min(4, max(1, 128 // Qn))), min(64, BO)
    reads_here = reads.cpu()
    live = torch.zeros(len(reads), V + 1, dtype=torch.bool).scatter_(1, reads_here.where(reads_here >= 0, V), True)
    live = live[:, :V].repeat_interleave(O // len(reads), 0)  # (O, V)

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


class _MixedELU(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, hb, g, bias, table, reads, stride, before, periodic):
        (n, V, H, W), (filters, Q, *_), k, x = x.shape, g.shape, round((hb.shape[1] - 1) ** 0.5), x.contiguous()
        O, out_size = len(reads) * filters, (-(-H // stride), -(-W // stride))
        L = out_size[0] * out_size[1]
        p, BP = plan(reads, V, O, Q, k, L), min(128, _up(L))
        m = x.new_empty(-(-O // p.BO) * p.BO, -(-V // 4) * 4 * p.Qn)
        spread(g.detach().flatten(2).contiguous(), table, reads, m, (m.shape[1], p.Qn, 1),
               (len(m), m.shape[1] // p.Qn, p.Qn))
        out, hb = x.new_empty(n, O, *out_size), hb.contiguous()
        ctx.save_for_backward(x, hb, m, reads)
        ctx.plan, ctx.out_shape, ctx.g_shape, ctx.dtypes = p, out.shape, g.shape, (g.dtype, bias.dtype)
        ctx.rule = dict(width=out_size[1], stride=stride, ACC=accumulator(x), K=k, T=p.T, PERIODIC=periodic), before
        tiles, groups = -(-L // BP), len(p.blocks)
        kernels.forward[(n * tiles * groups,)](
            x, hb, m, bias.contiguous(), out, p.blocks, V, H, W, *before, O, L, m.shape[1], Q, filters,
            p.blocks.shape[1], groups, **ctx.rule[0],
            tiles=tiles, VN=p.VN[0], RAGGED=V % p.VN[0] > 0, N=p.VN[0] * p.Qn, BP=BP, BO=p.BO,
            num_warps=8 if BP * p.BO > 16384 else 4, num_stages=3)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        (x, hb, m, reads), p, (n, O, *size), (rule, before) = ctx.saved_tensors, ctx.plan, ctx.out_shape, ctx.rule
        grad, (V, H, W), Q, VN, L, k = grad.contiguous(), x.shape[1:], len(hb), p.VN[1], size[0] * size[1], rule["K"]
        sum_dtype = torch.promote_types(x.dtype, torch.float32)
        sizes = V, H, W, *before, O, L, m.shape[1], Q
        rule = rule | dict(VN=VN, RAGGED=V % VN > 0, N=VN * p.Qn)

        BP, blocks = min(128, _up(L)), len(p.chunks)
        total = n * -(-L // BP)
        splits, taps = min(total, SPLITS), x.new_empty(n * V, k * k, L)
        sums = x.new_empty(splits * blocks, p.T, p.Qn, dtype=sum_dtype)
        kernels.backward_maps[(blocks, splits)](
            x, hb, m, grad, taps, sums, p.chunks, *sizes, p.chunks.shape[1], total, -(-total // splits), **rule,
            tiles=total // n, BP=BP, BK=p.BK, num_warps=8 if BP == 128 else 4, num_stages=3)
        grad_x = torch.empty_like(x)
        kernels.gradient_of_maps[(triton.cdiv(x.numel(), 512),)](
            taps, grad_x, x.numel(), H, W, *before, *size, stride=rule["stride"], K=k, ACC=rule["ACC"],
            PERIODIC=rule["PERIODIC"], B=512)
        del taps  # nine times as large as x: gone before the sums for the matrix come
        grad_hb = sums.sum(0)[: k * k + 1, :Q].T.to(hb.dtype)

        BP = min(64, _up(L))
        total, pairs = n * -(-L // BP), len(p.pairs)
        processors = torch.cuda.get_device_properties(x.device).multi_processor_count if x.is_cuda else 2
        splits = min(total, max(1, round(2 * processors / pairs)))  # two waves of programs
        sums = x.new_empty(splits, *m.shape[::-1], dtype=sum_dtype)  # what no tap reads is neither written nor read
        kernels.backward_matrix[(pairs, splits)](
            x, hb, grad, sums, p.pairs, *sizes, len(m), total, -(-total // splits), **rule, tiles=total // n, BP=BP,
            BO=p.BO, num_warps=8 if p.BO == 256 else 4, num_stages=3)
        grad_g = x.new_empty(ctx.g_shape, dtype=ctx.dtypes[0])
        collect(sums.sum(0), reads, grad_g.view(*grad_g.shape[:2], -1), (1, p.Qn * len(m), len(m)))
        grad_bias = grad.view(n, -1, len(grad_g), L).sum((0, 1, 3), dtype=sum_dtype).to(ctx.dtypes[1])
        return grad_x, grad_hb, grad_g, grad_bias, *[None] * 5


def mixed_elu(x, hb, g, bias, table, reads, stride=1, before=(1, 1), periodic=False):
    """out[n, (o, f), u] = bias[f] + sum_{q, t} g[f, q, t] ELU(x_v * h_q (stride u) + b_q), v = reads[o, t] inside.

    x (n, V, height, width); hb (Q, k * k + 1): h_q and b_q; g (filters, Q, *support), bias (filters,); table and
    reads of `geometry`. before: rows above and columns left that the boundary adds. Returns (n, outputs, ceil(height
    / stride), ...) of the dtype of x. Differentiable once in x, hb, g and bias.
    """
    return _MixedELU.apply(x, hb, g, bias, table, reads, stride, before, periodic)
