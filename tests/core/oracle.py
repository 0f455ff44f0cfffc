"""What several tests compare with: the literal equations, outputs together with every gradient."""

import torch

from hcnn import AttributeConv, reference


def randomised(module):
    """The module in float64, with other scales, shifts and biases than those it begins with."""
    for name, p in module.double().named_parameters():
        if name.rpartition(".")[2] in ("scale", "shift", "bias"):
            p.data.add_(torch.randn_like(p))
    return module


def random_layer(grid=(4, 8), support=(3, 5), filters=3, Q=4, path=None, **options):
    """A small AttributeConv that is computed on `path`, one of `operators.choice.PATHS`."""
    layer = randomised(AttributeConv(grid, filters, support, Q, **options))
    layer.path = path
    return layer


def literal(layer, x):
    return reference.factorised_layer(
        x, layer.h, layer.g, layer.scale, layer.shift, layer.bias, layer.space.stride, layer.along.stride,
        layer.space.padding_mode, layer.space.padding, layer.elu, layer.statistics, layer.eps)


def assert_same_with_gradients(found, expected, inputs):
    """They agree, and so do the gradients of a random functional of them with respect to the inputs."""
    assert found.shape == expected.shape
    direction = torch.randn_like(expected)
    gradients = [torch.autograd.grad((y * direction).sum(), inputs) for y in (found, expected)]
    for u, v in zip((found, *gradients[0]), (expected, *gradients[1])):
        assert (u - v).abs().max() <= 1e-10 * max(1, v.abs().max())


def assert_equals_reference(layer, x):
    x.requires_grad_()
    assert_same_with_gradients(layer(x), literal(layer, x), [x, *layer.parameters()])
