"""What all stored interpretation.npz say, as tables: for notebook 06 and `make verify`."""

import pandas as pd

from hcnn.companion.interpretation.carried import told_apart
from hcnn.companion.interpretation.probability import progression, same_class_probability
from hcnn.companion.interpretation.properties import colour_or_geometry, monotonicity
from hcnn.companion.interpretation.storage import load_interpretation
from hcnn.companion.results.runs import in_epochs, usable
from hcnn.training.run_folder import write_bytes

HEAD = ["run", "network", "trained on", "seed", "accuracy", "database", "queries"]  # the first columns of every table
ALIKE = ["network", "trained on", "database", "queries"]


def interpreted(runs, log=print):
    """The (run, result) of all that have an interpretation.npz; a damaged one is left out, with a line of warning."""
    found = []
    for run in usable(runs):
        try:
            result = load_interpretation(run.folder)
        except ValueError as error:
            log(f"WARNING: {run.folder.name} is left out: {error}")
            continue
        if result is not None:
            found.append((run, result))
    return found


def _below_one_another(runs, make, columns):
    """make(run, result) of every interpreted run, with what the run is and how much was searched."""
    parts = []
    for run, found in interpreted(runs):
        head = (run.folder.name, f"{run.system} K={run.K} Q={run.Q}, {run.padding_mode}",
                f"{run.data}, {run.train_images:,} images, {in_epochs(run.epochs_done)}",
                run.seed, round(run.accuracy, 2), len(found["database"]), len(found["queries"]))
        parts.append(make(run, found)[columns].round(5).assign(**dict(zip(HEAD, head)))[[*HEAD, *columns]])
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=[*HEAD, *columns])


def same_class_table(runs):
    """`same_class_probability` of every interpreted run."""
    columns = ["depth", "kind", "tau", "exact", "probability", "low", "high", "said", "images", "close",
               "if_close"]
    return _below_one_another(runs, lambda run, found: same_class_probability(found, run.architecture), columns)


def progression_table(runs):
    """`progression` and `colour_or_geometry` of every interpreted run."""
    def both(run, found):
        return pd.concat([progression(found).assign(about="same class"),
                          colour_or_geometry(found).assign(about="known changes")])

    return _below_one_another(runs, both, ["about", "statistic", "value", "low", "high"])


def known_changes_table(runs):
    """`monotonicity` of every interpreted run."""
    columns = ["property", "depth", "moved", "explained", "low", "high", "control", "monotone"]
    return _below_one_another(runs, lambda run, found: monotonicity(found), columns)


def in_common_table(runs):
    """`told_apart` of every interpreted run."""
    columns = ["half", "about", "nearest", "translated", "exchanged", "told_apart", "pairs", "property", "depth", "tau",
               "correlation", "low", "high", "correlation_exchanged"]
    return _below_one_another(runs, lambda run, found: told_apart(found), columns)


def over_seeds_table(runs):
    """Networks that differ in their seed alone, interpreted alike: mean, standard deviation and range of their results.

    These are every statistic of `progression_table`, and the probability of the same class by depth and kind (mean over
    the tau with which rows can be exchanged). above, below: in how many of the n networks the 95% interval of a
    statistic lies above or below 0.
    """
    training = {run.folder.name: run.experiment.key for run in usable(runs)}
    statistics, same = progression_table(runs), same_class_table(runs)
    tau_of_run = pd.MultiIndex.from_frame(same[["run", "tau"]])
    controlled = tau_of_run.isin(tau_of_run[same.kind == "exchanged"])
    same = same[controlled | (same.kind != "translated")].rename(columns={"probability": "value", "kind": "statistic"})
    means = same.groupby(["run", *ALIKE, "depth", "statistic"], as_index=False).value.mean()
    means["about"] = "probability at j = " + means.depth.astype(str)
    found = pd.concat([statistics, means])
    found = found.assign(training=found.run.map(training), above=found.low > 0, below=found.high < 0)
    groups = found.groupby(["training", *ALIKE, "about", "statistic"], sort=False)
    table = groups.agg(mean=("value", "mean"), deviation=("value", "std"), least=("value", "min"),
                       most=("value", "max"), n=("value", "size"), above=("above", "sum"), below=("below", "sum"))
    table = table[table.n > 1].reset_index().drop(columns="training").round(5)
    no_interval = table.about.str.startswith("probability")
    return table.assign(**{side: table[side].astype("Int64").mask(no_interval) for side in ("above", "below")})


TABLES = {"same_class": same_class_table, "progression": progression_table, "known_changes": known_changes_table,
          "in_common": in_common_table, "over_seeds": over_seeds_table}


def write_tables(folder, runs):
    """Write folder/NAME.csv for each of TABLES, from the stored runs."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, make in TABLES.items():
        write_bytes(folder / f"{name}.csv", make(runs).to_csv(index=False).encode())
