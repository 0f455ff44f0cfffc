"""hcnn.load and predict, on networks trained for seconds."""


import pytest
import torch
from small import OPTIONS

import hcnn
from hcnn.companion.commands import main
from hcnn.data.datasets import load_dataset


@pytest.fixture(scope="module")
def root(one_thread, tmp_path_factory):
    """Folder of the runs: digits, HCNN, seed 0, of 50 and of 100 images."""
    root = tmp_path_factory.mktemp("runs")
    for n in ("50", "100"):
        assert main(["train", *OPTIONS, "--epochs", "1", "--train-size", n, "--out", str(root)]) == 0
    return root


def test_a_short_name_takes_the_longest_training_and_a_full_name_that_run(root):
    assert hcnn.load("digits-hcnn", root).run["train_images"] == 100
    for folder in root.iterdir():
        assert hcnn.load(folder.name, root).folder == hcnn.load(folder).folder == folder
    with pytest.raises(FileNotFoundError, match=folder.name):
        hcnn.load("cifar10-hcnn", root)
    with pytest.raises(FileNotFoundError, match="run.json does not exist: .* is not a run folder"):
        hcnn.load(root)


def test_predict_names_classes_in_either_layout_and_refuses_other_images(root):
    network, images = hcnn.load("digits-hcnn", root), load_dataset("digits").test_images[:7]
    assert not network.training
    with torch.no_grad():
        mean, std = (torch.tensor(v).view(3, 1, 1) for v in (network.mean, network.std))
        expected = [network.classes[i] for i in network((images / 255 - mean) / std).argmax(1)]
    assert network.predict(images) == network.predict(images.permute(0, 2, 3, 1).numpy()) == expected
    assert network.predict(images, batch_size=2) == expected
    with pytest.raises(ValueError, match="images must be uint8 pixels"):
        network.predict(images.float())
    for other in (images[..., :20], images[:, :1], images[0], images[:0]):
        with pytest.raises(ValueError, match=r"images must be \(batch >= 1, 3, 32, 32\), or with the colours last, got "
                                             r""):
            network.predict(other)
    assert network(torch.randn(2, 3, 16, 24)).shape == (2, 10)  # scores of any size, for whoever knows what he does
