"""The statistics of x * h_q without Q convolutions: m_q = h_q . mu and sigma_q^2 = h_q' C h_q, section 4.2.

mu and C are the first and second moments of the patches of x: 9 and 45 numbers.
"""

from functools import cache
from itertools import product
from math import prod

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

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



LAGS = [(d1, d2) for d1 in range(3) for d2 in range(-2, 3) if (d1, d2) >= (0, 0)]  # of pairs in a 3 x 3 patch
CHUNK = 2**19  # numbers of some images, which stay in the cache while the products at all lags are summed


@cache
def _assembly():
    """(81, 29): sums of p p' over all patches from those at 13 lags, at lags 0, 1, 2 along the 4 edges, and of the
    squares of the 4 corners. No patch is centred outside of the image, though one there would reach its edge.
    """
    matrix = torch.zeros(3, 3, 3, 3, 29, dtype=torch.float64)
    for a1, a2, b1, b2 in product(range(3), repeat=4):
        row, (d1, d2) = matrix[a1, a2, b1, b2], max((b1 - a1, b2 - a2), (a1 - b1, a2 - b2))
        row[LAGS.index((d1, d2))] = 1
        if a1 == b1 != 1:
            row[13 + 4 * abs(d2) + (a1 == 0)] = -1
        if a2 == b2 != 1:
            row[15 + 4 * d1 + (a2 == 0)] = -1
        if a1 == b1 != 1 and a2 == b2 != 1:
            row[25 + 2 * (a2 == 0) + (a1 == 0)] = 1
    return matrix.view(81, 29)


@cache
def _inside(height, width):
    """(81, height * width): whether a position is place a of a patch of the image whose place b is inside as well."""
    one = F.unfold(torch.ones(1, 1, height, width, dtype=torch.float64), 3, padding=1).view(9, height, width)
    both = F.pad(one[:, None] * one, (1, 1, 1, 1)).view(3, 3, 9, height + 2, width + 2)  # by the patch's centre
    return torch.cat([both[a1, a2, :, 2 - a1 : 2 - a1 + height, 2 - a2 : 2 - a2 + width]
                      for a1, a2 in product(range(3), repeat=2)]).flatten(1)


class _Moments(torch.autograd.Function):
    """mu and C of the 3 x 3 patches of x (n, channels, height, width) with zeros around it, without any patch.

    With zeros between them, rows and images meet only zeros in products at a lag: 13 dot products of one long vector
    give E[p p'] but for the edges. The maps are centred by c; what the border, -c then, adds is known. The backward
    pass is a convolution with the 5 x 5 weights of the lags.
    """

    @staticmethod
    def forward(ctx, x):
        dtype, (n, channels, H, W) = torch.promote_types(x.dtype, torch.float32), x.shape
        ctx.channels_last = x.is_contiguous(memory_format=torch.channels_last)
        x = x.permute(0, 2, 3, 1).contiguous()
        level = x.sum((0, 3), dtype=dtype).double()
        total, N = all_sum(torch.stack([level.sum(), level.new_tensor(x.numel())])).tolist()
        c, inside, edges = total / N, _inside(H, W), x.new_zeros(4, max(H, W), n, channels, dtype=dtype)
        for edge, line in zip(edges, (x[:, 0], x[:, -1], x[:, :, 0], x[:, :, -1])):
            torch.sub(line.transpose(0, 1), c, out=edge[: line.shape[1]])
        edges = edges.flatten(2)
        products = torch.bmm(edges, edges.transpose(1, 2))
        beside = [products.diagonal(d, 1, 2).sum(1) for d in range(3)]
        sums = torch.cat([*beside, products[:2, 0, 0], products[:2, W - 1, W - 1]]).double()
        sums = torch.cat([_lag_sums(x, c, dtype), sums, inside @ (level.flatten() - c * n * channels)])
        sums = all_sum(sums) / N
        cross, both = sums[29:].view(9, 9), inside.sum(1).view(9, 9) / (H * W)
        mean, part = cross.diagonal(), both.diagonal()
        border = cross - torch.outer(mean, part)
        C = (_assembly() @ sums[:29]).view(9, 9) - torch.outer(mean, mean)
        C += c * (border + border.T) + c**2 * (both - torch.outer(part, part))
        mu = mean + c * part
        ctx.save_for_backward(x, edges, mu)
        ctx.c, ctx.N = c, N
        n = mu.new_tensor(N, dtype=dtype)
        ctx.mark_non_differentiable(n)
        return mu.to(dtype), C.to(dtype), n

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_mu, grad_C, _):
        x, edges, mu = ctx.saved_tensors
        (n, H, W, channels), dtype = x.shape, edges.dtype
        grad_mu, grad_C = all_sum(torch.cat([grad_mu, grad_C.flatten()]).double() / ctx.N).split([9, 81])
        pairs = grad_C.view(9, 9) + grad_C.view(9, 9).T
        level = _inside(H, W).T @ (ctx.c * pairs + torch.diag(grad_mu - pairs @ mu)).flatten()
        lags, beside, corners = (_assembly().T @ grad_C).to(dtype).split([13, 12, 4])
        y = x.to(dtype).sub(ctx.c).permute(0, 3, 1, 2)
        kernel = F.pad(lags, (12, 0))
        kernel = (kernel + kernel.flip(0)).view(1, 1, 5, 5).expand(channels, 1, 5, 5)
        grad = F.conv2d(y, kernel.contiguous(memory_format=torch.channels_last), padding=2, groups=channels)
        grad += level.view(H, W).to(dtype)
        products = edges.new_zeros(4, edges.shape[1], edges.shape[1])
        for d in range(3):
            products.diagonal(d, 1, 2).add_(beside[4 * d : 4 * d + 4, None])
        products[:2, 0, 0] += corners[:2]
        products[:2, W - 1, W - 1] += corners[2:]
        grad_edges = torch.bmm(products + products.transpose(1, 2), edges).view(4, -1, n, channels)
        grad, lines = grad.permute(0, 2, 3, 1), grad_edges.transpose(1, 2)
        for line, edge in zip((grad[:, 0], grad[:, -1], grad[:, :, 0], grad[:, :, -1]), lines):
            line += edge[:, : line.shape[1]]
        grad = grad.permute(0, 3, 1, 2)
        return grad if ctx.channels_last else grad.contiguous()


def _lag_sums(x, c, dtype):
    """Sums of (x(u) - c)(x(u + d) - c) over all u and channels for the 13 lags d; x (n, height, width, channels)."""
    n, H, W, channels = x.shape
    step = min(n, -(-CHUNK // (channels * (H + 2) * (W + 2))))
    size, found = step * (H + 2) * (W + 2) * channels, 0
    flat = torch.zeros(size + (2 * (W + 2) + 2) * channels, dtype=dtype)
    maps = flat[:size].view(step, H + 2, W + 2, channels)
    for part in x.split(step):
        torch.sub(part, c, out=maps[: len(part), :H, :W])
        maps[len(part) :] = 0
        shifts = [(d1 * (W + 2) + d2) * channels for d1, d2 in LAGS]
        found = found + torch.stack([torch.dot(flat[:size], flat[d : d + size]) for d in shifts]).double()
    return found


def patch_moments(x, support=3, geometry=Geometry()):  # noqa: B008  frozen
    """First and second moments of the k x k patches of every attribute map.

    mu = E[p], C = E[p p'] - mu mu', p running over batch, attributes and positions (every stride-th one). The batch
    statistics of ``x * h_q`` follow as ``h_q . mu`` and ``h_q' C h_q`` (section 4.2), without computing it. The maps
    are centred first: E[p p'] - mu mu' alone would cancel in float32. Processes of torch.distributed share the
    moments.

    x: (batch, attributes, height, width), unpadded. Returns mu (k*k,), C (k*k, k*k) and the number of patches (a 0-d
    tensor).
    """
    with torch.autocast(x.device.type, enabled=False):
        if x.device.type == "cpu" and support == 3 and geometry == Geometry():
            return _Moments.apply(x)
        x = x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
        padded = pad_space(x.flatten(0, 1)[:, None], support, geometry)[:, 0]
        with torch.no_grad():
            total = all_sum(torch.stack([padded.sum(), padded.new_full((), padded.numel())]))
            centre = total[0] / total[1].clamp(min=1)
        p, pp = _PatchSums.apply(padded - centre, support, geometry.stride)
        patches = x.shape[:2].numel() * prod(map(geometry.outputs, x.shape[2:]))
        sums = all_sum(torch.cat([p, pp.flatten(), p.new_full((1,), patches)]))
        n = sums[-1].detach()
        mu, E = sums[: len(p)] / n, sums[len(p) : -1].view_as(pp) / n
        return mu + centre, E - mu[:, None] * mu, n


def filter_statistics(h, mu, C):
    """Mean m_q = h_q . mu and variance sigma_q^2 = h_q' C h_q of x * h_q: two tensors (Q,)."""
    h = h.flatten(1)
    return h @ mu, ((h @ C) * h).sum(1).clamp(min=0)
