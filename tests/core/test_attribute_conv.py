"""Each fast operator equals the literal equations in float64: forward and every gradient."""

from copy import deepcopy
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from oracle import assert_equals_reference, assert_same_with_gradients, literal, random_layer

from hcnn import AttributeConv, MultiscaleHCNN, reference
from hcnn import operators as ops
from hcnn.geometry import Geometry


@pytest.mark.parametrize("K, elu, stride, padding_mode",
                         list(product((4, 8, 16), (False, True), (1, 2), ("zeros", "periodic"))))
def test_factorised_layer_equals_reference_in_float64(K, elu, stride, padding_mode):
    layer = random_layer((K // 2, K), (7, 11), elu=elu, stride=stride, padding_mode=padding_mode)
    assert_equals_reference(layer, torch.randn(2, K // 2, K, 5, 6, dtype=torch.float64))


@pytest.mark.parametrize("elu, stride, padding, statistics",
                         list(product((False, True), (1, 2), ("symmetric", "same"), ("all", "strided"))))
def test_paddings_and_statistics_equal_reference_in_float64(elu, stride, padding, statistics):
    layer = random_layer((4, 8), (7, 11), elu=elu, stride=stride, padding=padding, statistics=statistics)
    assert_equals_reference(layer, torch.randn(2, 4, 8, 6, 6, dtype=torch.float64))


@pytest.mark.parametrize("n, support, stride, before", [(8, 7, 2, 2), (16, 11, 2, 4), (32, 3, 2, 0), (32, 3, 1, 1)])
def test_tensorflow_padding_starts_where_tensorflow_does(n, support, stride, before):
    reads = ops.tap_reads((n,), (support,), Geometry(stride, "zeros", "same"))
    assert (reads[0] < 0).sum() == before


@pytest.mark.parametrize("elu", (False, True))
def test_a_mean_of_a_thousand_deviations_does_not_hurt_float64(elu):
    assert_equals_reference(random_layer(elu=elu), torch.randn(2, 4, 8, 6, 6, dtype=torch.float64) + 1000)


def test_variances_survive_a_large_mean_in_float32():
    x = torch.randn(64, 16, 16) + 10
    smooth = F.avg_pool2d(x, 3, 1, 1)  # weak directions of C
    h = torch.randn(8, 3, 3)
    mean, var = ops.filter_statistics(h, *ops.patch_moments(smooth)[:2])
    z = F.conv2d(smooth.double()[:, None], h.double()[:, None], padding=1)
    assert torch.allclose(var.double(), z.var((0, 2, 3), unbiased=False), rtol=1e-4)
    assert torch.allclose(mean.double(), z.mean((0, 2, 3)), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("support, stride, padding_mode, padding", [
    (3, 1, "zeros", "symmetric"), (3, 2, "zeros", "same"), (5, 1, "periodic", "symmetric"),
    (1, 2, "zeros", "symmetric")])
def test_patch_moments_are_the_moments_of_unfolded_patches(support, stride, padding_mode, padding):
    geometry = Geometry(stride, padding_mode, padding)
    x = (torch.randn(4, 6, 8, dtype=torch.float64) + 3).requires_grad_()
    p = F.unfold(ops.pad_space(x[:, None], support, geometry), support, stride=stride).transpose(1, 2).flatten(0, 1)
    mu, C, n = ops.patch_moments(x, support, geometry)
    assert n == len(p) == 4 * -(-6 // stride) * -(-8 // stride)
    expected = torch.cat([p.mean(0), torch.cov(p.T, correction=0).flatten()])
    assert_same_with_gradients(torch.cat([mu, C.flatten()]), expected, [x])


@pytest.mark.parametrize("padding_mode", ("zeros", "periodic"))
def test_gradcheck_of_the_custom_functions(padding_mode):
    table, reads = (f((2, 4), (3, 5), Geometry(2, padding_mode)) for f in (ops.tap_table, ops.tap_reads))
    w = torch.randn(15, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda w: ops.spread_taps(w, table, reads), w)
    x = torch.randn(2, 4, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: ops.patch_moments(x, 3, Geometry(1, padding_mode))[:2], x)


@pytest.mark.parametrize("K, padding_mode", list(product((4, 8, 16), ("zeros", "periodic"))))
def test_filter_longer_than_its_axis_has_the_right_gradients(K, padding_mode):
    """j = 2: the case in which F.conv3d of some releases of torch returns garbage on the CPU (K = 8)."""
    layer = AttributeConv((K,), 4, (11,), Q=None, padding_mode=padding_mode, bias=False)
    x = torch.randn(2, K, 6, 6)
    oracle = layer.w.detach().double().requires_grad_()
    direction = torch.randn(layer(x).shape)
    (grad,) = torch.autograd.grad((layer(x) * direction).sum(), layer.w)
    z = reference.attribute_layer(x.double(), oracle, padding_mode=padding_mode)
    (expected,) = torch.autograd.grad((z * direction.double()).sum(), oracle)
    assert (grad - expected).norm() <= 1e-5 * expected.norm()


@pytest.mark.parametrize("elu", (False, True))
def test_literal_implementation_equals_the_equations(elu):
    """The denominator of the speed-ups computes the same function."""
    layer = random_layer(elu=elu, stride=2)
    x = torch.randn(2, 4, 8, 6, 6, dtype=torch.float64)
    z = reference.literal_attribute_conv(x, layer.h, layer.g, layer.scale, layer.shift, layer.bias, 2, elu)
    assert torch.allclose(z, literal(layer, x), atol=1e-12)


def test_hcnn_is_the_convolution_with_the_factorised_filter_of_equation_8():
    """Without normalisation (scale sigma, shift m) the layer is equation (4) with w of equation (8)."""
    layer = random_layer(padding_mode="periodic")
    x = torch.randn(2, 4, 8, 6, 6, dtype=torch.float64)
    mean, var = ops.filter_statistics(layer.h, *ops.patch_moments(x.flatten(0, 2), 3, Geometry(1, "periodic"))[:2])
    with torch.no_grad():
        layer.scale.copy_(torch.sqrt(var + layer.eps)), layer.shift.copy_(mean)
    z = reference.attribute_layer(x, reference.factorised_filter(layer.h, layer.g), padding_mode="periodic")
    assert torch.allclose(layer(x), z + layer.bias.view(-1, 1, 1), atol=1e-10)


def test_running_statistics_are_those_of_batch_norm():
    layer, norm = random_layer(), torch.nn.BatchNorm2d(4).double()
    for _ in range(3):
        x = torch.randn(2, 4, 8, 6, 6, dtype=torch.float64) * 2 + 1
        layer(x), norm(F.conv2d(x.view(-1, 1, 6, 6), layer.h[:, None], padding=1))
    for name in ("running_mean", "running_var"):
        assert torch.allclose(getattr(layer, name), getattr(norm, name))


@pytest.mark.parametrize("elu", (False, True))
def test_evaluation_uses_the_running_statistics(elu):
    layer, x = random_layer(elu=elu), torch.randn(2, 4, 8, 6, 6, dtype=torch.float64)
    layer(x), layer.eval()
    z = F.conv2d(x.view(-1, 1, 6, 6), layer.h[:, None], padding=1)
    z = F.batch_norm(z, layer.running_mean, layer.running_var, layer.scale, layer.shift, eps=layer.eps)
    z = (F.elu(z) if elu else z).view(2, 4, 8, 4, 6, 6).permute(0, 4, 5, 3, 1, 2).reshape(-1, 4, 4, 8)
    z = F.conv2d(z, layer.g, layer.bias, stride=2, padding=(1, 2)).view(2, 6, 6, 3, 2, 4).permute(0, 4, 5, 3, 1, 2)
    assert torch.allclose(layer(x), z, atol=1e-12)


def test_evaluation_folds_once_and_forgets_when_anything_changes(monkeypatch):
    layer, x = random_layer().eval(), torch.randn(1, 4, 8, 4, 4, dtype=torch.float64)
    state, built, build = deepcopy(layer.state_dict()), [], AttributeConv._build
    monkeypatch.setattr(AttributeConv, "_build", lambda *arguments: built.append(1) or build(*arguments))
    with torch.no_grad():
        first = layer(x)
        assert torch.equal(layer(x), first) and len(built) == 1
        layer.g.mul_(2)
        assert not torch.allclose(layer(x), first) and len(built) == 2
        layer.load_state_dict(state)
        assert torch.allclose(layer(x), first) and len(built) == 3
        layer.train()(x)
        assert len(built) == 4 and layer._cache is None
    layer.eval()(x).sum().backward()
    assert layer.g.grad is not None, "gradients of the parameters exist in evaluation too"


def test_attribute_conv_works_inside_an_ordinary_sequential():
    """Another task: 10 x 12 single-channel fields, 6 x 9 attributes, regression."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(
        torch.nn.Conv2d(1, 54, 5, padding=2), torch.nn.Unflatten(1, (6, 9)), torch.nn.ELU(),
        AttributeConv((6, 9), 7, support=(3, 5), Q=4, stride=2), torch.nn.ELU(),
        AttributeConv((5, 7), 2, support=(5, 3), Q=9, elu=True, padding_mode="periodic"), torch.nn.ELU(),
        torch.nn.Flatten(), torch.nn.LazyLinear(1))
    x = torch.randn(16, 1, 10, 12)
    y = x.square().mean((1, 2, 3))[:, None]
    net(x)
    optimiser = torch.optim.Adam(net.parameters(), 1e-2)
    losses = []
    for _ in range(30):
        optimiser.zero_grad()
        loss = F.mse_loss(net(x), y)
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]
    assert net[:4](x).shape == (16, 3, 5, 7, 5, 6), "(batch, a1', a0', filters, height', width')"


def test_attribute_conv_averages_one_more_attribute():
    layer, x = random_layer(), torch.randn(2, 3, 4, 8, 5, 5, dtype=torch.float64)
    assert torch.allclose(layer(x), layer(x.mean(1)))


@pytest.mark.parametrize("arguments, x, words", [
    (((4, 8), 5, (6, 11)), None, "^support must be positive odd"), (((4,), 5), None, "one size an attribute"),
    (((4, 8), 0), None, "^filters must be an integer of at least 1"), ((8, 5), None, "^grid must be positive integers"),
    (((4, 8), 5), (2, 8, 4, 5, 5), r"\(batch >= 1, 4, 8, height, width\)"),
    (((4, 8), 5), (2, 4, 8, 5), "input must be"), (((4, 8), 5), (0, 4, 8, 5, 5), "input must be"),
    (((4, 8), 5), (2, 0, 4, 8, 5, 5), "input must be"),
])
def test_wrong_shapes_are_refused_with_the_right_ones(arguments, x, words):
    with pytest.raises(ValueError, match=words):
        AttributeConv(*arguments)(torch.zeros(x))


@pytest.mark.parametrize("name", ("reduction", "padding", "statistics", "initialisation", "padding_mode"))
def test_words_that_mean_nothing_are_refused(name):
    with pytest.raises(ValueError, match=f"^{name} must be one of .*, got 'max'$"):
        AttributeConv((4, 8), 5, **{name: "max"})


@pytest.mark.parametrize("changes", [
    dict(filters=16.0), dict(Q=2.5), dict(Q=0), dict(support=(7, 11.0)), dict(spatial_support=(3, 3)), dict(eps=-1),
    dict(momentum=5), dict(attribute_stride=0), dict(stride=1.5), dict(elu=1), dict(bias=None), dict(Q=None, elu=True)])
def test_values_that_would_give_another_error_or_nan_or_nothing_are_refused_by_name(changes):
    with pytest.raises(ValueError, match=f"^{list(changes)[-1]} must be .*, got "):
        AttributeConv(**dict(grid=(4, 8), filters=5) | changes)


def test_bfloat16_stays_within_its_rounding():
    """Relative error of one layer: products of two rounded factors, 2^-8 each, averaged over many terms."""
    layer, x = random_layer().float(), torch.randn(4, 4, 8, 8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        z = layer(x)
    exact = layer(x)
    assert z.dtype == torch.bfloat16 and (z.float() - exact).norm() <= 2**-7 * exact.norm()


def test_multiscale_network_keeps_every_attribute_and_grows_exponentially():
    net = MultiscaleHCNN(K=4, J=6, num_classes=3)
    x = torch.randn(2, 3, 6, 6)
    assert net(x).shape == (2, 3)
    sizes = [operator.w.numel() for operator in net.operators]
    assert sizes == [4 * 3 * 9, 4 * 27, 4 * 81, 4 * 243, 3 * 729]
    assert net.operators[3].grid == (1, 2, 4)
    z, w = torch.randn(2, 1, 2, 4, 5, 5, dtype=torch.float64), net.operators[3].double().w
    assert torch.allclose(net.operators[3](z), reference.attribute_layer(z, w), atol=1e-12)
