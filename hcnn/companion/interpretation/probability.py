"""How probable it is that x^tau has the class of x, with intervals and controls, and whether it rises with depth."""

import numpy as np
import pandas as pd
from scipy.stats import binomtest

from hcnn.companion.interpretation.attributes import bootstrap
from hcnn.companion.interpretation.storage import searches

RESAMPLES = 1000


def same_class_probability(found, architecture):
    """P(class of x^tau = class of x) over the query images, a row for each depth, tau and control, with 95% intervals.

    kind: translated, nearest (tau = 0), exchanged (rows as far away as by the translation, in another order: see
    `attributes.exchanged`), chance (class frequencies). exact: tau is a symmetry of all later layers with periodic
    boundaries, see `Architecture.exact_translation`. low, high: Wilson's interval, for this network and database. said:
    the same probability for predictions. close: share of the queries with a sufficiently small distance; if_close: the
    probability among these. images: how many different x^tau there are, (sum of n_i)^2 / sum of n_i^2 for an image that
    is that of n_i queries.
    """
    labels, own, rows = found["labels"], found["query_labels"], []
    for depth, kind, tau, index, near in searches(found):
        same, times = labels[index] == own, np.bincount(index)
        low, high = binomtest(int(same.sum()), len(same)).proportion_ci(0.95, "wilson")
        exact = kind != "exchanged" and tau % architecture.exact_translation(depth, 1) == 0
        row = dict(depth=depth, kind=kind, tau=tau, exact=exact, probability=same.mean(), low=low, high=high,
                   said=(found["predictions"][index] == found["query_predictions"]).mean(), n=len(same),
                   images=len(same) ** 2 / (times**2).sum())
        if near is not None:
            row |= dict(close=near.mean(), if_close=same[near].mean() if near.any() else None)
        rows.append(row)
    shares = [np.bincount(some, minlength=architecture.num_classes) / len(some) for some in (labels, own)]
    chance = float(shares[0] @ shares[1])
    rows += [dict(depth=depth, kind="chance", exact=False, probability=chance, low=chance, high=chance, n=len(own))
             for depth in found["depths"].tolist()]
    return pd.DataFrame(rows)


def progression(found):
    """Whether the probability rises with depth: statistic, value, low, high (95% bootstrap over the queries, paired).

    Means over tau >= 1: its rank correlation with the depth, over all depths and without the last one; the deepest
    minus the shallowest, and the last but one minus the shallowest; the means over depths of its difference from the
    untranslated nearest neighbour and, for those tau that have one, from exchanged rows.
    """
    own, taus = found["query_labels"], found["taus"]
    same = found["labels"][found["index"]] == own  # (depths, taus, m)
    exchanged = found["labels"][found["exchanged"]] == own
    cases = np.stack([same[:, taus > 0].mean(1), same[:, taus == 0].mean(1),
                      same[:, np.isin(taus, found["exchanges"])].mean(1) - exchanged.mean(1)])  # (3, depths, m)
    translated, untranslated, difference = np.moveaxis(cases @ bootstrap(len(own), RESAMPLES).T, -1, 1)
    counts = pd.DataFrame((translated.T * (taus > 0).sum() * len(own)).round())  # whole: rounding breaks no tie
    last = {"": slice(None), ", without the last": slice(-1)} if len(counts) > 2 else {"": slice(None)}
    statistics = {}
    for words, part in last.items():
        ranks = counts[part].rank().to_numpy()  # whose mean is that of 1 ... number of depths
        depth = np.arange(len(ranks)) - (len(ranks) - 1) / 2
        size = np.sqrt(depth @ depth * ((ranks - ranks.mean(0)) ** 2).sum(0))
        statistics[f"rank correlation with depth{words}"] = depth @ ranks / np.where(size, size, np.inf)  # equal: 0
        statistics[f"deepest - shallowest{words}"] = translated[:, part][:, -1] - translated[:, 0]
    return quantiles(statistics | {
        "translated - exchanged": difference.mean(1), "translated - nearest": (translated - untranslated).mean(1)})


def quantiles(statistics):
    """{name: (value, *bootstrap replicates)} as a table: statistic, value, low, high."""
    rows = [(name, v[0], *np.quantile(v[1:], (0.025, 0.975))) for name, v in statistics.items()]
    return pd.DataFrame(rows, columns=["statistic", "value", "low", "high"])
