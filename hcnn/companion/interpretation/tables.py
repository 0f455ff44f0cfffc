"""What all stored interpretation.npz say, as tables: for notebook 06 and `make verify`."""

from operator import attrgetter

import pandas as pd

from hcnn.companion.interpretation.carried import told_apart
from hcnn.companion.interpretation.probability import (
    by_depth,
    progression,
    same_class_probability,
    with_control,
)
from hcnn.companion.interpretation.properties import colour_or_geometry, monotonicity
from hcnn.companion.interpretation.storage import load_interpretation
from hcnn.companion.results.runs import in_epochs, usable
from hcnn.training.run_folder import write_bytes

HEAD = ["run", "network", "trained on", "seed", "accuracy", "database", "queries"]  # the first columns of every table
ALIKE = ["network", "trained on", "database", "queries"]


def interpreted(runs, log=print):
    """The (run, result) of all that have an interpretation.npz, by data, boundaries, size and seed; a damaged one is
    left out, with a line of warning.
    """
    found = []
    for run in usable(runs):
        try:
            result = load_interpretation(run.folder)
        except ValueError as error:
            log(f"WARNING: {run.folder.name} is left out: {error}")
            continue
        if result is not None:
            found.append((run, result))
    return sorted(found, key=lambda pair: attrgetter("data", "padding_mode", "K", "Q", "seed")(pair[0]))


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


def by_depth_table(runs):
    """`by_depth` of every interpreted run."""
    return _below_one_another(runs, lambda run, found: by_depth(found), ["depth", "statistic", "value", "low", "high"])


def by_network_table(runs):
    """Networks that differ in their seed alone, n of them, interpreted alike: mean and deviation of each result; low to
    high: what their 95% intervals span; above, below: how many of these intervals lie above or below 0.

    about, statistic: those of `progression_table`; those of `by_depth`, about j = 3 and so on, and `translated, close`,
    which is of the same tau where distances are sufficiently small; `most explained` of any known change, a mean over
    its amounts; test accuracy in percent; root mean square correlations of what x and x^tau have in common.
    """
    named = ["run", *ALIKE, "about", "statistic"]
    same, known, common, depths = (make(runs) for make in (
        same_class_table, known_changes_table, in_common_table, by_depth_table))
    accuracy = same.drop_duplicates("run")[["run", *ALIKE, "accuracy"]].rename(columns={"accuracy": "value"})
    near = pd.concat([same[:0], *(with_control(rows)[0] for _, rows in same.groupby("run"))])
    near = near.assign(right=near.close * near.if_close, about="j = " + near.depth.astype(str))
    near = near.assign(statistic="translated, close").groupby(named, sort=False)[["right", "close"]].sum().reset_index()
    most = known.loc[known.groupby("run").explained.idxmax()].assign(about="known changes", statistic="most explained")
    common = common.assign(about="in common, " + common.half + " " + common.about)
    found = pd.concat([
        accuracy.assign(about="test images", statistic="accuracy"), progression_table(runs),
        most.rename(columns={"explained": "value"}), depths.assign(about="j = " + depths.depth.astype(str)),
        near.assign(value=near.right / near.close),
        common.melt(named[:-1], ["nearest", "translated", "exchanged"], "statistic")])
    training = {run.folder.name: run.experiment.key for run in usable(runs)}
    found = found.assign(training=found.run.map(training), above=found.low > 0, below=found.high < 0)
    table = found.groupby(["training", *named[1:]], sort=False).agg(
        mean=("value", "mean"), deviation=("value", "std"), low=("low", "min"), high=("high", "max"),
        n=("value", "size"), above=("above", "sum"), below=("below", "sum"))
    order = {training: i for i, training in enumerate(found.training.unique())}
    table = table.reset_index().sort_values("training", kind="stable", key=lambda column: column.map(order))
    table = table.round(5).reset_index(drop=True)
    sided = table.low.notna()
    return table.assign(**{side: table[side].astype("Int64").where(sided) for side in ("above", "below")})


TABLES = {"same_class": same_class_table, "progression": progression_table, "known_changes": known_changes_table,
          "in_common": in_common_table, "by_network": by_network_table}


def write_tables(folder, runs):
    """Write folder/NAME.csv for each of TABLES, from the stored runs."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, make in TABLES.items():
        write_bytes(folder / f"{name}.csv", make(runs).to_csv(index=False).encode())
