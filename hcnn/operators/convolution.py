"""The convolution along space with the network's boundary, whole or in windows that leave out structural zeros."""

from functools import cache
from itertools import product

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

from hcnn.geometry import Geometry


def pad_space(x, support, geometry):
    """x (n, channels, height, width) extended so that a convolution without padding gives what `geometry` says."""
    pads = [end(n, support) for n in (x.shape[-1], x.shape[-2]) for end in (geometry.before, geometry.after)]
    return F.pad(x, pads, mode="circular" if geometry.padding_mode == "periodic" else "constant")


def spatial_conv(x, kernel, bias=None, geometry=Geometry()):  # noqa: B008  frozen
    """2-D cross-correlation of x (n, channels, height, width) with the network's boundary."""
    support = kernel.shape[-1]
    if x.device.type == "cpu":  # where oneDNN would copy the maps into such an order, and the result back
        x, kernel = (t.contiguous(memory_format=torch.channels_last) for t in (x, kernel))
    if geometry.padding_mode == "zeros" and geometry.padding == "symmetric":
        return F.conv2d(x, kernel, bias, stride=geometry.stride, padding=support // 2)
    return F.conv2d(pad_space(x, support, geometry), kernel, bias, stride=geometry.stride)


@cache
def windows(n, support, geometry, width, transposed=False):
    """Groups of `width` outputs along an attribute of n, each with the window of inputs that it reads: outside it all
    is zero.

    A list of (first output, end, first input, end); transposed: of groups of inputs with the outputs that read them.
    """
    touched = [{i for i in row if i >= 0} for row in geometry.reads(n, support)]
    if transposed:
        touched = [{o for o, row in enumerate(touched) if i in row} for i in range(n)]
    groups = []
    for first in range(0, len(touched), width):
        end = min(first + width, len(touched))
        window = set().union(*touched[first:end])
        groups.append((first, end, min(window, default=0), max(window, default=-1) + 1))
    return groups


@cache
def blocks(grid, support, along, width=2):
    """The outputs of an attribute grid in blocks of `width` along each axis, with the block of inputs that each reads.

    A list of (output slices, input slices), one slice an axis.
    """
    axes = [windows(n, s, along, width) for n, s in zip(grid, support)]
    return [(tuple(slice(o, o_end) for o, o_end, _, _ in block), tuple(slice(i, i_end) for _, _, i, i_end in block))
            for block in product(*axes)]


class _BlockConv(torch.autograd.Function):
    """Convolutions of `blocks`, written into and read from one array each: autograd's own slices would cost a pass over
    the whole for each block. Channels come last in memory.
    """

    @staticmethod
    def parts(x, kernel, layout):
        """For each block: where its outputs and inputs stand, its inputs, and its part of the kernel."""
        blocks, grid, out_grid = layout
        x, kernel = x.unflatten(-1, grid), kernel.unflatten(0, (*out_grid, -1)).unflatten(-1, grid)
        for outputs, inputs in blocks:
            o, i = (*outputs, slice(None)), (..., *inputs)
            part = kernel[(*o, *i)].flatten(0, len(grid)).flatten(3)
            yield o, i, x[i].flatten(3).permute(0, 3, 1, 2), part.permute(0, 3, 1, 2)

    @staticmethod
    def forward(ctx, x, kernel, bias, layout, options):
        ctx.save_for_backward(x, kernel)
        ctx.layout, ctx.options = layout, options
        out, bias = None, bias.unflatten(0, (*layout[2], -1))
        for o, _, maps, part in _BlockConv.parts(x, kernel, layout):
            y = F.conv2d(maps, part, bias[o].flatten(), *options).permute(0, 2, 3, 1)
            out = y.new_empty(*y.shape[:3], *bias.shape) if out is None else out
            out[(..., *o)] = y.unflatten(3, bias[o].shape)
        return out.flatten(3)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        (x, kernel), (_, grid, out_grid), (stride, padding) = ctx.saved_tensors, ctx.layout, ctx.options
        split = grad.unflatten(3, (*out_grid, -1))
        grad_bias = grad.new_zeros(split.shape[3:])
        grad_x = torch.zeros_like(x, dtype=torch.promote_types(x.dtype, torch.float32))  # where blocks are added up
        grad_kernel = torch.zeros_like(kernel)
        wide, taps = grad_x.unflatten(-1, grid), grad_kernel.unflatten(0, (*out_grid, -1)).unflatten(-1, grid)
        for o, i, maps, part in _BlockConv.parts(x, kernel, ctx.layout):
            y = split[(..., *o)].flatten(3).permute(0, 3, 1, 2)
            dx, dw, db = torch.ops.aten.convolution_backward(
                y, maps, part, [len(part)], [stride] * 2, [padding] * 2, [1, 1], False, [0, 0], 1, [True] * 3)
            wide[i] += dx.permute(0, 2, 3, 1).view_as(wide[i])
            taps[(*o, *i)] = dw.permute(0, 2, 3, 1).reshape(taps[(*o, *i)].shape)
            grad_bias[o] = db.view_as(grad_bias[o])
        return grad_x, grad_kernel, grad_bias.flatten(), None, None


def windowed_conv(x, kernel, bias, grid, support, along, space):
    """`spatial_conv` of HCNN in parts that leave out structural zeros: for each of `blocks` the inputs that it reads.

    x (batch, inputs, height, width), kernel (outputs * filters, inputs, k, k), bias (outputs * filters,).
    Returns (batch, outputs * filters, height', width').
    """
    options = space.stride, kernel.shape[-1] // 2
    if space.padding_mode != "zeros" or space.padding != "symmetric":
        x, options = pad_space(x, kernel.shape[-1], space), (space.stride, 0)
    if torch.is_autocast_enabled(x.device.type):
        x, kernel, bias = (t.to(torch.get_autocast_dtype(x.device.type)) for t in (x, kernel, bias))
    layout = blocks(grid, support, along), grid, tuple(map(along.outputs, grid))
    x, kernel = x.permute(0, 2, 3, 1).contiguous(), kernel.permute(0, 2, 3, 1).contiguous()
    return _BlockConv.apply(x, kernel, bias, layout, options).permute(0, 3, 1, 2)
