"""The convolution along space with the network's boundary, and the precision of products."""

import torch
import torch.nn.functional as F

from hcnn.geometry import Geometry


def pad_space(x, support, geometry):
    """x (n, channels, height, width) extended so that a convolution without padding gives what `geometry` says."""
    pads = [end(n, support) for n in (x.shape[-1], x.shape[-2]) for end in (geometry.before, geometry.after)]
    return F.pad(x, pads, mode="circular" if geometry.padding_mode == "periodic" else "constant")


def boundary(x, support, geometry):
    """x, and the zeros that PyTorch's own convolution adds around it to have the network's boundary."""
    if geometry.padding_mode == "zeros" and geometry.padding == "symmetric":
        return x, support // 2
    return pad_space(x, support, geometry), 0


def spatial_conv(x, kernel, bias=None, geometry=Geometry()):  # noqa: B008  frozen
    """2-D cross-correlation of x (n, channels, height, width) with the network's boundary."""
    x, padding = boundary(x, kernel.shape[-1], geometry)
    return F.conv2d(x, kernel, bias, stride=geometry.stride, padding=padding)


def product_dtype(x):
    """That of products with x: of autocast, where it is on."""
    return torch.get_autocast_dtype(x.device.type) if torch.is_autocast_enabled(x.device.type) else x.dtype
