"""The convolution along space with the network's boundary, whole or in windows that leave out structural zeros."""

from functools import cache

import torch
import torch.nn.functional as F

from hcnn.geometry import Geometry


def pad_space(x, support, geometry):
    """x (n, channels, height, width) extended so that a convolution without padding gives what `geometry` says."""
    pads = [end(n, support) for n in (x.shape[-1], x.shape[-2]) for end in (geometry.before, geometry.after)]
    return F.pad(x, pads, mode="circular" if geometry.padding_mode == "periodic" else "constant")


def spatial_conv(x, kernel, bias=None, geometry=Geometry()):  # noqa: B008  frozen
    """2-D cross-correlation of x (n, channels, height, width) with the network's boundary."""
    support = kernel.shape[-1]
    if geometry.padding_mode == "zeros" and geometry.padding == "symmetric":
        return F.conv2d(x, kernel, bias, stride=geometry.stride, padding=support // 2)
    return F.conv2d(pad_space(x, support, geometry), kernel, bias, stride=geometry.stride)


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


def windowed_conv(x, kernel, bias, groups, geometry):
    """`spatial_conv` of HCNN in parts that leave out structural zeros: for each group of `windows` the inputs that it
    reads.

    x (batch, A, B, height, width), kernel (A', B', filters, A, B, k, k), bias (A', B', filters).
    Returns (batch, A', B', filters, height', width').
    """
    parts = []
    for o, o_end, i, i_end in groups:
        part = kernel[:, o:o_end, :, :, i:i_end]
        y = spatial_conv(x[:, :, i:i_end].flatten(1, 2), part.flatten(0, 2).flatten(1, 2), bias[:, o:o_end].flatten(),
                         geometry)
        parts.append(y.unflatten(1, part.shape[:3]))
    return torch.cat(parts, 2)
