"""The claims of the paper with their verdicts, and the summary: what it says, what is stored, what came out now."""

import re

import pandas as pd

from hcnn import paths
from hcnn.architecture import VARIANTS, Architecture
from hcnn.companion.experiments import HERE, QUICK, experiment
from hcnn.companion.interpretation.tables import by_network_table
from hcnn.companion.results.runs import TITLES, in_epochs, usable
from hcnn.companion.results.tables import (
    NOT_TRAINED,
    PAPER,
    TABLE,
    by_seed,
    choices,
    devices,
    repetitions,
    spread,
    trained,
    under_way,
)

TOLERANCE = {"cifar10": 0.5, "cifar100": 1.0}  # points from the paper's accuracy that still reproduce it
MEASURED = re.compile(r"\{(.+?): (.+?)\}(±?)")  # {about: statistic} of `by_network_table`, ± with its interval
EVALUATED = "evaluated.csv"  # in results/local: the stored networks, evaluated again


def ledger(runs, path=None):
    """The claims of the paper, notebooks/claims.csv; runs answer the rows with a run_key, those of tables 1 and 2 by
    their accuracy.

    run_key `cifar10/hcnn/accuracy`: the mean is as near to the tables of the paper as TOLERANCE;
    `cifar10/hcnn/accuracy>91`: above. `boundary`: what `choices` says of zeros and periodic boundaries. The interpreted
    networks of the repository fill in, each its own, what the evidence has MEASURED after a bar.
    """
    claims = pd.read_csv(path or paths.NOTEBOOKS / "claims.csv", dtype=str, keep_default_na=False)
    for row, key in claims.run_key.items():
        if key:
            claims.loc[row, ["verdict", "evidence"]] = _boundary(runs) if key == "boundary" else _answer(key, runs)
    measured = by_network_table([run for run in usable(runs) if run.dataset in PAPER and not run.local])
    for row, evidence in claims.evidence.items():
        words, bar, numbers = evidence.partition(" | ")
        if bar and measured.empty:
            claims.loc[row, ["verdict", "evidence"]] = "not run", "no network is interpreted"
        elif bar:
            claims.loc[row, "evidence"] = "\n".join([words, *_by_network(numbers, measured)])
    return claims


def _by_network(numbers, measured):
    """What is MEASURED, a text for each of the networks that differ in more than their seed and have all of it."""
    fields = list(MEASURED.finditer(numbers))
    for _, rows in measured.groupby(["training", "trained on", "database", "queries"], sort=False):
        accuracy, found, told = rows.iloc[0], rows.set_index(["about", "statistic"]), numbers
        if not all((field[1], field[2]) in found.index for field in fields):
            continue  # fewer depths
        for field in fields:
            row, form = found.loc[field[1], field[2]], "z.2%" if field[1] == "known changes" else "z.3f"
            interval = f" ({row.low:{form}} to {row.high:{form}})" if field[3] else ""
            told = told.replace(field[0], f"{row['mean']:{form}}{interval}", 1)
        yield (f"{accuracy.network} ({accuracy['trained on']}, {accuracy['mean']:.2f}%, n = {accuracy.n}; "
               f"{accuracy.queries:,} test images): {told}")


NOT_RUN = "the paper's recipe is not run: without a normalisation after g it diverges with periodic boundaries"


def _boundary(runs):
    """(verdict, evidence) of periodic boundaries beside zeros: the paper's recipe decides, with a normalisation after g
    or without; others are only told.
    """
    found = choices(runs)
    found = found[(found["open in the paper"] == "boundary") & (found.n > 0)]
    papers = found[found.base.isin([experiment(variant=variant, output_norm=norm).label
                                    for variant in VARIANTS for norm in (False, True)])]
    near = papers["difference (points)"].astype(float).abs() <= TOLERANCE["cifar10"]
    verdict = "not run" if papers.empty else "reproduced" if near.all() else "not reproduced"
    told = [f"{base}: {difference} points with periodic boundaries, n = {n}"
            for base, difference, n in found[["base", "difference (points)", "n"]].values]
    return verdict, "; ".join(told + [NOT_RUN] * papers.empty)


def _answer(key, runs):
    """(verdict, evidence) of one accuracy of tables 1 and 2."""
    name, _, least = key.partition(">")
    answers = {f"{dataset}/{row[1]}/accuracy": (dataset, row[1], row[3]) for dataset in PAPER for row in PAPER[dataset]}
    if name not in answers:
        raise ValueError(f"run_key must be one of {', '.join(answers)}, boundary, got {key!r}")
    dataset, variant, paper = answers[name]
    training = experiment(dataset=dataset, variant=variant)
    ours = by_seed(training, runs)
    if not ours:
        stands = under_way(training, runs)
        stands = f"unfinished: {stands}" if stands else "no complete run of the paper's recipe"
        return "not run", f"{stands}; table {TABLE[dataset]}"
    mean = sum(ours.values()) / len(ours)
    holds = mean > float(least) if least else abs(mean - paper) <= TOLERANCE[dataset]
    evidence = f"{mean:.2f}% here, {paper:.2f}% in the paper, n = {len(ours)}; table {TABLE[dataset]}"
    return "reproduced" if holds else "not reproduced", evidence


def summary(runs, path=None, evaluated=None):
    """quantity, paper, stored, just now, computed on: counts, accuracies, verdicts.

    just now: of runs in results/local, or else of the stored networks evaluated again, {name of a run: percent}.
    """
    counts, accuracies = [], []
    for dataset, systems in PAPER.items():
        for model, variant, parameters, accuracy in systems:
            name, training = f"{TITLES[dataset]}, {model}", experiment(dataset=dataset, variant=variant)
            counts.append((f"filter weights, {name}", parameters, training.architecture.count()["filters"]))
            accuracies.append((f"accuracy (%), {name}", f"{accuracy:.2f}", *_accuracies(training, runs, evaluated)))
    released = Architecture.preset("cifar10", "hcnn-plus", "released").count()["trained"]
    counts.append(("trainable numbers, the authors' code", "", released))
    shown = set()
    for training in repetitions(HERE + QUICK):
        if found := trained(training, runs):
            shown |= {run.folder for run in found}
            name = f"{TITLES[training.dataset]}, {training.label}, {in_epochs(training.recipe.epochs)}"
            accuracies.append((f"accuracy (%), {name}", "", *_accuracies(training, runs, evaluated)))
    accuracies += [  # whatever else a user has trained, such as digits in place of CIFAR
        (f"accuracy (%), {run.data}, {run.label}, {in_epochs(run.epochs)}", "", "", f"{run.accuracy:.2f}", run.device)
        for run in usable(runs) if run.local and run.complete and run.folder not in shown]
    verdicts = ledger(runs, path).verdict
    rows = [(*row, f"{count:,}", f"{count:,}", "formula and modules") for *row, count in counts] + accuracies
    rows += [(f"claims: {verdict}", "", f"{n} of {len(verdicts)}", "", "ledger, notebook 05")
             for verdict, n in verdicts.value_counts().items()]
    return pd.DataFrame(rows, columns=["quantity", "paper", "stored", "just now", "computed on"])


def _accuracies(training, runs, evaluated):
    """What is stored of a training, what came out just now, and on which devices."""
    found = trained(training, runs)
    stored, local = ([run for run in found if run.local == here] for here in (False, True))
    evaluated, words = evaluated or {}, accuracy_in_words(run.accuracy for run in stored)
    again = [run for run in stored if run.folder.name in evaluated]
    now = [run.accuracy for run in local] or [evaluated[run.folder.name] for run in again]
    if not local and 0 < len(again) < len(stored):
        words += f"; of these again {accuracy_in_words(run.accuracy for run in again)}"
    return words, accuracy_in_words(now) if now else "", devices(found)


def accuracy_in_words(values):
    """Mean, deviation and n as one text."""
    found = spread(values)
    if found["n"] == 0:
        return NOT_TRAINED
    return found["accuracy"] + (f" ± {found['deviation']}, n = {found['n']}" if found["n"] > 1 else ", one seed")


def write_evaluated(accuracies):
    """Keep the accuracies, 0..1, of the stored networks as they were evaluated again, {name of a run: accuracy}."""
    paths.LOCAL.mkdir(parents=True, exist_ok=True)
    pd.Series(accuracies, name="accuracy", dtype=float).to_csv(paths.LOCAL / EVALUATED, index_label="run")


def read_evaluated():
    """What `write_evaluated` kept, in percent."""
    path = paths.LOCAL / EVALUATED
    return (100 * pd.read_csv(path, index_col="run").accuracy).to_dict() if path.exists() else {}
