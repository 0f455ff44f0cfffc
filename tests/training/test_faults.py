"""What may go wrong beside a kill: each fault ends in an error that names thing and remedy, and costs nothing."""

import errno
import itertools
import os
import pickle
import random
import re
import resource
from pathlib import Path

import pytest
import torch
from random_images import images
from small import SHORT, TINY, checkpoint, content, fail_at, fit, only

from hcnn import HCNN, load, paths
from hcnn.companion.commands import main
from hcnn.training import loop
from hcnn.training import run_folder as runs
from hcnn.training.evaluation import evaluate
from hcnn.training.stopping import Stop

# ---- numbers


@pytest.mark.parametrize("factor", [float("nan"), 1e38])
def test_an_exploding_gradient_stops_the_run_and_every_checkpoint_stays_finite(tmp_path, whole, monkeypatch, factor):
    def network(*arguments):
        net, steps = HCNN(*arguments), itertools.count(1)
        net.operators[-1].g.register_hook(lambda gradient: gradient * (factor if next(steps) == 3 else 1))
        return net

    monkeypatch.setattr(loop, "build", network)
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", -1)  # a checkpoint after every step
    said = "(loss|a weight) .*is not finite at epoch 1, step [345] of 5; lower lr .0.1., set output_norm"
    with pytest.raises(FloatingPointError, match=said):
        fit(tmp_path)
    monkeypatch.undo()
    parts, state = checkpoint(only(tmp_path))
    assert all(tensor.isfinite().all() for part in parts.values() for tensor in part.values())
    if state["step"] == 2:  # before the explosion: a finite one may be saved, and what it leads to never is
        assert content(fit(tmp_path)) == content(whole)


def test_a_network_that_is_saturated_ends_the_run(tmp_path, monkeypatch):
    def network(*arguments):
        net = HCNN(*arguments)
        net.operators[-1].bias.data.fill_(-1e4)  # of every class: the last ELU is -1 and its slope 0
        return net

    monkeypatch.setattr(loop, "build", network)
    with pytest.raises(FloatingPointError, match="gradient is zero .* epoch 1, step 5 of 5; .* set output_norm=True"):
        fit(tmp_path)


def test_a_minibatch_of_one_image_trains_and_no_image_is_refused(tmp_path, whole):
    fit(tmp_path, recipe=SHORT.replace(batch_size=1, lr=0.001, epochs=1), data=images(11))
    fit(tmp_path, recipe=SHORT.replace(epochs=1), data=images(11))  # minibatches of 10 and 1
    network, data = load(whole), images()
    with pytest.raises(ValueError, match="images must be at least one"):
        evaluate(network, data.test_images[:0], data.test_labels[:0], data.mean, data.std)


# ---- memory and disk


def test_a_gpu_out_of_memory_says_what_to_lower_and_keeps_the_checkpoint(whole, stopped, monkeypatch):
    before = (stopped / runs.CHECKPOINT).read_bytes()
    monkeypatch.setattr(HCNN, "forward", fail_at(1, torch.OutOfMemoryError("CUDA out of memory"), HCNN.forward))
    with pytest.raises(MemoryError, match="lower batch_size, K or Q.* The last checkpoint in .* is kept"):
        fit(stopped.parent)
    assert (stopped / runs.CHECKPOINT).read_bytes() == before
    assert content(fit(stopped.parent)) == content(whole)


@pytest.mark.parametrize("n", [1, 4, 12, 13, 14])
def test_a_disk_that_is_full_at_any_one_write_costs_nothing(tmp_path, whole, monkeypatch, n):
    full = fail_at(n, OSError(errno.ENOSPC, "No space left on device"), os.replace)
    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="could not write .*No space left on device.*Make room .*start the same command"):
        fit(tmp_path)  # writes metrics and run.json, then four files an epoch
    assert content(fit(tmp_path)) == content(whole)


def test_a_run_that_ends_before_its_last_checkpoint_is_deleted_is_complete(tmp_path, whole, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, "unlink", fail_at(1, KeyboardInterrupt, Path.unlink))
        fit(tmp_path)
    assert (only(tmp_path) / runs.CHECKPOINT).exists()
    assert content(fit(tmp_path)) == content(whole)


def test_a_file_that_breaks_off_in_the_middle_of_a_write_leaves_the_old_one(tmp_path):
    runs.write_weights(tmp_path, {"w": torch.zeros(100)})
    right, before = (tmp_path / runs.WEIGHTS).read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))  # a real refusal by the system, after 50,000 bytes
    try:
        with pytest.raises(OSError, match="could not write .*weights.safetensors") as error:
            runs.write_weights(tmp_path, {"w": torch.zeros(100_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert error.value.errno == errno.EFBIG
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [(runs.WEIGHTS, right)]


# ---- files that were damaged, changed or exchanged


def test_every_flipped_bit_of_a_checkpoint_is_noticed(stopped):
    path, choose = stopped / runs.CHECKPOINT, random.Random(0)
    right = path.read_bytes()
    for position in [0, 7, 8, 9, len(right) - 1, *(choose.randrange(len(right)) for _ in range(60))]:
        wrong = bytearray(right)
        wrong[position] ^= 1 << choose.randrange(8)
        path.write_bytes(wrong)
        with pytest.raises(ValueError, match="checkpoint.safetensors is damaged .*restore it, or delete the folder"):
            checkpoint(stopped)


def test_an_unfinished_run_with_damaged_files_says_how_to_go_on_and_loses_nothing(whole, stopped, stop_after,
                                                                                  monkeypatch):
    for file in (runs.METRICS, runs.WEIGHTS):  # written again without a word
        (stopped / file).write_bytes(b"x" * 10)
    path = stopped / runs.RUN
    path.write_text(path.read_text().replace('"epochs_done": 1', '"epochs_done": 2'))
    with pytest.raises(ValueError, match="run.json .*; delete this file and run again: nothing is lost, checkpoint"):
        fit(stopped.parent)
    path.unlink()
    stop_after(1)
    assert runs.read_run(fit(stopped.parent))["epochs_done"] == 1, "stopped within the same epoch"
    monkeypatch.setattr(Stop, "reason", lambda self: None)
    assert content(fit(stopped.parent)) == content(whole)


def test_a_folder_or_checkpoint_of_another_run_and_an_absent_checkpoint_are_refused(tmp_path, stopped):
    own, run = (stopped / runs.CHECKPOINT).read_bytes(), runs.read_run(stopped)
    parts, state = checkpoint(stopped)
    runs.write_checkpoint(stopped, parts, state | dict(parameters=run["parameters"] | dict(seed=1)))
    with pytest.raises(ValueError, match="checkpoint.safetensors holds another run .different: seed."):
        fit(stopped.parent)
    parts["network"]["operators.2.g"] = torch.zeros(3, 2)
    runs.write_checkpoint(stopped, parts, state)
    with pytest.raises(ValueError, match=r"does not fit .* for operators.2.g: .*\[3, 2\].*; .*delete the folder"):
        fit(stopped.parent)
    (stopped / runs.CHECKPOINT).unlink()
    with pytest.raises(ValueError, match="no checkpoint.safetensors to continue from"):
        fit(stopped.parent)
    (stopped / runs.CHECKPOINT).write_bytes(own)
    runs.write_run(stopped, run | dict(parameters=run["parameters"] | dict(seed=1)))
    with pytest.raises(ValueError, match="holds another run .different: seed."):
        fit(stopped.parent)


def resigned(folder, out, weights, **changes):
    """A copy of a run with other weights, all checksums made right again."""
    out.mkdir()
    (out / runs.WEIGHTS).write_bytes(weights)
    runs.write_run(out, runs.read_run(folder) | dict(weights_sha256=runs.sha256(weights)) | changes)
    return out


def test_weights_and_classes_that_do_not_fit_are_refused_even_with_right_checksums(tmp_path, whole):
    weights, parameters = (whole / runs.WEIGHTS).read_bytes(), runs.read_run(whole)["parameters"]
    another = parameters | dict(architecture=TINY.replace(Q=3).as_dict())
    for name, said, written, changes in (
            ("truncated", "is no safetensors file .*; restore it from git, or train again", weights[:-4], {}),
            ("pickled", "weights.safetensors is no safetensors file", pickle.dumps(parameters), {}),
            ("other", r"weights.safetensors does not fit the architecture: .* for operators.2.h: .*\[2,.*\[3,",
             weights, dict(parameters=another)),
            ("few", "run.json must have 10 classes, got ", weights, dict(classes=list("012345678")))):
        with pytest.raises(ValueError, match=said):
            load(resigned(whole, tmp_path / name, written, **changes))
    assert load(resigned(whole, tmp_path / "same", weights)).run["epochs_done"] == 3


@pytest.mark.parametrize("arguments", [
    ["evaluate", "{file}"], ["train", "--dataset", "digits", "--out", "{file}"], ["verify"],
    ["train", "--dataset", "digits", "--out", "/proc/none"], ["data", "cifar10", "--dataset-root", "{file}"]])
def test_a_file_where_a_folder_belongs_ends_in_one_line(tmp_path, capsys, monkeypatch, arguments):
    (tmp_path / "file").touch()
    monkeypatch.setattr(paths, "RESULTS", tmp_path / "file")
    assert main([text.format(file=tmp_path / "file") for text in arguments]) in (1, 2)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and ("/proc/none" in line or str(tmp_path / "file") in line)


def test_nothing_but_the_guarded_reader_of_cifar_can_unpickle():
    unsafe = r"torch\.(load|save)\(|allow_pickle ?= ?True|read_pickle|shelve|marshal|^ *(import|from) .*pickle"
    found = [path.name for path in (Path(__file__).parents[2] / "hcnn").rglob("*.py")
             if re.search(unsafe, path.read_text(), re.M)]
    assert found == ["cifar.py"]
