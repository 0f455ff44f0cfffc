"""The exponential average of the weights: how it follows, what its normalisations know, and that it is what is kept."""

import itertools

import pytest
import torch
from torch import nn

from hcnn import HCNN, Architecture, load
from hcnn.training import run_folder as runs
from hcnn.training.average import Average
from hcnn.training.evaluation import evaluate
from hcnn.training.loop import train
from hcnn.training.recipe import Recipe
from hcnn.training.stopping import Stop

TINY = Architecture(K=4, Q=2, J=4, subsampled=(3,), image_size=(8, 8), output_norm=True)
RECIPE = Recipe.preset("short", epochs=2, batch_size=10, sizes=(4, 8), ema=0.8)


def fit(data, out, recipe=RECIPE):
    return train(TINY, recipe, data, out=out, device="cpu", log=lambda line: None)


def test_the_average_follows_its_equation_and_soon_forgets_the_first_weights():
    network = nn.Linear(3, 2)
    average, expected = Average(network, 0.5), network.weight.detach().clone()
    for t in range(12):
        with torch.no_grad():
            network.weight.normal_()
        average.follow(t)
        decay = min(0.5, (1 + t) / (10 + t))
        expected = decay * expected + (1 - decay) * network.weight.detach()
        torch.testing.assert_close(average.network.weight.detach(), expected)


@pytest.mark.parametrize("make", [lambda: HCNN(TINY), lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))])
def test_statistics_are_the_plain_mean_over_the_minibatches_whatever_they_were(make):
    average = Average(make(), 0.9)
    batches, seen = torch.randn(5, 10, 3, 8, 8), []
    norm = [m for m in average.network.modules() if hasattr(m, "running_mean")][-1]
    momentum, norm.momentum = norm.momentum, 1.0
    for x in batches:
        with torch.no_grad():
            average.network.train()(x)
        seen.append(norm.running_var.clone())
    norm.momentum = momentum
    average.network.eval()
    average.settle(batches)
    torch.testing.assert_close(norm.running_var, torch.stack(seen).mean(0))
    assert norm.momentum == momentum and not average.network.training


def test_the_average_is_what_is_tested_and_stored_and_a_stopped_run_ends_with_the_same_bits(
        random_dataset, tmp_path, monkeypatch):
    data, asked = random_dataset(44, 21), itertools.count()
    whole = fit(data, tmp_path / "whole")
    network = load(whole)
    _, accuracy = evaluate(network, data.test_images, data.test_labels, data.mean, data.std)
    assert accuracy == network.run["test_accuracy"]
    with monkeypatch.context() as patch:
        patch.setattr(Stop, "reason", lambda stop: "a test" if next(asked) == 8 else None)  # in the second epoch
        folder = fit(data, tmp_path / "parts")
    parts, _ = runs.read_checkpoint(folder, runs.read_run(folder)["parameters"])
    assert any(not torch.equal(tensor, parts["network"][name]) for name, tensor in parts["average"].items())
    fit(data, tmp_path / "parts")
    assert (folder / runs.WEIGHTS).read_bytes() == (whole / runs.WEIGHTS).read_bytes()
