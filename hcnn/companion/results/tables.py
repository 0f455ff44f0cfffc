"""What the run folders say: tables 1 and 2 of the paper beside our runs, every other run, learning curves, verdicts on claims.

Only runs on the full training set with the paper's full recipe, complete, K = 16, Q = 32, zeros, count for tables 1 and 2
(`headline`). Accuracies are those of the last epoch, in percent.
"""

import atexit
import os
import re
import shutil
import tempfile
from dataclasses import dataclass
from functools import cached_property, reduce
from operator import getitem
from pathlib import Path

import pandas as pd

from hcnn import paths
from hcnn.architecture import VARIANTS, Architecture, describe
from hcnn.companion.baselines.teacher import teacher_name
from hcnn.training import run_folder as folders
from hcnn.training.recipe import Recipe, preset_of, presets

# Tables 1 and 2 of the paper: model, the variant that a run of it has, number of parameters, accuracy in percent.
PAPER = {
    "cifar10": (
        ("Hierarchical CNN", "hcnn", "0.098M", 91.23), ("Hierarchical CNN (+)", "hcnn-plus", "0.34M", 92.30),
        ("All-CNN", "all-cnn", "1.3M", 92.75), ("ResNet 20", "resnet-20", "0.27M", 91.25),
        ("Network in Network", "nin", "0.98M", 91.20), ("WRN-student", "wrn-student", "0.17M", 91.23), ("FitNet", "fitnet", "2.5M", 91.61),
    ),
    "cifar100": (
        ("Hierarchical CNN", "hcnn", "0.25M", 62.01), ("Hierarchical CNN (+)", "hcnn-plus", "0.89M", 63.19),
        ("All-CNN", "all-cnn", "1.3M", 66.29), ("Network in Network", "nin", "0.98M", 64.32), ("FitNet", "fitnet", "2.5M", 64.96),
    ),
}
# Rows that the paper has in its text only (section 5.2) or, WRN-16-1 and WRN-40-1, in arXiv 1612.03928, which it cites.
BESIDE = {
    "cifar10": (
        ("WRN-16-1, no teacher (Zagoruyko and Komodakis)", "wrn-16-1", "0.2M", 91.23),
        ("WRN-40-1, the teacher (Zagoruyko and Komodakis)", "wrn-40-1", "0.6M", 93.42),
        ("HyperNetworks (Ha et al. 2016), quoted only", None, "0.097M", 91.98),
    ),
    "cifar100": (),
}
TABLE = {"cifar10": 1, "cifar100": 2}
TITLES = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100", "digits": "digits"}
IMAGES = {"cifar10": (50_000, 10_000), "cifar100": (50_000, 10_000), "digits": (1_500, 297)}  # to train, to test
TOLERANCE = {"cifar10": 0.5, "cifar100": 1.0}  # points from the paper's accuracy that still reproduce it
NOT_RUN = "not run"


def data_title(dataset, substitutes=None):
    """The name of a data set for tables and figures; where it stands in for another one it says so."""
    return TITLES[dataset] + (f" in place of {TITLES[substitutes]}" if substitutes else "")


def _entry(*keys):
    """A property that reads one entry of run.json."""
    return property(lambda run: reduce(getitem, keys, run.info))


@dataclass(frozen=True, eq=False)
class Run:
    """One run folder: `info` is its run.json, `metrics` its metrics.csv; `problem` says in words why it could not be read.

    substitutes: the data set that was asked for, where another stands in for it. split: `test` or `validation`.
    """

    folder: Path
    info: dict
    metrics: pd.DataFrame
    problem: str | None = None

    dataset, substitutes = _entry("parameters", "dataset"), _entry("parameters", "substitutes")
    variant, padding_mode = _entry("parameters", "architecture", "variant"), _entry("parameters", "architecture", "padding_mode")
    seed, split, epochs = _entry("parameters", "seed"), _entry("parameters", "split"), _entry("parameters", "recipe", "epochs")
    precision = _entry("parameters", "precision")
    epochs_done, train_images, test_images = _entry("epochs_done"), _entry("train_images"), _entry("test_images")
    seconds, device, images_per_second = _entry("seconds"), _entry("device"), _entry("images_per_second")
    system = property(lambda run: run.architecture.name)
    K, Q = (property(lambda run, name=name: getattr(run.architecture, name, "")) for name in "KQ")  # compared networks have none
    complete = property(lambda run: run.epochs_done == run.epochs)
    length = property(lambda run: f"{run.epochs} epoch{'s' if run.epochs > 1 else ''}")

    @cached_property
    def architecture(self):
        """The Architecture or Baseline that was trained."""
        return describe(self.info["parameters"]["architecture"])

    @cached_property
    def _nearest(self):
        """(preset, overrides), from the parameters alone."""
        return preset_of(self.architecture, Recipe(**self.info["parameters"]["recipe"]), self.dataset)

    preset, overrides = property(lambda run: run._nearest[0]), property(lambda run: run._nearest[1])

    @property
    def accuracy(self):
        """Percent after the last epoch that is done; None before the first."""
        return 100 * self.info["test_accuracy"] if self.epochs_done else None

    @property
    def data(self):
        return data_title(self.dataset, self.substitutes)

    @property
    def tested_on(self):
        return f"{self.test_images:,} {'test images' if self.split == 'test' else 'held-out training images'}"

    @property
    def label(self):
        """System, K, Q and what else sets network, recipe and precision apart from the preset; nothing about seed, images and epochs."""
        others = [f"{name} {plain(value)}" for name, value in self.overrides.items() if name not in ("K", "Q", "epochs", "teacher")]
        system = f"{self.system} K={self.K} Q={self.Q}" if self.variant in VARIANTS else self.system
        words = [system, "released" if self.preset == "released" else "", *others, "" if self.precision == "fast" else self.precision]
        return ", ".join(filter(None, words))


def load_runs(root=None, log=print):
    """Every run below `root` (default: results/runs), sorted by name.

    A folder that cannot be read gives a line of warning and a Run with `problem`, which `other_runs` lists and all else leaves out.
    """
    root = Path(root or paths.RUNS)
    runs = [load_run(folder) for folder in sorted(root.glob("*/")) if not folder.name.startswith(".")]
    for run in runs:
        if run.problem:
            log(f"WARNING: {run.folder.name} is left out of every table: {run.problem}")
    return runs


def load_run(folder):
    """The Run in one folder, with `problem` where it cannot be read."""
    folder = Path(folder)
    try:
        info = folders.read_run(folder)
        # metrics.csv is written before run.json: a reader in between finds one row more than epochs are done
        metrics = pd.read_csv(folder / folders.METRICS).head(info["epochs_done"])
        run = Run(folder, info, metrics)
        run.label, run.data, run.tested_on, departures(run)  # raise for what no table could show
        if missing := [name for name in folders.COLUMNS if name not in metrics]:
            raise ValueError(f"{folders.METRICS} has no column {missing[0]}")
        if len(metrics) != run.epochs_done:
            raise ValueError(f"{folders.METRICS} has {len(metrics)} rows, {folders.RUN} says {run.epochs_done} epochs")
        if run.epochs_done and abs(metrics.test_accuracy.iloc[-1] - info["test_accuracy"]) > 1e-9:
            raise ValueError(f"{folders.METRICS} ends with another accuracy than {folders.RUN} says")
        return run
    except (OSError, ValueError, KeyError, TypeError) as error:
        problem = f"no {error} in {folders.RUN}" if isinstance(error, KeyError) else str(error).replace(f"{folder.parent}{os.sep}", "")
        return Run(folder, {}, pd.DataFrame(columns=folders.COLUMNS), problem)


def runs_folder(out=""):
    """Where a notebook keeps its run: "results" is results/runs, "" a temporary folder that goes with the process, else a path."""
    if out == "":
        out = tempfile.mkdtemp(prefix="hcnn-runs-")
        atexit.register(shutil.rmtree, out, ignore_errors=True)
    return paths.RUNS if out == "results" else Path(out)


def usable(runs):
    """The runs that could be read."""
    return [run for run in runs if run.problem is None]


def departures(run):
    """In words, why a run does not count for tables 1 and 2: a list, empty for a headline run."""
    architecture, recipe = presets(run.dataset, run.variant)[run.preset]
    usual = architecture.as_dict() | recipe.as_dict()
    train, test = IMAGES[run.dataset]
    train -= run.test_images if run.split == "validation" else 0
    reasons = [] if run.dataset in PAPER else [run.data]
    if run.train_images != train:
        reasons.append(f"{run.train_images:,} of {train:,} training images")
    if run.split != "test" or run.test_images != test:
        reasons.append(f"tested on {run.tested_on}")
    if run.preset == "released":
        reasons.append(f"preset {run.preset}")
    reasons += [f"{name} {plain(value)} instead of {plain(usual[name])}" for name, value in run.overrides.items() if name != "teacher"]
    if run.precision != "fast":  # beside the fast run of the same seed it would be counted twice
        reasons.append(f"precision {run.precision} instead of fast")
    if run.variant == "wrn-student":
        name, seed = run.architecture.teacher, re.search(r"-s(\d+)-", run.architecture.teacher)
        if not seed or name != teacher_name(run.dataset, int(seed[1]), run.split, run.precision):
            reasons.append(f"teacher {name} instead of WRN-40-1 as published, on all images")
    if not run.complete:
        reasons.append(f"unfinished: {run.epochs_done} of {run.epochs} epochs")
    return reasons


def plain(value):
    """The value of a field as a text for tables."""
    if isinstance(value, (list, tuple)):
        return f"({', '.join(plain(v) for v in value)})"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def headline(runs):
    """Runs that count for tables 1 and 2: full training set, complete, the published recipe (of the paper: K = 16, Q = 32, zeros)."""
    return [run for run in usable(runs) if not departures(run)]


def table(dataset, runs):
    """Table 1 (cifar10) or 2 (cifar100): the paper's rows and ours, mean and standard deviation over n headline runs.

    parameters: the weights of all filters and linear layers; multiply-adds: of one image's forward pass, see `multiply_adds`.
    """
    rows = []
    for model, variant, parameters, accuracy in PAPER[dataset] + BESIDE[dataset]:
        ours = [run for run in headline(runs) if (run.dataset, run.variant) == (dataset, variant)]
        values = pd.Series([run.accuracy for run in ours], dtype=float)
        count, arithmetic = (NOT_RUN, NOT_RUN) if variant is None else costs(dataset, variant)
        here = dict.fromkeys(("accuracy, here", "deviation", "n", "seconds an epoch", "seconds", "device"), NOT_RUN)
        if ours:
            here = {
                "accuracy, here": f"{values.mean():.2f}", "deviation": f"{values.std():.2f}" if len(ours) > 1 else "one seed",
                "n": len(ours), "seconds an epoch": f"{sum(run.seconds / run.epochs for run in ours) / len(ours):.1f}",
                "seconds": f"{sum(run.seconds for run in ours) / len(ours):.0f}",
                "device": " / ".join(sorted({run.device for run in ours})),
            }
        paper = {"model": model, "parameters, paper": parameters, "parameters, here": count, "multiply-adds": arithmetic,
                 "accuracy, paper": f"{accuracy:.2f}"}
        rows.append(paper | here)
    return pd.DataFrame(rows)


def costs(dataset, variant):
    """(weights of filters and linear layers, multiply-adds of an image) of the published network of a system."""
    architecture, _ = next(iter(presets(dataset, variant).values()))
    return architecture.count()["filters"], architecture.multiply_adds()


def other_runs(runs):
    """Every run that does not count for tables 1 and 2, with what it is and why not; damaged folders last."""
    columns = ["data", "system", "boundary", "preset", "K", "Q", "epochs", "training images", "tested on", "accuracy", "seed",
               "images/s", "seconds", "device", "differs from the paper in", "run"]
    counted, rows = headline(runs), []
    for run in sorted(usable(runs), key=lambda r: (r.data, r.variant, r.K, r.Q, r.folder.name)):
        if run in counted:
            continue
        rows.append([
            run.data, run.system, run.padding_mode, run.preset, run.K, run.Q, f"{run.epochs_done} of {run.epochs}",
            f"{run.train_images:,} of {IMAGES[run.dataset][0]:,}", run.tested_on,
            NOT_RUN if run.accuracy is None else f"{run.accuracy:.2f}", run.seed,
            f"{run.images_per_second:.0f}" if run.images_per_second else NOT_RUN, f"{run.seconds:.0f}", run.device,
            "; ".join(departures(run)), run.folder.name])
    for run in runs:
        if run.problem:
            rows.append(["damaged"] + [""] * (len(columns) - 3) + [run.problem, run.folder.name])
    return pd.DataFrame(rows, columns=columns)


def best_available(dataset, variant, runs):
    """The run that comes nearest to a headline run, by what it was trained on and how long, never by its accuracy; None without any.

    A run on digits in place of the data set counts, after every run on the data set itself.
    """
    mine = [run for run in usable(runs) if run.epochs_done and run.variant == variant and dataset in (run.dataset, run.substitutes)]
    return max(mine, default=None, key=lambda run: (
        not departures(run), run.dataset == dataset, run.split == "test", run.train_images * run.epochs_done, run.K, run.Q,
        run.padding_mode == "zeros", -run.seed))


def beside_paper(run, dataset):
    """One run beside the paper's row of the same system in table 1 (cifar10) or 2 (cifar100): quantity, paper, here."""
    _, _, parameters, accuracy = next(row for row in PAPER[dataset] if row[1] == run.variant)
    paper = Architecture.preset(dataset, run.variant)
    return pd.DataFrame([
        ("data", TITLES[dataset], run.data),
        ("training images", f"{IMAGES[dataset][0]:,}", f"{run.train_images:,}"),
        ("epochs", Recipe.preset("paper").epochs, f"{run.epochs_done} of {run.epochs}"),
        ("K, Q, boundary", f"{paper.K}, {paper.Q}, {paper.padding_mode}", f"{run.K}, {run.Q}, {run.padding_mode}"),
        ("filter weights", f"{parameters} ({paper.count()['filters']:,})", f"{run.info['counts']['filters']:,}"),
        ("accuracy, last epoch (%)", f"{accuracy:.2f}", NOT_RUN if run.accuracy is None else f"{run.accuracy:.2f}"),
        ("tested on", f"{IMAGES[dataset][1]:,} test images", run.tested_on),
        ("device", "not given", run.device),
        ("seconds", "not given", f"{run.seconds:.0f}"),
        ("comparable", "", "yes" if not departures(run) else "no: " + "; ".join(departures(run))),
    ], columns=["quantity", "paper", "here"])


def learning_curves(runs):
    """A long table, two rows an epoch: dataset, data, setting, network, seed, epoch, images, accuracy (percent), loss.

    images: `training`, `test` or `held out`. Runs that differ in their seed alone have equal `setting` and `network`.
    The longest trainings, in images seen, come first.
    """
    columns = ["dataset", "data", "setting", "network", "seed", "images", "epoch", "accuracy", "loss"]
    rows = []
    for run in sorted(usable(runs), key=lambda run: -run.train_images * run.epochs):
        setting = f"{run.train_images:,} images, {run.length}" + (f", {run.data}" if run.substitutes else "")
        shared = run.dataset, run.data, setting, run.label, run.seed
        for epoch in run.metrics.itertuples():
            rows.append((*shared, "training", epoch.epoch, 100 * epoch.train_accuracy, epoch.train_loss))
            rows.append((*shared, "test" if run.split == "test" else "held out", epoch.epoch, 100 * epoch.test_accuracy, epoch.test_loss))
    return pd.DataFrame(rows, columns=columns)


def ledger(runs, path=None):
    """The claims of the paper, notebooks/claims.csv; headline runs answer the rows with a run_key.

    run_key `cifar10/hcnn/accuracy`: the mean is as near to the tables of the paper as TOLERANCE; `cifar10/hcnn/accuracy>91`: above.
    """
    claims = pd.read_csv(path or paths.NOTEBOOKS / "claims.csv", dtype=str, keep_default_na=False)
    for row, key in claims.run_key.items():
        if key:
            claims.loc[row, ["verdict", "evidence"]] = _answer(key, runs)
    return claims


def _answer(key, runs):
    """(verdict, evidence) of one accuracy of tables 1 and 2."""
    name, _, least = key.partition(">")
    answers = {f"{dataset}/{row[1]}/accuracy": (dataset, row[1], row[3]) for dataset, rows in PAPER.items() for row in rows}
    if name not in answers:
        raise ValueError(f"run_key must be one of {', '.join(answers)}, got {key!r}")
    dataset, variant, paper = answers[name]
    ours = [run.accuracy for run in headline(runs) if (run.dataset, run.variant) == (dataset, variant)]
    if not ours:
        return NOT_RUN, f"no complete run of the paper's recipe; table {TABLE[dataset]}"
    mean = sum(ours) / len(ours)
    holds = mean > float(least) if least else abs(mean - paper) <= TOLERANCE[dataset]
    evidence = f"{mean:.2f}% here, {paper:.2f}% in the paper, n = {len(ours)}; table {TABLE[dataset]}"
    return "reproduced" if holds else "not reproduced", evidence


def summary(runs, path=None):
    """quantity, paper, here, computed_on: counts, the accuracy of every system, verdicts. Accuracies in parentheses are not comparable."""
    rows = []
    for dataset, systems in PAPER.items():
        for model, variant, parameters, _ in systems:
            count, _ = costs(dataset, variant)
            rows.append((f"filter weights, {TITLES[dataset]}, {model}", parameters, f"{count:,}", "formula and modules, notebook 02"))
    released = Architecture.preset("cifar10", "hcnn-plus", "released").count()["trained"]
    rows.append(("trainable numbers, the authors' code", "", f"{released:,}", "formula and modules, notebook 02"))
    for dataset, systems in PAPER.items():
        for (model, variant, _, accuracy), row in zip(systems, table(dataset, runs).to_dict("records")):
            here, on = row["accuracy, here"], ""
            if here != NOT_RUN:
                spread = "one seed" if row["n"] == 1 else f"± {row['deviation']}, n = {row['n']}"
                here, on = f"{here} ({spread})", f"full recipe on {row['device']}"
            elif run := best_available(dataset, variant, runs):
                here, on = f"({run.accuracy:.2f})", f"NOT COMPARABLE: {'; '.join([*departures(run), run.device])}"
            rows.append((f"accuracy (%), {TITLES[dataset]}, {model}", f"{accuracy:.2f}", here, on))
    for variant, system in VARIANTS.items():
        run = best_available("digits", variant, [r for r in usable(runs) if not r.substitutes])
        if run:
            rows.append((f"accuracy (%), digits, {system}", "", f"{run.accuracy:.2f}", "; ".join([*departures(run), run.device])))
    verdicts = ledger(runs, path).verdict
    rows += [(f"claims: {verdict}", "", f"{n} of {len(verdicts)}", "ledger, notebook 05") for verdict, n in verdicts.value_counts().items()]
    return pd.DataFrame(rows, columns=["quantity", "paper", "here", "computed_on"])
