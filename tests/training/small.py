"""A network, a recipe and images so small that an epoch takes milliseconds, and what a run of them leaves behind."""

import csv
import itertools

from random_images import images

from hcnn import Architecture
from hcnn.training import run_folder as runs
from hcnn.training.loop import train
from hcnn.training.recipe import Recipe

TINY = Architecture(K=4, Q=2, J=4, subsampled=(3,), image_size=(8, 8))
SHORT = Recipe(epochs=3, batch_size=10, lr=0.1, shift=1)
OPTIONS = ["--dataset", "digits", "--K", "4", "--Q", "2", "--J", "4", "--set", "subsampled=[1,2]", "--batch-size", "50",
           "--threads", "1"]  # of the command `train`


def fit(out, architecture=TINY, recipe=SHORT, data=None, **options):
    """Train silently on the CPU; the run's folder."""
    options = dict(device="cpu", precision="strict", log=lambda line: None) | options
    return train(architecture, recipe, data or images(), out=out, **options)


def only(out):
    """The one folder below `out`."""
    (folder,) = out.iterdir()
    return folder


def rows(folder):
    """metrics.csv as texts, all digits, without the seconds."""
    with open(folder / runs.METRICS) as file:
        return [{key: value for key, value in row.items() if key != "seconds"} for row in csv.DictReader(file)]


def weights(folder):
    return runs.read_weights(folder, runs.read_run(folder))


def checkpoint(folder):
    return runs.read_checkpoint(folder, runs.read_run(folder)["parameters"])


def content(folder):
    """What a finished run holds, to the last bit."""
    run = runs.read_run(folder)
    assert run["epochs_done"] == run["epochs"] == len(rows(folder)) and not (folder / runs.CHECKPOINT).exists()
    return (folder / runs.WEIGHTS).read_bytes(), rows(folder)


def fail_at(n, error, function):
    """The function, but its n-th call raises."""
    calls = itertools.count(1)

    def call(*arguments, **options):
        if next(calls) == n:
            raise error
        return function(*arguments, **options)

    return call
