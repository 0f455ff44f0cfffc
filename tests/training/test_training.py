"""Training: rates and sizes, the steps that are taken, the folder that is left, what is refused, the command line."""

import dataclasses
import signal
from collections import defaultdict

import pytest
import torch
import torch.nn.functional as F
from random_images import images
from small import OPTIONS, SHORT, TINY, content, fit, only, rows, weights

from hcnn import HCNN, Architecture, load
from hcnn.companion.commands import main
from hcnn.data.augment import standardise
from hcnn.data.datasets import load_dataset
from hcnn.training import loop
from hcnn.training import run_folder as runs
from hcnn.training.evaluation import evaluate
from hcnn.training.recipe import Recipe, lr_at, preset_of, size_at
from hcnn.training.step import draw

# ---- recipes


def test_paper_rate_is_divided_by_ten_every_40_epochs():
    for epoch, factor in ((1, 1), (40, 1), (41, 0.1), (81, 0.01), (121, 1e-3), (161, 1e-4), (240, 1e-5)):
        assert lr_at(Recipe(), (epoch - 1) / 240) == pytest.approx(0.25 * factor, rel=1e-12)
        sixth = Recipe(epochs=6)  # milestones scale with the number of epochs
        assert lr_at(sixth, (epoch - 1) // 40 / 6) == pytest.approx(0.25 * factor)


def test_released_rate_follows_its_list():
    for epoch, factor in ((1, 1), (41, 0.5), (81, 0.25), (240, 0.03), (241, 0.015), (281, 0.00035), (320, 0.00017)):
        assert lr_at(Recipe.preset("released"), (epoch - 1) / 320) == pytest.approx(0.35 * factor, rel=1e-12)


def test_cosine_and_linear_rise_over_the_warm_up_and_end_at_zero():
    for schedule, quarter in (("cosine", 0.4 * (2 + 2**0.5) / 4), ("linear", 0.3)):
        recipe = Recipe(schedule=schedule, lr=0.4, warm_up=0.2)
        assert [lr_at(recipe, p) for p in (0, 0.1, 0.2, 0.4, 0.6, 1)] == pytest.approx([0, 0.2, 0.4, quarter, 0.2, 0])
        assert lr_at(recipe.replace(warm_up=0.0), 0) == 0.4


def test_sizes_share_the_epochs_evenly_and_the_last_one_is_the_last():
    for sizes, expected in (((16, 16, 24, 32), [16, 16, 16, 16, 24, 24, 32, 32]), ((16, 32), [16, 16, 32, 32, 32]),
                            ((1, 2, 3), [2, 3]), ((), [None, None, None])):
        epochs = len(expected)
        assert [size_at(Recipe(epochs=epochs, sizes=sizes), epoch) for epoch in range(epochs)] == expected


def test_a_recipe_comes_back_from_its_dictionary_and_has_one_spelling():
    for preset in ("paper", "released", "short"):
        recipe = Recipe.preset(preset, epochs=7)
        assert Recipe(**recipe.as_dict()) == recipe
    one, other = Recipe(lr=1, sizes=[16, 32]), Recipe(lr=1.0, sizes=(16, 32))
    assert one == other and hash(one) == hash(other) and type(one.lr) is float and type(one.sizes) is tuple
    assert one.changed() == dict(lr=1.0, sizes=[16, 32]) and Recipe().changed() == {}


def test_preset_and_overrides_are_found_again():
    architecture = Architecture.preset("cifar100", "hcnn-plus", "released", Q=16)
    found = preset_of(architecture, Recipe.preset("released", epochs=5), "cifar100")
    assert found == ("released", {"Q": 16, "epochs": 5})
    assert preset_of(Architecture(), Recipe(), "cifar10") == ("paper", {})


# ---- the step


def by_hand(recipe, move, loss=F.cross_entropy):
    """The weights after one step an epoch, on all images: move(name, p, its gradient, is it a filter, rate)."""
    data, network = images(), HCNN(TINY, torch.Generator().manual_seed(5))
    filters, n = {id(p) for p in network.filter_parameters()}, len(data.train_labels)
    for epoch in range(recipe.epochs):
        order = draw(5, epoch, n, 0, False)[0]
        network.zero_grad()
        scores = network(standardise(data.train_images[order], data.mean, data.std))
        (loss(scores, data.train_labels[order], reduction="sum") / n).backward()
        with torch.no_grad():
            for name, p in network.named_parameters():
                move(name, p, p.grad, id(p) in filters, lr_at(recipe, epoch / recipe.epochs))
    return {name: p.detach() for name, p in network.named_parameters()}


def assert_trained_as(expected, recipe, out):
    found = weights(fit(out, recipe=recipe, seed=5))
    torch.testing.assert_close({name: found[name] for name in expected}, expected, atol=2e-6, rtol=1e-5)


def by_torch(make):
    """The move that torch makes, each parameter with an optimiser of its own: make(p, is it a filter).

    The lr that an optimiser is made with is its share of the rate.
    """
    optimisers = {}

    def move(name, p, gradient, is_filter, lr):
        optimiser = optimisers.setdefault(name, make(p.detach(), is_filter))
        (group,) = optimiser.param_groups
        (view,) = group["params"]
        view.grad, group["lr"] = gradient.view_as(view), lr * optimiser.defaults["lr"]
        optimiser.step()

    return move


WHOLE = Recipe(epochs=4, batch_size=44, lr=0.05, weight_decay=0.3, shift=0, flip=False)


@pytest.mark.parametrize("nesterov, smoothing", [(False, 0.0), (True, 0.2)])
def test_weights_follow_hand_written_sgd_with_decay_on_filters_only(tmp_path, nesterov, smoothing):
    recipe, velocity = WHOLE.replace(nesterov=nesterov, label_smoothing=smoothing), defaultdict(float)

    def move(name, p, gradient, is_filter, lr):
        gradient = gradient + (0.3 * p if is_filter else 0)
        velocity[name] = 0.9 * velocity[name] + gradient
        p -= lr * (gradient + 0.9 * velocity[name] if nesterov else velocity[name])

    def loss(scores, labels, reduction):
        return F.cross_entropy(scores, labels, reduction=reduction, label_smoothing=smoothing)

    assert_trained_as(by_hand(recipe, move, loss), recipe, tmp_path)


def test_adamw_decays_filters_only(tmp_path):
    def make(p, is_filter):
        return torch.optim.AdamW([torch.nn.Parameter(p)], lr=1, betas=(0.8, 0.95), weight_decay=0.3 * is_filter)

    recipe = WHOLE.replace(optimiser="adamw", betas=(0.8, 0.95))
    assert_trained_as(by_hand(recipe, by_torch(make)), recipe, tmp_path)


def test_muon_moves_filters_as_matrices_and_adamw_the_rest_with_its_own_rate(tmp_path):
    def make(p, is_filter):
        if is_filter:
            matrix = torch.nn.Parameter(p.view(len(p), -1))
            return torch.optim.Muon([matrix], lr=1, momentum=0.9, weight_decay=0.3)
        return torch.optim.AdamW([torch.nn.Parameter(p)], lr=0.01 / 0.05, betas=(0.8, 0.95), weight_decay=0)

    recipe = WHOLE.replace(optimiser="muon", lr_rest=0.01, betas=(0.8, 0.95))
    assert_trained_as(by_hand(recipe, by_torch(make)), recipe, tmp_path)


def test_images_grow_over_the_run_and_the_trained_network_keeps_the_last_size(tmp_path, monkeypatch):
    data, seen, forward = images(size=24), [], HCNN.forward

    def spy(network, x):
        seen.append((network.training, *x.shape[-2:]))
        return forward(network, x)

    monkeypatch.setattr(HCNN, "forward", spy)
    recipe = SHORT.replace(epochs=2, batch_size=44, sizes=(12, 16))
    network = load(fit(tmp_path, TINY.replace(image_size=(24, 24)), recipe, data))
    assert seen == [(training, size, size) for size in (12, 16) for training in (True, False)]
    assert network.size == 16 and network.prepare(data.test_images).shape[-2:] == (16, 16)
    loss, accuracy = evaluate(network, data.test_images, data.test_labels, network.mean, network.std, size=network.size)
    assert (loss, accuracy) == pytest.approx((network.run["test_loss"], network.run["test_accuracy"]))
    right = [int(name) for name in network.predict(data.test_images)] == data.test_labels.numpy()
    assert right.mean() == pytest.approx(accuracy) and seen[-1] == (False, 16, 16)


def test_an_unfinished_network_takes_images_of_the_size_that_it_was_last_tested_on(tmp_path, stop_after):
    stop_after(8)  # in the second epoch, which is trained at 6 pixels: five steps, an evaluation's one batch, two steps
    network, data = load(fit(tmp_path, recipe=SHORT.replace(sizes=(4, 6, 8)))), images()
    loss, _ = evaluate(network, data.test_images, data.test_labels, network.mean, network.std, size=network.size)
    assert network.size == 4 and loss == pytest.approx(network.run["test_loss"])


@pytest.mark.parametrize("precision, expected", [("fast", [True, True, False]), ("strict", [False, False, False])])
def test_the_last_epoch_is_tested_in_float32_and_the_others_as_they_are_trained(tmp_path, monkeypatch, precision,
                                                                                 expected):
    monkeypatch.setattr(loop, "autocast_dtype", lambda precision, device: torch.bfloat16 if precision == "fast"
                        else torch.float32)
    forward, lowered = HCNN.forward, []

    def spy(network, x):
        if not network.training:
            lowered.append(torch.is_autocast_enabled("cpu"))
        return forward(network, x)

    monkeypatch.setattr(HCNN, "forward", spy)
    fit(tmp_path, precision=precision)
    assert lowered == expected  # one batch of test images an epoch


def test_a_small_network_learns_digits_in_one_epoch(tmp_path):
    digits = load_dataset("digits")
    small = {name: F.avg_pool2d(getattr(digits, name).float(), 4).to(torch.uint8)
             for name in ("train_images", "test_images")}
    architecture = Architecture(K=8, Q=9, J=5, subsampled=(4,), image_size=(8, 8))
    recipe = Recipe(epochs=1, batch_size=25, lr=0.1, schedule="cosine", shift=0)
    folder = fit(tmp_path, architecture, recipe, dataclasses.replace(digits, **small), train_size=800)
    assert runs.read_run(folder)["test_accuracy"] > 0.4  # chance: 0.1


def test_order_shifts_and_flips_depend_on_seed_and_epoch_alone(tmp_path, whole):
    assert content(fit(tmp_path)) == content(whole) != content(fit(tmp_path, seed=1))
    assert all(torch.equal(*pair) for pair in zip(draw(3, 1, 9, 2, True), draw(3, 1, 9, 2, True)))
    assert not torch.equal(draw(3, 1, 9, 2, True)[0], draw(3, 2, 9, 2, True)[0])


def test_evaluation_does_not_depend_on_the_batch_leaves_the_mode_and_uses_no_tf32(monkeypatch):
    data, network, seen = images(), HCNN(TINY, torch.Generator().manual_seed(0)).train(), []
    network.register_forward_hook(lambda *_: seen.append(torch.backends.cudnn.allow_tf32))
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)  # PyTorch's default
    one, other = (evaluate(network, data.test_images, data.test_labels, data.mean, data.std, n) for n in (4, 100))
    assert one == pytest.approx(other, rel=1e-5) and network.training
    assert not any(seen) and torch.backends.cudnn.allow_tf32
    logits = network.eval()(standardise(data.test_images, data.mean, data.std))
    assert one[1] == pytest.approx((logits.argmax(1) == data.test_labels).float().mean().item())


# ---- the folder, and what is left of a training


def test_a_finished_folder_holds_everything_the_contract_names(whole):
    assert {p.name for p in whole.iterdir()} - {".lock"} == {runs.METRICS, runs.RUN, runs.WEIGHTS}
    run = runs.read_run(whole)
    assert {"parameters", "preset", "overrides", "dtype", "git_commit", "git_dirty", "versions", "device", "threads",
            "seconds", "images_per_second", "test_accuracy", "test_loss", "counts", "data_checksum", "substitutes",
            "classes", "mean", "std", "epochs_done", "weights_sha256", "train_images", "tested_on"} <= run.keys()
    assert run["epochs_done"] == 3 and run["counts"] == TINY.count() and run["dtype"] == "float32"
    assert Architecture(**run["parameters"]["architecture"]) == TINY and Recipe(**run["parameters"]["recipe"]) == SHORT
    assert [row["epoch"] for row in rows(whole)] == ["1", "2", "3"]
    assert run["test_accuracy"] == float(rows(whole)[-1]["test_accuracy"])


def test_a_complete_run_asked_again_returns_at_once(whole):
    before, said = {p: p.stat().st_mtime_ns for p in whole.iterdir()}, []
    assert fit(whole.parent, log=said.append, max_seconds=100) == whole
    assert len(said) == 1 and "is complete" in said[0]
    assert {p: p.stat().st_mtime_ns for p in whole.iterdir()} == before


def test_a_training_leaves_torch_as_it_was_and_its_network_is_freed_without_the_collector(tmp_path, freed):
    def state():
        return (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32,
                torch.are_deterministic_algorithms_enabled(), signal.getsignal(signal.SIGTERM))

    before = state()
    with freed("build"):
        fit(tmp_path)
    assert state() == before


# ---- refusals


WRONG = dict(
    seed=(-1, 2**63, 1.0, True, None, "1"), precision=("double", None, True), split=("train", None, 1), device=("tpu",),
    train_size=(0, 45, 1.0, True, "9"), max_seconds=(0, float("nan"), "1", []))
UNFIT = {
    "num_classes must be 5 for digits, got 10": dict(classes=tuple("01234")),
    "training labels of digits must be 0 to 9, got 0 to 10": dict(train_labels=torch.arange(44) % 11),
    "test labels of digits must be 0 to 9, got -1 to 8": dict(test_labels=torch.arange(21) % 10 - 1),
    "digits must have test images, got none; choose another split": dict(
        test_images=torch.zeros(0, 3, 8, 8, dtype=torch.uint8), test_labels=torch.zeros(0, dtype=torch.int64)),
}


def test_what_does_not_fit_is_refused_by_name_before_anything_is_written(tmp_path):
    refused = [(f"^{name} must be", {name: value}) for name, values in WRONG.items() for value in values]
    refused += [(said, dict(data=dataclasses.replace(images(), **changes))) for said, changes in UNFIT.items()]
    for name, value in (("image_size", (4, 4)), ("in_channels", 1)):
        refused.append((f"{name} must be", dict(architecture=TINY.replace(**{name: value}))))
    refused.append(("sizes must be", dict(recipe=SHORT.replace(sizes=(4, 9)))))
    for said, options in refused:
        with pytest.raises(ValueError, match=said):
            fit(tmp_path / "runs", **options)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("arguments, said", [
    (["--K", "10"], "K must be a positive multiple of 4, got 10"),
    (["--variant", "x"], "argument --variant: invalid choice: 'x'"),
    (["--epoch", "3"], "unrecognized arguments: --epoch 3"),
    (["--set", "width=3"], "unknown parameter 'width' of hcnn; fields are J, K, Q"),
    (["--K", "8", "--set", "K=4"], "K is given twice"),
    (["--preset", "released", "--variant", "hcnn"], "preset must be one of paper, short for hcnn, got 'released'"),
    (["--train-size", "9999"], "train_size must be"),
    (["--threads", "0"], "threads must be an integer of at least 1, got 0"),
])
def test_wrong_options_give_one_line_and_exit_code_2_and_write_nothing(tmp_path, capsys, arguments, said):
    assert main(["train", "--dataset", "digits", "--out", str(tmp_path / "runs"), *arguments]) == 2
    errors = capsys.readouterr().err
    assert errors.startswith("error: ") and errors.count("\n") == 1 and said in errors
    assert not (tmp_path / "runs").exists()


def test_the_commands_train_evaluate_and_data_agree(tmp_path, capsys):
    assert main(["train", *OPTIONS, "--epochs", "1", "--train-size", "100", "--set", "sizes=[16]", "--lr", "0.1",
                 "--out", str(tmp_path)]) == 0
    folder = only(tmp_path)
    assert runs.read_run(folder)["overrides"]["sizes"] == [16]
    assert main(["evaluate", str(folder)]) == 0
    assert "difference +0.0000%" in capsys.readouterr().out
    assert main(["evaluate", str(folder), "--images", "50"]) == 0
    assert "50 of 297 test images" in capsys.readouterr().out
    assert main(["evaluate", str(tmp_path / "absent")]) == 1
    assert main(["data", "digits"]) == 0
    assert "digits: 1,500 training and 297 test images" in capsys.readouterr().out
    assert main(["data", "mnist"]) == 2
