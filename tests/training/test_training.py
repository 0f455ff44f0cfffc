"""Training: recipes, the step that is taken, and that a run survives being stopped, killed, or asked for twice."""

import csv
import dataclasses
import errno
import os
import random
import signal
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

from hcnn import HCNN, Architecture, load
from hcnn.companion.commands import main
from hcnn.data.augment import standardise
from hcnn.data.datasets import load_dataset
from hcnn.training import loop as training
from hcnn.training import run_folder as runs
from hcnn.training.evaluation import evaluate
from hcnn.training.loop import train
from hcnn.training.recipe import Recipe, lr_at, preset_of
from hcnn.training.stopping import Stop

TINY = Architecture(K=4, Q=2, J=4, subsampled=(3,), image_size=(8, 8))
SHORT = Recipe.preset(epochs=3, batch_size=10, lr=0.1, shift=1)


@pytest.fixture(scope="module")
def data(random_dataset):
    """44 + 21 random images of 8 x 8: minibatches of 10, 10, 10, 10, 4."""
    return random_dataset(44, 21)


def quiet(line):
    pass


def rows(folder):
    with open(folder / runs.METRICS) as file:
        return [{key: float(value) for key, value in row.items() if key != "seconds"} for row in csv.DictReader(file)]


def weights(folder):
    return runs.read_weights(folder, runs.read_run(folder))


# ---- recipes


@pytest.mark.parametrize("epoch, factor", [(1, 1), (40, 1), (41, 0.1), (80, 0.1), (81, 0.01), (121, 1e-3), (161, 1e-4), (240, 1e-5)])
def test_paper_rate_is_divided_by_ten_every_40_epochs(epoch, factor):
    assert lr_at(Recipe(), (epoch - 1) / 240) == pytest.approx(0.25 * factor, rel=1e-12)


@pytest.mark.parametrize("epoch, factor", [(1, 1), (41, 0.5), (81, 0.25), (241, 0.015), (240, 0.03), (261, 0.007), (281, 0.00035),
                                           (320, 0.00017)])
def test_released_rate_follows_its_list(epoch, factor):
    assert lr_at(Recipe.preset("released"), (epoch - 1) / 320) == pytest.approx(0.35 * factor, rel=1e-12)


def test_milestones_scale_with_the_number_of_epochs():
    recipe = Recipe.preset(epochs=6)
    rates = [lr_at(recipe, epoch / 6) for epoch in range(6)]
    assert rates == pytest.approx([0.25, 0.025, 0.0025, 2.5e-4, 2.5e-5, 2.5e-6])


def test_cosine_rises_for_a_twentieth_of_the_run_and_ends_at_zero():
    recipe = Recipe.preset(schedule="cosine", lr=0.4)
    assert [lr_at(recipe, p) for p in (0, 0.025, 0.05, 0.525, 1)] == pytest.approx([0, 0.2, 0.4, 0.2, 0])


@pytest.mark.parametrize("name, value", [
    ("epochs", 0), ("epochs", 1.5), ("epochs", True), ("batch_size", 0), ("lr", 0), ("lr", float("nan")), ("lr", "fast"),
    ("schedule", "linear"),
    ("milestones", (0.5, 0.2)), ("milestones", (0.5, 2)), ("milestones", 3), ("multipliers", (1, 2)), ("momentum", 1), ("momentum", -0.1),
    ("nesterov", 1), ("weight_decay", -1), ("shift", -1), ("shift", 1.5), ("flip", "yes"), ("mean", (1, 2)), ("std", (0.0, 0.2, 0.2)),
    ("mean", (0.5, 0.5, 0.5)),
])
def test_a_wrong_field_of_the_recipe_is_refused_by_name(name, value):
    with pytest.raises(ValueError, match="(mean|std) must be" if name == "mean" else f"{name} must be"):
        Recipe.preset(**{name: value})


def test_unknown_presets_and_fields_are_refused():
    with pytest.raises(ValueError, match="preset must be one of paper, released, .*fitnet, got 'best'"):
        Recipe.preset("best")
    with pytest.raises(ValueError, match="unknown parameter 'learning_rate'"):
        Recipe.preset(learning_rate=1)


@pytest.mark.parametrize("preset", ["paper", "released"])
def test_a_recipe_comes_back_from_its_dictionary(preset):
    recipe = Recipe.preset(preset, epochs=7)
    assert Recipe(**recipe.as_dict()) == recipe
    assert Recipe(lr=1).as_dict() == Recipe(lr=1.0).as_dict() and type(Recipe(lr=1).lr) is float


def test_preset_and_overrides_are_found_again():
    architecture = Architecture.preset("cifar100", "hcnn-plus", "released", Q=16)
    assert preset_of(architecture, Recipe.preset("released", epochs=5), "cifar100") == ("released", {"Q": 16, "epochs": 5})
    assert preset_of(Architecture(), Recipe(), "cifar10") == ("paper", {})


# ---- the step


@pytest.mark.parametrize("nesterov", [False, True])
def test_weights_follow_hand_written_sgd_with_decay_on_filters_only(data, tmp_path, nesterov):
    recipe = Recipe.preset(epochs=4, batch_size=44, lr=0.05, weight_decay=0.3, shift=0, flip=False, nesterov=nesterov)
    folder = train(TINY, recipe, data, seed=5, out=tmp_path, precision="strict", log=quiet)
    network = HCNN(TINY, torch.Generator().manual_seed(5))
    filters = {id(p) for p in network.filter_parameters()}
    velocity = {name: 0 for name, _ in network.named_parameters()}
    x = standardise(data.train_images, data.mean, data.std)
    for epoch in range(4):
        network.zero_grad()
        F.cross_entropy(network(x), data.train_labels).backward()
        with torch.no_grad():
            for name, p in network.named_parameters():
                gradient = p.grad + (0.3 * p if id(p) in filters else 0)
                velocity[name] = 0.9 * velocity[name] + gradient
                p -= lr_at(recipe, epoch / 4) * (gradient + 0.9 * velocity[name] if nesterov else velocity[name])
    found = weights(folder)
    for name, p in network.named_parameters():
        torch.testing.assert_close(found[name], p.detach(), atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("precision, expected", [("fast", [True, True, False]), ("strict", [False, False, False])])
def test_the_last_epoch_is_tested_in_float32_and_the_others_as_they_are_trained(data, tmp_path, monkeypatch, precision, expected):
    monkeypatch.setattr(training, "autocast_dtype", lambda precision, device: torch.bfloat16 if precision == "fast" else torch.float32)
    forward, lowered = HCNN.forward, []

    def spy(network, x):
        if not network.training:
            lowered.append(torch.is_autocast_enabled("cpu"))
        return forward(network, x)

    monkeypatch.setattr(HCNN, "forward", spy)
    train(TINY, SHORT, data, out=tmp_path, precision=precision, log=quiet)
    batches = len(lowered) // 3
    assert batches and lowered == [low for low in expected for _ in range(batches)]


def test_a_small_network_learns_digits_in_one_epoch(tmp_path):
    digits = load_dataset("digits")
    small = {name: F.avg_pool2d(getattr(digits, name).float(), 4).to(torch.uint8) for name in ("train_images", "test_images")}
    architecture = Architecture(K=8, Q=9, J=5, subsampled=(4,), image_size=(8, 8))
    recipe = Recipe.preset(epochs=1, batch_size=25, lr=0.1, schedule="cosine", shift=0)
    folder = train(architecture, recipe, dataclasses.replace(digits, **small), train_size=800, out=tmp_path, log=quiet)
    assert rows(folder)[-1]["test_accuracy"] > 0.4  # chance: 0.1


def test_order_shifts_and_flips_depend_on_seed_and_epoch_alone(data, tmp_path):
    a, b, c = (train(TINY, SHORT, data, seed=seed, out=tmp_path / name, precision="strict", log=quiet)
               for seed, name in ((3, "a"), (3, "b"), (4, "c")))
    assert runs.read_run(a)["weights_sha256"] == runs.read_run(b)["weights_sha256"] != runs.read_run(c)["weights_sha256"]
    assert rows(a) == rows(b)


def test_evaluation_does_not_depend_on_the_batch_and_leaves_the_mode(data):
    network = HCNN(TINY, torch.Generator().manual_seed(0)).train()
    arguments = network, data.test_images, data.test_labels, data.mean, data.std
    one, other = evaluate(*arguments, batch_size=4), evaluate(*arguments, batch_size=100)
    assert one == pytest.approx(other, rel=1e-5) and network.training
    logits = network.eval()(standardise(data.test_images, data.mean, data.std))
    assert one[1] == pytest.approx((logits.argmax(1) == data.test_labels).float().mean().item())


# ---- the folder


def test_a_finished_folder_holds_everything_the_contract_names(data, tmp_path):
    folder = train(TINY, SHORT, data, out=tmp_path, log=quiet)
    assert sorted(p.name for p in folder.iterdir() if p.name != ".lock") == ["metrics.csv", "run.json", "weights.safetensors"]
    run = runs.read_run(folder)
    assert {"parameters", "preset", "overrides", "dtype", "git_commit", "git_dirty", "versions", "device", "threads", "seconds",
            "images_per_second", "test_accuracy", "test_loss", "counts", "data_checksum", "substitutes", "classes", "mean", "std",
            "epochs_done", "weights_sha256", "train_images", "tested_on"} <= run.keys()
    assert run["epochs_done"] == 3 and run["test_accuracy"] == rows(folder)[-1]["test_accuracy"] and run["counts"] == TINY.count()
    assert Architecture(**run["parameters"]["architecture"]) == TINY and Recipe(**run["parameters"]["recipe"]) == SHORT
    assert [row["epoch"] for row in rows(folder)] == [1, 2, 3]
    network = load(folder)
    assert evaluate(network, data.test_images, data.test_labels, network.mean, network.std)[1] == run["test_accuracy"]


def test_a_complete_run_asked_again_returns_at_once(data, tmp_path):
    folder = train(TINY, SHORT, data, out=tmp_path, log=quiet)
    before, said = {p: p.stat().st_mtime_ns for p in folder.iterdir()}, []
    assert train(TINY, SHORT, data, out=tmp_path, log=said.append, max_seconds=100) == folder
    assert len(said) == 1 and "is complete" in said[0]
    assert {p: p.stat().st_mtime_ns for p in folder.iterdir()} == before


def test_validation_and_train_size_make_another_run(data, tmp_path):
    folders = {train(TINY, SHORT, data, out=tmp_path, log=quiet, **options)
               for options in ({}, dict(split="validation"), dict(train_size=20), dict(precision="strict"), dict(seed=1))}
    assert len(folders) == 5
    tested = {runs.read_run(f)["parameters"]["split"]: runs.read_run(f)["tested_on"] for f in folders}
    assert tested == {"test": "test images", "validation": "held-out training images"}


@pytest.mark.parametrize("name, options", [
    ("seed", dict(seed=-1)), ("seed", dict(seed="x")), ("precision", dict(precision="half")), ("max_seconds", dict(max_seconds=0)),
    ("split", dict(split="train")), ("train_size", dict(train_size=45)), ("device", dict(device="tpu")), ("device", dict(device="cuda:99")),
    ("num_classes", dict(architecture=TINY.replace(num_classes=4))), ("image_size", dict(architecture=TINY.replace(image_size=(4, 4)))),
])
def test_wrong_parameters_are_refused_before_anything_is_written(data, tmp_path, name, options):
    options = dict(architecture=TINY, recipe=SHORT, dataset=data, out=tmp_path / "runs", log=quiet) | options
    with pytest.raises(ValueError, match=f"{name} must be"):
        train(**options)
    assert not (tmp_path / "runs").exists()


# ---- stopped, killed, broken


@pytest.fixture
def stop_after(monkeypatch):
    """Make the next run stop when it asks for the n-th time whether it should."""
    def set_limit(n):
        asked = [0]

        def reason(self):
            asked[0] += 1
            return "a test" if asked[0] >= n else None

        monkeypatch.setattr(Stop, "reason", reason)
    yield set_limit


@pytest.mark.parametrize("precision", ["fast", "strict"])
def test_a_run_stopped_at_random_steps_ends_bit_for_bit_the_same(data, tmp_path, stop_after, monkeypatch, precision):
    whole = train(TINY, SHORT, data, out=tmp_path / "whole", precision=precision, log=quiet)
    choose, calls = random.Random(precision), 0
    while True:
        stop_after(choose.randint(1, 6))
        folder = train(TINY, SHORT, data, out=tmp_path / "parts", precision=precision, log=quiet)
        calls += 1
        done = runs.read_run(folder)["epochs_done"]
        assert len(rows(folder)) == done and (folder / runs.CHECKPOINT).exists() == (done < 3)
        if done == 3:
            break
    assert calls > 3
    assert (folder / runs.WEIGHTS).read_bytes() == (whole / runs.WEIGHTS).read_bytes()
    assert rows(folder) == rows(whole)


def test_every_call_gets_on_however_short_its_time(data, tmp_path):
    recipe = SHORT.replace(epochs=1)
    for calls in range(1, 20):
        folder = train(TINY, recipe, data, out=tmp_path, max_seconds=1e-9, log=quiet)
        if runs.read_run(folder)["epochs_done"] == 1:
            break
    assert calls == 6  # five steps, one evaluation
    assert runs.read_run(folder)["weights_sha256"] == runs.read_run(
        train(TINY, recipe, data, out=tmp_path / "whole", log=quiet))["weights_sha256"]


def command(out, *options):
    return [sys.executable, "-m", "hcnn", "train", "--dataset", "digits", "--K", "4", "--Q", "2", "--J", "4", "--set", "subsampled=[1,2]",
            "--epochs", "12", "--train-size", "100", "--batch-size", "20", "--out", str(out),
            "--threads", str(torch.get_num_threads()), *options]


def begun(out):
    """Start the command and wait for its first epoch."""
    process = subprocess.Popen(command(out), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    for line in process.stdout:
        if line.startswith("epoch "):
            return process
    raise AssertionError(process.stderr.read())


def test_a_run_survives_kill_and_sigterm_and_refuses_a_second_process(tmp_path):
    process = begun(tmp_path / "parts")
    (folder,) = (tmp_path / "parts").iterdir()
    with pytest.raises(BlockingIOError, match=f"being written by process {process.pid}"), runs.lock(folder):
        pass
    process.kill()
    process.communicate()
    process = begun(tmp_path / "parts")
    process.send_signal(signal.SIGTERM)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 0 and "stopped (signal SIGTERM)" in output and errors == ""
    assert 1 <= runs.read_run(folder)["epochs_done"] < 12 and (folder / runs.CHECKPOINT).exists()
    assert main(command(tmp_path / "parts")[3:]) == 0
    assert main(command(tmp_path / "whole")[3:]) == 0
    (whole,) = (tmp_path / "whole").iterdir()
    assert rows(folder) == rows(whole) and [row["epoch"] for row in rows(folder)] == list(range(1, 13))
    assert (folder / runs.WEIGHTS).read_bytes() == (whole / runs.WEIGHTS).read_bytes()


def test_a_loss_that_is_not_finite_stops_with_place_and_advice_and_loses_nothing(data, tmp_path, stop_after, monkeypatch):
    stop_after(8)  # in epoch 2, after its first step or two
    folder = train(TINY, SHORT, data, out=tmp_path, log=quiet)
    checkpoint = (folder / runs.CHECKPOINT).read_bytes()
    monkeypatch.undo()
    forward = HCNN.forward
    monkeypatch.setattr(HCNN, "forward", lambda self, x: forward(self, x) * float("nan"))
    _, state = runs.read_checkpoint(folder)
    place = f"the loss is not finite at epoch {state['epoch'] + 1}, step {state['step'] + 1} of 5"
    with pytest.raises(FloatingPointError, match=place + r"; lower lr \(0.1\) or use precision='strict'"):
        train(TINY, SHORT, data, out=tmp_path, log=quiet)
    assert (folder / runs.CHECKPOINT).read_bytes() == checkpoint
    monkeypatch.undo()
    train(TINY, SHORT, data, out=tmp_path, log=quiet)
    assert runs.read_run(folder)["epochs_done"] == 3


def test_a_rate_that_is_far_too_high_is_reported_and_not_stored(data, tmp_path):
    with pytest.raises(FloatingPointError, match="not finite at epoch 1"):
        train(TINY, SHORT.replace(lr=1e30), data, out=tmp_path, log=quiet)
    (folder,) = tmp_path.iterdir()
    assert not (folder / runs.WEIGHTS).exists() and runs.read_run(folder)["epochs_done"] == 0


def test_a_disk_that_fills_up_costs_only_the_steps_since_the_last_checkpoint(data, tmp_path, stop_after, monkeypatch):
    stop_after(3)
    folder = train(TINY, SHORT, data, out=tmp_path / "parts", log=quiet)
    monkeypatch.undo()
    write = os.fsync

    def full(file):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="could not write .*checkpoint.safetensors .No space left on device"):
        train(TINY, SHORT, data, out=tmp_path / "parts", log=quiet)
    monkeypatch.setattr(os, "fsync", write)
    train(TINY, SHORT, data, out=tmp_path / "parts", log=quiet)
    whole = train(TINY, SHORT, data, out=tmp_path / "whole", log=quiet)
    assert rows(folder) == rows(whole) and (folder / runs.WEIGHTS).read_bytes() == (whole / runs.WEIGHTS).read_bytes()


def test_a_checkpoint_of_another_run_or_of_other_shapes_is_refused(data, tmp_path, stop_after):
    stop_after(2)
    folder = train(TINY, SHORT, data, out=tmp_path, log=quiet)
    other = train(TINY.replace(Q=3), SHORT, data, out=tmp_path, log=quiet)
    (other / runs.CHECKPOINT).write_bytes((folder / runs.CHECKPOINT).read_bytes())
    with pytest.raises(ValueError, match="checkpoint.safetensors belongs to another run"):
        train(TINY.replace(Q=3), SHORT, data, out=tmp_path, log=quiet)
    tensors, state = runs.read_checkpoint(folder)
    runs.write_checkpoint(other, tensors, state | dict(parameters=runs.read_run(other)["parameters"]))
    with pytest.raises(ValueError, match=r"does not fit the architecture: .* must be .*3.*, got .*2"):
        train(TINY.replace(Q=3), SHORT, data, out=tmp_path, log=quiet)


def test_a_folder_that_holds_another_run_is_refused(data, tmp_path):
    folder = train(TINY, SHORT, data, out=tmp_path, log=quiet)
    run = runs.read_run(folder)
    run["parameters"]["seed"] = 7
    runs.write_run(folder, run)
    with pytest.raises(ValueError, match="holds another run .different: seed."):
        train(TINY, SHORT, data, out=tmp_path, log=quiet)


def test_an_unfinished_folder_without_its_checkpoint_is_refused(data, tmp_path, stop_after):
    stop_after(8)
    folder = train(TINY, SHORT, data, out=tmp_path, log=quiet)
    (folder / runs.CHECKPOINT).unlink()
    with pytest.raises(ValueError, match="no checkpoint.safetensors to continue from"):
        train(TINY, SHORT, data, out=tmp_path, log=quiet)


def test_a_run_continued_on_other_hardware_records_both(data, tmp_path, stop_after, monkeypatch):
    stop_after(2)
    train(TINY, SHORT, data, out=tmp_path, log=quiet)
    monkeypatch.undo()
    record = training.provenance
    monkeypatch.setattr(training, "provenance", lambda *arguments: record(*arguments) | dict(device="another"))
    run = runs.read_run(train(TINY, SHORT, data, out=tmp_path, log=quiet))
    first = record(torch.device("cpu"), torch.float32)["device"]
    assert run["device"] == "another" and [part["device"] for part in run["earlier"]] == [first]


def test_training_leaves_the_settings_of_torch_as_they_were(data, tmp_path):
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32, torch.are_deterministic_algorithms_enabled()
    handler = signal.getsignal(signal.SIGTERM)
    run = runs.read_run(train(TINY, SHORT, data, out=tmp_path, precision="strict", log=quiet))
    assert run["dtype"] == "float32" and signal.getsignal(signal.SIGTERM) is handler
    assert before == (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32, torch.are_deterministic_algorithms_enabled())


# ---- the command line


@pytest.mark.parametrize("arguments, said", [
    (["--K", "10"], "K must be a positive multiple of 4, got 10"),
    (["--Q", "0"], "Q must be an integer of at least 1, got 0"),
    (["--variant", "x"], "argument --variant: invalid choice: 'x'"),
    (["--epoch", "3"], "unrecognized arguments: --epoch 3"),
    (["--K", "many"], "argument --K: invalid int value: 'many'"),
    (["--set", "width=3"], "--set must be NAME=VALUE with a field of Architecture or Recipe, got 'width=3'"),
    (["--set", "shift=1.5"], "shift must be"),
    (["--K", "8", "--set", "K=4"], "K is given twice"),
    (["--preset", "released", "--variant", "hcnn"], "variant must be 'hcnn-plus'"),
    (["--train-size", "9999"], "train_size must be"),
    (["--threads", "0"], "threads must be at least 1, got 0"),
    (["--max-seconds", "-1"], "max_seconds must be"),
    (["--device", "abacus"], "device must be"),
])
def test_wrong_options_give_one_line_and_exit_code_2_and_write_nothing(tmp_path, capsys, arguments, said):
    assert main(["train", "--dataset", "digits", "--out", str(tmp_path / "runs"), *arguments]) == 2
    errors = capsys.readouterr().err
    assert errors.startswith("error: ") and errors.count("\n") == 1 and said in errors
    assert not (tmp_path / "runs").exists()


def test_the_commands_train_evaluate_and_data_agree(tmp_path, capsys):
    options = command(tmp_path, "--set", "flip=false", "--lr", "0.1")[3:]
    options[options.index("--epochs") + 1] = "1"
    assert main(options) == 0
    (folder,) = tmp_path.iterdir()
    assert runs.read_run(folder)["overrides"]["flip"] is False
    assert main(["evaluate", str(folder)]) == 0
    assert "difference +0.0000%" in capsys.readouterr().out
    assert main(["evaluate", str(folder), "--images", "50"]) == 0
    assert "50 of 297 test images" in capsys.readouterr().out
    assert main(["evaluate", str(tmp_path / "absent")]) == 1
    assert main(["data", "digits"]) == 0
    assert "digits: 1,500 training and 297 test images" in capsys.readouterr().out
    assert main(["data", "mnist"]) == 2


def test_accuracies_are_computed_without_tf32_which_is_the_default_for_convolutions(monkeypatch):
    seen = []

    class Network(torch.nn.Module):
        def forward(self, x):
            seen.append((torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()))
            return torch.zeros(len(x), 2)

    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    images, labels = torch.zeros(3, 3, 4, 4, dtype=torch.uint8), torch.zeros(3, dtype=torch.int64)
    evaluate(Network(), images, labels, (0, 0, 0), (1, 1, 1))
    assert seen == [(False, "highest")] and torch.backends.cudnn.allow_tf32
