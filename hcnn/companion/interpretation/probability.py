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


def with_control(table):
    """The translated rows of `same_class_probability` whose tau has an exchange of rows, and the other ones."""
    moved = table[table.kind == "translated"]
    controlled = moved.tau.isin(table[table.kind == "exchanged"].tau)
    return moved[controlled], moved[~controlled]


def kept(found):
    """{kind: (depths, m)} of translated, exchanged and nearest: the share of the tau whose x^tau has the class of x, of
    each query image. Of translations those tau count with which rows can be exchanged; all where there is none.
    """
    own, taus, exchanges = found["query_labels"], found["taus"], found["exchanges"]
    same = found["labels"][found["index"]] == own  # (depths, taus, m)
    nearest = dict(nearest=same[:, taus == 0].mean(1))
    if not len(exchanges):
        return dict(translated=same[:, taus > 0].mean(1)) | nearest
    exchanged = (found["labels"][found["exchanged"]] == own).mean(1)
    return dict(translated=same[:, np.isin(taus, exchanges)].mean(1), exchanged=exchanged) | nearest


def _excess(shares):
    """{statistic: by how much translated arrays exceed the others} of what `kept` returns, or of means of it."""
    return {f"translated - {kind}": shares["translated"] - share
            for kind, share in shares.items() if kind != "translated"}


def by_depth(found):
    """The probabilities of `kept` at every depth, and by how much those of translated arrays exceed the others: depth,
    statistic, value, low, high (95% bootstrap over the queries, paired).
    """
    shares = kept(found)
    cases = shares | _excess(shares)
    draws = bootstrap(len(found["query_labels"]), RESAMPLES).T
    tables = [quantiles({kind: case[d] @ draws for kind, case in cases.items()}).assign(depth=depth)
              for d, depth in enumerate(found["depths"].tolist())]
    return pd.concat(tables, ignore_index=True)


def progression(found):
    """Whether the probability of `kept` rises with depth: statistic, value, low, high (95% bootstrap over the queries,
    paired).

    Of translated arrays, and of exchanged ones: its rank correlation with the depth, over all depths and without the
    last one; the deepest minus the shallowest, and the last but one minus the shallowest. Then the mean over depths by
    which translated arrays exceed exchanged ones and the untranslated nearest neighbour.
    """
    draws = bootstrap(len(found["query_labels"]), RESAMPLES).T
    shares = {kind: share @ draws for kind, share in kept(found).items()}  # (depths, 1 + RESAMPLES)
    last = {"": slice(None), ", without the last": slice(-1)} if len(found["depths"]) > 2 else {"": slice(None)}
    times = len(found["query_labels"]) * (len(found["exchanges"]) or (found["taus"] > 0).sum())
    statistics = {}
    for kind, start in (("translated", ""), ("exchanged", "exchanged: ")):
        if kind not in shares:
            continue
        counts = pd.DataFrame((shares[kind] * times).round())  # whole: rounding breaks no tie
        for words, part in last.items():
            ranks = counts[part].rank().to_numpy()  # whose mean is that of 1 ... number of depths
            depth = np.arange(len(ranks)) - (len(ranks) - 1) / 2
            size = np.sqrt(depth @ depth * ((ranks - ranks.mean(0)) ** 2).sum(0))
            statistics[f"{start}rank correlation with depth{words}"] = depth @ ranks / np.where(size, size, np.inf)
            statistics[f"{start}deepest - shallowest{words}"] = shares[kind][part][-1] - shares[kind][0]
    return quantiles(statistics | {name: values.mean(0) for name, values in _excess(shares).items()})


def quantiles(statistics):
    """{name: (value, *bootstrap replicates)} as a table: statistic, value, low, high."""
    rows = [(name, v[0], *np.quantile(v[1:], (0.025, 0.975))) for name, v in statistics.items()]
    return pd.DataFrame(rows, columns=["statistic", "value", "low", "high"])
