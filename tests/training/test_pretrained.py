"""hcnn.load and predict, on a network trained for seconds."""

import json

import pytest
import torch

import hcnn
from hcnn.data.datasets import load_dataset
from hcnn.training import run_folder as runs
from hcnn.training.evaluation import evaluate
from hcnn.training.loop import train
from hcnn.training.recipe import Recipe


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Folder of the runs: digits, HCNN, seed 0, of 100 and of 200 images."""
    root, data = tmp_path_factory.mktemp("runs"), load_dataset("digits")
    architecture = hcnn.Architecture.preset("digits", "hcnn", K=4, Q=2, J=4, subsampled=(1, 2))
    options = dict(out=root, device="cpu", log=lambda line: None)
    folders = [train(architecture, Recipe(epochs=1, lr=0.05), data, train_size=n, **options) for n in (100, 200)]
    return root, folders, data


def test_a_short_name_takes_the_longest_training_and_a_full_name_that_run(trained):
    root, folders, _ = trained
    assert hcnn.load("digits-hcnn", root).run["train_images"] == 200
    assert hcnn.load(folders[0].name, root).run["train_images"] == hcnn.load(folders[0]).run["train_images"] == 100


def test_loaded_weights_give_the_stored_accuracy(trained):
    _, folders, data = trained
    network = hcnn.load(folders[1])
    assert not network.training
    loss, accuracy = evaluate(network, data.test_images, data.test_labels, network.mean, network.std)
    assert accuracy == network.run["test_accuracy"] and loss == pytest.approx(network.run["test_loss"])


def test_predict_names_classes_in_either_layout(trained):
    root, _, data = trained
    network, images = hcnn.load("digits-hcnn", root), data.test_images[:7]
    with torch.no_grad():
        mean, std = (torch.tensor(v).view(3, 1, 1) for v in (network.mean, network.std))
        expected = [network.classes[i] for i in network((images / 255 - mean) / std).argmax(1)]
    assert network.predict(images) == network.predict(images.permute(0, 2, 3, 1).numpy()) == expected
    assert network.predict(images, batch_size=2) == expected
    with pytest.raises(ValueError, match="uint8"):
        network.predict(images.float())
    with pytest.raises(ValueError, match="3, 32, 32"):
        network.predict(images[..., :20])


def test_unknown_names_are_refused_with_what_is_there(trained):
    root, folders, _ = trained
    with pytest.raises(FileNotFoundError, match=folders[0].name):
        hcnn.load("cifar10-hcnn", root)


@pytest.mark.parametrize("file", (runs.WEIGHTS, runs.RUN))
def test_changed_files_are_refused(trained, tmp_path, file):
    _, (folder, _), _ = trained
    for name in (runs.WEIGHTS, runs.RUN):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    if file == runs.RUN:
        run = json.loads((tmp_path / file).read_text())
        (tmp_path / file).write_text(json.dumps(run | {"test_accuracy": 0.99}))
    else:
        content = bytearray((tmp_path / file).read_bytes())
        content[-1] ^= 1
        (tmp_path / file).write_bytes(content)
    with pytest.raises(ValueError, match=file):
        hcnn.load(tmp_path)
