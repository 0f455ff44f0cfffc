"""The compared networks: their parameters to the last digit, their recipes, and that all of training holds for them
as well.
"""

import json
from math import prod

import pytest
import torch
import torch.nn.functional as F
from random_images import images
from torch import nn

from hcnn.architecture import Architecture, describe
from hcnn.companion.baselines.networks import Shortcut
from hcnn.companion.baselines.systems import SYSTEMS, Baseline
from hcnn.companion.commands import main
from hcnn.companion.results.runs import load_run
from hcnn.companion.results.verify import check_run
from hcnn.counts import multiply_adds
from hcnn.network import build
from hcnn.training import run_folder
from hcnn.training.loop import train
from hcnn.training.recipe import Recipe, lr_at, preset_of, published

CLASSES = {"cifar10": 10, "cifar100": 100}
each_system = pytest.mark.parametrize("variant", SYSTEMS)


def quiet(line):
    pass


def tiny(variant, **fields):
    """A compared network for the 12 x 12 images of `data`."""
    return Baseline(variant, image_size=(12, 12), **fields)


def short(**fields):
    return Recipe(**dict(epochs=2, batch_size=10, lr=0.05, shift=1) | fields)


def as_published(variant, dataset="cifar10"):
    return published(Baseline.preset(dataset, variant), dataset)["published"]


@pytest.fixture(scope="module")
def data():
    """24 + 21 random images of 12 x 12: minibatches of 10, 10, 4."""
    return images(24, 21, size=12)


# ---- parameters


def chain(*widths, supports):
    """Weights of convolutions in a row: the sum of inputs x outputs x support^2."""
    return sum(n * m * s * s for n, m, s in zip(widths[:-1], widths[1:], supports, strict=True))


def maxout_weights(blocks, classes, units=500, pieces=2):
    """Weights of a FitNet: 3 x 3 convolutions of two pieces each, maxout units of so many pieces, classes."""
    convolutions = 2 * chain(3, *sum(blocks, ()), supports=[3] * len(sum(blocks, ())))
    return convolutions + blocks[-1][-1] * units * pieces + units * classes


FITNET_4 = (32, 32, 32, 48, 48), (80,) * 6, (128,) * 6
WIDE = 3 * 16 * 9 + 4608 + 18432 + 16 * 32 + 32 * 64  # first, the two that widen, and their 1 x 1 shortcuts
SQUARES = 16 * 16 * 9, 32 * 32 * 9, 64 * 64 * 9
# By hand: (weights, scales and shifts, biases) for C classes.
FORMULAS = {
    "all-cnn": lambda C: (chain(3, 96, 96, 96, 192, 192, 192, 192, 192, C, supports=[3] * 7 + [1, 1]), 0,
                          3 * 96 + 5 * 192 + C),
    "nin": lambda C: (chain(3, 192, 160, 96, 192, 192, 192, 192, 192, C, supports=[5, 1, 1, 5, 1, 1, 3, 1, 1]), 0,
                      192 + 160 + 96 + 5 * 192 + C),
    "resnet-20": lambda C: (432 + 4608 + 18432 + 6 * SQUARES[0] + 5 * SQUARES[1] + 5 * SQUARES[2] + 64 * C,
                            2 * (7 * 16 + 6 * 32 + 6 * 64), C),
    "wrn-16-1": lambda C: (WIDE + 4 * SQUARES[0] + 3 * SQUARES[1] + 3 * SQUARES[2] + 64 * C,
                           2 * (4 * 16 + 16 + 3 * 32 + 32 + 3 * 64 + 64), C),
    "wrn-40-1": lambda C: (WIDE + 12 * SQUARES[0] + 11 * SQUARES[1] + 11 * SQUARES[2] + 64 * C,
                           2 * (12 * 16 + 16 + 11 * 32 + 32 + 11 * 64 + 64), C),
    "fitnet": lambda C: (maxout_weights(FITNET_4, C), 0, 2 * (3 * 32 + 2 * 48 + 6 * 80 + 6 * 128 + 500) + C),
}


@each_system
def test_parameters_are_those_of_the_formula_to_the_last_digit(variant):
    for dataset, classes in CLASSES.items():
        filters, normalisation, bias = FORMULAS[variant](classes)
        network, total = build(Baseline.preset(dataset, variant)), filters + normalisation + bias
        counts = dict(filters=filters, normalisation=normalisation, bias=bias, trained=total)
        assert network.architecture.count() == counts
        assert sum(p.numel() for p in network.parameters()) == total
        assert sum(p.numel() for p in network.filter_parameters()) == filters


def test_weights_round_to_the_published_figure_or_it_is_known_why_not():
    millions = {(v, d): Baseline.preset(d, v).count()["filters"] / 1e6 for v in SYSTEMS for d in CLASSES}
    for variant, dataset, figure, decimals in (
            ("resnet-20", "cifar10", 0.27, 2), ("wrn-16-1", "cifar10", 0.17, 2), ("wrn-40-1", "cifar10", 0.6, 1),
            ("fitnet", "cifar10", 2.5, 1), ("nin", "cifar100", 0.98, 2)):
        assert round(millions[variant, dataset], decimals) == figure
    assert millions["nin", "cifar10"] == 0.965568  # the 0.98M of table 1 is the network with 100 classes
    assert millions["all-cnn", "cifar10"] == 1.36848  # 1.3M is cut off, not rounded
    assert millions["fitnet", "cifar100"] == 2.589712  # table 2 repeats the figure of 10 classes


def test_fitnets_count_two_pieces_in_the_500_units():
    smaller = {249_576: ((16,) * 3, (32,) * 3, (48, 48, 64)), 861_928: ((16, 32, 32), (48, 64, 80), (96, 96, 128))}
    assert [maxout_weights(blocks, 10) for blocks in smaller.values()] == list(smaller)  # published: 250K and 862K
    assert maxout_weights(FITNET_4, 10) == 2_544_712 and maxout_weights(FITNET_4, 10, pieces=5) == 2_736_712


@each_system
def test_multiply_adds_are_the_taps_that_meet_an_image(variant):
    architecture, found = tiny(variant), []

    def along(n, outputs, support, stride, before):
        return sum(0 <= o * stride + tap - before < n for o in range(outputs) for tap in range(support))

    def count(module, inputs, output):
        if isinstance(module, nn.Linear):
            found.append(module.weight.numel())
        if isinstance(module, nn.Conv2d):
            axes = zip(inputs[0].shape[2:], output.shape[2:], module.kernel_size, module.stride, module.padding)
            found.append(module.in_channels * module.out_channels * prod(along(*axis) for axis in axes))

    network = build(architecture).eval()
    for module in network.modules():
        module.register_forward_hook(count)
    network(torch.randn(1, 3, 12, 12))
    assert architecture.multiply_adds() == sum(found)


def test_multiply_adds_of_hcnn_are_those_of_the_network_that_is_kept():
    folded, plus = (Architecture.preset("cifar10", variant) for variant in ("hcnn", "hcnn-plus"))
    assert folded.multiply_adds() == multiply_adds(folded)["w"] and plus.multiply_adds() == multiply_adds(plus)["h_g"]


# ---- the networks


@pytest.mark.parametrize("size", [(32, 32), (12, 9)])
@each_system
def test_every_image_gets_a_score_for_each_class_and_every_parameter_a_gradient(variant, size):
    network = build(Baseline(variant, num_classes=7, image_size=size), torch.Generator().manual_seed(0))
    for module in network.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    scores = network(torch.randn(3, 3, *size))
    assert scores.shape == (3, 7)
    scores.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.abs().sum() > 0 for p in network.parameters())


@each_system
def test_initial_weights_follow_the_generator_and_have_the_stated_variances(variant):
    one, same, other = (build(tiny(variant), torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
    for name, weight in one.named_parameters():
        if weight.dim() > 1:
            assert torch.equal(weight, same.state_dict()[name]) and not torch.equal(weight, other.state_dict()[name])
            rows = weight.detach().flatten(1)
            if SYSTEMS[variant].initialisation == "orthonormal":
                torch.testing.assert_close(rows.norm(dim=1), torch.ones(len(rows)))
                few = rows[: rows.shape[1]]
                torch.testing.assert_close(few @ few.T, torch.eye(len(few)), atol=1e-5, rtol=0)
            else:
                variance = 2 / rows.shape[1] if SYSTEMS[variant].initialisation == "he" else 0.05**2
                assert rows.square().mean() == pytest.approx(variance, rel=6 / rows.numel() ** 0.5)
        elif name.endswith("bias"):
            assert not weight.any()


def test_shortcut_of_resnet_takes_every_second_pixel_and_adds_channels_of_zeros():
    x = torch.randn(2, 3, 6, 4)
    out = Shortcut()(x)
    assert out.shape == (2, 6, 3, 2) and torch.equal(out[:, :3], x[:, :, ::2, ::2]) and not out[:, 3:].any()


def test_maxout_is_the_larger_of_two_convolutions():
    network = build(tiny("fitnet")).eval()
    conv, maxout = network.body[1], network.body[2]
    x = torch.randn(2, 3, 12, 12)
    pieces = [F.conv2d(x, w, b, padding=1) for w, b in zip(conv.weight.split(32), conv.bias.split(32))]
    torch.testing.assert_close(maxout(conv(x)), torch.maximum(*pieces))


@pytest.mark.parametrize("changes, said", [
    (dict(variant="vgg"), "variant must be one of all-cnn, resnet-20"), (dict(num_classes=1), "num_classes must be"),
    (dict(image_size=(8, 8)), "image_size must be two integers of at least 9"),
    (dict(padding_mode="periodic"), "padding_mode must be one of zeros"),
])
def test_a_wrong_field_is_refused_by_name(changes, said):
    with pytest.raises(ValueError, match=said):
        Baseline(**dict(variant="all-cnn") | changes)


@each_system
def test_a_network_comes_back_from_its_dictionary_and_its_preset_is_found_again(variant):
    architecture, recipe = as_published(variant, "cifar100")
    assert describe(json.loads(json.dumps(architecture.as_dict()))) == architecture
    assert preset_of(architecture, recipe, "cifar100") == ("published", {})
    assert preset_of(architecture, recipe.replace(epochs=3), "cifar100") == ("published", {"epochs": 3})


# ---- recipes


@pytest.mark.parametrize("variant, epochs, rates", [
    ("all-cnn", 350, {199: 0.05, 200: 5e-3, 249: 5e-3, 250: 5e-4, 299: 5e-4, 300: 5e-5, 349: 5e-5}),
    ("resnet-20", 164, {81: 0.1, 82: 0.01, 122: 0.01, 123: 1e-3}),
    ("nin", 307, {255: 0.1, 256: 0.01, 281: 0.01, 282: 1e-3}),
    *((wrn, 200, {59: 0.1, 60: 0.02, 119: 0.02, 120: 4e-3, 159: 4e-3, 160: 8e-4})
      for wrn in ("wrn-16-1", "wrn-40-1")),
    ("fitnet", 230, {102: 0.01, 103: 1e-3, 153: 1e-3, 154: 1e-4, 204: 1e-4, 205: 1e-5}),
])
def test_rates_fall_at_the_published_epochs(variant, epochs, rates):
    recipe = as_published(variant)[1]
    assert recipe.epochs == epochs and recipe.batch_size == 128 and recipe.momentum == 0.9
    assert {epoch: lr_at(recipe, epoch / epochs) for epoch in rates} == pytest.approx(rates)


# ---- training, checkpoints, weights


def test_a_run_with_dropout_that_stops_after_every_step_ends_bit_for_bit_the_same(data, tmp_path):
    before = torch.get_rng_state()
    whole = train(tiny("all-cnn"), short(), data, out=tmp_path / "whole", log=quiet)
    assert torch.equal(torch.get_rng_state(), before)
    for calls in range(1, 20):
        torch.rand(calls)  # the state of the global generator must not matter
        folder = train(tiny("all-cnn"), short(), data, out=tmp_path / "parts", max_seconds=1e-9, log=quiet)
        if run_folder.read_run(folder)["epochs_done"] == 2:
            break
    assert calls > 4
    assert (folder / run_folder.WEIGHTS).read_bytes() == (whole / run_folder.WEIGHTS).read_bytes()


# ---- the command line


@pytest.mark.parametrize("arguments, said", [
    (["--variant", "resnet-20", "--K", "8"], "unknown parameter 'K' of resnet-20"),
    (["--variant", "nin", "--preset", "paper"], "preset must be one of published, short for nin, got 'paper'"),
    (["--variant", "nin", "--padding-mode", "periodic"], "padding_mode must be one of zeros"),
])
def test_options_that_a_compared_network_does_not_have_are_refused(tmp_path, capsys, arguments, said):
    assert main(["train", "--dataset", "digits", "--out", str(tmp_path / "runs"), *arguments]) == 2
    errors = capsys.readouterr().err
    assert errors.startswith("error: ") and errors.count("\n") == 1 and said in errors
    assert not (tmp_path / "runs").exists()


def test_the_commands_train_and_evaluate_know_compared_networks(tmp_path, capsys):
    assert main(["train", "--dataset", "digits", "--variant", "wrn-16-1", "--train-size", "40", "--epochs", "1",
                 "--batch-size", "20", "--set", "weight_decay=0.001", "--out", str(tmp_path)]) == 0
    (folder,) = tmp_path.iterdir()
    run = run_folder.read_run(folder)
    assert run["preset"] == "published" and run["overrides"] == dict(epochs=1, batch_size=20, weight_decay=0.001)
    assert main(["evaluate", str(folder)]) == 0
    assert "297 of 297 test images" in capsys.readouterr().out and check_run(load_run(folder)) == []
