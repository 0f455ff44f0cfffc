"""The spatial convolution with the network's boundary rule, whole or in windows that leave out structural zeros."""

import torch
import torch.nn.functional as F

from hcnn.geometry import pad_before


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
