"""The compared networks: their parameters to the last digit, their recipes, and that all of training holds for them as well."""

import json
from dataclasses import fields

import matplotlib.pyplot as plt
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import hcnn
from hcnn.architecture import Architecture, describe
from hcnn.companion.baselines.networks import Shortcut, attention_distance
from hcnn.companion.baselines.systems import SYSTEMS, Baseline, multiply_adds, stored_weights
from hcnn.companion.commands import main
from hcnn.companion.figures import counts as count_figures
from hcnn.companion.results import tables as results
from hcnn.companion.results import verify
from hcnn.companion.results.tables import load_run
from hcnn.counts import multiply_adds as hcnn_multiply_adds
from hcnn.data.augment import standardise
from hcnn.network import build
from hcnn.training import loop as training
from hcnn.training import run_folder as runs
from hcnn.training.loop import train
from hcnn.training.recipe import Recipe, lr_at, preset_of, presets
from hcnn.training.trained import teacher_name

CLASSES = {"cifar10": 10, "cifar100": 100}


def quiet(line):
    pass


def tiny(variant, **fields):
    """A compared network for the 12 x 12 images of `data`."""
    return Baseline(variant, image_size=(12, 12), **fields)


def short(**fields):
    return Recipe.preset(**dict(epochs=2, batch_size=10, lr=0.05, shift=1) | fields)


@pytest.fixture(scope="module")
def data(random_dataset):
    """24 + 21 random images of 12 x 12: minibatches of 10, 10, 4."""
    return random_dataset(24, 21, size=12)


@pytest.fixture(scope="module")
def taught(data, tmp_path_factory):
    """A folder of runs that holds a teacher, and the teacher's name."""
    root = tmp_path_factory.mktemp("runs")
    return root, train(tiny("wrn-40-1"), short(epochs=1), data, out=root, device="cpu", log=quiet).name


# ---- parameters


def chain(*widths, supports):
    """Weights of convolutions in a row: the sum of inputs x outputs x support^2."""
    return sum(n * m * s * s for n, m, s in zip(widths[:-1], widths[1:], supports, strict=True))


def maxout_weights(blocks, classes, units=500, pieces=2):
    """Weights of a FitNet: 3 x 3 convolutions of two pieces each, maxout units of so many pieces, classes."""
    return 2 * chain(3, *sum(blocks, ()), supports=[3] * len(sum(blocks, ()))) + blocks[-1][-1] * units * pieces + units * classes


FITNET_4 = (32, 32, 32, 48, 48), (80,) * 6, (128,) * 6
WIDE = 3 * 16 * 9 + 4608 + 18432 + 16 * 32 + 32 * 64  # first, the two that widen, and their 1 x 1 shortcuts
SQUARES = 16 * 16 * 9, 32 * 32 * 9, 64 * 64 * 9
# By hand: (weights, scales and shifts, biases) for C classes.
FORMULAS = {
    "all-cnn": lambda C: (chain(3, 96, 96, 96, 192, 192, 192, 192, 192, C, supports=[3] * 7 + [1, 1]), 0, 3 * 96 + 5 * 192 + C),
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
FORMULAS["wrn-student"] = FORMULAS["wrn-16-1"]
TOTALS = {  # of all that is trained, to the last digit: 10 and 100 classes
    "all-cnn": (1_369_738, 1_387_108), "nin": (966_986, 984_356), "resnet-20": (269_722, 275_572), "wrn-16-1": (175_066, 180_916),
    "wrn-student": (175_066, 180_916), "wrn-40-1": (563_930, 569_780), "fitnet": (2_548_602, 2_593_692),
}


@pytest.mark.parametrize("dataset", CLASSES)
@pytest.mark.parametrize("variant", SYSTEMS)
def test_parameters_are_those_of_the_formula_to_the_last_digit(dataset, variant):
    filters, normalisation, bias = FORMULAS[variant](CLASSES[dataset])
    total = TOTALS[variant][list(CLASSES).index(dataset)]
    architecture = Baseline.preset(dataset, variant)
    assert architecture.count() == dict(filters=filters, normalisation=normalisation, bias=bias, trained=total)
    network = build(architecture)
    assert sum(p.numel() for p in network.parameters()) == total == filters + normalisation + bias
    assert sum(p.numel() for p in network.filter_parameters()) == filters


@pytest.mark.parametrize("variant, dataset, published, decimals", [
    ("resnet-20", "cifar10", 0.27, 2), ("wrn-16-1", "cifar10", 0.17, 2), ("wrn-40-1", "cifar10", 0.6, 1), ("fitnet", "cifar10", 2.5, 1),
    ("nin", "cifar100", 0.98, 2),
])
def test_weights_round_to_the_published_figure(variant, dataset, published, decimals):
    assert round(Baseline.preset(dataset, variant).count()["filters"] / 1e6, decimals) == published


def test_where_the_published_figure_is_not_the_rounded_one():
    filters = {(v, d): Baseline.preset(d, v).count()["filters"] for v in ("nin", "all-cnn", "fitnet") for d in CLASSES}
    assert filters["nin", "cifar10"] == 965_568  # 0.97M: the 0.98M of table 1 is the network with 100 classes
    assert int(filters["all-cnn", "cifar10"] / 1e5) == 13 and filters["all-cnn", "cifar10"] == 1_368_480  # 1.3M is cut off, not rounded
    assert filters["fitnet", "cifar100"] == 2_589_712  # 2.6M: table 2 repeats the figure of 10 classes


def test_fitnets_count_two_pieces_in_the_500_units():
    smaller = {249_576: ((16,) * 3, (32,) * 3, (48, 48, 64)), 861_928: ((16, 32, 32), (48, 64, 80), (96, 96, 128))}
    assert [maxout_weights(blocks, 10) for blocks in smaller.values()] == list(smaller)  # published: 250K and 862K
    assert maxout_weights(FITNET_4, 10) == 2_544_712 and maxout_weights(FITNET_4, 10, pieces=5) == 2_736_712


@pytest.mark.parametrize("variant", SYSTEMS)
def test_multiply_adds_are_the_taps_that_meet_an_image(variant):
    architecture, found = tiny(variant), []

    def count(module, inputs, output):
        if isinstance(module, nn.Linear):
            found.append(module.weight.numel())
        if isinstance(module, nn.Conv2d):  # ones everywhere: every product inside the image adds one
            ones = torch.ones_like(inputs[0][:1]), torch.ones_like(module.weight)
            found.append(int(F.conv2d(*ones, stride=module.stride, padding=module.padding).double().sum()))

    network = build(architecture).eval()
    for module in network.modules():
        module.register_forward_hook(count)
    network(torch.randn(1, 3, 12, 12))
    assert multiply_adds(architecture) == sum(found)


def test_multiply_adds_of_hcnn_are_those_of_the_network_that_is_kept():
    folded, plus = (Architecture.preset("cifar10", variant) for variant in ("hcnn", "hcnn-plus"))
    assert multiply_adds(folded) == hcnn_multiply_adds(folded)["w"] and multiply_adds(plus) == hcnn_multiply_adds(plus)["h_g"]


# ---- the networks


@pytest.mark.parametrize("size", [(32, 32), (12, 9)])
@pytest.mark.parametrize("variant", SYSTEMS)
def test_every_image_gets_a_score_for_each_class_and_every_parameter_a_gradient(variant, size):
    network = build(Baseline(variant, num_classes=7, image_size=size, dropout=(0, 0)), torch.Generator().manual_seed(0))
    scores = network(torch.randn(3, 3, *size))
    assert scores.shape == (3, 7)
    scores.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.abs().sum() > 0 for p in network.parameters())


@pytest.mark.parametrize("variant", SYSTEMS)
def test_initial_weights_follow_the_generator_and_have_the_stated_variances(variant):
    one, same, other = (build(tiny(variant), torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
    for name, weight in one.named_parameters():
        if weight.dim() > 1:
            assert torch.equal(weight, same.state_dict()[name]) and not torch.equal(weight, other.state_dict()[name])
            rows = weight.detach().flatten(1)
            if one.architecture.initialisation == "orthonormal":
                torch.testing.assert_close(rows.norm(dim=1), torch.ones(len(rows)))
                few = rows[: rows.shape[1]]
                torch.testing.assert_close(few @ few.T, torch.eye(len(few)), atol=1e-5, rtol=0)
            else:
                variance = 2 / rows.shape[1] if one.architecture.initialisation == "he" else 0.05**2
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


def test_wrong_images_are_refused():
    with pytest.raises(ValueError, match="images must be"):
        build(tiny("nin"))(torch.randn(1, 3, 32, 32))


@pytest.mark.parametrize("changes, said", [
    (dict(variant="vgg"), "variant must be one of all-cnn, resnet-20"), (dict(num_classes=1), "num_classes must be"),
    (dict(in_channels=0), "in_channels must be"), (dict(image_size=(8, 8)), "image_size must be two integers of at least 9"),
    (dict(dropout=(0.5, 1)), "dropout must be"), (dict(dropout=0.5), "dropout must be"),
    (dict(initialisation="zero"), "initialisation must be"),
    (dict(padding_mode="periodic"), "padding_mode must be zeros"), (dict(teacher="a"), "teacher must be none for all-cnn"),
    (dict(beta=1.0), "beta must be none for all-cnn"),
    (dict(variant="resnet-20", dropout=(0, 0.5)), r"dropout must be \(0, 0\) for resnet-20"),
    (dict(variant="wrn-student", beta=0), "beta must be a positive number"), (dict(variant="wrn-student", teacher=3), "teacher must be"),
])
def test_a_wrong_field_is_refused_by_name(changes, said):
    with pytest.raises(ValueError, match=said):
        Baseline(**dict(variant="all-cnn") | changes)


def test_unknown_fields_and_data_sets_are_refused():
    with pytest.raises(ValueError, match="resnet-20 has no parameter 'K'"):
        Baseline.preset("cifar10", "resnet-20", K=8)
    with pytest.raises(ValueError, match="dataset must be one of"):
        Baseline.preset("svhn", "resnet-20")


@pytest.mark.parametrize("variant", SYSTEMS)
def test_a_network_comes_back_from_its_dictionary_and_its_preset_is_found_again(variant):
    architecture, recipe = presets("cifar100", variant)[variant]
    assert describe(json.loads(json.dumps(architecture.as_dict()))) == architecture
    assert set(architecture.as_dict()) == {field.name for field in fields(Baseline)}
    assert preset_of(architecture, recipe, "cifar100") == (variant, {})
    assert preset_of(architecture, recipe.replace(epochs=3), "cifar100") == (variant, {"epochs": 3})


# ---- the published recipes


@pytest.mark.parametrize("variant, epochs, rates", [
    ("all-cnn", 350, {199: 0.05, 200: 5e-3, 249: 5e-3, 250: 5e-4, 299: 5e-4, 300: 5e-5, 349: 5e-5}),
    ("resnet-20", 164, {81: 0.1, 82: 0.01, 122: 0.01, 123: 1e-3}), ("nin", 307, {255: 0.1, 256: 0.01, 281: 0.01, 282: 1e-3}),
    ("wrn-16-1", 200, {59: 0.1, 60: 0.02, 119: 0.02, 120: 4e-3, 159: 4e-3, 160: 8e-4}),
    ("fitnet", 230, {102: 0.01, 103: 1e-3, 153: 1e-3, 154: 1e-4, 204: 1e-4, 205: 1e-5}),
])
def test_rates_fall_at_the_published_epochs(variant, epochs, rates):
    recipe = Recipe.preset(variant)
    assert recipe.epochs == epochs and recipe.batch_size == 128 and recipe.momentum == 0.9
    assert {epoch: lr_at(recipe, epoch / epochs) for epoch in rates} == pytest.approx(rates)


def test_the_teacher_and_both_students_share_a_recipe():
    assert Recipe.preset("wrn-16-1") == Recipe.preset("wrn-student") == Recipe.preset("wrn-40-1")


# ---- training, checkpoints, weights


@pytest.mark.parametrize("precision", ["fast", "strict"])
def test_a_run_with_dropout_that_stops_after_every_step_ends_bit_for_bit_the_same(data, tmp_path, precision):
    whole = train(tiny("all-cnn"), short(), data, out=tmp_path / "whole", precision=precision, log=quiet)
    for calls in range(1, 20):
        torch.rand(calls)  # the state of the global generator must not matter
        folder = train(tiny("all-cnn"), short(), data, out=tmp_path / "parts", precision=precision, max_seconds=1e-9, log=quiet)
        if runs.read_run(folder)["epochs_done"] == 2:
            break
    assert calls > 4
    assert (folder / runs.WEIGHTS).read_bytes() == (whole / runs.WEIGHTS).read_bytes()
    kept = [(path / runs.METRICS).read_text().splitlines() for path in (folder, whole)]
    assert [line.rpartition(",")[0] for line in kept[0]] == [line.rpartition(",")[0] for line in kept[1]]


def test_dropout_differs_from_step_to_step_and_leaves_the_global_generator_alone(data, tmp_path, monkeypatch):
    seen, losses = [], training._Training._losses

    def spy(self, x, y):
        state = torch.get_rng_state()
        seen.append(torch.rand(3).tolist())
        torch.set_rng_state(state)
        return losses(self, x, y)

    monkeypatch.setattr(training._Training, "_losses", spy)
    before = torch.get_rng_state()
    train(tiny("nin"), short(), data, out=tmp_path, log=quiet)
    assert torch.equal(torch.get_rng_state(), before)
    assert len({tuple(numbers) for numbers in seen}) == len(seen) == 6


def test_stored_networks_are_half_as_large_load_and_verify(data, tmp_path):
    folder = train(tiny("resnet-20"), short(), data, out=tmp_path, device="cpu", log=quiet)
    run = runs.read_run(folder)
    assert folder.name.startswith("digits-resnet-20-zeros-s0-") and run["counts"]["trained"] == 269_722
    stored = runs.read_weights(folder, run)
    assert {tensor.dtype for tensor in stored.values() if tensor.dim() > 1} == {torch.float16}
    assert {tensor.dtype for name, tensor in stored.items() if "running" in name} == {torch.float32}
    network = hcnn.load("digits-resnet-20", tmp_path)
    assert not network.training and network.run == run
    assert all(torch.equal(tensor, stored[name].to(tensor.dtype)) for name, tensor in network.state_dict().items())
    assert set(network.predict(data.test_images)) <= set(data.classes)
    assert load_run(folder).problem is None and verify._check_weights(load_run(folder)) == []


def test_weights_in_half_precision_hardly_move_the_class_scores():
    network = build(Baseline("resnet-20"), torch.Generator().manual_seed(0)).eval()
    x = torch.randn(4, 3, 32, 32)
    before = network(x)
    network.load_state_dict(stored_weights(network))
    assert (network(x) - before).abs().max() < 2e-3 * before.abs().max()


def test_compared_networks_are_refused_in_several_processes(data, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "_world", lambda: 2)
    with pytest.raises(ValueError, match="resnet-20 must be trained in one process, got 2"):
        train(tiny("resnet-20"), short(), data, out=tmp_path / "runs", log=quiet)
    assert not (tmp_path / "runs").exists()


# ---- attention transfer


def test_attention_distance_is_the_literal_formula():
    shapes = (2, 3, 4, 5), (2, 6, 2, 3)
    ours, theirs = ([torch.randn(shape) for shape in shapes] for _ in range(2))
    theirs[0] = torch.randn(2, 7, 4, 5)  # a teacher may be wider
    expected = 0.0
    for x, y in zip(ours, theirs):
        for image in range(2):
            maps = []
            for features in (x[image].double(), y[image].double()):
                m = torch.zeros(features.shape[1:], dtype=torch.double)
                for channel in features:
                    m += channel**2 / len(features)
                maps.append(m / (m**2).sum().sqrt())
            expected += ((maps[0] - maps[1]) ** 2).mean()
    torch.testing.assert_close(attention_distance(ours, theirs).double(), expected, rtol=1e-5, atol=0)
    assert attention_distance(ours, ours) == 0


def test_student_follows_cross_entropy_and_beta_times_its_distance_from_the_teacher(data, taught):
    root, teacher = taught
    recipe = short(epochs=1, batch_size=24, lr=0.1, momentum=0.0, shift=0, flip=False, weight_decay=0.0)
    student = tiny("wrn-student", teacher=teacher, beta=50.0)
    folder = train(student, recipe, data, seed=3, out=root, precision="strict", device="cpu", log=quiet)
    network, master = build(student, torch.Generator().manual_seed(3)), hcnn.load(root / teacher)
    order = torch.randperm(24, generator=torch.Generator().manual_seed(int(runs.sha256("3 0")[:15], 16)))
    x, y = standardise(data.train_images[order], data.mean, data.std), data.train_labels[order]
    with torch.no_grad():
        goal = master.body.outputs(x)
    plain = F.cross_entropy(network(x), y)
    network.load_state_dict(build(student, torch.Generator().manual_seed(3)).state_dict())  # running statistics, too
    (F.cross_entropy(network(x), y) + 50 * attention_distance(network.body.outputs(x), goal) / 24).backward()
    stored = runs.read_weights(folder, runs.read_run(folder))
    for name, p in network.named_parameters():
        torch.testing.assert_close(stored[name].float(), p.detach() - 0.1 * p.grad, atol=2e-3, rtol=2e-3)
    assert load_run(folder).metrics.train_loss[0] == pytest.approx(float(plain.detach()), rel=1e-5)  # without the teacher's part
    assert runs.read_run(folder)["parameters"]["architecture"]["teacher"] == teacher


def test_student_without_a_finished_teacher_on_the_same_images_is_refused_before_anything_is_written(data, taught, tmp_path):
    root, teacher = taught
    before = sorted(root.iterdir())
    unfinished = train(tiny("wrn-40-1"), short(), data, out=root, max_seconds=1e-9, log=quiet).name
    other = train(tiny("wrn-16-1"), short(epochs=1), data, out=root, log=quiet).name
    for name, options, said in ((None, {}, "got None"), ("none-such", {}, "got 'none-such'"), (unfinished, {}, "0 of 2 epochs"),
                                (other, {}, "wrn-16-1 on digits"), (teacher, dict(split="validation"), "with split='test'")):
        with pytest.raises(ValueError, match="teacher must be .*" + said):
            train(tiny("wrn-student", teacher=name), short(), data, out=root, log=quiet, **options)
    assert len(list(root.iterdir())) == len(before) + 2
    weightless = tmp_path / teacher
    weightless.mkdir()
    for file in (runs.RUN, runs.METRICS):
        (weightless / file).write_bytes((root / teacher / file).read_bytes())
    with pytest.raises(FileNotFoundError, match="weights are not stored"):
        train(tiny("wrn-student", teacher=teacher), short(), data, out=tmp_path, log=quiet)


@pytest.fixture
def students(tmp_path):
    """A folder with complete runs of wrn-student by three teachers, the first of which is the published one; {teacher: name of the run}."""
    names = {}
    architecture, recipe = presets("cifar10", "wrn-student")["wrn-student"]
    for teacher in (teacher_name("cifar10", seed=4), teacher_name("cifar100", seed=4), "mine"):
        parameters = dict(dataset="cifar10", substitutes=None, architecture=architecture.replace(teacher=teacher).as_dict(),
                          recipe=recipe.as_dict(), seed=0, split="test", train_size=None, precision="fast")
        folder = tmp_path / runs.run_name(parameters)
        folder.mkdir()
        rows = [dict.fromkeys(runs.COLUMNS, 0.5) | dict(epoch=epoch + 1) for epoch in range(200)]
        runs.write_metrics(folder, rows)
        runs.write_run(folder, dict(
            name=folder.name, parameters=parameters, epochs=200, epochs_done=200, test_accuracy=0.5, test_loss=0.5, train_images=50_000,
            test_images=10_000, classes=[], mean=[], std=[], seconds=100.0, device="a GPU", threads=1, images_per_second=1.0,
            data_checksum="", weights_sha256="0" * 64))
        names[teacher] = folder.name
    return tmp_path, names


def test_only_a_student_of_the_published_teacher_counts_for_table_1(students):
    root, (published, *others) = students[0], students[1]
    stored = results.load_runs(root)
    assert [run.system for run in stored] == ["WRN-16-1 with a teacher"] * 3
    (counted,) = results.headline(stored)
    assert counted.architecture.teacher == published
    listed = results.other_runs(stored)
    reasons = {f"teacher {name} instead of WRN-40-1 as published, on all images" for name in others}
    assert set(listed["differs from the paper in"]) == reasons
    assert set(listed.K) == set(listed.Q) == {""}
    row = results.table("cifar10", stored).set_index("model").loc["WRN-student"]
    assert (row["accuracy, here"], row["n"], row["seconds an epoch"], row["parameters, here"]) == ("50.00", 1, "0.5", 174_128)


def test_the_figure_of_all_systems_fills_what_was_run_and_says_what_was_not(students):
    figure = count_figures.accuracy_against_parameters({"CIFAR-10": results.table("cifar10", results.load_runs(students[0]))})
    texts = {text.get_text() for text in figure.axes[0].texts}
    assert {"WRN-student", "ResNet 20: not run", "HyperNetworks: not run"} <= texts and len(texts) == 10
    (ours,) = figure.axes[0].lines
    assert ours.get_xydata().tolist() == [[0.174128, 50.0]]
    plt.close(figure)


# ---- the command line


@pytest.mark.parametrize("arguments, said", [
    (["--variant", "resnet-20", "--K", "8"], "resnet-20 has no parameter 'K'"),
    (["--variant", "nin", "--preset", "paper"], "preset must not be given with nin"),
    (["--variant", "nin", "--padding-mode", "periodic"], "padding_mode must be zeros"),
    (["--variant", "fitnet", "--set", "Q=3"], "--set must be NAME=VALUE with a field of Baseline or Recipe"),
    (["--variant", "wrn-student"], "teacher must be the folder name of a finished run of wrn-40-1 beside this one, got 'digits-wrn-40-1-"),
])
def test_options_that_a_compared_network_does_not_have_are_refused(tmp_path, capsys, arguments, said):
    assert main(["train", "--dataset", "digits", "--out", str(tmp_path / "runs"), *arguments]) == 2
    errors = capsys.readouterr().err
    assert errors.startswith("error: ") and errors.count("\n") == 1 and said in errors
    assert not (tmp_path / "runs").exists()


def test_the_commands_train_and_evaluate_know_compared_networks(tmp_path, capsys):
    assert main(["train", "--dataset", "digits", "--variant", "wrn-16-1", "--train-size", "40", "--epochs", "1", "--batch-size", "20",
                 "--set", "weight_decay=0.001", "--out", str(tmp_path)]) == 0
    (folder,) = tmp_path.iterdir()
    run = runs.read_run(folder)
    assert run["preset"] == "wrn-16-1" and run["overrides"] == dict(epochs=1, batch_size=20, weight_decay=0.001)
    assert main(["evaluate", str(folder)]) == 0
    assert "297 of 297 test images" in capsys.readouterr().out and verify.check_run(load_run(folder)) == []
