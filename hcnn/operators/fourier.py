"""W_j on a CPU: the convolution along the last attribute in the Fourier domain, where a translation is a factor.

Output o of an axis reads input r o + d through the tap at d, r being the stride. As a circular convolution of N values,
N = n where the axis is periodic, else enough of them that zeros keep its two ends apart, it has the transform

    y(o) = 1/N sum_{p < N/r} e^{2 pi i p r o/N} sum_{m < r} w^(p + m N/r) x^(p + m N/r),
    x^(k) = sum_i x(i) e^{-2 pi i k i/N},    w^(k) = sum_d w(d) e^{2 pi i k d/N}:

the subsampling makes r frequencies meet in one. The conjugates among them follow, a complex product is made of three
real ones, (a + ib)(c + id) = ac - bd + i(ad + bc) with c (a + b), a (d - c) and b (c + d), and so

    y = V sum_m (M_m x) (W_m w)

with G products of r inputs for real matrices M, W and V: exact for any w. For the paper's 16 values, support 11 and
stride 2, G = 16 with zeros and 11 with periodic boundaries: 32 and 22 multiplications for the 8 outputs instead of 128.
The other attributes, the filters and space ride along: HCNN is one convolution with G groups, HCNN(+) a product of
matrices with G (`tiled`). See Winograd, *Arithmetic
Complexity of Computations* (1980), for the bilinear algorithms of which this is one.
"""

from functools import cache
from math import pi, prod

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

from hcnn.operators.convolution import boundary, product_dtype
from hcnn.operators.folding import HALVING, spread_taps, tap_reads, tap_table

TILE_BYTES = 2**21  # of what the groups write: images are taken together while the caches hold it


@cache
def products(n, support, geometry=HALVING):
    """M (G, r, n), W (G, r, support) and V (outputs, G) of an axis of n, float64, so that y = V sum_m (M_m x) (W_m w).

    Raises ValueError for an axis whose periods the stride does not divide.
    """
    r, outputs, reads = geometry.stride, geometry.outputs(n), geometry.reads(n, support)
    d = torch.arange(support) - geometry.before(n, support)
    if geometry.padding_mode == "periodic":
        if n % r:
            raise ValueError(f"a periodic axis must have a multiple of its stride {r} values, got {n}")
        N, live = n, torch.ones(support, dtype=torch.bool)
    else:
        live = torch.tensor([any(row[t] >= 0 for row in reads) for t in range(support)])
        low, high = int(d[live].min()), int(d[live].max())
        N = -(-max(n - low, r * (outputs - 1) + high + 1) // r) * r
    M, W, V, half = [], [], [], N // r
    for p in range(half // 2 + 1):
        k = p + half * torch.arange(r)
        x, w = _waves(-k, torch.arange(n), N), _waves(k, d, N) * live
        back = _waves(torch.tensor([p]), r * torch.arange(outputs), N)[0] / N
        if 2 * p % half:
            M += [x.real + x.imag, x.real, x.imag]
            W += [w.real, w.imag - w.real, w.real + w.imag]
            V += [2 * (back.real - back.imag), -2 * back.imag, -2 * back.real]
        else:  # these r frequencies are their own conjugates, alone or in pairs
            alone, pair = 2 * k % N == 0, k < N - k
            pair &= ~alone
            M.append(torch.cat([x.real[alone], x.real[pair], x.imag[pair]]))
            W.append(torch.cat([w.real[alone], 2 * w.real[pair], -2 * w.imag[pair]]))
            V.append(back.real)
    return torch.stack(M), torch.stack(W), torch.stack(V, 1)


def _waves(k, places, N):
    """e^{2 pi i k place / N}, (frequencies, places) complex128."""
    return torch.exp(2j * pi / N * (k[:, None] * places % N).double())


def saving(grid, support, geometry):
    """How many times fewer products the last attribute needs than as a matrix; 0 where there is no such transform."""
    n = grid[-1]
    if geometry.padding_mode == "periodic" and n % geometry.stride:
        return 0
    M = products(n, support[-1], geometry)[0]
    return n * geometry.outputs(n) / prod(M.shape[:2])


def transformed_kernel(w, grid, support, geometry):
    """The kernel of the grouped convolution, or HCNN(+)'s product, of filters w, see `folding.attribute_matrix`.

    Returns (G * outer outputs * filters, r * outer inputs, ...), outer: of all attributes but the last.
    """
    outer = grid[:-1], support[:-1], geometry
    table, reads = (f(*outer).to(w.device) for f in (tap_table, tap_reads))
    W = products(grid[-1], support[-1], geometry)[1].to(w)
    w = torch.einsum("grs,ts...->tgr...", W, w.unflatten(0, (-1, support[-1])))
    w = spread_taps(w, table, reads)  # (outputs, inputs, G, r, filters, ...)
    return w.movedim((2, 0, 4, 3, 1), (0, 1, 2, 3, 4)).flatten(3, 4).flatten(0, 2)


def _along(matrix, x, out):
    """out[i, a] = matrix x[i, a] for every image i and outer attribute a; their rows need not be neighbours."""
    for image, into in zip(x, out):
        for rows, result in zip(image, into):  # not as a batch: with two threads that takes twice as long
            torch.mm(matrix, rows, out=result)
    return out


def _spread(x, M, dtype):
    """M along the last attribute of x (n, A, B, height, width), as channels: (n, G * r * A, height, width)."""
    out = M.new_empty(len(x), len(M), x.shape[1], x.shape[3] * x.shape[4])
    _along(M, x.to(M.dtype).flatten(3), out.transpose(1, 2))
    return out.view(len(x), -1, *x.shape[3:]).to(dtype)


class _GroupedProduct(torch.autograd.Function):
    """x (batch, A, B, height, width), kernel (G * A' * filters, r * A, k, k), bias (A', B', filters), M (G * r, B),
    V (B', G) -> (batch, A', B', filters, height', width').

    The factors of the convolution have `dtype`. What its groups read is made again for the gradient.
    """

    @staticmethod
    def forward(ctx, x, kernel, bias, M, V, dtype, stride, padding):
        ctx.save_for_backward(x, kernel, M, V)
        ctx.rule, factor, (B, G), parts = (dtype, stride, padding), kernel.to(dtype), V.shape, []
        for images in x.split(_together(x, kernel, stride)):
            y = F.conv2d(_spread(images, M, dtype), factor, stride=stride, padding=padding, groups=G).to(V.dtype)
            size, y = y.shape[2:], y.view(len(y), G, len(bias), -1)
            part = _along(V, y.transpose(1, 2), y.new_empty(len(y), len(bias), B, y.shape[-1]))
            parts.append((part.view(len(y), *bias.shape, *size) + bias[..., None, None]).to(dtype))
        return torch.cat(parts)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        (x, kernel, M, V), (dtype, stride, padding), parts = ctx.saved_tensors, ctx.rule, []
        G, grad_kernel, factor, n = V.shape[1], torch.zeros_like(kernel), kernel.to(dtype), _together(x, kernel, stride)
        for images, dy in zip(x.split(n), grad.split(n)):
            dy = dy.to(V.dtype).flatten(3)
            back = dy.new_empty(len(dy), G, *dy.shape[1:2], dy.shape[-1])
            _along(V.T, dy, back.transpose(1, 2))
            dx, dk, _ = torch.ops.aten.convolution_backward(
                back.view(len(dy), -1, *grad.shape[-2:]).to(dtype), _spread(images, M, dtype), factor, None,
                [stride] * 2, [padding] * 2, [1] * 2, False, [0] * 2, G, [True, True, False])
            grad_kernel += dk
            dx = dx.to(M.dtype).view(len(dx), len(M), x.shape[1], -1)
            parts.append(_along(M.T, dx.transpose(1, 2), dx.new_empty(images.flatten(3).shape)).view_as(images))
        return torch.cat(parts).to(x.dtype), grad_kernel, grad.sum((0, 4, 5), dtype=V.dtype), *[None] * 5


def _together(x, kernel, stride):
    """How many images are taken together."""
    return max(1, TILE_BYTES * stride**2 // (kernel.element_size() * len(kernel) * x.shape[-2] * x.shape[-1]))


def fourier_conv(layer, x, kernel, bias):
    """W_j of HCNN as above, differentiable once in x, kernel and bias; under autocast the products have its precision.

    x (batch, *grid, height, width); kernel from `transformed_kernel`; bias (outputs * filters,) or None. Returns
    (batch, outputs * filters, height', width').
    """
    dtype, size = product_dtype(x), (*layer.out_grid[-1:], layer.filters)
    M, _, V = (t.to(kernel) for t in products(layer.grid[-1], layer.support[-1], layer.along))
    bias = kernel.new_zeros(prod(layer.out_grid[:-1]), *size) if bias is None else bias.view(-1, *size)
    with torch.autocast(x.device.type, enabled=False):
        x, padding = boundary(x.reshape(len(x), -1, *x.shape[-2:]), kernel.shape[-1], layer.space)
        x = x.view(len(x), -1, layer.grid[-1], *x.shape[-2:])
        out = _GroupedProduct.apply(x, kernel, bias, M.flatten(0, 1), V, dtype, layer.space.stride, padding)
    return out.flatten(1, 3)
