"""W_j as one matrix, gathered from the filters along attributes, with normalisation and h folded in, equation (8)."""

from functools import cache
from math import prod

import torch

from hcnn.geometry import Geometry

HALVING = Geometry(stride=2)  # along attributes, as the paper has it


@cache
def tap_reads(grid, support, geometry=HALVING):
    """Which input every tap of every output position reads, along an attribute grid of any number of axes.

    Returns (outputs, taps) int64, both axes flattened slowest first; -1 where the tap falls outside, see
    `Geometry.reads`.
    """
    reads = torch.zeros(1, 1, dtype=torch.int64)
    for n, s in zip(grid, support):
        i = torch.tensor(geometry.reads(n, s))
        joint = reads[:, None, :, None] * n + i[None, :, None, :]
        outside = (reads[:, None, :, None] < 0) | (i[None, :, None, :] < 0)
        reads = joint.where(~outside, -1).flatten(2).flatten(0, 1)
    return reads


@cache
def tap_table(grid, support, geometry=HALVING):
    """The inverse of `tap_reads`: (m, outputs, inputs) int64, the taps through which an output reads an input.

    Unused places hold the number of taps. m is 1 unless `periodic` taps meet on one input, where they add up.
    """
    reads = tap_reads(grid, support, geometry)
    outputs, taps, inputs = *reads.shape, prod(grid)
    o, t = (reads >= 0).nonzero(as_tuple=True)
    pairs, order = torch.sort(o * inputs + reads[o, t], stable=True)
    _, sizes = pairs.unique_consecutive(return_counts=True)
    rank = torch.arange(len(pairs)) - (sizes.cumsum(0) - sizes).repeat_interleave(sizes)  # 0, 1, ... among equal pairs
    table = torch.full((int(sizes.max()), outputs * inputs), taps)
    table[rank, pairs] = t[order]
    return table.view(-1, outputs, inputs)


class _SpreadTaps(torch.autograd.Function):
    """Its adjoint is a gather as well, because each output reads one input through each tap: no atomics, any device."""

    @staticmethod
    def forward(ctx, w, table, reads):
        ctx.save_for_backward(reads)
        ctx.inputs = table.shape[2]
        padded = torch.cat([w, w.new_zeros(1, *w.shape[1:])])
        matrix = padded[table[0]]
        for extra in table[1:]:
            matrix = matrix + padded[extra]
        return matrix

    @staticmethod
    def backward(ctx, grad):
        (reads,) = ctx.saved_tensors  # (outputs, taps)
        rows = reads.clamp(min=0) + ctx.inputs * torch.arange(len(reads), device=reads.device)[:, None]
        inside = (reads >= 0).view(*reads.shape, *[1] * (grad.dim() - 2))
        return (grad.flatten(0, 1)[rows] * inside).sum(0), None, None


def spread_taps(w, table, reads):
    """The matrix of a convolution along attributes: w (taps, ...) -> (outputs, inputs, ...), linear in w."""
    return _SpreadTaps.apply(w, table, reads)


def normalised_filters(h, mean, var, scale, shift, eps):
    """h and a bias such that x * h + bias = scale (x * h_q - m_q) / sigma_q + shift: (Q, k, k) and (Q,)."""
    gain = scale * torch.rsqrt(var + eps)
    return gain[:, None, None] * h, shift - gain * mean


def folded_taps(h, b, g, bias, reads):
    """HCNN: h, normalisation and g as filters w, equation (8): (taps, filters, k, k), and a bias (outputs * filters,).

    h, b: from `normalised_filters`. With zeros the constant b_q is seen through the taps inside the grid only, so the
    bias depends on the output position.
    """
    taps = g.flatten(2)  # (filters, Q, taps)
    w = torch.einsum("fqt,qp->tfp", taps, h.flatten(1)).unflatten(2, h.shape[1:])
    constant = torch.einsum("fqt,q,ot->of", taps, b, (reads >= 0).to(b.dtype)) + bias
    return w, constant.flatten()


def attribute_matrix(w, table, reads):
    """Filters w (taps, filters, ...) along the attributes as a matrix: (outputs * filters, inputs, ...).

    With HCNN's w (taps, filters, k, k) it is the kernel of one spatial convolution; HCNN(+)'s g is (taps, filters, Q).
    """
    return spread_taps(w, table, reads).transpose(1, 2).flatten(0, 1)


def folded_operator(h, b, g, bias, table, reads):
    """HCNN: kernel and bias of the one spatial convolution that is W_j, by `folded_taps` and `attribute_matrix`."""
    w, bias = folded_taps(h, b, g, bias, reads)
    return attribute_matrix(w, table, reads), bias
