"""Every table in results/tables and the results in the README, written from the run folders: for real by
`python -m hcnn tables`, elsewhere by `make verify`, which compares.
"""

import re
from pathlib import Path

import pandas as pd

from hcnn import paths
from hcnn.architecture import VARIANTS
from hcnn.companion.experiments import experiment
from hcnn.companion.interpretation.tables import TABLES as INTERPRETED
from hcnn.companion.results import ledger, tables
from hcnn.companion.results.runs import TITLES, load_runs
from hcnn.companion.speed import table as speed
from hcnn.training.run_folder import write_bytes

TABLES = {
    "table1": lambda runs: tables.paper_table("cifar10", runs),
    "table2": lambda runs: tables.paper_table("cifar100", runs),
    "trained_here": tables.trained_here, "choices": tables.choices, "gain_of_Q": tables.gain_of_Q,
    "other_runs": tables.other_runs, "ledger": ledger.ledger, "summary": ledger.summary,
} | INTERPRETED
BLOCK = re.compile("(<!-- results -->\n)(.*?)(<!-- /results -->)", re.S)
OF_PAPER = {"data": "data", "model": "system", "parameters, here": "parameters", "accuracy, paper": "paper",
            "accuracy, here": "here", "deviation": "deviation", "n": "n", "seconds": "seconds", "device": "device"}
SHOWN = ["data", "system", "K", "Q", "padding_mode", "parameters", "effective", "epochs", "accuracy", "deviation",
         "n", "core-hours", "number format", "processor"]


def write_tables(folder, runs):
    """Write folder/NAME.csv for each of TABLES."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, make in TABLES.items():
        write_csv(folder / f"{name}.csv", make(runs))


def write_csv(path, table):
    """A table as csv, whole or not at all, the same bytes on every system."""
    write_bytes(path, table.to_csv(index=False, lineterminator="\n").encode())


def write_results(root=None, log=print):
    """Tables and README of the repository, from the runs that it stores below `root` (default: results/)."""
    root = Path(root or paths.RESULTS)
    runs, readme = load_runs(root / "runs", log), root.parent / "README.md"
    write_tables(root / "tables", runs)
    if readme.exists():
        write_bytes(readme, with_results(readme.read_text(encoding="utf-8"), runs, root / "tables").encode())
    log(f"{len(runs)} runs: {', '.join(TABLES)}")


def write_local(log=print):
    """The same tables with a user's own runs, in results/local/tables; the summary is logged as well."""
    runs, folder = load_runs(log=log), paths.LOCAL / "tables"
    write_tables(folder, runs)
    summary = ledger.summary(runs, evaluated=ledger.read_evaluated())
    write_csv(folder / "summary.csv", summary)
    rows = [list(summary), *summary.values.tolist()]
    widths = [max(map(len, column)) for column in zip(*rows)]
    for row in rows:
        log("  ".join(text.ljust(width) for text, width in zip(row, widths)).rstrip())


def with_results(text, runs, folder):
    """The text of the README with its results, between two marks, as they follow from the runs and folder/speed.csv."""
    return BLOCK.sub(lambda found: found[1] + readme_results(runs, folder) + found[3], text)


def readme_results(runs, folder):
    """The results of the README: tables 1 and 2 for the paper's networks, what was trained here, times of a step."""
    paper = pd.concat([tables.paper_table(dataset, runs).head(len(VARIANTS)).assign(data=TITLES[dataset])
                       for dataset in tables.PAPER])
    begun = [f"Not finished: {row[0]} on {TITLES[dataset]}, {stands}.\n"
             for dataset, rows in tables.PAPER.items() for row in rows
             if (stands := tables.under_way(experiment(dataset=dataset, variant=row[1]), runs))]
    here = tables.trained_here(runs)
    here = here.loc[here.n > 0, SHOWN]
    return "\n".join([
        "Tables 1 and 2, the paper's recipe: accuracy in percent on the test images.\n",
        markdown(paper[list(OF_PAPER)].rename(columns=OF_PAPER)),
        *begun,
        "Trained here, on a CPU, by the short recipe. Rows with one data set and number of epochs are comparable with\n"
        "each other, and with nothing above. Effective are those of the parameters that can act (notebook 02);\n"
        "core-hours are those of the quickest epoch of each image size (other work ran beside most epochs) and\n"
        "compare rows of one number format alone; which epochs of a row were computed in which of two is not stored.\n",
        markdown(here) if len(here) else f"{tables.NOT_TRAINED.capitalize()}.\n",
        "A training step, forward and backward, beside PyTorch's convolutions in the same number format: medians in\n"
        "one process; memory as a share of theirs; empty where it was not measured.\n",
        markdown(speed.readme_rows(speed.load(folder / "speed.csv")))])


def markdown(table):
    """A table in Markdown."""
    rows = [[f"{value:,}" if isinstance(value, int) else str(value) for value in row] for row in table.values.tolist()]
    return "\n".join(f"| {' | '.join(row)} |" for row in [list(table), ["---"] * len(table.columns), *rows]) + "\n"
