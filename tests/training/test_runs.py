"""The run folder: names that follow the parameters, files written whole or not at all, one writer at a time."""

import json
from dataclasses import fields

import pytest
import torch

from hcnn.architecture import Architecture
from hcnn.training import run_folder as runs
from hcnn.training.recipe import Recipe

PARAMETERS = dict(
    dataset="cifar10", substitutes=None, architecture=Architecture().as_dict(), recipe=Recipe().as_dict(), seed=0,
    split="test", train_size=None, precision="fast")


def test_run_name_is_the_same_for_every_order_of_the_parameters():
    shuffled = {key: dict(reversed(value.items())) if isinstance(value, dict) else value for key,
                value in reversed(PARAMETERS.items())}
    assert list(shuffled) != list(PARAMETERS)
    assert runs.run_name(shuffled) == runs.run_name(PARAMETERS)
    assert runs.run_name(json.loads(json.dumps(PARAMETERS))) == runs.run_name(PARAMETERS)
    assert runs.run_name(PARAMETERS).startswith("cifar10-hcnn-zeros-s0-")


def test_every_unusual_parameter_changes_the_name_and_a_new_field_with_its_default_does_not():
    changes = [dict(dataset="cifar100"), dict(substitutes="cifar100"), dict(seed=1), dict(split="validation"),
               dict(train_size=100), dict(precision="strict")]
    usual = dict(variant="hcnn-plus", K=8, Q=3, J=11, attribute_support=(3, 5), num_classes=100, image_size=(16, 16),
                 in_channels=1, padding_mode="periodic", spatial_support=5, first_support=5, subsampled=(5,),
                 factorised=False, padding="same", statistics="strided", output_norm=True, head="linear",
                 reduction="sum", last_elu=False, initialisation="normal-0.05", norm_eps=1e-3, norm_momentum=0.2)
    changes += [dict(architecture=Architecture(**{name: value}).as_dict()) for name, value in usual.items()]
    recipes = dict(epochs=3, batch_size=3, lr=0.1, schedule="linear", momentum=0.5, nesterov=True, weight_decay=0.1,
                   shift=1, flip=False, optimiser="adamw", betas=(0.5, 0.5), warm_up=0.3, label_smoothing=0.1,
                   sizes=(16,))
    changes += [dict(recipe=Recipe(**{name: value}).as_dict()) for name, value in recipes.items()]
    names = [runs.run_name(PARAMETERS)] + [runs.run_name(PARAMETERS | change) for change in changes]
    assert len(set(names)) == len(names) and names[2].startswith("cifar10-for-cifar100-hcnn-")
    assert {f.name for f in fields(Architecture)} == set(usual)
    assert {f.name for f in fields(Recipe)} - set(recipes) == {"milestones", "multipliers", "mean", "std", "lr_rest"}
    older = {key: {} if isinstance(value, dict) else value for key, value in PARAMETERS.items()}
    older["architecture"] = dict(variant="hcnn", padding_mode="zeros")  # from before all other fields
    assert runs.run_name(older) == names[0] and runs.essence(older) == runs.essence(PARAMETERS)


def test_a_checkpoint_keeps_every_bit_of_its_tensors_and_numbers(tmp_path):
    parts = dict(network={"a.w": torch.randn(4, 3), "b": torch.randn(2, dtype=torch.float64)},
                 optimiser={"step.a.w": torch.tensor(7)})
    state = dict(parameters=PARAMETERS, totals=[0.1 + 0.2, 1e-300], rows=[dict(epoch=1, lr=1 / 3)])
    runs.write_checkpoint(tmp_path, parts, state)
    found, found_state = runs.read_checkpoint(tmp_path, PARAMETERS)
    assert found_state == state
    torch.testing.assert_close(found, parts, rtol=0, atol=0)
    assert runs.read_checkpoint(tmp_path / "another", PARAMETERS) is None


def test_an_edited_run_json_is_refused(tmp_path):
    run = dict(parameters=PARAMETERS, test_accuracy=0.5)
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
