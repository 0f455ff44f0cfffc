"""Every way in which W_j is computed gives what the equations give, with no more memory or error than it claims."""

from itertools import product

import pytest
import torch
from oracle import assert_equals_reference, random_layer
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hcnn import HCNN, Architecture, AttributeConv
from hcnn.companion.speed import cases as speed
from hcnn.operators import tiled
from hcnn.operators.choice import choose

PATHS = [(path, elu) for elu in (False, True) for path in ("convolution", "fourier")]


@pytest.mark.parametrize("path, elu", PATHS)
@pytest.mark.parametrize("stride, padding_mode, padding", [
    (1, "zeros", "symmetric"), (2, "zeros", "symmetric"), (2, "zeros", "same"), (1, "periodic", "symmetric"),
    (2, "periodic", "symmetric")])
def test_every_path_equals_the_equations(path, elu, stride, padding_mode, padding, monkeypatch):
    monkeypatch.setattr(tiled, "TILE_BYTES", 6000)  # several tiles: rows of an image
    layer = random_layer(path=path, elu=elu, stride=stride, padding_mode=padding_mode, padding=padding)
    assert_equals_reference(layer, torch.randn(3, 4, 8, 6, 7, dtype=torch.float64))


# a row, some rows, an image, some images, everything
@pytest.mark.parametrize("tile_bytes", (1, 5_000, 9_000, 20_000, 10**9))
def test_tiles_of_any_size_give_the_same(tile_bytes, monkeypatch):
    monkeypatch.setattr(tiled, "TILE_BYTES", tile_bytes)
    assert_equals_reference(random_layer(path="fourier", elu=True), torch.randn(5, 4, 8, 3, 2, dtype=torch.float64))


def test_tiles_cover_every_position_once():
    for batch, height, width, columns in product((1, 5), (1, 6), (1, 7), (0, 1, 10, 50, 1000)):
        seen = torch.zeros(batch, height, dtype=torch.int64)
        for first, end, r0, r1 in tiled._tiles(batch, height, width, columns):
            seen[first:end, r0:r1] += 1
            assert (end - first) * (r1 - r0) * width <= max(2 * columns, width)
        assert (seen == 1).all()


@pytest.mark.parametrize("path, elu", [(path, elu) for path, elu in PATHS if path != "convolution"])
@pytest.mark.parametrize("grid, support", [((6,), (5,)), ((3, 2, 8), (3, 1, 5)), ((1, 9), (1, 1))])
def test_any_number_of_attributes_works_on_every_path(path, elu, grid, support):
    layer, x = random_layer(grid, support, elu=elu), torch.randn(2, *grid, 4, 4, dtype=torch.float64)
    layer.path = "convolution"
    expected = layer(x)
    layer.path = path
    assert torch.allclose(layer(x), expected, rtol=0, atol=1e-12)


def test_which_path_is_taken():
    x, large = torch.randn(1, 8, 16, 4, 4), dict(grid=(8, 16), filters=16)
    for options in (dict(), dict(elu=True), dict(padding_mode="periodic")):
        assert choose(AttributeConv(**large, **options), x) == "fourier"
    for elu in (False, True):
        assert choose(AttributeConv((4, 8), 8, elu=elu), x) == "convolution"  # too short for a transform to save much
    assert choose(AttributeConv((16, 7), 8, padding_mode="periodic"), x) == "convolution"  # it has none


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("variant", ["hcnn", "hcnn-plus"])
def test_the_speed_table_names_the_path_that_the_paper_s_layers_take_on_a_cpu(variant, precision):
    operators = HCNN(Architecture.preset("cifar10", variant)).operators
    layers = [layer for layer in operators if getattr(layer, "Q", None)]
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16"):
        taken = {speed.PATHS[variant][choose(layer, torch.empty(1, *layer.grid, 4, 4))] for layer in layers}
    assert len(layers) > 1 and taken == {speed.chosen("cpu", variant, precision)}


class Sizes(TorchDispatchMode):
    """The number of elements of the largest tensor that any operation makes."""

    largest = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        self.largest = max([self.largest, *(t.numel() for t in tree_leaves(out) if isinstance(t, torch.Tensor))])
        return out


def largest_tensor(path, batch):
    layer = random_layer((8, 16), (7, 11), 16, 32, path, elu=True).float()
    with Sizes() as sizes:
        layer(torch.randn(batch, 8, 16, 16, 16, requires_grad=True)).sum().backward()
    return sizes.largest


def test_tiles_never_make_a_tensor_of_the_size_of_z():
    z = 8 * 16 * 32 * 16 * 16  # Q maps for each input map, one image
    assert largest_tensor("convolution", 4) >= 4 * z
    # twice a tile of z, patches' rows of the moments, outputs (512 maps) and the kernel are the largest that remain
    assert largest_tensor("fourier", 4) <= 512 * 4096 < 4 * z
