"""What may go wrong beside a kill: every fault ends in an error that names the thing and the remedy, and costs nothing computed."""

import dataclasses
import errno
import itertools
import json
import os
import pickle
import random
import re
import resource
import shutil
from functools import reduce
from operator import getitem
from pathlib import Path

import pytest
import torch

from hcnn import HCNN, Architecture, load, paths
from hcnn.companion.commands import STOPPED, main
from hcnn.companion.results import runs as results
from hcnn.companion.results import verify
from hcnn.companion.results.tables import other_runs
from hcnn.training import loop as training
from hcnn.training import run_folder as runs
from hcnn.training.evaluation import evaluate
from hcnn.training.loop import train
from hcnn.training.recipe import Recipe

TINY = Architecture(K=4, Q=2, J=4, subsampled=(3,), image_size=(8, 8))
SHORT = Recipe.preset(epochs=2, batch_size=10, lr=0.1, shift=1)


@pytest.fixture(scope="module")
def data(random_dataset):
    """31 + 12 random images of 8 x 8: minibatches of 10, 10, 10 and of one image."""
    return random_dataset(31, 12)


@pytest.fixture
def every_step(monkeypatch):
    """A checkpoint after every step."""
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", -1)


def run(data, out, recipe=SHORT, **options):
    return train(TINY, recipe, data, out=out, device="cpu", log=lambda line: None, **options)


def content(folder):
    """What a finished run holds: its weights and its metrics without the seconds."""
    assert runs.read_run(folder)["epochs_done"] == 2 and not (folder / runs.CHECKPOINT).exists()
    return (folder / runs.WEIGHTS).read_bytes(), [line.rpartition(",")[0] for line in (folder / runs.METRICS).read_text().splitlines()]


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """A finished run."""
    return run(data, tmp_path_factory.mktemp("whole"))


@pytest.fixture
def stopped(data, tmp_path, every_step, monkeypatch):
    """A run that broke off in its second epoch, in step 2 of 4: one row of metrics, weights, a checkpoint."""
    # lr_at is asked once a step, and once for the row of an epoch
    monkeypatch.setattr(training, "lr_at", fail_at(7, RuntimeError("stop")))
    with pytest.raises(RuntimeError, match="stop"):
        run(data, tmp_path / "stopped")
    monkeypatch.setattr(training, "lr_at", LR_AT)
    (folder,) = (tmp_path / "stopped").iterdir()
    assert runs.read_run(folder)["epochs_done"] == 1 and runs.read_checkpoint(folder)[1]["step"] == 1
    return folder


LR_AT = training.lr_at


def fail_at(n, error, function=LR_AT):
    """The function, but its n-th call raises."""
    calls = itertools.count(1)

    def call(*arguments, **options):
        if next(calls) == n:
            raise error
        return function(*arguments, **options)

    return call


# ---- numbers


@pytest.mark.parametrize("factor", [float("nan"), float("inf"), 1e38])
def test_an_exploding_gradient_stops_the_run_and_every_checkpoint_stays_finite(data, tmp_path, whole, every_step, monkeypatch, factor):
    def network(*arguments):
        net, steps = HCNN(*arguments), itertools.count(1)
        net.operators[-1].g.register_hook(lambda gradient: gradient * (factor if next(steps) == 3 else 1))
        return net

    monkeypatch.setattr(training, "build", network)
    with pytest.raises(FloatingPointError, match="(loss|a weight) .*is not finite at epoch 1, step [34] of 4; lower lr .0.1."):
        run(data, tmp_path)
    monkeypatch.undo()
    (folder,) = tmp_path.iterdir()
    tensors, state = runs.read_checkpoint(folder)
    assert all(tensor.isfinite().all() for tensor in tensors.values())
    if state["step"] == 2:  # before the explosion: a finite one may be saved, and what it leads to never is
        assert content(run(data, tmp_path)) == content(whole)


def test_a_minibatch_of_one_image_trains_and_no_image_is_refused(data, tmp_path, whole):
    assert len(data.train_labels) % SHORT.batch_size == 1
    assert runs.read_run(whole)["epochs_done"] == 2
    assert runs.read_run(run(data, tmp_path, SHORT.replace(batch_size=1, lr=0.001)))["epochs_done"] == 2
    network = load(whole)
    with pytest.raises(ValueError, match=r"images must be \(batch >= 1, 3, 8, 8\), got \(0, 3, 8, 8\)"):
        network.predict(data.test_images[:0])
    with pytest.raises(ValueError, match="images must be at least one"):
        evaluate(network, data.test_images[:0], data.test_labels[:0], data.mean, data.std)


@pytest.mark.parametrize("shape", [(2, 3, 9, 8), (2, 8, 8, 3), (3, 8, 8), (2, 1, 8, 8), (0, 3, 8, 8)])
def test_images_of_another_size_are_refused_with_both_sizes(whole, shape):
    with pytest.raises(ValueError, match=r"images must be \(batch >= 1, 3, 8, 8\), got \([0-9, ]+\); other sizes: Architecture"):
        load(whole)(torch.zeros(shape))


# ---- data sets


@pytest.mark.parametrize("changes, said", [
    (dict(classes=tuple("01234")), "num_classes must be 5 for digits, got 10"),
    (dict(train_labels=torch.arange(31) % 11), "training labels of digits must be 0 to 9, got 0 to 10"),
    (dict(test_labels=torch.arange(12) % 10 - 1), "test labels of digits must be 0 to 9, got -1 to 8"),
    (dict(test_images=torch.zeros(0, 3, 8, 8, dtype=torch.uint8), test_labels=torch.zeros(0, dtype=torch.int64)),
     "digits must have test images, got none; choose another split"),
    (dict(train_images=torch.zeros(0, 3, 8, 8, dtype=torch.uint8), train_labels=torch.zeros(0, dtype=torch.int64)),
     "digits must have training images, got none"),
])
def test_a_data_set_that_does_not_fit_is_refused_before_anything_is_written(data, tmp_path, changes, said):
    with pytest.raises(ValueError, match=said):
        run(dataclasses.replace(data, **changes), tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


def test_a_split_without_images_is_refused(data, tmp_path):
    few = dataclasses.replace(data, train_images=data.train_images[:9], train_labels=data.train_labels[:9])
    with pytest.raises(ValueError, match="must have test images, got none"):
        run(few, tmp_path / "runs", split="validation")
    assert not (tmp_path / "runs").exists()


# ---- memory and disk


def test_a_gpu_out_of_memory_says_what_to_lower_and_keeps_the_checkpoint(data, whole, stopped, monkeypatch):
    before = (stopped / runs.CHECKPOINT).read_bytes()
    monkeypatch.setattr(HCNN, "forward", fail_at(1, torch.OutOfMemoryError("CUDA out of memory"), HCNN.forward))
    with pytest.raises(MemoryError, match="lower batch_size, K or Q.* The last checkpoint in .* is kept"):
        run(data, stopped.parent)
    assert (stopped / runs.CHECKPOINT).read_bytes() == before
    assert content(run(data, stopped.parent)) == content(whole)


@pytest.mark.parametrize("n", range(1, 11))
def test_a_disk_that_is_full_at_any_one_write_costs_nothing(data, tmp_path, whole, monkeypatch, n):
    monkeypatch.setattr(os, "replace", fail_at(n, OSError(errno.ENOSPC, "No space left on device"), os.replace))
    with pytest.raises(OSError, match="could not write .*No space left on device.*Make room .*start the same command again"):
        run(data, tmp_path)  # writes metrics and run.json, then four files an epoch
    assert content(run(data, tmp_path)) == content(whole)


def test_a_file_that_breaks_off_in_the_middle_of_a_write_leaves_the_old_one(tmp_path):
    runs.write_checkpoint(tmp_path, {"w": torch.zeros(100)}, {"epoch": 1})
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))  # a real refusal by the system, after 50,000 bytes
    try:
        with pytest.raises(OSError, match="could not write .*checkpoint.safetensors") as error:
            runs.write_checkpoint(tmp_path, {"w": torch.zeros(100_000)}, {"epoch": 2})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert error.value.errno == errno.EFBIG
    assert runs.read_checkpoint(tmp_path)[1] == {"epoch": 1} and [p.name for p in tmp_path.iterdir()] == [runs.CHECKPOINT]


def test_two_trainings_of_one_folder_and_an_impossible_folder_end_in_one_line(tmp_path, capsys):
    command = ["train", "--dataset", "digits", "--K", "4", "--Q", "2", "--J", "4", "--set", "subsampled=[1,2]", "--epochs", "1",
               "--train-size", "20", "--out"]
    assert main([*command, str(tmp_path / "runs"), "--max-seconds", "0.001"]) == STOPPED
    (folder,) = (tmp_path / "runs").iterdir()
    (tmp_path / "file").touch()
    capsys.readouterr()
    with runs.lock(folder):
        assert main([*command, str(tmp_path / "runs")]) == 1
    assert main([*command, str(tmp_path / "file")]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2 and all(line.startswith("error: ") for line in lines)
    assert f"{folder} is being written by process {os.getpid()}; wait for it or stop it" in lines[0] and str(tmp_path / "file") in lines[1]


# ---- files that were damaged, changed or exchanged


def test_every_flipped_bit_of_a_checkpoint_is_noticed(data, whole, stopped):
    path, choose = stopped / runs.CHECKPOINT, random.Random(0)
    right = path.read_bytes()
    for position in [0, 7, 8, 9, len(right) - 1, *(choose.randrange(len(right)) for _ in range(60))]:
        wrong = bytearray(right)
        wrong[position] ^= 1 << choose.randrange(8)
        path.write_bytes(wrong)
        with pytest.raises(ValueError, match="checkpoint.safetensors is damaged .*delete it"):
            runs.read_checkpoint(stopped)
    path.write_bytes(right)
    assert content(run(data, stopped.parent)) == content(whole)


@pytest.mark.parametrize("damage", [
    lambda text: text[:100], lambda text: text.replace('"epochs_done": 1', '"epochs_done": 2'), lambda text: "",
])
def test_an_unfinished_run_with_a_damaged_run_json_says_how_to_go_on_and_loses_nothing(data, whole, stopped, damage):
    path = stopped / runs.RUN
    path.write_text(damage(path.read_text()))
    with pytest.raises(ValueError, match="run.json .*; delete this file and run again: nothing is lost, checkpoint.safetensors holds all"):
        run(data, stopped.parent)
    path.unlink()
    assert content(run(data, stopped.parent)) == content(whole)


@pytest.mark.parametrize("file", [runs.METRICS, runs.WEIGHTS])
def test_damaged_metrics_and_weights_of_an_unfinished_run_are_written_again(data, whole, stopped, file):
    (stopped / file).write_bytes(b"x" * 10)
    assert content(run(data, stopped.parent)) == content(whole)


class Payload:
    """A pickle that makes a file when it is read."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def resigned(folder, out, weights, **changes):
    """A copy of a run with other weights, all checksums made right again."""
    out.mkdir()
    (out / runs.WEIGHTS).write_bytes(weights)
    runs.write_run(out, runs.read_run(folder) | dict(weights_sha256=runs.sha256(weights)) | changes)
    return out


def test_weights_and_checkpoints_that_are_pickles_are_refused_and_not_run(data, tmp_path, whole, stopped):
    trace = tmp_path / "trace"
    pickled = pickle.dumps(Payload(trace))
    with pytest.raises(ValueError, match="weights.safetensors is no safetensors file .*restore it from git, or train again"):
        load(resigned(whole, tmp_path / "forged", pickled))
    (stopped / runs.CHECKPOINT).write_bytes(pickled)
    with pytest.raises(ValueError, match="checkpoint.safetensors is damaged"):
        run(data, stopped.parent)
    assert not trace.exists()
    pickle.loads(pickled).close()
    assert trace.exists()  # it would have


def test_truncated_weights_and_weights_of_another_architecture_are_refused_even_with_right_checksums(tmp_path, whole):
    weights, run_json = (whole / runs.WEIGHTS).read_bytes(), runs.read_run(whole)
    with pytest.raises(ValueError, match="weights.safetensors is no safetensors file"):
        load(resigned(whole, tmp_path / "truncated", weights[:-4]))
    parameters = json.loads(json.dumps(run_json["parameters"]))
    parameters["architecture"]["Q"] = 3
    with pytest.raises(ValueError, match=r"weights.safetensors does not fit the architecture: \S+ must be \(.*3.*\), got \(.*2.*\)"):
        load(resigned(whole, tmp_path / "another", weights, parameters=parameters))
    assert load(resigned(whole, tmp_path / "same", weights)).run["epochs_done"] == 2


def entries(run, above=()):
    """Every entry of run.json, also inside of others, as a tuple of keys."""
    for key, value in run.items():
        yield (*above, key)
        if isinstance(value, dict):
            yield from entries(value, (*above, key))


MISSING = object()


@pytest.mark.parametrize("value", [MISSING, "x", *(pytest.param(value, marks=pytest.mark.full)
                                                   for value in (None, "", -1, 1.5, True, [], [1, 2, 3], {}))],
                         ids=lambda value: "missing" if value is MISSING else repr(value))
def test_whatever_stands_in_run_json_is_shown_or_refused_and_takes_no_table_down(data, tmp_path, whole, value):
    folder = shutil.copytree(whole, tmp_path / whole.name)
    right = runs.read_run(whole)
    for path in entries(right):
        run = json.loads(json.dumps(right))
        inside = reduce(getitem, path[:-1], run)
        inside[path[-1]] = value
        if value is MISSING:
            del inside[path[-1]]
        runs.write_run(folder, run)
        stored = [results.load_run(folder), results.load_run(whole)]
        assert len(other_runs(stored)) == 2 and results.best_available("digits", "hcnn", stored), path
        verify.check_run(stored[0])
        try:
            load(folder).predict(data.test_images[:1])
        except ValueError as error:
            assert str(error), path


def test_classes_of_another_data_set_in_run_json_are_found(tmp_path, whole):
    weights = (whole / runs.WEIGHTS).read_bytes()
    for number, classes in ((10, list("0123456798")), (9, list("012345678"))):
        folder = resigned(whole, tmp_path / str(number), weights, classes=classes)
        if number == 9:
            with pytest.raises(ValueError, match="run.json must have 10 classes, got "):
                load(folder)
        else:
            run = results.Run(folder, runs.read_run(folder), None)
            assert verify.check_accuracy(run, device="cpu") == ["run.json has other classes than digits"]


def test_metrics_that_are_longer_than_run_json_says_are_read_up_to_there(data, whole, stopped):
    with open(stopped / runs.METRICS, "a") as file:
        file.write((stopped / runs.METRICS).read_text().splitlines()[-1] + "\n")
    stored = results.load_run(stopped)
    assert stored.problem is None and len(stored.metrics) == stored.epochs_done == 1
    assert content(run(data, stopped.parent)) == content(whole)


@pytest.mark.parametrize("arguments", [["evaluate", "{file}"], ["train", "--dataset", "digits", "--out", "{file}"], ["verify"],
                                       ["train", "--dataset", "digits", "--out", "/proc/none"],
                                       ["data", "cifar10", "--dataset-root", "{file}"]])
def test_a_file_where_a_folder_belongs_ends_in_one_line(tmp_path, capsys, monkeypatch, arguments):
    (tmp_path / "file").touch()
    monkeypatch.setattr(paths, "RESULTS", tmp_path / "file")
    assert main([text.format(file=tmp_path / "file") for text in arguments]) in (1, 2)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and ("/proc/none" in line or str(tmp_path / "file") in line)


def test_nothing_but_the_guarded_reader_of_cifar_can_unpickle():
    for path in (Path(__file__).parents[2] / "hcnn").glob("*.py"):
        source = path.read_text()
        assert not re.search(r"torch\.(load|save)\(|allow_pickle ?= ?True|read_pickle|joblib|shelve|marshal", source), path.name
        assert not re.search("^ *(import|from) .*pickle", source, re.M) or path.name == "cifar.py", path.name
