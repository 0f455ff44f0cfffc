"""The run folder: names that follow the parameters, files written whole or not at all, one writer at a time."""

import copy
import errno
import json
import os

import pytest
import torch

from hcnn.architecture import Architecture
from hcnn.training import run_folder as runs
from hcnn.training.recipe import Recipe

PARAMETERS = dict(
    dataset="cifar10", substitutes=None, architecture=Architecture().as_dict(), recipe=Recipe().as_dict(), seed=0, split="test",
    train_size=None, precision="fast",
)


def test_run_name_is_the_same_for_every_order_of_the_parameters():
    shuffled = {key: dict(reversed(value.items())) if isinstance(value, dict) else value for key, value in reversed(PARAMETERS.items())}
    assert list(shuffled) != list(PARAMETERS)
    assert runs.run_name(shuffled) == runs.run_name(PARAMETERS)
    assert runs.run_name(json.loads(json.dumps(PARAMETERS))) == runs.run_name(PARAMETERS)
    assert runs.run_name(PARAMETERS).startswith("cifar10-hcnn-zeros-s0-")


def test_run_name_changes_with_every_single_parameter():
    names = {runs.run_name(PARAMETERS)}
    paths = [(key,) for key in PARAMETERS if key not in ("architecture", "recipe")]
    paths += [(part, key) for part in ("architecture", "recipe") for key in PARAMETERS[part]]
    for path in paths:
        changed = copy.deepcopy(PARAMETERS)
        holder = changed
        for key in path[:-1]:
            holder = holder[key]
        holder[path[-1]] = "other"
        names.add(runs.run_name(changed))
    assert len(names) == 1 + len(paths)


def test_a_substituted_data_set_stands_in_the_name():
    assert runs.run_name(PARAMETERS | dict(dataset="digits", substitutes="cifar10")).startswith("digits-for-cifar10-hcnn-")


def test_a_full_disk_keeps_the_old_checkpoint_and_says_so(tmp_path, monkeypatch):
    runs.write_checkpoint(tmp_path, {"w": torch.arange(3.0)}, {"epoch": 1})

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="checkpoint.safetensors.*No space left.*earlier file is untouched") as error:
        runs.write_checkpoint(tmp_path, {"w": torch.zeros(3)}, {"epoch": 2})
    assert error.value.errno == errno.ENOSPC
    monkeypatch.undo()
    tensors, state = runs.read_checkpoint(tmp_path)
    assert state == {"epoch": 1} and tensors["w"].tolist() == [0, 1, 2]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint.safetensors"]


def test_a_checkpoint_keeps_every_bit_of_its_tensors_and_numbers(tmp_path):
    tensors = {"a": torch.randn(4, 3), "b": torch.randn(2, dtype=torch.float64), "n": torch.tensor(7)}
    state = {"totals": [0.1 + 0.2, 1e-300], "rows": [{"epoch": 1, "lr": 1 / 3}]}
    runs.write_checkpoint(tmp_path, tensors, state)
    found, found_state = runs.read_checkpoint(tmp_path)
    assert found_state == state and found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensors[name]) and found[name].dtype == tensors[name].dtype for name in tensors)


def test_no_checkpoint_is_none_and_a_truncated_one_an_error(tmp_path):
    assert runs.read_checkpoint(tmp_path) is None
    runs.write_checkpoint(tmp_path, {"w": torch.zeros(100)}, {})
    path = tmp_path / runs.CHECKPOINT
    for size in (0, 5, 60, path.stat().st_size - 1):
        path.write_bytes(path.read_bytes()[:size])
        with pytest.raises(ValueError, match="checkpoint.safetensors is damaged.*delete it"):
            runs.read_checkpoint(tmp_path)
        runs.write_checkpoint(tmp_path, {"w": torch.zeros(100)}, {})


def test_tensors_of_other_names_or_shapes_do_not_fit():
    expected = {"h": torch.zeros(2, 3), "g": torch.zeros(4)}
    runs.check_fit("file", dict(reversed(expected.items())), expected)
    for tensors, said in (({"h": torch.zeros(3, 2), "g": torch.zeros(4)}, r"h must be \(2, 3\), got \(3, 2\)"),
                          ({"h": torch.zeros(2, 3)}, r"g must be \(4,\), got None"),
                          (expected | {"x": torch.zeros(1)}, r"x must be None, got \(1,\)")):
        with pytest.raises(ValueError, match="file does not fit the architecture: " + said):
            runs.check_fit("file", tensors, expected)


def test_a_second_writer_is_refused_until_the_first_one_leaves(tmp_path):
    with runs.lock(tmp_path):
        with pytest.raises(BlockingIOError, match=f"being written by process {os.getpid()}"):
            with runs.lock(tmp_path):
                pass
    with runs.lock(tmp_path):
        pass


def test_an_edited_run_json_is_refused(tmp_path):
    run = dict(
        name=runs.run_name(PARAMETERS), parameters=PARAMETERS, epochs=240, epochs_done=3, train_images=50_000, test_images=10_000,
        classes=[], mean=[], std=[], seconds=1.0, device="cpu", threads=1, data_checksum="0", weights_sha256=None, test_accuracy=0.5,
        test_loss=1.0, images_per_second=1.0)
    runs.write_run(tmp_path, run)
    assert {key: value for key, value in runs.read_run(tmp_path).items() if key != "checksum"} == run
    path = tmp_path / runs.RUN
    text = path.read_text()
    path.write_text(text.replace('"test_accuracy": 0.5', '"test_accuracy": 0.9'))
    with pytest.raises(ValueError, match="run.json was changed after it was written"):
        runs.read_run(tmp_path)
    for damaged in (text[:-20], "[]", "{}"):
        path.write_text(damaged)
        with pytest.raises(ValueError, match="run.json is damaged"):
            runs.read_run(tmp_path)
    path.unlink()
    with pytest.raises(FileNotFoundError, match="not a run folder"):
        runs.read_run(tmp_path)


def test_weights_that_are_not_those_of_run_json_are_refused(tmp_path):
    digest = runs.write_weights(tmp_path, {"w": torch.arange(4.0)})
    assert runs.read_weights(tmp_path, dict(weights_sha256=digest))["w"].tolist() == [0, 1, 2, 3]
    path = tmp_path / runs.WEIGHTS
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    with pytest.raises(ValueError, match="weights.safetensors has sha256"):
        runs.read_weights(tmp_path, dict(weights_sha256=digest))
    path.unlink()
    with pytest.raises(FileNotFoundError, match="weights.safetensors does not exist"):
        runs.read_weights(tmp_path, dict(weights_sha256=digest))


def test_weights_have_one_sha256_whatever_the_order_of_the_tensors(tmp_path):
    tensors = {name: torch.randn(3, 2) for name in "abcd"}
    assert runs.write_weights(tmp_path, tensors) == runs.write_weights(tmp_path, dict(reversed(tensors.items())))


def test_metrics_are_written_whole_with_all_digits(tmp_path):
    rows = [dict(zip(runs.COLUMNS, (epoch, 1 / 3, 0.1, 0.2, 0.3, 0.4, 5.0))) for epoch in (1, 2)]
    runs.write_metrics(tmp_path, rows[:1])
    runs.write_metrics(tmp_path, rows)
    lines = (tmp_path / runs.METRICS).read_text().splitlines()
    assert lines[0] == "epoch,lr,train_loss,train_accuracy,test_loss,test_accuracy,seconds"
    assert [float(line.split(",")[1]) for line in lines[1:]] == [1 / 3, 1 / 3]
