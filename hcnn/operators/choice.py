"""Which operator computes W_j here, and all of them under one signature.

Each takes the layer, an `AttributeConv`, whose shapes it reads; x (batch, *grid, height, width); and what the layer
has built: kernel and bias of HCNN, or matrix, bias, h and b of HCNN(+); `fused` builds its own. It returns (batch,
outputs * filters, height', width').
"""

import torch.nn.functional as F

from hcnn.operators.convolution import product_dtype, spatial_conv
from hcnn.operators.fourier import fourier_conv, saving
from hcnn.operators.fused import fused, why_not
from hcnn.operators.tiled import tiled

SAVING = 3.5  # times fewer products from which a Fourier transform is worth its passes over memory


def convolution(layer, x, matrix, bias, h=None, b=None):
    """By PyTorch's convolutions; z = ELU(x * h + b) of HCNN(+) lies in memory."""
    if h is None:
        return spatial_conv(x.flatten(1, -3), matrix, bias, layer.space)
    z = F.elu(spatial_conv(x.reshape(-1, 1, *x.shape[-2:]), h[:, None], b, layer.space), inplace=True)
    return F.conv2d(z.view(len(x), -1, *z.shape[-2:]), matrix.flatten(1)[..., None, None], bias)


def fourier(layer, x, kernel, bias, h=None, b=None):
    """On a CPU, transformed along the last attribute; HCNN(+) tile by tile."""
    return fourier_conv(layer, x, kernel, bias) if h is None else tiled(layer, x, kernel, bias, h, b)


PATHS = {path.__name__: path for path in (convolution, fourier, fused)}


def choose(layer, x):
    """The name of the path in PATHS that is taken for this input: the fastest that is exact here."""
    if x.device.type != "cpu":
        useful = layer.Q is not None and (layer.elu or layer.training)  # HCNN has nothing to make when it evaluates
        fusible = useful and why_not(layer, x.device, product_dtype(x), tuple(x.shape[-2:]), len(x)) is None
        return "fused" if fusible else "convolution"
    if layer.Q is None:
        return "convolution"
    return "fourier" if saving(layer.grid, layer.support, layer.along) >= SAVING else "convolution"
