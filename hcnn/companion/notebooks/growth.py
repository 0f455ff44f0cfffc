"""What notebook 02 counts beside the networks themselves: how numbers grow with K, Q and J, with and without sums."""

from math import prod

import pandas as pd

from hcnn.architecture import Architecture
from hcnn.operators import tap_reads

KINDS = {"trained": "trained", "filters": "filters w, the paper's count", "effective": "effective"}


def general_numbers(j, filters, K):
    """Numbers in W_j of the general network, and those whose taps touch grids that are halved at every depth."""
    if j == 1:
        return 27 * filters, 27 * filters
    grids = [-(-K // 2**age) for age in range(j - 1)]  # sizes of v_{j-1}, v_{j-2}, ..., v_1
    live = prod(int((tap_reads((n,), (3,)) >= 0).any(0).sum()) for n in grids)
    return filters * 3 ** (j + 1), 9 * filters * live


def against_depth(dataset, K, Q, J):
    """By total depth J: numbers in the filters, coefficients a pixel of x_{J-2}; general, HCNN, general and halved."""
    rows = {}
    for depth in range(4, max(J, 6) + 1):
        a = Architecture.preset(dataset, K=K, Q=Q, J=depth, subsampled=())
        general, halved = map(sum, zip(*(general_numbers(layer.j, layer.filters, K) for layer in a.layers)))
        kept = prod(-(-K // 2**age) for age in range(depth - 2))
        sizes = float(K) ** (depth - 2), prod(a.shape(depth - 2)[:-2]), kept
        rows[depth] = [general, a.count()["filters"], halved, *sizes]
    names = 2 * ["general", "HCNN", "general, attributes halved"]
    return pd.DataFrame(rows, index=names).T.rename_axis("total depth J")


def against_sizes(dataset, **sizes):
    """{what stays: DataFrame of the numbers of HCNN against the size that changes}, for K, Q and J."""
    panels = {}
    for name, values in {"K": range(4, 33, 4), "Q": range(1, 33), "J": range(4, 21)}.items():
        fixed = {key: value for key, value in sizes.items() if key != name}
        found = {n: Architecture.preset(dataset, **fixed, **{name: n}, subsampled=()).count() for n in values}
        title = ", ".join(f"{key} = {value}" for key, value in fixed.items())
        panels[title] = pd.DataFrame(found).T.rename_axis(name)[[*KINDS]].rename(columns=KINDS)
    return panels
