"""Architectures: every valid one runs with the stated shapes and counts, every invalid one is refused by name."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hcnn import HCNN, Architecture, counts
from hcnn.architecture import CONVENTIONS
from hcnn.geometry import Geometry


@st.composite
def architectures(draw):
    J = draw(st.integers(4, 7))
    variant = draw(st.sampled_from(("hcnn", "hcnn-plus")))
    padding_mode = draw(st.sampled_from(("zeros", "periodic")))
    odd = st.sampled_from((1, 3, 5))
    factorised = variant == "hcnn-plus" or draw(st.booleans())
    return Architecture(
        variant=variant, K=draw(st.sampled_from((4, 8, 12))), Q=draw(st.integers(1, 10)), J=J,
        padding_mode=padding_mode,
        attribute_support=(draw(odd), draw(st.sampled_from((1, 3, 11)))), num_classes=draw(st.integers(2, 5)),
        image_size=(draw(st.integers(4, 9)), draw(st.integers(4, 9))), in_channels=draw(st.integers(1, 3)),
        subsampled=tuple(sorted(draw(st.sets(st.integers(1, J - 1), max_size=2)))),
        spatial_support=draw(st.sampled_from((1, 3))),
        first_support=draw(odd), factorised=factorised, output_norm=draw(st.booleans()),
        head=draw(st.sampled_from(("classes", "linear"))),
        padding="symmetric" if padding_mode == "periodic" else draw(st.sampled_from(("symmetric", "same"))),
        statistics=draw(st.sampled_from(("all", "strided"))) if factorised else "all",
        reduction=draw(st.sampled_from(("mean", "sum"))), last_elu=draw(st.booleans()))


def check(a):
    net = HCNN(a)
    x = torch.randn(2, *a.shape(0))
    layers = net.activations(x, range(1, a.J + 1))
    assert all(tuple(x_j.shape[1:]) == a.shape(j) for j, x_j in layers.items())
    layers[a.J].square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())
    count = a.count()
    assert sum(p.numel() for p in net.parameters()) == count["trained"]
    head = a.K * a.num_classes if a.head == "linear" else 0
    assert sum(p.numel() for p in net.filter_parameters()) == count["trained_filters"] + head
    assert Architecture(**a.as_dict()) == a


@given(architectures())
@settings(max_examples=25)
def test_valid_architectures_build_run_and_match_their_counts(a):
    check(a)


@pytest.mark.full
@given(architectures())
@settings(max_examples=1000)
def test_a_thousand_valid_architectures_build_run_and_match_their_counts(a):
    check(a)


INVALID = [
    ("K", 10, "a positive multiple of 4, got 10"), ("K", 0, "multiple of 4"), ("K", 8.0, "multiple of 4"),
    ("Q", 0, "at least 1, got 0"),
    ("J", 3, "at least 4, got 3"), ("variant", "x", "one of hcnn, hcnn-plus, got 'x'"),
    ("attribute_support", (7, 10), "odd"),
    ("attribute_support", (7,), "two"), ("num_classes", 1, "at least 2"), ("image_size", (0, 32), "positive integers"),
    ("image_size", 32, "two"),
    ("subsampled", (12,), "between 1 and J - 1 = 11"), ("subsampled", (9, 5), "increasing"),
    ("padding_mode", "reflect", "zeros, periodic"),
    ("spatial_support", 2, "odd"), ("first_support", 0, "odd"), ("padding", "valid", "symmetric, same"),
    ("statistics", "some", "all, strided"),
    ("head", "none", "classes, linear"), ("reduction", "max", "mean, sum"),
    ("initialisation", "zero", "he, normal-0.05"),
    ("in_channels", 0, "at least 1"), ("last_elu", "yes", "true or false"), ("norm_eps", 0.0, "between 0 and 1"),
    ("norm_momentum", 2.0, "between 0 and 1"),
]


@pytest.mark.parametrize("name, value, words", INVALID)
def test_invalid_values_are_refused_with_name_value_and_what_is_allowed(name, value, words):
    with pytest.raises(ValueError, match=words) as error:
        Architecture(**{name: value})
    assert str(error.value).startswith(name) and repr(value) in str(error.value)


@pytest.mark.parametrize("arguments, words", [
    (dict(dataset="mnist"), "cifar10, cifar100, digits"), (dict(preset="mine"), "paper, released"),
    (dict(variant="hcnn", preset="released"), "hcnn-plus"),
    (dict(kernel=3), "unknown parameter 'kernel'"),
])
def test_unknown_presets_and_fields_are_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        Architecture.preset(**arguments)


def test_conflicting_conventions_are_refused():
    with pytest.raises(ValueError, match="padding"):
        Architecture(padding="same", padding_mode="periodic")
    with pytest.raises(ValueError, match="factorised"):
        Architecture(variant="hcnn-plus", factorised=False)


def test_presets_are_complete_descriptions():
    a = Architecture.preset("cifar100", "hcnn-plus", K=8)
    assert (a.attribute_support, a.num_classes, a.K, a.subsampled) == ((11, 11), 100, 8, (5, 9))
    released = Architecture.preset("cifar10", "hcnn-plus", "released")
    assert all(getattr(released, name) == value for name, value in CONVENTIONS["released"].items())


def test_effective_count_of_the_papers_layer_is_that_of_rank_nine_matrices():
    a = Architecture()
    assert counts.effective_filters(a, a.layers[5]) == 9 * (9 + 16 * 77 - 9)
    small = Architecture(K=8)
    live = 6  # the first of 7 taps never touches a grid of 4, subsampled by 2
    assert counts.effective_filters(small, small.layers[5]) == 9 * 8 * live * 11


def test_symmetric_and_tensorflow_padding_agree_where_stride_is_one():
    assert all(Geometry(1, padding="same").before(n, k) == Geometry(1).before(n, k) for n in (4, 7) for k in (1, 3))
