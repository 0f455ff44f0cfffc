"""The multiply-adds of a forward pass, in closed form. Nothing here needs torch."""

from math import prod

from hcnn.geometry import pad_before


def multiply_adds(a):
    """Multiplications of one image's forward pass in the convolutions of an `Architecture`, taps on the boundary left out.

    h_g: x * h_q for every q, at all positions where its statistics are taken, then g, equation (8). w: one convolution with the
    filter w, which is all that HCNN computes once h, normalisation and g are folded; None for HCNN(+), which cannot be folded.
    Returns {"h_g": int, "w": int or None}; without factorisation the two are equal.
    """
    separable = folded = 0
    for layer in a.layers:
        taps = [_reads(a, n, s, layer.attribute_stride) for n, s in zip(layer.grid, layer.support)] or [a.in_channels]
        filters = layer.filters * prod(taps)
        w = filters * prod(_reads(a, n, layer.spatial_support, layer.stride) for n in layer.size)
        folded += w
        if layer.Q:
            stride = layer.stride if a.statistics == "strided" else 1
            h = prod(layer.grid) * prod(_reads(a, n, layer.spatial_support, stride) for n in layer.size)
            separable += layer.Q * (h + filters * prod(layer.out_size))
        else:
            separable += w
    return {"h_g": separable, "w": None if a.variant == "hcnn-plus" else folded}


def _reads(a, n, support, stride):
    """How many inputs all outputs along an axis of n read together; periodic taps that meet on one input count once."""
    outputs = -(-n // stride)
    if a.padding_mode == "periodic":
        return outputs * min(support, n)
    return taps_inside(n, outputs, support, stride, pad_before(n, support, stride, a.padding))


def taps_inside(n, outputs, support, stride, before):
    """How many (output, tap) pairs read one of n inputs rather than the zeros around them; `before` zeros stand in front."""
    return sum(0 <= o * stride + t - before < n for o in range(outputs) for t in range(support))
