"""The Fourier transform along an attribute: exact on every axis that has one, few products, as accurate as without."""

from itertools import product

import pytest
import torch
from oracle import assert_equals_reference, random_layer

from hcnn import AttributeConv
from hcnn import operators as ops
from hcnn.geometry import Geometry
from hcnn.operators import fourier

BOUNDARIES = ("zeros", "symmetric"), ("zeros", "same"), ("periodic", "symmetric")


def test_the_products_are_the_convolution_on_every_axis():
    for n, support, stride, boundary in product((1, 2, 6, 7, 12, 16), (1, 3, 11), (1, 2, 3), BOUNDARIES):
        geometry, (x, w) = Geometry(stride, *boundary), (torch.randn(k, dtype=torch.float64) for k in (n, support))
        if boundary[0] == "periodic" and n % stride:
            with pytest.raises(ValueError, match=f"a multiple of its stride {stride} values, got {n}"):
                ops.products(n, support, geometry)
            continue
        M, W, V = ops.products(n, support, geometry)
        y = V @ ((M @ x) * (W @ w)).sum(1)
        expected = torch.stack([sum((w[t] * x[i] for t, i in enumerate(row) if i >= 0), x.new_zeros(()))
                                for row in geometry.reads(n, support)])
        assert (y - expected).abs().max() < 1e-12, (n, support, geometry)


@pytest.mark.parametrize("padding_mode, groups", [("zeros", 16), ("periodic", 11)])
def test_the_paper_s_axis_takes_as_few_products_as_is_said(padding_mode, groups):
    geometry = Geometry(2, padding_mode)
    assert ops.products(16, 11, geometry)[0].shape == (groups, 2, 16)
    assert fourier.saving((8, 16), (7, 11), geometry) == 16 * 8 / (2 * groups)


@pytest.mark.parametrize("tile_bytes", (1, 10**9))
def test_images_taken_together_or_one_by_one_give_the_same(tile_bytes, monkeypatch):
    monkeypatch.setattr(fourier, "TILE_BYTES", tile_bytes)
    layer = random_layer(path="fourier", attribute_stride=1, padding_mode="periodic")
    assert_equals_reference(layer, torch.randn(3, 4, 8, 3, 4, dtype=torch.float64))


@pytest.mark.parametrize("padding_mode", ("zeros", "periodic"))
@pytest.mark.parametrize("dtype, unit", [(torch.float32, 2.0**-24), (torch.bfloat16, 2.0**-8)])
def test_output_and_gradients_err_little_more_than_the_convolution_itself(padding_mode, dtype, unit):
    x, found = torch.randn(4, 8, 16, 6, 6, requires_grad=True), {}
    layer = AttributeConv((8, 16), 16, (7, 11), 8, padding_mode=padding_mode).eval()
    direction = torch.randn(4, 4, 8, 16, 6, 6)
    for path in ("fourier", "convolution", "exact"):
        layer, inputs = (layer.double(), x.double()) if path == "exact" else (layer, x)
        layer.path = "convolution" if path == "exact" else path
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16 and path != "exact"):
            y = layer(inputs)
        found[path] = y, *torch.autograd.grad((y * direction).sum(), (inputs, layer.h, layer.g))
    assert found["fourier"][0].dtype == dtype
    for ours, plain, exact in zip(*(found[path] for path in ("fourier", "convolution", "exact"))):
        errors = [((t - exact).norm() / exact.norm()).item() for t in (ours, plain)]
        assert errors[0] < 2 * errors[1] + unit
