"""Exact fast operators for the attribute convolution W_j, as pure functions of tensors.

Three observations make W_j fast without changing a number (tested in float64 against `reference`):

1. A convolution along a small attribute grid is a matrix whose entries are gathered from the filter by an index table
   (`tap_reads`, `tap_table`, `spread_taps`). Boundaries and subsampling only change the table.
2. The mean and variance of x * h_q are h_q . mu and h_q' C h_q, with mu and C the moments of the patches of x
   (`patch_moments`): the Q convolutions need not be computed in order to be normalised.
3. HCNN has no nonlinearity between h and g, so h, normalisation and g fold into one spatial convolution
   (`folded_operator`); HCNN(+) folds the normalisation into h (`normalised_filters`).

Shapes: x is (batch, *grid, height, width) with grid = (a1, a0) at j >= 3; h is (Q, k, k), g is (filters, Q, s, s').
"""

from functools import lru_cache
from math import prod

import torch
import torch.distributed as dist
import torch.nn.functional as F

from .architecture import pad_before


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


def pad_space(x, support, stride=1, padding_mode="zeros", padding="symmetric"):
    """x (n, channels, height, width) extended so that a valid convolution with this stride gives ceil(size / stride)."""
    pads = []
    for n in (x.shape[-1], x.shape[-2]):
        before = pad_before(n, support, stride, padding)
        pads += [before, before if padding == "symmetric" else max((-(-n // stride) - 1) * stride + support - n - before, 0)]
    return F.pad(x, pads, mode="circular" if padding_mode == "periodic" else "constant")


def spatial_conv(x, kernel, bias=None, stride=1, padding_mode="zeros", padding="symmetric"):
    """2-D cross-correlation of x (n, channels, height, width) with the network's boundary rule."""
    support = kernel.shape[-1]
    if padding_mode == "zeros" and padding == "symmetric":
        return F.conv2d(x, kernel, bias, stride=stride, padding=support // 2)
    return F.conv2d(pad_space(x, support, stride, padding_mode, padding), kernel, bias, stride=stride)


def windowed_conv(x, kernel, bias, groups, **rule):
    """`spatial_conv` of HCNN in parts that leave out structural zeros: for each group of `windows` the inputs that it reads.

    x (batch, A, B, height, width), kernel (A', B', filters, A, B, k, k), bias (A', B', filters).
    Returns (batch, A', B', filters, height', width').
    """
    parts = []
    for o, o_end, i, i_end in groups:
        part = kernel[:, o:o_end, :, :, i:i_end]
        y = spatial_conv(x[:, :, i:i_end].flatten(1, 2), part.flatten(0, 2).flatten(1, 2), bias[:, o:o_end].flatten(), **rule)
        parts.append(y.unflatten(1, part.shape[:3]))
    return torch.cat(parts, 2)


class _AllSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx, t):
        t = t.clone()
        dist.all_reduce(t)
        return t

    @staticmethod
    def backward(ctx, grad):
        return _AllSum.forward(ctx, grad)


def all_sum(t):
    """Sum of a tensor over the processes of torch.distributed (itself where there is one process), differentiable."""
    return _AllSum.apply(t) if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1 else t


class _PatchSums(torch.autograd.Function):
    """Sums of p and p p' over the k x k patches p of the padded, centred maps (n, height, width).

    The k rows that a line of patches covers, side by side, make a matrix R; sums along the diagonals of R'R are the
    sums of p p'. One matrix product, nothing k * k times as large as x. The backward pass is the transposed product.
    """

    @staticmethod
    def places(width, k, stride, device):
        """Where the entries of each patch stand in the rows of R: (k * k, patches in a row)."""
        column = torch.arange(k, device=device)[:, None] + torch.arange(0, width - k + 1, stride, device=device)
        return (torch.arange(0, k * width, width, device=device)[:, None, None] + column).flatten(0, 1)

    @staticmethod
    def forward(ctx, x, k, stride):
        R = x.unfold(1, k, stride).transpose(2, 3).reshape(-1, k * x.shape[2])  # (n * out_height, k * width)
        ctx.save_for_backward(R)
        ctx.shape, ctx.k, ctx.stride = x.shape, k, stride
        at = _PatchSums.places(x.shape[2], k, stride, x.device)
        return R.sum(0)[at].sum(1), (R.T @ R)[at[:, None], at[None]].sum(2)

    @staticmethod
    def backward(ctx, grad_p, grad_pp):
        (R,), (n, _, width), k, stride = ctx.saved_tensors, ctx.shape, ctx.k, ctx.stride
        at = _PatchSums.places(width, k, stride, R.device)
        column = R.new_zeros(R.shape[1]).index_put((at,), grad_p[:, None].expand_as(at), accumulate=True)
        pairs = (grad_pp + grad_pp.T)[:, :, None].expand(-1, -1, at.shape[1])
        product = R.new_zeros(R.shape[1], R.shape[1]).index_put((at[:, None], at[None]), pairs, accumulate=True)
        grad_R = torch.addmm(column, R, product).view(n, -1, k, width)
        grad = R.new_zeros(ctx.shape)
        for i in range(k):
            grad[:, i : i + stride * (grad_R.shape[1] - 1) + 1 : stride] += grad_R[:, :, i]
        return grad, None, None


def patch_moments(x, support=3, stride=1, padding_mode="zeros", padding="symmetric"):
    """First and second moments of the k x k patches of every attribute map.

    mu = E[p], C = E[p p'] - mu mu', p running over batch, attributes and positions (every stride-th one). The batch
    statistics of ``x * h_q`` follow as ``h_q . mu`` and ``h_q' C h_q`` (section 4.2), without computing it. The maps are
    centred first: E[p p'] - mu mu' alone would cancel in float32. Processes of torch.distributed share the moments.

    x: (n, height, width), unpadded. Returns mu (k*k,), C (k*k, k*k) and the number of patches (a 0-d tensor).
    """
    with torch.autocast(x.device.type, enabled=False):
        x = x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
        padded = pad_space(x[:, None], support, stride, padding_mode, padding)[:, 0]
        with torch.no_grad():
            total = all_sum(torch.stack([padded.sum(), padded.new_full((), padded.numel())]))
            centre = total[0] / total[1].clamp(min=1)
        p, pp = _PatchSums.apply(padded - centre, support, stride)
        patches = len(x) * prod(-(-n // stride) for n in x.shape[1:])
        sums = all_sum(torch.cat([p, pp.flatten(), p.new_full((1,), patches)]))
        n = sums[-1].detach()
        mu, E = sums[: len(p)] / n, sums[len(p) : -1].view_as(pp) / n
        return mu + centre, E - mu[:, None] * mu, n


def filter_statistics(h, mu, C):
    """Mean m_q = h_q . mu and variance sigma_q^2 = h_q' C h_q of x * h_q: two tensors (Q,)."""
    h = h.flatten(1)
    return h @ mu, ((h @ C) * h).sum(1).clamp(min=0)


def normalised_filters(h, mean, var, scale, shift, eps):
    """h and a bias such that x * h + bias = scale (x * h_q - m_q) / sigma_q + shift: (Q, k, k) and (Q,)."""
    gain = scale * torch.rsqrt(var + eps)
    return gain[:, None, None] * h, shift - gain * mean


def folded_operator(h, b, g, bias, table, reads):
    """HCNN: h, normalisation and g as one spatial convolution from all input attributes to all outputs, equation (8).

    h, b: from `normalised_filters`. Returns kernel (outputs * filters, inputs, k, k) and bias (outputs * filters,). With
    zeros the constant b_q is seen through the taps inside the grid only, so the bias depends on the output position.
    """
    taps = g.flatten(2)  # (filters, Q, taps)
    w = torch.einsum("fqt,qp->tfp", taps, h.flatten(1))
    kernel = spread_taps(w, table, reads).transpose(1, 2)  # (outputs, filters, inputs, k * k)
    constant = torch.einsum("fqt,q,ot->of", taps, b, (reads >= 0).to(b.dtype)) + bias
    return kernel.reshape(-1, kernel.shape[2], *h.shape[1:]), constant.flatten()


def direct_operator(w, bias, table, reads):
    """The same for filters w (filters, *support, k, k) that are not factorised."""
    filters, k = len(w), w.shape[-1]
    taps = w.reshape(filters, -1, k * k).transpose(0, 1)
    kernel = spread_taps(taps, table, reads).transpose(1, 2)
    return kernel.reshape(-1, kernel.shape[2], k, k), None if bias is None else bias.repeat(table.shape[1])


def mixing_matrix(g, table, reads):
    """HCNN(+): g along the attributes as a matrix (outputs * filters, inputs * Q)."""
    matrix = spread_taps(g.flatten(2).permute(2, 0, 1), table, reads)  # (outputs, inputs, filters, Q)
    return matrix.transpose(1, 2).flatten(0, 1).flatten(1)
