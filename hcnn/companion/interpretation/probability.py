"""How probable it is that x^tau has the class of x, with intervals and controls, and whether it rises with depth."""

import numpy as np
import pandas as pd
from scipy.stats import binomtest

from hcnn.companion.interpretation.attributes import bootstrap
from hcnn.companion.interpretation.storage import close

RESAMPLES = 1000


def same_class_probability(found, architecture):
    """P(class of x^tau = class of x) over the query images, a row for each depth, tau and control, with 95% intervals.

    kind: translated, nearest (tau = 0), permuted (rows in a fixed non-cyclic order), chance (class frequencies). exact:
    tau is a symmetry of all later layers with periodic boundaries, see `Architecture.exact_translation`. low, high:
    Wilson's interval. said: the same probability for predictions. close: share of the queries with a sufficiently small
    distance; if_close: the probability among these.
    """
    labels, own, limits, rows = found["labels"], found["query_labels"], close(found), []
    shares = [np.bincount(some, minlength=architecture.num_classes) / len(some) for some in (labels, own)]
    for d, j in enumerate(found["depths"].tolist()):
        step = architecture.exact_translation(j, 1)
        cases = [("translated" if tau else "nearest", tau, found["index"][d, t], found["distance"][d, t] <= limits[d])
                 for t, tau in enumerate(found["taus"].tolist())]
        for kind, tau, index, near in [*cases, ("permuted", None, found["permuted"][d], None)]:
            same = labels[index] == own
            low, high = binomtest(int(same.sum()), len(same)).proportion_ci(0.95, "wilson")
            said = found["predictions"][index] == found["query_predictions"]
            row = dict(depth=j, kind=kind, tau=tau, exact=tau is not None and tau % step == 0, probability=same.mean(),
                       low=low, high=high, said=said.mean(), n=len(same))
            if near is not None:
                row |= dict(close=near.mean(), if_close=same[near].mean() if near.any() else None)
            rows.append(row)
        chance = float(shares[0] @ shares[1])
        rows.append(dict(depth=j, kind="chance", exact=False, probability=chance, low=chance, high=chance, n=len(own)))
    return pd.DataFrame(rows)


def progression(found):
    """Whether the probability rises with depth: statistic, value, low, high (95% bootstrap over the queries, paired).

    Means over tau >= 1: its rank correlation with the depth, the deepest minus the shallowest, and the mean over depths
    of its difference from permuted rows and from the untranslated nearest neighbour.
    """
    own, moved = found["query_labels"], found["taus"] > 0
    same = found["labels"][found["index"]] == own  # (depths, taus, m)
    permuted = found["labels"][found["permuted"]] == own
    cases = np.stack([same[:, moved].mean(1), permuted, same[:, ~moved].mean(1)])  # (3, depths, m)
    translated, permuted, untranslated = np.moveaxis(cases @ bootstrap(len(own), RESAMPLES).T, -1, 1)
    counts = pd.DataFrame((translated.T * moved.sum() * len(own)).round())  # whole, so that rounding breaks no tie
    return quantiles({
        "rank correlation with depth": counts.rank().corrwith(pd.Series(range(len(counts)))).to_numpy(),
        "deepest - shallowest": translated[:, -1] - translated[:, 0],
        "translated - permuted": (translated - permuted).mean(1),
        "translated - nearest": (translated - untranslated).mean(1)})


def quantiles(statistics):
    """{name: (value, *bootstrap replicates)} as a table: statistic, value, low, high."""
    rows = [(name, v[0], *np.nanquantile(v[1:], (0.025, 0.975))) for name, v in statistics.items()]
    return pd.DataFrame(rows, columns=["statistic", "value", "low", "high"])
