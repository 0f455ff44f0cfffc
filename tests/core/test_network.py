"""The whole network: shapes, the reference, covariance, invariance, parameter counts."""

from itertools import product

import pytest
import torch
import torch.nn.functional as F
from oracle import assert_same_with_gradients, randomised

from hcnn import HCNN, Architecture, reference

TINY = dict(K=4, Q=3, J=6, attribute_support=(3, 5), image_size=(8, 8), subsampled=(4,), num_classes=3)


@pytest.mark.parametrize("variant, padding_mode, changes", [
    *product(("hcnn", "hcnn-plus"), ("zeros", "periodic"), ({}, dict(K=8))),
    ("hcnn", "zeros", dict(reduction="sum", last_elu=False)),
    ("hcnn", "zeros", dict(factorised=False, output_norm=True)),
    ("hcnn-plus", "zeros", dict(image_size=(7, 9), subsampled=(1, 2, 3))),
    ("hcnn-plus", "zeros",
     dict(padding="same", subsampled=(3, 4), statistics="strided", output_norm=True, head="linear")),
])
def test_network_equals_reference_with_every_gradient_in_float64(variant, padding_mode, changes):
    a = Architecture(**(TINY | dict(variant=variant, padding_mode=padding_mode) | changes))
    net, x = randomised(HCNN(a)), torch.randn(3, *a.shape(0), dtype=torch.float64, requires_grad=True)
    expected = reference.forward(a, dict(net.named_parameters()), x)
    assert_same_with_gradients(net(x), expected, [x, *net.parameters()])


@pytest.mark.parametrize("dataset, variant, filters", [
    ("cifar10", "hcnn", 97_650), ("cifar10", "hcnn-plus", 344_640), ("cifar100", "hcnn", 250_308),
    ("cifar100", "hcnn-plus", 887_424)])
def test_counts_of_the_paper_from_the_modules_themselves(dataset, variant, filters):
    a = Architecture.preset(dataset, variant)
    net = HCNN(a)
    trained_filters = sum(p.numel() for p in net.filter_parameters())
    from_modules = trained_filters
    if variant == "hcnn":  # w of equation (8): one spatial filter for each pair of taps along the attributes
        from_modules = sum(o.w.numel() if hasattr(o, "w") else reference.factorised_filter(o.h, o.g).numel()
                           for o in net.operators)
    count = a.count()
    assert from_modules == count["filters"] == filters
    assert trained_filters == count["trained_filters"]
    assert sum(p.numel() for p in net.parameters()) == count["trained"]


def test_released_code_has_360522_trainable_parameters():
    a = Architecture.preset("cifar10", "hcnn-plus", "released")
    assert sum(p.numel() for p in HCNN(a).parameters()) == a.count()["trained"] == 360_522
    count = a.count()
    assert (count["trained_filters"], count["normalisation"], count["head"]) == (359_424, 928, 170)


@pytest.mark.parametrize("preset, variant", [("paper", "hcnn"), ("paper", "hcnn-plus"), ("released", "hcnn-plus")])
def test_every_layer_has_the_shape_of_figure_2(preset, variant):
    a = Architecture.preset("cifar10", variant, preset, Q=2)
    net, depths = HCNN(a).eval(), range(1, 13)
    with torch.no_grad():
        layers = net.activations(torch.randn(1, 3, 32, 32), depths)
    assert all(tuple(layers[j].shape[1:]) == a.shape(j) for j in depths)
    if preset == "paper":
        assert a.shape(1) == (16, 32, 32) and a.shape(2) == (8, 16, 32, 32) and a.shape(3) == (4, 8, 16, 32, 32)
        assert a.shape(5) == (4, 8, 16, 16, 16) and a.shape(9) == (4, 8, 16, 8, 8) and a.shape(11) == (4, 8, 10, 8, 8)


def rest(net, j, x_j):
    """The class scores that the layers after j make of x_j."""
    for k in range(j + 1, net.architecture.J + 1):
        x_j = net.layer(x_j, k)
    return x_j


@pytest.mark.parametrize("variant, j", list(product(("hcnn", "hcnn-plus"), (3, 6, 9, 10, 11))))
def test_last_layer_is_invariant_to_exactly_the_shifts_of_proposition_3_1(variant, j):
    a = Architecture(variant=variant, K=16, Q=2, J=12, padding_mode="periodic", image_size=(16, 16))
    net, x = randomised(HCNN(a)), torch.randn(2, 3, 16, 16, dtype=torch.float64)
    with torch.no_grad():
        net(x), net.eval()
        x_j = net.activations(x, [j])[j]
        scores = rest(net, j, x_j)
        for dim, axis in ((1, 0), (2, 1), (3, 2), (4, 3), (5, 3)):  # v_{j-2}, v_{j-1}, v_j, u_1, u_2
            step = a.exact_translation(j, axis)
            whole, half = ((rest(net, j, x_j.roll(n, dim)) - scores).abs().max() for n in (step or 0, (step or 2) // 2))
            assert whole <= 1e-12 * scores.abs().max().clamp(min=1)
            assert (step is None) == (j == a.J - 1 and dim == 3), "v_j at j = J - 1 is the class"
            assert step == 1 or half > 1e-9, "smaller shifts do change the scores"


def test_zeros_break_the_proposition():
    a = Architecture(**(TINY | dict(K=8, J=7)))
    net = randomised(HCNN(a)).eval()
    with torch.no_grad():
        x_3 = net.activations(torch.randn(1, 3, 8, 8, dtype=torch.float64), [3])[3]
        scores, along_v1, along_v2 = (rest(net, 3, x) for x in (x_3, x_3.roll(1, 1), x_3.roll(2, 2)))
    assert torch.allclose(scores, along_v1, atol=1e-12), "v_{j-2} is averaged before any boundary"
    assert (scores - along_v2).abs().max() > 1e-6


def test_initial_filters_have_the_stated_variances():
    net = HCNN(Architecture(), torch.Generator().manual_seed(1))
    conv = net.operators[5]
    assert conv.h.var().item() == pytest.approx(1 / 9, rel=0.3)
    assert conv.g.var().item() == pytest.approx(2 / (32 * 77), rel=0.05)
    assert net.operators[0].w.var().item() == pytest.approx(2 / 27, rel=0.25)


def test_weight_decay_is_for_filters_alone():
    net = HCNN(Architecture(**TINY))
    decayed = {id(p) for p in net.filter_parameters()}
    names = {name.rsplit(".", 1)[1] for name, p in net.named_parameters() if id(p) in decayed}
    others = {name.rsplit(".", 1)[1] for name, p in net.named_parameters() if id(p) not in decayed}
    assert names == {"w", "h", "g"} and others == {"scale", "shift", "bias"}


def test_wrong_images_and_depths_are_refused():
    net = HCNN(Architecture(**TINY))
    for shape in ((1, 1, 8, 8), (0, 3, 8, 8), (3, 8, 8)):
        with pytest.raises(ValueError, match=r"\(batch >= 1, 3, height, width\)"):
            net(torch.zeros(shape))
    with pytest.raises(ValueError, match="between 1 and J = 6"):
        net.activations(torch.zeros(1, 3, 8, 8), [7])


def test_images_may_have_any_size_that_the_boundary_allows():
    for padding_mode in ("zeros", "periodic"):
        a = Architecture(**(TINY | dict(padding_mode=padding_mode)))
        net, x = randomised(HCNN(a)), torch.randn(2, 3, 5, 12, dtype=torch.float64)
        other = reference.forward(a.replace(image_size=(5, 12)), dict(net.named_parameters()), x)
        assert torch.allclose(net(x), other, rtol=0, atol=1e-10)


def test_one_image_is_a_batch():
    net = HCNN(Architecture(**TINY))
    F.cross_entropy(net(torch.randn(1, 3, 8, 8)), torch.tensor([1])).backward()
    assert all(torch.isfinite(p.grad).all() for p in net.parameters())


def gradient_nodes(out):
    """The names of all nodes of the graph behind a tensor."""
    found, todo = {}, [out.grad_fn]
    while todo:
        node = todo.pop()
        if node is not None and node not in found:
            found[node] = node.name()
            todo += [following for following, _ in node.next_functions]
    return set(found.values())


@pytest.mark.parametrize("variant", ["hcnn", "hcnn-plus"])
def test_no_gradient_is_copied_for_a_nonlinearity_in_place(variant):
    """ELU in place on a view would copy the largest arrays: 54 launches and 2.2 GB a step of the paper's network."""
    network = HCNN(Architecture(K=4, Q=2, J=5, variant=variant, subsampled=(), image_size=(4, 4)))
    names = gradient_nodes(network(torch.randn(2, 3, 4, 4)))
    assert any("Elu" in name for name in names)
    assert not [name for name in names if "CopySlices" in name or "AsStrided" in name]
