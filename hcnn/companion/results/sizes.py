"""Sweeps over K and Q, from run folders only: accuracy and cost of every size, and the paper's claim on Q.

Sizes are compared within a `setting` alone: runs of one setting differ in nothing but K, Q and the seed.
"""

import pandas as pd

from hcnn.architecture import VARIANTS
from hcnn.companion.results.tables import NOT_RUN, PAPER, departures, usable
from hcnn.counts import multiply_adds

# Section 4.2: the "relative increase" of the accuracy in percent, by (Q before, Q after). Relative to what, on which data and for
# which of the two networks is not said.
GAINS = {(9, 16): 4.2, (16, 32): 1.1}
READINGS = {  # of a gain, with the accuracy before that a gain and the accuracy after imply; all in percent
    "points": (lambda before, after: after - before, lambda gain, after: after - gain),
    "% of the accuracy": (lambda before, after: 100 * (after / before - 1), lambda gain, after: after / (1 + gain / 100)),
    "% of the error": (lambda before, after: 100 * (after - before) / (100 - before),
                       lambda gain, after: 100 - (100 - after) / (1 - gain / 100)),
}
SETTING = ["data", "system", "setting"]  # the columns that runs must share to be compared


def setting(run):
    """In words, all that a run of HCNN or HCNN(+) was trained with except data set, system, K, Q and seed."""
    _, _, others = run.label.partition(", ")
    parts = [f"{run.train_images:,} training images", run.length, others]
    return "; ".join([", ".join(filter(None, parts)), f"tested on {run.tested_on}"])


def sized_runs(runs):
    """A long table, one row a complete run whose setting was trained in at least two sizes.

    run (name of its folder), data, system, setting, K, Q, seed, accuracy (percent), parameters (the paper's count), effective,
    trained, multiply_adds (of an image, forward; HCNN folded into w, HCNN(+) h then g), h_g (the same with h then g in both),
    seconds_an_epoch (evaluation included), images_per_second (of training), computed_on.
    """
    rows = []
    for run in usable(runs):
        if run.variant in VARIANTS and run.complete:
            counts, cost = run.architecture.count(), multiply_adds(run.architecture)
            rows.append(dict(
                run=run.folder.name, data=run.data, system=run.system, setting=setting(run), K=run.K, Q=run.Q, seed=run.seed,
                accuracy=run.accuracy, parameters=counts["filters"], effective=counts["effective"], trained=counts["trained"],
                multiply_adds=cost["w"] or cost["h_g"], h_g=cost["h_g"], seconds_an_epoch=run.seconds / run.epochs,
                images_per_second=run.images_per_second, computed_on=computed_on(run)))
    columns = ("run data system setting K Q seed accuracy parameters effective trained multiply_adds h_g seconds_an_epoch "
               "images_per_second computed_on").split()
    table = pd.DataFrame(rows, columns=columns)
    size = table.K.astype(str) + " " + table.Q.astype(str)
    return table[size.groupby([table[name] for name in SETTING]).transform("nunique") > 1].reset_index(drop=True)


def computed_on(run):
    """Device, threads and precision of a run, on which its seconds depend."""
    info = run.info
    threads = f", {info['threads']} thread{'s' if info['threads'] > 1 else ''}" if "cuda" not in info["device"].lower() else ""
    return f"{info['device']}{threads}, {info['dtype']}"


def table(runs):
    """One row for each setting, K and Q: parameters, cost, and mean and deviation of the accuracy over n seeds.

    Seconds are means too, where all runs of a size were computed on the same; else they are not comparable, and left out.
    """
    rows = []
    for (data, system, words, K, Q), group in sized_runs(runs).groupby([*SETTING, "K", "Q"]):
        first, places = group.iloc[0], sorted(set(group.computed_on))
        mixed = len(places) > 1
        rows.append({
            "data": data, "system": system, "setting": words, "K": K, "Q": Q, "parameters": first.parameters,
            "effective": first.effective, "trained": first.trained, "multiply-adds (millions)": f"{first.multiply_adds / 1e6:.1f}",
            "h, then g": f"{first.h_g / 1e6:.1f}", **spread(group.accuracy),
            "seconds an epoch": "mixed" if mixed else f"{group.seconds_an_epoch.mean():.1f}",
            "images/s": "mixed" if mixed else f"{group.images_per_second.mean():.0f}", "computed on": " / ".join(places),
        })
    columns = ["data", "system", "setting", "K", "Q", "parameters", "effective", "trained", "multiply-adds (millions)", "h, then g",
               "accuracy", "deviation", "n", "seconds an epoch", "images/s", "computed on"]
    return pd.DataFrame(rows, columns=columns)


def spread(values, name="accuracy", sign=""):
    """Mean, standard deviation and number of some percentages, as texts for a table."""
    values = pd.Series(list(values), dtype=float)
    if values.empty:
        return {name: NOT_RUN, "deviation": NOT_RUN, "n": 0}
    return {name: f"{values.mean():{sign}.2f}", "deviation": f"{values.std():.2f}" if len(values) > 1 else "one seed", "n": len(values)}


def gain_of_Q(runs):
    """The paper's claim on Q, read in each of its possible ways, beside runs on CIFAR-10 that differ from the paper's in Q alone.

    accuracy implied: before the step, if the paper's accuracy at Q = 32 and its gains are so read. here: mean over the seeds that
    were trained with both Q of the gain of each.
    """
    rows = []
    for variant, system in VARIANTS.items():
        (accuracy,) = [row[3] for row in PAPER["cifar10"] if row[1] == variant]
        ours = {(run.Q, run.seed): run.accuracy for run in usable(runs) if (run.dataset, run.variant) == ("cifar10", variant)
                and all(reason.startswith("Q ") for reason in departures(run))}
        for words, (gain, before) in READINGS.items():
            implied, steps = accuracy, []
            for (low, high), claimed in reversed(GAINS.items()):
                implied = before(claimed, implied)
                pairs = [(ours[low, seed], ours[high, seed]) for q, seed in sorted(ours) if q == low and (high, seed) in ours]
                steps.append({
                    "system": system, "Q": f"{low} to {high}", "read as": words, "paper": f"{claimed}",
                    "accuracy implied": f"{implied:.2f}", **spread((gain(*pair) for pair in pairs), "here", "+")})
            rows += reversed(steps)
    return pd.DataFrame(rows)
