"""`make verify`: whatever the repository says of its trainings, written again from the run folders and compared.

Every function returns its findings as a list of sentences, empty where all is right: a run folder against itself,
stored networks against the images, tables and README against what the same functions write now, executed notebooks
against their sources.
"""

import json
from functools import cache
from itertools import zip_longest
from math import isclose
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
from scipy.stats import binomtest

from hcnn import paths
from hcnn.companion.interpretation.checks import check_interpretation
from hcnn.companion.results.runs import IMAGES, load_runs
from hcnn.companion.results.write import with_results, write_tables
from hcnn.companion.speed.table import check as check_speed
from hcnn.data.cifar import SOURCES
from hcnn.data.datasets import DIGITS_CONTENT, TESTED_ON, available, load_dataset, split_dataset
from hcnn.device import choose_device
from hcnn.training import run_folder
from hcnn.training.evaluation import evaluate
from hcnn.training.recipe import lr_at
from hcnn.training.trained import load

RUN, METRICS, WEIGHTS = run_folder.RUN, run_folder.METRICS, run_folder.WEIGHTS
SAMPLE = 500  # test images, always the first ones
DOUBT = 0.001  # how often a right network fails the check on the sample
POINTS = 0.1  # by which accuracies on the whole test set may differ: other devices, other sums


def verify(folder=None, accuracy="sample", dataset_root=None, device="auto", log=print):
    """All findings on a folder with runs/ and tables/ (default: results/) and the README.md beside it.

    accuracy: `sample` evaluates every stored network on 500 fixed test images, `full` on all. What cannot be checked
    for want of data is said in a line of `log`, and is no finding.
    """
    folder = Path(folder or paths.RESULTS)
    if not folder.is_dir():
        raise ValueError(f"the results must be a folder, got {folder}; set HCNN_RESULTS to the one that holds runs/")
    runs = load_runs(folder / "runs", log=lambda line: None)
    findings = []
    for run in runs:
        found = check_run(run) or check_accuracy(run, accuracy, dataset_root, device, log)
        if not run.problem:
            present = available(run.dataset, dataset_root)
            found += check_interpretation(run, _data_set(run.dataset, dataset_root) if present else None)
        findings += [f"{run.folder.name}: {finding}" for finding in found]
    findings += check_tables(folder / "tables", runs)
    findings += check_readme(folder.parent / "README.md", runs, folder / "tables")
    findings += check_notebooks(folder / "notebooks", folder.parent / "notebooks")
    log(f"{len(runs)} runs: {len(findings) or 'no'} differences")
    return findings


# ---- one run folder


def check_run(run):
    """A run folder against itself: name, counts, rows of metrics.csv, weights."""
    if run.problem:
        return [run.problem]
    try:
        expected = _expected(run)
    except (ValueError, KeyError, TypeError) as error:
        return [f"{RUN} holds no run that could be repeated: {error!r}"]
    findings = [f"{RUN} has {key} {run.info.get(key)!r}, it must be {value!r}"
                for key, value in expected.items() if run.info.get(key) != value]
    return findings + _check_metrics(run) + _check_weights(run)


def _expected(run):
    """The entries of run.json that follow from its parameters and from the published data."""
    content = DIGITS_CONTENT if run.dataset == "digits" else SOURCES[run.dataset].content
    train, test = IMAGES[run.dataset]
    if run.split == "validation":
        test = min(5_000, train // 10)
        train -= test
    name = run_folder.run_name(run.parameters)
    if name != run.folder.name:
        raise ValueError(f"its parameters belong to a folder called {name}")
    return dict(
        name=name, counts=run.architecture.count(), preset=run.preset, overrides=run.overrides,
        epochs=run.recipe.epochs, substitutes=run.substitutes,
        data_checksum=run_folder.sha256(content["train"] + content["test"]),
        train_images=run.parameters["train_size"] or train, test_images=test,
        tested_on=TESTED_ON[run.split],
    )


def _check_metrics(run):
    """metrics.csv: an epoch a row, the recipe's rates, shares of whole images, sums and ends that run.json names."""
    rows = pd.read_csv(run.folder / METRICS)
    if not run.complete:  # the row of an epoch is written before run.json counts it
        rows = rows.head(run.epochs_done)
    if list(rows.epoch) != list(range(1, run.epochs_done + 1)):
        return [f"{METRICS} must have the epochs 1 to {run.epochs_done}, one a row"]
    right, rates = rows.test_accuracy * run.test_images, [lr_at(run.recipe, (i + 0.5) / run.epochs) for i in rows.index]
    wrong = {
        "a number that is not finite": ~np.isfinite(rows).all(axis=1),
        "another lr than the recipe": ~np.isclose(rows.lr, rates, rtol=1e-9, atol=0),
        "an accuracy outside 0 to 1": ~(rows.train_accuracy.between(0, 1) & rows.test_accuracy.between(0, 1)),
        f"a test accuracy that is no share of {run.test_images:,} images": ~np.isclose(right, right.round(), 0, 1e-4),
    }
    findings = [f"{METRICS} has {what} in epoch {epoch}"
                for what, where in wrong.items() for epoch in rows.epoch[where]]
    if len(rows):
        ends = {name: (rows[name].iloc[-1], 1e-12) for name in ("test_accuracy", "test_loss")}
        ends["seconds"] = rows.seconds.sum(), 1e-3
        findings += [f"{RUN} has {key} {run.info[key]}, {METRICS} gives {value:.6g}"
                     for key, (value, off) in ends.items() if not isclose(run.info[key], value, abs_tol=off)]
    return findings


def _check_weights(run):
    """weights.safetensors, where it is stored: those of this run, of its architecture, finite."""
    if not (run.folder / WEIGHTS).exists():
        return []
    try:
        tensors = load(run.folder).network.state_dict()
    except ValueError as error:
        return [str(error).replace(f"{run.folder}/", "")]
    return [f"{WEIGHTS}: {name} is not finite" for name, tensor in tensors.items() if not tensor.isfinite().all()]


# ---- stored networks


def check_accuracy(run, accuracy="sample", dataset_root=None, device="auto", log=print):
    """The stored accuracy against the network's on its test images: the whole set within POINTS, a sample within
    chance, and so an unfinished run's, which was not tested in float32.
    """
    if not (run.folder / WEIGHTS).exists():
        log(f"{run.folder.name}: no stored weights")
        return []
    if not available(run.dataset, dataset_root):
        log(f"{run.folder.name}: {run.dataset} is not present, its accuracy is not checked; `make data` fetches it")
        return []
    data = split_dataset(_data_set(run.dataset, dataset_root), run.split)
    if run.info["classes"] != list(data.classes):
        return [f"{RUN} has other classes than {run.dataset}"]
    total, stored = len(data.test_labels), run.info["test_accuracy"]
    n = total if accuracy == "full" else min(SAMPLE, total)
    device = choose_device(device)
    trained = load(run.folder).to(device)
    images, labels = data.test_images[:n].to(device), data.test_labels[:n].to(device)
    _, share = evaluate(trained, images, labels, trained.mean, trained.std, size=trained.size)
    said = f"accuracy on {n:,} of {total:,} {run.info['tested_on']} {share:.2%}, stored {stored:.2%}"
    log(f"{run.folder.name}: {said}")
    if n == total and run.complete:
        return [] if abs(share - stored) <= POINTS / 100 + 1e-9 else [f"{said}: that is more than rounding explains"]
    plausible = binomtest(round(share * n), n, stored).pvalue >= DOUBT
    return [] if plausible else [f"{said}: that is more than chance explains"]


@cache
def _data_set(name, root):
    return load_dataset(name, root, download=False)


# ---- tables, README, notebooks


def check_tables(folder, runs):
    """Every csv in tables/ against the same table as it is written now; speed.csv, of no run, against itself."""
    findings = check_speed(folder / "speed.csv")
    with TemporaryDirectory() as again:
        write_tables(Path(again), runs)
        made = {path.name: path.read_text(encoding="utf-8") for path in Path(again).iterdir()}
    stored = {path.name: path.read_text(encoding="utf-8") for path in folder.glob("*.csv") if path.name != "speed.csv"}
    for name in sorted(made.keys() | stored.keys()):
        findings += _differences(f"tables/{name}", stored.get(name, ""), made.get(name, ""))
    return findings


def check_readme(path, runs, tables):
    """The results of the README, between its two marks, as they are written now."""
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    return _differences(path.name, text, with_results(text, runs, tables))


def _differences(name, found, expected):
    """The first line in which two texts differ."""
    pairs = zip_longest(found.splitlines(), expected.splitlines(), fillvalue="nothing")
    for number, (line, right) in enumerate(pairs, 1):
        if line != right:
            return [f"{name}, line {number}: {line!r}, the runs give {right!r}; `make figures` writes it again"]
    return []


def check_notebooks(folder, origins):
    """Executed copies against their notebooks: the same cells, but for the parameters of the execution."""
    findings = []
    for origin in sorted(origins.glob("*.ipynb")):
        for copy in sorted({*folder.glob(f"{origin.stem}.ipynb"), *folder.glob(f"{origin.stem}-*.ipynb")}):
            if _sources(copy) != _sources(origin):
                findings.append(f"notebooks/{copy.name}: its cells are no longer those of {origin.name}; "
                                "execute it again")
    return findings


def _sources(path):
    """[(type, text)] of the cells that are not parameters of an execution."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return [(cell["cell_type"], "".join(cell["source"])) for cell in cells
            if "injected-parameters" not in cell["metadata"].get("tags", [])]
