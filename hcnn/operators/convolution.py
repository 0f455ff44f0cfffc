"""The convolution along space with the network's boundary."""

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
