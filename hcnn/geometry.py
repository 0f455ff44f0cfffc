"""Which input a tap reads, along attributes and space: stride, boundary and padding."""

from functools import lru_cache
from math import prod

import torch


def pad_before(n, support, stride, padding="symmetric"):
    """Samples added before the first one of an axis of n: output i reads input i * stride - pad_before ... + support - 1."""
    if padding == "symmetric":
        return support // 2
    return max((-(-n // stride) - 1) * stride + support - n, 0) // 2


@lru_cache(maxsize=None)
def tap_reads(grid, support, stride=2, padding_mode="zeros", padding="symmetric"):
    """Which input every tap of every output position reads, along an attribute grid of any number of axes.

    Output o reads input i = stride * o + t - pad at tap t, on each axis. Returns (outputs, taps) int64, both axes
    flattened slowest first; -1 where the tap falls outside (`zeros`); indices wrap around when `periodic`.
    """
    reads = torch.zeros(1, 1, dtype=torch.int64)
    for n, s in zip(grid, support):
        o, t = torch.arange(-(-n // stride))[:, None], torch.arange(s)
        i = stride * o + t - pad_before(n, s, stride, padding)
        i = i % n if padding_mode == "periodic" else i.where((i >= 0) & (i < n), -1)
        joint = reads[:, None, :, None] * n + i[None, :, None, :]
        outside = (reads[:, None, :, None] < 0) | (i[None, :, None, :] < 0)
        reads = joint.where(~outside, -1).flatten(2).flatten(0, 1)
    return reads


@lru_cache(maxsize=None)
def tap_table(grid, support, stride=2, padding_mode="zeros", padding="symmetric"):
    """The inverse of `tap_reads`: (m, outputs, inputs) int64, the taps through which an output reads an input.

    Unused places hold the number of taps. m is 1 unless `periodic` taps meet on one input, where they add up.
    """
    reads = tap_reads(grid, support, stride, padding_mode, padding)
    outputs, taps, inputs = *reads.shape, prod(grid)
    o, t = (reads >= 0).nonzero(as_tuple=True)
    pairs, order = torch.sort(o * inputs + reads[o, t], stable=True)
    _, sizes = pairs.unique_consecutive(return_counts=True)
    rank = torch.arange(len(pairs)) - (sizes.cumsum(0) - sizes).repeat_interleave(sizes)  # 0, 1, ... among equal pairs
    table = torch.full((int(sizes.max()), outputs * inputs), taps)
    table[rank, pairs] = t[order]
    return table.view(-1, outputs, inputs)


@lru_cache(maxsize=None)
def windows(size, support, stride, padding_mode, padding, width, transposed=False):
    """Groups of `width` outputs along one attribute, each with the window of inputs that it reads: outside it all is zero.

    A list of (first output, end, first input, end); transposed: of groups of inputs with the outputs that read them.
    """
    reads = tap_reads((size,), (support,), stride, padding_mode, padding)
    touch = torch.zeros(len(reads), size + 1, dtype=torch.bool).scatter_(1, reads % (size + 1), True)[:, :-1]  # -1: the last column
    touch = touch.T if transposed else touch
    groups = []
    for first in range(0, len(touch), width):
        window = touch[first : first + width].any(0).nonzero().flatten().tolist() or [0, -1]
        groups.append((first, min(first + width, len(touch)), window[0], window[-1] + 1))
    return groups
