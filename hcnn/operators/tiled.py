"""HCNN(+) on a CPU: ELU and matrix product tile by tile, so that what is large stays in the caches, never whole.

    y[o, u] = bias[o] + sum over v, q of matrix[o, (v, q)] z[(v, q), u],    z[(v, q), u] = ELU(h_q . p_v(u) + b_q)

with p_v(u) the patches of attribute v, u the positions of a tile, o = (attributes written, filter). z is Q times as
large as the input; neither it nor the patches of a whole minibatch are stored: the backward pass makes each tile
again.

z is transformed along the last attribute (`fourier`): M z, then G small products, then V. The last attribute is the
slowest index of v here, so that M and V are products of matrices.
"""

from math import prod

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

from hcnn.operators.convolution import pad_space, product_dtype
from hcnn.operators.fourier import products

TILE_BYTES = 2**21  # of z: what is made of it is as large again or twice, and should stay in the caches


def _tiles(batch, height, width, columns):
    """Tiles of about `columns` positions, whole images or at least a row: (first image, end, first row, end)."""
    rows = -(-height // max(1, min(height, height * width // max(1, columns))))
    step = max(1, columns // (height * width))
    return [(i, min(i + step, batch), r, min(r + rows, height))
            for i in range(0, batch, step) for r in range(0, height, rows)]


def _patches(x, tile, k, stride, width):
    """(v, k * k + 1, positions) of a tile of the padded x (batch, A, B, ...), v = (b, a); last row: 1, for b_q."""
    first, end, r0, r1 = tile
    x = x[first:end, :, :, r0 * stride :]
    A, B = x.shape[1:3]
    s = x.stride()
    shape = (B, A, k, k, end - first, r1 - r0, width)
    p = x.new_empty(B * A, k * k + 1, prod(shape[4:]))
    steps = (s[2], s[1], s[3], s[4], s[0], stride * s[3], stride * s[4])
    p[:, :-1].view(shape).copy_(x.as_strided(shape, steps, x.storage_offset()))
    p[:, -1] = 1
    return p


def _every(a, b):
    """a @ b[v] for every v; `torch.matmul` would copy b in another order and give its result in that."""
    return torch.bmm(a.expand(len(b), -1, -1), b)


def _add_product(total, a, b):
    """total += a b, added up in the precision of `total`."""
    return total.baddbmm_(a, b) if total.dtype == a.dtype else total.add_(a @ b)


class _TiledProduct(torch.autograd.Function):
    """x (batch, A, B, height, width) padded; matrix (G, A' * filters, r * A * Q); bias (B', A', filters); h (Q, k * k +
    1); M (G * r, B); V (B', G).

    Returns (batch, A', B', filters, height', width'). The factors of the products have `dtype`, V, which meets the
    smaller arrays, and sums of gradients that of the matrix.
    """

    @staticmethod
    def forward(ctx, x, matrix, bias, h, M, V, dtype, size, k, stride):
        x, factor, h = (t.to(dtype) for t in (x, matrix, h))
        ctx.save_for_backward(x, factor, h, M, V)
        ctx.rule, ctx.sums, (B_out, A_out, filters) = (size, k, stride), matrix.dtype, bias.shape
        out = x.new_empty(len(x), A_out, B_out, filters, *size)
        for tile in _tiles_of(x, h, size):
            first, end, r0, r1 = tile
            z = F.elu_(_every(h, _patches(x, tile, k, stride, size[1])))
            z = _mixed(M, z).view(len(factor), -1, z.shape[-1])
            y = _mixed(V, torch.bmm(factor, z)).view(bias.numel(), -1)
            y += bias.view(-1, 1)
            y = y.view(B_out, A_out, filters, end - first, r1 - r0, -1)
            out[first:end, ..., r0:r1, :] = y.permute(3, 1, 0, 2, 4, 5)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        (x, factor, h, M, V), (size, k, stride), (A, B) = ctx.saved_tensors, ctx.rule, ctx.saved_tensors[0].shape[1:3]
        grad_x, grad_matrix, grad_h = (torch.zeros_like(t, dtype=ctx.sums) for t in (x, factor, h))
        for tile in _tiles_of(x, h, size):
            first, end, r0, r1 = tile
            p = _patches(x, tile, k, stride, size[1])
            z = F.elu_(_every(h, p))
            dy = grad[first:end, ..., r0:r1, :].permute(2, 1, 3, 0, 4, 5).reshape(len(V), -1)
            dy = _mixed(V.T, dy).view(len(factor), -1, p.shape[-1])
            _add_product(grad_matrix, dy, _mixed(M, z).view(len(factor), -1, p.shape[-1]).mT)
            dz = _mixed(M.T, torch.bmm(factor.mT, dy)).view(z.shape)
            dz = torch.ops.aten.elu_backward(dz, 1, 1, 1, True, z)
            grad_h += torch.bmm(dz, p.transpose(1, 2)).sum(0, dtype=ctx.sums)
            dp = _every(h[:, :-1].T, dz).view(B, A, k, k, end - first, r1 - r0, -1).permute(2, 3, 4, 1, 0, 5, 6)
            for row in range(k):
                for column in range(k):
                    rows_read = slice(r0 * stride + row, (r1 - 1) * stride + row + 1, stride)
                    columns_read = slice(column, column + stride * (size[1] - 1) + 1, stride)
                    grad_x[first:end, :, :, rows_read, columns_read] += dp[row, column]
        return grad_x, grad_matrix, grad.sum((0, 4, 5), dtype=ctx.sums).transpose(0, 1), grad_h, *[None] * 6


def _tiles_of(x, h, size):
    """The tiles of which z has about TILE_BYTES."""
    return _tiles(len(x), *size, TILE_BYTES // (x.shape[1] * x.shape[2] * len(h) * x.element_size()))


def _mixed(matrix, t):
    """The matrix times t, whose slowest index it sums, in the precision of the matrix."""
    return (matrix @ t.view(matrix.shape[1], -1).to(matrix.dtype)).to(t.dtype)


def tiled(layer, x, matrix, bias, h, b):
    """W_j of HCNN(+) as above, differentiable once in every tensor. Under autocast the products have its precision.

    x (batch, *grid, height, width); matrix from `transformed_kernel`; bias (outputs * filters,); h (Q, k, k) and b (Q,)
    from `normalised_filters`. Returns (batch, outputs * filters, height', width').
    """
    n, k, B, space, dtype = len(x), h.shape[-1], layer.grid[-1], layer.space, product_dtype(x)
    M, _, V = (t.to(matrix) for t in products(B, layer.support[-1], layer.along))
    matrix = matrix.reshape(V.shape[1], -1, matrix[0].numel())
    size = tuple(map(space.outputs, x.shape[-2:]))
    with torch.autocast(x.device.type, enabled=False):
        x = pad_space(x.reshape(n, -1, *x.shape[-2:]), k, space)
        bias = bias.view(-1, len(V), layer.filters).transpose(0, 1).contiguous()
        filters_and_bias = torch.cat([h.flatten(1), b[:, None]], 1)
        out = _TiledProduct.apply(x.view(n, -1, B, *x.shape[-2:]), matrix, bias,
                                  filters_and_bias, M.flatten(0, 1).to(dtype), V, dtype, size, k, space.stride)
    return out.flatten(1, 3)
