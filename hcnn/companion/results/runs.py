"""The run folders as objects: what every table, figure and check reads."""

import atexit
import os
import shutil
import tempfile
from dataclasses import dataclass
from functools import cached_property, reduce
from operator import attrgetter, getitem
from pathlib import Path

import pandas as pd

from hcnn import paths
from hcnn.companion.experiments import Experiment
from hcnn.data.datasets import TESTED_ON
from hcnn.training import run_folder
from hcnn.training.recipe import size_at

TITLES = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100", "digits": "digits"}
IMAGES = {"cifar10": (50_000, 10_000), "cifar100": (50_000, 10_000), "digits": (1_500, 297)}  # to train, to test


def data_title(dataset, substitutes=None):
    """The name of a data set for tables and figures; where it stands in for another one it says so."""
    return TITLES[dataset] + (f" in place of {TITLES[substitutes]}" if substitutes else "")


def _entry(*keys):
    """A property that reads one entry of run.json."""
    return property(lambda run: reduce(getitem, keys, run.info))


def _of(path):
    """A property that reads an attribute of the Experiment."""
    return property(lambda run: attrgetter(path)(run.experiment))


@dataclass(frozen=True, eq=False)
class Run:
    """One run folder: `info` is its run.json, `metrics` its metrics.csv; `problem` says why it could not be read.

    substitutes: the data set that was asked for, where another stands in for it. split: `test` or `validation`.
    """

    folder: Path
    info: dict
    metrics: pd.DataFrame
    problem: str | None = None

    parameters = _entry("parameters")
    epochs, epochs_done = _entry("epochs"), _entry("epochs_done")
    train_images, test_images = _entry("train_images"), _entry("test_images")
    seconds, device, images_per_second = _entry("seconds"), _entry("device"), _entry("images_per_second")
    dataset, substitutes, seed, split = _of("dataset"), _of("substitutes"), _of("seed"), _of("split")
    architecture, recipe, precision = _of("architecture"), _of("recipe"), _of("precision")
    variant, system = _of("architecture.variant"), _of("architecture.name")
    padding_mode, label = _of("architecture.padding_mode"), _of("label")
    K = property(lambda run: getattr(run.architecture, "K", ""))  # compared networks have neither
    Q = property(lambda run: getattr(run.architecture, "Q", ""))
    preset, overrides = (property(lambda run, i=i: run.experiment.nearest[i]) for i in range(2))
    complete = property(lambda run: run.epochs_done == run.epochs)

    @cached_property
    def experiment(self):
        """The training, from the parameters alone."""
        return Experiment.of(self.parameters)

    @property
    def local(self):
        """Whether a user's own `make reproduce` made it."""
        return paths.LOCAL in self.folder.parents

    @property
    def sessions(self):
        """What it was computed with: entries of run.json, the last one last."""
        return [*self.info["earlier"], self.info]

    @property
    def accuracy(self):
        """Percent after the last epoch that is done; None before the first."""
        return 100 * self.info["test_accuracy"] if self.epochs_done else None

    @property
    def core_hours(self):
        """Hours times busy cores, evaluation included, as if every epoch had taken as long as the quickest one with
        images of its size: other work, or a pause, makes single epochs several times longer. None on a GPU. Runs
        stored before sessions had a first epoch count with the cores of their last one.
        """
        if self.info.get("device_type", "cpu") != "cpu":
            return None
        sizes = [size_at(self.recipe, epoch) or 0 for epoch in range(self.epochs_done)]
        sessions = [(s.get("first_epoch", 1), s["threads"] * s.get("processes", 1)) for s in self.sessions]
        cores = [[n for first, n in sessions if first <= epoch][-1] for epoch in self.metrics.epoch]
        return (self.metrics.seconds * cores).groupby(sizes).transform("min").sum() / 3600

    @property
    def formats(self):
        """The number formats of its arithmetic; which epochs were computed in which is not stored."""
        return {session["dtype"] for session in self.sessions}

    @property
    def data(self):
        return data_title(self.dataset, self.substitutes)

    @property
    def tested_on(self):
        return f"{self.test_images:,} {TESTED_ON[self.split]}"


def in_epochs(n):
    """A number of epochs, in words."""
    return f"{n} epoch" if n == 1 else f"{n} epochs"


def load_runs(root=None, log=print):
    """Every run below `root`, sorted by name; by default those of results/runs, then those of results/local/runs.

    A folder that cannot be read gives a line of warning and a Run with `problem`, which stands in `other_runs` alone.
    """
    roots = [Path(root)] if root else [paths.RUNS, paths.LOCAL / "runs"]
    folders = [folder for root in roots for folder in sorted(root.glob("*/")) if not folder.name.startswith(".")]
    runs = list(map(load_run, folders))
    for run in runs:
        if run.problem:
            log(f"WARNING: {run.folder.name} is left out of every table: {run.problem}")
    return runs


def load_run(folder):
    """The Run in one folder, with `problem` where it cannot be read."""
    folder = Path(folder)
    try:
        info = run_folder.read_run(folder)
        # metrics.csv is written before run.json: a reader in between finds one row more than epochs are done
        metrics = pd.read_csv(folder / run_folder.METRICS).head(info["epochs_done"])
        run = Run(folder, info, metrics)
        _ = run.label, run.data, run.tested_on, run.experiment.key  # raise for what no table could show
        if missing := [name for name in run_folder.COLUMNS if name not in metrics]:
            raise ValueError(f"{run_folder.METRICS} has no column {missing[0]}")
        if len(metrics) != run.epochs_done:
            raise ValueError(f"{run_folder.METRICS} has {len(metrics)} rows, {run.epochs_done} epochs are done")
        if run.epochs_done and abs(metrics.test_accuracy.iloc[-1] - info["test_accuracy"]) > 1e-9:
            raise ValueError(f"{run_folder.METRICS} ends with another accuracy than {run_folder.RUN} says")
        return run
    except (OSError, ValueError, KeyError, TypeError) as error:
        problem = str(error).replace(f"{folder.parent}{os.sep}", "")
        if isinstance(error, KeyError):
            problem = f"no {problem} in {run_folder.RUN}"
        return Run(folder, {}, pd.DataFrame(columns=run_folder.COLUMNS), problem)


def usable(runs):
    """The runs that could be read."""
    return [run for run in runs if run.problem is None]


def runs_folder(out=""):
    """Where a notebook keeps its run: "results" and "local" are results/runs and results/local/runs, "" a temporary
    folder that goes with the process, all else a path.
    """
    if out == "":
        out = tempfile.mkdtemp(prefix="hcnn-runs-")
        atexit.register(shutil.rmtree, out, ignore_errors=True)
    return {"results": paths.RUNS, "local": paths.LOCAL / "runs"}.get(out) or Path(out)


def best_available(dataset, variant, runs):
    """The run of a system that was trained on the most images of a data set, never the most accurate; None without any.

    A run on digits in place of the data set counts, after every run on the data set itself.
    """
    mine = [run for run in usable(runs) if run.epochs_done and run.variant == variant]
    mine = [run for run in mine if dataset in (run.dataset, run.substitutes)]
    return max(mine, default=None, key=lambda run: (
        run.dataset == dataset, run.split == "test", run.train_images * run.epochs_done, run.K, run.Q,
        run.padding_mode == "zeros", -run.seed))


def learning_curves(runs):
    """A long table, two rows an epoch: dataset, data, setting, network, seed, images, epoch, accuracy (percent), loss.

    images: `training`, `test` or `held out`. Runs that differ in their seed alone have equal `setting` and `network`.
    The longest trainings, in images seen, come first.
    """
    columns = ["dataset", "data", "setting", "network", "seed", "images", "epoch", "accuracy", "loss"]
    rows = []
    for run in sorted(usable(runs), key=lambda run: -run.train_images * run.epochs):
        setting = f"{run.train_images:,} images, {run.epochs} epoch" + "s" * (run.epochs > 1)
        shared = run.dataset, run.data, setting + (f", {run.data}" if run.substitutes else ""), run.label, run.seed
        tested = "test" if run.split == "test" else "held out"
        for epoch in run.metrics.itertuples():
            rows.append((*shared, "training", epoch.epoch, 100 * epoch.train_accuracy, epoch.train_loss))
            rows.append((*shared, tested, epoch.epoch, 100 * epoch.test_accuracy, epoch.test_loss))
    return pd.DataFrame(rows, columns=columns)
