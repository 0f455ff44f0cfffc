"""HCNN(+) on a CPU: ELU and matrix product made tile by tile, so that what is large stays in the cache and never
exists whole.

    y[o, u] = bias[o] + sum over v, q of matrix[o, (v, q)] z[(v, q), u],    z[(v, q), u] = ELU(h_q . p_v(u) + b_q)

with p_v(u) the patches of attribute v, u the positions of a tile, o = (attributes written, filter). z is Q times as
large as the input; neither it nor the patches of a whole minibatch are stored: the backward pass makes each tile
again.

Structural zeros are skipped along the last attribute (`windows`): it is the slowest index of v here, so
that a window of it is contiguous. With 16 values, support 11 and zeros, 66% of the dense work is left.
"""

from functools import cache
from math import prod

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

from hcnn.operators.convolution import pad_space

TILE_BYTES = 2**22  # of z: what the caches of two cores hold
OUTPUTS, INPUTS = 2, 4  # values of the last attribute that one matrix product writes, and whose gradient one makes


@cache
def windows(n, support, geometry, width, transposed=False):
    """Groups of `width` outputs along an attribute of n, or of more where these read the same, each with the window of
    inputs that it reads: outside it all is zero.

    A list of (first output, end, first input, end); transposed: of groups of inputs with the outputs that read them.
    """
    touched = [{i for i in row if i >= 0} for row in geometry.reads(n, support)]
    if transposed:
        touched = [{o for o, row in enumerate(touched) if i in row} for i in range(n)]
    groups = []
    for first in range(0, len(touched), width):
        end = min(first + width, len(touched))
        touches = set().union(*touched[first:end])
        window = min(touches, default=0), max(touches, default=-1) + 1
        if groups and groups[-1][2:] == window:  # one product, where nothing more can be left out
            first = groups.pop()[0]
        groups.append((first, end, *window))
    return groups


def _tiles(batch, height, width, columns):
    """Tiles of about `columns` positions, at least one row: (first image, end, first row, end), whole images where
    they fit.
    """
    rows = -(-height // max(1, min(height, height * width // max(1, columns))))
    step = max(1, columns // (height * width))
    return [(i, min(i + step, batch), r, min(r + rows, height))
            for i in range(0, batch, step) for r in range(0, height, rows)]


def _patches(x, tile, k, stride, width):
    """(v, k * k + 1, positions) of one tile of the padded x (batch, A, B, height, width), v = (b, a); the last row is
    one, for b_q.
    """
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
    return total.addmm_(a, b) if total.dtype == a.dtype else total.add_(a @ b)


class _TiledProduct(torch.autograd.Function):
    """x (batch, A, B, height, width) padded; matrix (B', A', filters, B, A, Q); bias (B', A', filters); h (Q, k * k +
    1).

    Returns (batch, A', B', filters, height', width'). The factors of the products have `dtype`; gradients add up in
    that of the matrix.
    """

    @staticmethod
    def forward(ctx, x, matrix, bias, h, dtype, size, k, stride, by_output, by_input):
        x, M, h = (t.to(dtype) for t in (x, matrix, h))
        ctx.save_for_backward(x, M, h)
        ctx.rule, ctx.sums = (size, k, stride, by_output, by_input), matrix.dtype
        (B_out, A_out, filters), columns = M.shape[:3], M.shape[4] * M.shape[5]
        M, rows = M.flatten(3).flatten(0, 2), A_out * filters
        out = x.new_empty(len(x), A_out, B_out, filters, *size)
        for tile in _tiles(len(x), *size, TILE_BYTES // (M.shape[1] * dtype.itemsize)):
            first, end, r0, r1 = tile
            z = F.elu_(_every(h, _patches(x, tile, k, stride, size[1]))).flatten(0, 1)
            y = z.new_empty(len(M), z.shape[1])
            for o, o_end, i, i_end in by_output:
                part, window = slice(o * rows, o_end * rows), slice(i * columns, i_end * columns)
                torch.mm(M[part, window], z[window], out=y[part])
            y += bias.view(-1, 1)
            y = y.view(B_out, A_out, filters, end - first, r1 - r0, -1)
            out[first:end, ..., r0:r1, :] = y.permute(3, 1, 0, 2, 4, 5)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        (x, M, h), (size, k, stride, by_output, by_input) = ctx.saved_tensors, ctx.rule
        shape, (A, B) = M.shape, x.shape[1:3]
        M, rows, columns = M.flatten(3).flatten(0, 2), shape[1] * shape[2], shape[4] * shape[5]
        grad_x, grad_M, grad_h = (torch.zeros_like(t, dtype=ctx.sums) for t in (x, M, h))
        for tile in _tiles(len(x), *size, TILE_BYTES // (M.shape[1] * x.element_size())):
            first, end, r0, r1 = tile
            p = _patches(x, tile, k, stride, size[1])
            z = F.elu_(_every(h, p)).flatten(0, 1)
            dy = grad[first:end, ..., r0:r1, :].permute(2, 1, 3, 0, 4, 5).reshape(len(M), -1)
            for o, o_end, i, i_end in by_output:
                part, window = slice(o * rows, o_end * rows), slice(i * columns, i_end * columns)
                _add_product(grad_M[part, window], dy[part], z[window].T)
            dz = torch.empty_like(z)
            for i, i_end, o, o_end in by_input:
                part, window = slice(o * rows, o_end * rows), slice(i * columns, i_end * columns)
                torch.mm(M[part, window].T, dy[part], out=dz[window])
            dz = torch.ops.aten.elu_backward(dz, 1, 1, 1, True, z).view(A * B, len(h), -1)
            grad_h += torch.bmm(dz, p.transpose(1, 2)).sum(0, dtype=ctx.sums)
            dp = _every(h[:, :-1].T, dz).view(B, A, k, k, end - first, r1 - r0, -1).permute(2, 3, 4, 1, 0, 5, 6)
            for row in range(k):
                for column in range(k):
                    rows_read = slice(r0 * stride + row, (r1 - 1) * stride + row + 1, stride)
                    columns_read = slice(column, column + stride * (size[1] - 1) + 1, stride)
                    grad_x[first:end, :, :, rows_read, columns_read] += dp[row, column]
        return grad_x, grad_M.view(shape), grad.sum((0, 4, 5), dtype=ctx.sums).transpose(0, 1), grad_h, *[None] * 6


def tiled_product(x, matrix, bias, h, b, *, grid, support, filters, along, space):
    """W_j of HCNN(+) as above, differentiable once in every tensor. Under autocast the products have its precision.

    x (batch, *grid, height, width); matrix (outputs * filters, inputs * Q) from `mixing_matrix`, bias (outputs *
    filters,); h (Q, k, k) and b (Q,) from `normalised_filters`; along, space: geometries of attributes and of space.
    Returns (batch, outputs * filters, height', width').
    """
    n, k, dtype = len(x), h.shape[-1], x.dtype
    if torch.is_autocast_enabled(x.device.type):
        dtype = torch.get_autocast_dtype(x.device.type)
    A, B = prod(grid[:-1]), grid[-1]
    A_out, B_out = prod(map(along.outputs, grid[:-1])), along.outputs(B)
    last = B, support[-1], along
    by_output, by_input = windows(*last, OUTPUTS), windows(*last, INPUTS, transposed=True)
    size = tuple(map(space.outputs, x.shape[-2:]))
    with torch.autocast(x.device.type, enabled=False):
        x = pad_space(x.reshape(n, A * B, *x.shape[-2:]), k, space)
        matrix = matrix.view(A_out, B_out, filters, A, B, len(h)).permute(1, 0, 2, 4, 3, 5).contiguous()
        bias = bias.view(A_out, B_out, filters).transpose(0, 1).contiguous()
        filters_and_bias = torch.cat([h.flatten(1), b[:, None]], 1)
        out = _TiledProduct.apply(x.view(n, A, B, *x.shape[-2:]), matrix, bias, filters_and_bias, dtype, size, k,
                                  space.stride, by_output, by_input)
    return out.flatten(1, 3)
