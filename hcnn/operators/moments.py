"""The statistics of x * h_q without Q convolutions: m_q = h_q . mu and sigma_q^2 = h_q' C h_q, section 4.2.

mu and C are the first and second moments of the patches of x: 9 and 45 numbers.
"""

from math import prod

import torch
import torch.distributed as dist

from hcnn.device import world
from hcnn.geometry import Geometry
from hcnn.operators.convolution import pad_space


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
    return _AllSum.apply(t) if world() > 1 else t


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


def patch_moments(x, support=3, geometry=Geometry()):  # noqa: B008  frozen
    """First and second moments of the k x k patches of every attribute map.

    mu = E[p], C = E[p p'] - mu mu', p running over batch, attributes and positions (every stride-th one). The batch
    statistics of ``x * h_q`` follow as ``h_q . mu`` and ``h_q' C h_q`` (section 4.2), without computing it. The maps
    are centred first: E[p p'] - mu mu' alone would cancel in float32. Processes of torch.distributed share the
    moments.

    x: (n, height, width), unpadded. Returns mu (k*k,), C (k*k, k*k) and the number of patches (a 0-d tensor).
    """
    with torch.autocast(x.device.type, enabled=False):
        x = x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
        padded = pad_space(x[:, None], support, geometry)[:, 0]
        with torch.no_grad():
            total = all_sum(torch.stack([padded.sum(), padded.new_full((), padded.numel())]))
            centre = total[0] / total[1].clamp(min=1)
        p, pp = _PatchSums.apply(padded - centre, support, geometry.stride)
        patches = len(x) * prod(map(geometry.outputs, x.shape[1:]))
        sums = all_sum(torch.cat([p, pp.flatten(), p.new_full((1,), patches)]))
        n = sums[-1].detach()
        mu, E = sums[: len(p)] / n, sums[len(p) : -1].view_as(pp) / n
        return mu + centre, E - mu[:, None] * mu, n


def filter_statistics(h, mu, C):
    """Mean m_q = h_q . mu and variance sigma_q^2 = h_q' C h_q of x * h_q: two tensors (Q,)."""
    h = h.flatten(1)
    return h @ mu, ((h @ C) * h).sum(1).clamp(min=0)
