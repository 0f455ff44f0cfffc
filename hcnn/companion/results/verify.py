"""Recompute from the run folders alone whatever the repository says of its trainings: `make verify`.

Every function returns its findings as a list of sentences, empty where all is right: a run folder against itself, tables, README
and executed notebooks against the runs and their sources, stored networks against the images.
"""

import csv
import io
import json
import re
from functools import cache
from math import comb, fsum, isclose, isfinite
from pathlib import Path

from hcnn import paths
from hcnn.architecture import VARIANTS, describe
from hcnn.companion.interpretation.tables import TABLES as INTERPRETED
from hcnn.companion.interpretation.tables import check_interpretation
from hcnn.companion.results import ablations
from hcnn.companion.results import sizes as sweeps
from hcnn.companion.results import tables as results
from hcnn.companion.speed import table as speed_table
from hcnn.data.cifar import SOURCES
from hcnn.data.datasets import DIGITS_CONTENT, available, load_dataset, split_dataset
from hcnn.device import choose_device
from hcnn.network import build
from hcnn.training import run_folder as runs
from hcnn.training.evaluation import evaluate
from hcnn.training.recipe import Recipe, lr_at, preset_of
from hcnn.training.trained import load

SAMPLE = 500  # test images, always the first ones
DOUBT = 0.001  # how often a right network fails the check on the sample
PERCENTAGE = r"\d[\d.]*%"
MEASURED = {"speed": speed_table.check}  # tables of times, which follow from no run: each against itself
POINTS = 0.1  # by which accuracies on the whole test set may differ: other devices, other sums
TABLES = {
    "table1": lambda stored: results.table("cifar10", stored), "table2": lambda stored: results.table("cifar100", stored),
    "other_runs": lambda stored: results.other_runs(ablations.in_no_table(stored)), "ledger": results.ledger, "summary": results.summary,
    "sweep": sweeps.table, "gain_of_Q": sweeps.gain_of_Q, "ablations": ablations.table,
    "factorisation": lambda stored: ablations.pairs(stored, "factorised"), "precision": lambda stored: ablations.pairs(stored, "precision"),
} | INTERPRETED


def verify(folder=None, accuracy="sample", dataset_root=None, device="auto", log=print):
    """All findings on a folder with runs/ and tables/ (default: results/) and the README.md beside it.

    accuracy: `sample` evaluates every stored network on 500 fixed test images, `full` on all. What cannot be checked for want
    of data or tables is said in a line of `log`, and is no finding.
    """
    folder = Path(folder or paths.RESULTS)
    if not folder.is_dir():
        raise ValueError(f"the results must be a folder, got {folder}; set HCNN_RESULTS to the one that holds runs/ and tables/")
    stored = results.load_runs(folder / "runs", log=lambda line: None)
    findings = []
    for run in stored:
        found = check_run(run) or check_accuracy(run, accuracy, dataset_root, device, log)
        if not run.problem:
            present = available(run.dataset, dataset_root)
            found += check_interpretation(run, _data_set(run.dataset, dataset_root) if present else None)
        findings += [f"{run.folder.name}: {finding}" for finding in found]
    tables = {name: make(stored) for name, make in TABLES.items()}
    measured = speed_table.readme_rows(speed_table.load(folder / "tables" / "speed.csv"))
    findings += check_tables(folder / "tables", tables, log) + check_readme(folder.parent / "README.md", stored, log, measured)
    findings += check_notebooks(folder / "notebooks", folder.parent / "notebooks")
    log(f"{len(stored)} runs, {len(list((folder / 'tables').glob('*.csv')))} tables: {len(findings) or 'no'} differences")
    return findings


# ---- one run folder


def check_run(run):
    """A run folder against itself: checksums, name, counts, rows of metrics.csv, shapes of the weights."""
    if run.problem:
        return [run.problem]
    info = run.info
    try:
        expected = _expected(run)
    except (ValueError, KeyError, TypeError) as error:
        return [f"{runs.RUN} holds no run that could be repeated: {error!r}"]
    wrong = [key for key, value in expected.items() if info.get(key) != value]
    findings = [f"{runs.RUN} has {key} {info.get(key)!r}, it must be {expected[key]!r}" for key in wrong]
    return findings + _check_metrics(run) + _check_weights(run)


def _expected(run):
    """The entries of run.json that follow from its parameters and from the published data."""
    parameters = run.info["parameters"]
    architecture, recipe = describe(parameters["architecture"]), Recipe(**parameters["recipe"])
    preset, overrides = preset_of(architecture, recipe, run.dataset)
    content = DIGITS_CONTENT if run.dataset == "digits" else SOURCES[run.dataset].content
    train, test = results.IMAGES[run.dataset]
    if run.split == "validation":
        test = min(5_000, train // 10)
        train -= test
    if runs.run_name(parameters) != run.folder.name:
        raise ValueError(f"its parameters belong to a folder called {runs.run_name(parameters)}")
    return dict(
        name=run.folder.name, counts=architecture.count(), preset=preset, overrides=overrides, epochs=recipe.epochs,
        substitutes=parameters["substitutes"], data_checksum=runs.sha256(content["train"] + content["test"]),
        train_images=parameters["train_size"] or train, test_images=test,
        tested_on="test images" if run.split == "test" else "held-out training images",
    )


def _check_metrics(run):
    """metrics.csv: an epoch a row, the recipe's rates, shares of whole images, and the sums and ends that run.json names."""
    with open(run.folder / runs.METRICS, newline="") as file:
        rows = [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]
    if not run.complete:  # the row of an epoch is written before run.json counts it
        rows = rows[:run.epochs_done]
    recipe, findings = Recipe(**run.info["parameters"]["recipe"]), []
    if [row["epoch"] for row in rows] != list(range(1, run.epochs_done + 1)):
        return [f"{runs.METRICS} must have the epochs 1 to {run.epochs_done}, one a row"]
    for row in rows:
        right = row["test_accuracy"] * run.test_images
        for what, holds in (("a number that is not finite", all(map(isfinite, row.values()))),
                            ("another lr than the recipe", isclose(row["lr"], lr_at(recipe, (row["epoch"] - 0.5) / recipe.epochs))),
                            ("an accuracy outside 0 to 1", 0 <= row["train_accuracy"] <= 1 and 0 <= row["test_accuracy"] <= 1),
                            (f"a test accuracy that is no share of {run.test_images:,} images", abs(right - round(right)) < 1e-4)):
            findings += [] if holds else [f"{runs.METRICS} has {what} in epoch {row['epoch']:.0f}"]
    if rows:
        ends = dict(test_accuracy=rows[-1]["test_accuracy"], test_loss=rows[-1]["test_loss"], seconds=fsum(row["seconds"] for row in rows))
        findings += [f"{runs.RUN} has {key} {run.info[key]}, {runs.METRICS} gives {value:.6g}" for key, value in ends.items()
                     if not isclose(run.info[key], value, rel_tol=1e-9, abs_tol=1e-3 if key == "seconds" else 1e-12)]
    return findings


def _check_weights(run):
    """weights.safetensors, where it is stored: the checksum of run.json, the shapes of the architecture, finite numbers."""
    path = run.folder / runs.WEIGHTS
    if not path.exists():
        known = run.epochs_done == 0 or re.fullmatch("[0-9a-f]{64}", str(run.info["weights_sha256"]))
        return [] if known else [f"{runs.RUN} has no checksum of the weights"]
    try:
        weights = runs.read_weights(run.folder, run.info)
        runs.check_fit(path.name, weights, build(describe(run.info["parameters"]["architecture"])).state_dict())
    except ValueError as error:
        return [str(error).replace(f"{run.folder}/", "")]
    return [f"{path.name}: {name} is not finite" for name, tensor in weights.items() if not tensor.isfinite().all()]


# ---- stored networks


def check_accuracy(run, accuracy="sample", dataset_root=None, device="auto", log=print):
    """The stored accuracy against the network's on its test images: the whole set within POINTS, a sample within chance, and so an
    unfinished run's, which was not tested in float32."""
    if not (run.folder / runs.WEIGHTS).exists():
        log(f"{run.folder.name}: no stored weights")
        return []
    if not available(run.dataset, dataset_root):
        log(f"{run.folder.name}: {run.dataset} is not present, its accuracy is not checked; `make data` fetches it")
        return []
    data = split_dataset(_data_set(run.dataset, dataset_root), run.split)
    if run.info["classes"] != list(data.classes):
        return [f"{runs.RUN} has other classes than {run.dataset}"]
    device, total, stored = choose_device(device), len(data.test_labels), run.info["test_accuracy"]
    n = total if accuracy == "full" else min(SAMPLE, total)
    network = load(run.folder).to(device)
    _, share = evaluate(network, data.test_images[:n].to(device), data.test_labels[:n].to(device), network.mean, network.std)
    said = f"accuracy on {n:,} of {total:,} {run.info['tested_on']} {share:.2%}, stored {stored:.2%}"
    log(f"{run.folder.name}: {said}")
    exact = n == total and run.complete
    holds = abs(share - stored) <= POINTS / 100 + 1e-9 if exact else is_plausible(round(share * n), n, stored)
    return [] if holds else [f"{said}: that is more than {'rounding' if exact else 'chance'} explains"]


@cache
def _data_set(name, root):
    return load_dataset(name, root, download=False)


def is_plausible(right, n, p):
    """Whether `right` of n images fit a share p of all: p is in the exact binomial interval of probability 1 - DOUBT."""
    def tail(outcomes):
        return fsum(comb(n, k) * p**k * (1 - p) ** (n - k) for k in outcomes)

    return min(tail(range(right + 1)), tail(range(right, n + 1))) >= DOUBT / 2


# ---- tables and README


def check_tables(folder, tables, log=print):
    """Every csv in tables/ against the same table made from the runs, cell by cell."""
    findings = []
    for path in sorted(folder.glob("*.csv")):
        if path.stem in MEASURED:
            findings += MEASURED[path.stem](path)
            continue
        if path.stem not in tables:
            findings.append(f"tables/{path.name}: nothing says how it follows from the runs; add it to TABLES of hcnn/verify.py")
            continue
        with open(path, newline="", encoding="utf-8") as file:
            findings += _differences(f"tables/{path.name}", list(csv.reader(file)), _cells(tables[path.stem]))
    if absent := [name for name in tables if not (folder / f"{name}.csv").exists()]:
        log(f"not in tables/: {', '.join(absent)}; `make figures` writes them")
    return findings


def _cells(table):
    """Header and rows as csv would store them: lists of texts."""
    return list(csv.reader(io.StringIO(table.to_csv(index=False))))


def _differences(name, found, expected):
    """The first cell in which two tables differ."""
    if found[:1] != expected[:1]:
        return [f"{name}: columns {', '.join(found[0]) if found else 'none'}; they must be {', '.join(expected[0])}"]
    if len(found) != len(expected):
        return [f"{name}: {len(found) - 1} rows, the runs give {len(expected) - 1}; `make figures` writes it again"]
    for i, (row, right) in enumerate(zip(found, expected)):
        for column, cell, value in zip(expected[0], row, right):
            if cell != value:
                return [f"{name}: row {i}, {column}: {cell!r}, the runs give {value!r}; `make figures` writes it again"]
        if len(row) != len(right):
            return [f"{name}: row {i} has {len(row)} cells, it must have {len(right)}"]
    return []


def check_notebooks(folder, origins):
    """Executed copies against their notebooks: the same cells, but for the parameters of the execution."""
    findings = []
    for origin in sorted(origins.glob("*.ipynb")):
        for copy in sorted({*folder.glob(f"{origin.stem}.ipynb"), *folder.glob(f"{origin.stem}-*.ipynb")}):
            if _sources(copy) != _sources(origin):
                findings.append(f"notebooks/{copy.name}: the cells are no longer those of {origin.name}; execute it again")
    return findings


def _sources(path):
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return [(cell["cell_type"], "".join(cell["source"])) for cell in cells if "injected-parameters" not in cell["metadata"].get("tags", [])]


def check_readme(path, stored, log=print, measured=None):
    """The results of the README, between its two marks: each row on a training follows from the runs, and so does each percentage.

    Tables without percentages, such as timings, are no results of runs and are left alone.
    """
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    block = re.search("<!-- results -->\n(.*?)<!-- /results -->", text, re.S)
    if not block:
        log(f"no <!-- results --> in {path.name}")
        return []
    tables, findings, header = readme_tables(stored) | (measured or {}), [], None
    known = {number for rows in tables.values() for row in rows for cell in row for number in re.findall(PERCENTAGE, cell)}
    for line in block[1].splitlines():
        cells = tuple(cell.strip() for cell in line.rstrip()[1:-1].split("|")) if line.startswith("|") else None
        if cells is None:
            header = None
            wrong = [number for number in re.findall(PERCENTAGE, line) if number not in known]
            findings += [f"{path.name}: no run gives the {number} of: {line}" for number in wrong]
        elif header is None:
            header = cells
        elif header in tables and not set("".join(cells)) <= set(":-") and cells not in tables[header]:
            findings.append(f"{path.name}: no run gives the row {line}")
        elif header not in tables and "%" in line:
            findings.append(f"{path.name}: percentages must stand in a table with the columns of readme_tables in hcnn/verify.py: {line}")
    if findings:
        log(f"{path.name} differs; the runs give\n\n" + "\n".join(markdown(*table) for table in tables.items()))
    return findings


def readme_tables(stored):
    """{columns: rows} of the tables of trainings in the README: the paper's beside headline runs, and every run."""
    paper, trained = [], []
    for dataset, systems in results.PAPER.items():
        for row, (_, variant, _, accuracy) in zip(results.table(dataset, stored).to_dict("records"), systems):
            if variant in VARIANTS:
                here, n = row["accuracy, here"], row["n"]
                ours = (results.NOT_RUN, "", "")
                if here != results.NOT_RUN:
                    ours = (f"{here}%, one seed" if n == 1 else f"{here}% ± {row['deviation']}, n = {n}", row["seconds"], row["device"])
                paper.append((f"{results.TITLES[dataset]}, {VARIANTS[variant]}", f"{row['parameters, here']:,}", f"{accuracy:.2f}%", *ours))
    for run in results.usable(stored):
        if run.epochs_done:
            size = f"{run.K}, {run.Q}" if run.variant in VARIANTS else ""
            trained.append((f"{run.data}, {run.system}", size, f"{run.train_images:,}", f"{run.epochs_done}",
                            f"{run.accuracy:.2f}%", f"{run.seconds:.0f}", f"{run.info['threads']}"))
    return {
        ("", "parameters (filters)", "paper", "ours (mean, deviation, n)", "seconds", "device"): paper,
        ("", "K, Q", "training images", "epochs", "test accuracy", "seconds", "CPU threads"): trained,
    }


def markdown(header, rows):
    """A table in Markdown."""
    return "\n".join(f"| {' | '.join(row)} |" for row in [header, ["---"] * len(header), *rows]) + "\n"
