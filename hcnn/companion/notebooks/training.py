"""The cells that notebooks 03 and 04 share: what is trained on what, the training, and what came out of it."""

from dataclasses import dataclass, replace

import pandas as pd
import torch

from hcnn.architecture import Architecture
from hcnn.companion.experiments import experiment
from hcnn.companion.figures import common as drawing
from hcnn.companion.notebooks.keeping import shown
from hcnn.companion.results.runs import Run, data_title, learning_curves, load_run, runs_folder
from hcnn.companion.results.tables import beside_paper
from hcnn.data.augment import augment
from hcnn.data.datasets import Dataset, load_dataset, split_dataset
from hcnn.network import build
from hcnn.training.loop import train
from hcnn.training.recipe import Recipe
from hcnn.training.step import draw
from hcnn.training.trained import load

QUICK = 500  # test images of a run that is not kept
COLUMNS = 7  # augmented versions of an image


@dataclass(frozen=True)
class Training:
    """What a notebook trains. everything: the data set; images: those that are trained and tested on here."""

    architecture: Architecture
    recipe: Recipe
    everything: Dataset
    images: Dataset
    title: str
    options: dict

    def run(self) -> Run:
        """Train, or load what is complete."""
        data = replace(self.everything, test_images=self.images.test_images, test_labels=self.images.test_labels)
        whole = self.options["split"] == "validation"  # which takes its images to test from those to train
        return load_run(train(self.architecture, self.recipe, self.everything if whole else data, **self.options))


def prepare(dataset, out="", device="auto", max_seconds=None, **parameters):
    """The Training of a notebook's parameters; those that are None are the preset's. Says what stands in for CIFAR."""
    given = {name: value for name, value in parameters.items() if value is not None}
    data = load_dataset(dataset, fallback=True)
    asked = experiment(dataset=dataset, **given, num_classes=len(data.classes))
    images = split_dataset(data, asked.split, asked.train_size)
    if not out:
        images = replace(images, test_images=images.test_images[:QUICK], test_labels=images.test_labels[:QUICK])
    title = data_title(data.name, data.substitutes)
    print(f"{title}: {len(images.train_labels):,} training images, {len(images.test_labels):,} to test on, "
          f"{len(data.classes)} classes")
    options = dict(seed=asked.seed, split=asked.split, train_size=asked.train_size, precision=asked.precision,
                   out=runs_folder(out), device=device, max_seconds=max_seconds)
    return Training(asked.architecture, asked.recipe, data, images, title, options)


def recipes(training):
    """The recipe of the paper, of the authors' code and of this execution, where they differ or are used."""
    some = {"the paper": Recipe.preset("paper"), "the authors' code": Recipe.preset("released"),
            "here": training.recipe}
    rows = {name: recipe.as_dict() for name, recipe in some.items()}
    for name, recipe in some.items():  # lists as text, milestones in epochs
        for key in [key for key, value in rows[name].items() if isinstance(value, list)]:
            scale = recipe.epochs if key == "milestones" else 1
            rows[name][key] = ", ".join(f"{value * scale:.3g}" for value in rows[name][key])
    return pd.DataFrame(rows, dtype=object)


def augmented(training, n=4):
    """The first training images, each with a few versions that the network may see: a figure."""
    images, data, recipe = training.images, training.everything, training.recipe
    _, shifts, flips = draw(training.options["seed"], 1, n * COLUMNS, recipe.shift, recipe.flip and data.flip)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (data.mean, data.std))
    seen = augment(images.train_images[:n].repeat_interleave(COLUMNS, 0), shifts, flips, mean, std) * std + mean
    rows = [[image, *versions] for image, versions in zip(images.train_images, seen.clamp(0, 1).split(COLUMNS))]
    moves = [f"{dy:+d}, {dx:+d}{' flip' if flip else ''}" for (dy, dx), flip in zip(shifts.tolist(), flips.tolist())]
    titles = [[data.classes[label], *moves[COLUMNS * i:COLUMNS * (i + 1)]]
              for i, label in enumerate(images.train_labels[:n])]
    title = f"{training.title}: originals and augmented versions (pixels down, right; then flipped)"
    return drawing.image_grid(rows, titles, title)


def layers(training):
    """The layers that are trained, and the weights that the paper counts: w of HCNN, h and g of HCNN(+)."""
    a = training.architecture
    counted = {"hcnn": "full_filter", "hcnn-plus": "factorised_filter"}[a.variant]
    return pd.DataFrame([{
        "j": layer.j, "attributes of x_j": " x ".join(map(str, a.shape(layer.j)[:-2])),
        "space": " x ".join(map(str, layer.out_size)), "weights": f"{getattr(layer, counted):,}",
    } for layer in a.layers]).set_index("j")


def curves(training, run):
    """Learning curves, after the first epoch."""
    if run.epochs_done:
        drawing.learning_curves(learning_curves([run]), f"{training.title}, seed {run.seed}")


def share_between(x):
    """The variance over images, the first axis of x, at every index, averaged, over that of all numbers of x."""
    return float(x.var(0, correction=0).mean() / x.var(correction=0))


@torch.no_grad()
def between_images(training, run, n=100):
    """The share of the variance of x_j that lies between images, at every depth, before and after training: a figure.

    See `share_between`; over n test images, both networks in training mode, with the statistics of these images.
    """
    if not run.epochs_done:
        return
    trained = load(run.folder).to("cpu").train()
    untrained = build(trained.architecture, torch.Generator().manual_seed(run.seed))
    images = trained.prepare(training.images.test_images[:n])
    shares = {}
    for name, network in ("before training", untrained), ("after", trained.network):
        arrays = network.activations(images, range(1, trained.architecture.J + 1))
        shares[name] = {j: share_between(x) for j, x in arrays.items()}
    return drawing.shares_by_depth(shares, f"{training.title}, {run.label}: variance between images")


def predictions(training, run, n=16):
    """The first test images, their classes and what the trained network says."""
    if run.epochs_done:
        images, labels = training.images.test_images[:n], training.images.test_labels[:n]
        truth, said = [training.everything.classes[i] for i in labels], load(run.folder).predict(images)
        drawing.predictions(images, truth, said, f"{training.title}, {run.label}")


def beside_the_paper(training, run, dataset):
    """The run beside the paper's row of table 1 or 2."""
    return shown(beside_paper(run, dataset), f"{training.title}: {run.system}")
