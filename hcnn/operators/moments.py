"""The statistics of x * h_q without Q convolutions: m_q = h_q . mu and sigma_q^2 = h_q' C h_q, section 4.2.

mu and C are the first and second moments of the patches of x: 9 and 45 numbers.
"""

from functools import cache
from math import gcd, prod

import torch
import torch.distributed as dist
import torch.nn.functional as F

from hcnn.device import world
from hcnn.geometry import Geometry
from hcnn.operators.convolution import pad_space

CHANNELS = 64  # at most, of the depthwise convolution that maps are dealt to


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
    """Sums of y and of p p' over the k x k patches p of the maps y (n, height, width): (height, width), (k * k, k * k).

    Were there patches everywhere, also around those maps, the sum of p_a p_b would be the autocorrelation of y at
    b - a: sums along the diagonals of k products of rows with rows, whose gradient is a convolution of each map with
    one (2 k - 1) x (2 k - 1) kernel. Periodic maps have no around; from those with zeros the patches around are taken
    away, which see nothing of y but strips of k // 2 rows or columns.
    """

    @staticmethod
    def forward(ctx, y, k, periodic):
        ctx.save_for_backward(y)
        ctx.rule = k, periodic
        (_, height, width), far = y.shape, k - 1
        rows, lags, mode = y.view(-1, width), [], "circular" if periodic else "constant"
        for dy in range(k):
            product = rows[: len(rows) - dy].T @ rows[dy:]
            for i in range(dy):  # rows that met those of the next map
                last = y[:, height - dy + i].T
                product -= last[:, :-1] @ y[1:, i]
                product += last @ y[:, i] if periodic else 0
            product = F.pad(product[None], (far, far), mode=mode)[0]
            lags.append(product.as_strided((width, 2 * far + 1), (product.stride(0) + 1, 1)).sum(0))
        half = torch.stack(lags)  # at (dy, dx - far); the other half is the same, turned round
        pp = torch.cat([half[1:].flip(0, 1), half])[tuple(_lags(k, y.device))]
        for part, at in [] if periodic else _around(k, height, width, y.device):
            z = y[part].flatten(1)
            pp -= F.pad(z.T @ z, (0, 1, 0, 1))[at[:, None], at[None]].sum(2)
        return y.sum(0), pp

    @staticmethod
    def backward(ctx, grad_sum, grad_pp):
        (y,), (k, periodic) = ctx.saved_tensors, ctx.rule
        n, height, width = y.shape
        pairs = grad_pp + grad_pp.T
        kernel = pairs.new_zeros(2 * k - 1, 2 * k - 1)
        kernel.index_put_(tuple(_lags(k, y.device)), pairs, accumulate=True)
        channels = gcd(n, CHANNELS)
        maps = y.view(-1, channels, height, width)
        if periodic:
            maps = F.pad(maps, (k - 1,) * 4, mode="circular")
        grad = F.conv2d(maps, kernel.expand(channels, 1, -1, -1).contiguous(), padding=0 if periodic else k - 1,
                        groups=channels).view(y.shape)
        grad += grad_sum
        for part, at in [] if periodic else _around(k, height, width, y.device):
            z = y[part]
            size = z[0].numel()
            square = pairs.new_zeros(size + 1, size + 1)
            square.index_put_((at[:, None], at[None]), pairs[:, :, None].expand(-1, -1, at.shape[1]), accumulate=True)
            grad[part] -= (z.flatten(1) @ square[:-1, :-1]).view(z.shape)
        return grad, None, None


@cache
def _lags(k, device):
    """(2, k * k, k * k): from entry a of a patch to entry b, in rows and columns, counted from -(k - 1)."""
    entries = torch.cartesian_prod(*[torch.arange(k, device=device)] * 2)
    return (entries[None] - entries[:, None] + k - 1).permute(2, 0, 1).contiguous()


@cache
def _around(k, height, width, device):
    """The patches that are not centred on a map but see it: [(strip of the map that they see, at)].

    at (k * k, patches): where entry a of each patch stands in the strip, its size where it stands outside the map.
    """
    r, found = k // 2, []
    first, last, every = slice(0, r), slice(-r, None), slice(None)
    strips = [(first, every, (2, 2, 2, 0)), (last, every, (2, 2, 0, 2)),
              (every, first, (2, 0, 1, 1)), (every, last, (0, 2, 1, 1))]  # and how many times r stands around each
    for rows, columns, around in strips if r else []:
        shape = len(range(height)[rows]), len(range(width)[columns])
        places = torch.arange(prod(shape), dtype=torch.float32, device=device).view(1, 1, *shape)
        at = F.unfold(F.pad(places, [r * n for n in around], value=prod(shape)), k)[0]
        found.append(((every, rows, columns), at.long()))
    return found


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
        n, height, width = x.shape
        with torch.no_grad():  # y = x - c on the maps and 0 around them: a patch of x is one of y and c times one of 1
            some = x[:, height // 2]
            total = all_sum(torch.stack([some.sum(), some.new_full((), some.numel())]))
            c = total[0] / total[1].clamp(min=1)
        y, one = x - c, x.new_ones(1, height, width)
        if geometry.stride == 1 and min(height, width) >= support - 1:
            sums, pp = _PatchSums.apply(y.contiguous(), support, geometry.padding_mode == "periodic")
        else:
            sums, p = y.sum(0), _patches(y, support, geometry)
            pp = (p @ p.mT).sum(0)
        p, o = _patches(sums[None], support, geometry)[0], _patches(one, support, geometry)[0]
        sums = all_sum(torch.cat([torch.cat([p.sum(1, keepdim=True), p @ o.T, pp], 1).flatten(),
                                  p.new_full((1,), n * p.shape[1])]))
        patches = sums[-1].detach()
        mean, with_one, square = (sums[:-1] / patches).view(len(p), -1).split([1, len(p), len(p)], 1)
        m = o.mean(1, keepdim=True)
        mixed = with_one - mean * m.T
        C = square - mean * mean.T + c * (mixed + mixed.T) + c**2 * (o @ o.T / o.shape[1] - m * m.T)
        return (mean + c * m)[:, 0], C, patches


def _patches(x, support, geometry):
    """(n, k * k, positions) of the maps x (n, height, width)."""
    return F.unfold(pad_space(x[:, None], support, geometry), support, stride=geometry.stride)


def filter_statistics(h, mu, C):
    """Mean m_q = h_q . mu and variance sigma_q^2 = h_q' C h_q of x * h_q: two tensors (Q,)."""
    h = h.flatten(1)
    return h @ mu, ((h @ C) * h).sum(1).clamp(min=0)
