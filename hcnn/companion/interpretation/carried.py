"""What x^tau has in common with x beside the class: correlations of their colours and patterns, section 5.3."""

import numpy as np
import pandas as pd

from hcnn.companion.interpretation.attributes import bootstrap
from hcnn.companion.interpretation.storage import frame, searches

COLOUR = ("brightness", "red - blue", "green - magenta")  # of the centre; the others are patterns of the whole image
RESAMPLES = 200  # of the images x^tau, for intervals


def appearance(images):
    """Properties of uint8 images (n, 3, H, W) as columns of a table, in grey levels.

    COLOUR: means over the central quarter of height and width, where equation (9) reads the array. detail: mean
    absolute difference of neighbours; vertical - horizontal: of those in a row and those in a column; the others:
    differences of the mean brightness of two parts of the image.
    """
    x = images.numpy().astype(float)
    height, width = x.shape[2:]

    def centre(part):
        return (slice(None), slice(height // 2 - height // part, height // 2 + height // part),
                slice(width // 2 - width // part, width // 2 + width // part))

    red, green, blue = np.moveaxis(x, 1, 0)[(slice(None), *centre(8))].mean((2, 3))
    grey = x.mean(1)
    across, down = (abs(np.diff(grey, axis=axis)).mean((1, 2)) for axis in (2, 1))
    middle = grey[centre(4)].mean((1, 2))
    return pd.DataFrame({
        "brightness": (red + green + blue) / 3, "red - blue": red - blue, "green - magenta": green - (red + blue) / 2,
        "detail": across + down, "vertical - horizontal": across - down,
        "left - right": grey[:, :, :width // 2].mean((1, 2)) - grey[:, :, width // 2:].mean((1, 2)),
        "top - bottom": grey[:, :height // 2].mean((1, 2)) - grey[:, height // 2:].mean((1, 2)),
        "centre - surround": 4 / 3 * (middle - grey.mean((1, 2)))})


def carried(found, queries, database):
    """Correlations between each property of x and the same property of x^tau, over the query images.

    queries, database: `appearance` of these. Returns depth, kind (nearest, translated, exchanged: see
    `same_class_probability`), tau, property, correlation, low, high: 95% bootstrap intervals over the images x^tau,
    because many x share one.
    """
    rows = []
    for depth, kind, tau, index, _ in searches(found):
        images, which = np.unique(index, return_inverse=True)
        weights = bootstrap(len(images), RESAMPLES)[:, which]
        r = correlations(weights, queries.to_numpy(), database.to_numpy()[index])
        low, high = np.quantile(r[1:], (0.025, 0.975), axis=0)
        rows.append(pd.DataFrame(dict(depth=depth, kind=kind, tau=tau, property=queries.columns, correlation=r[0],
                                      low=low, high=high)))
    return pd.concat(rows, ignore_index=True)


def told_apart(found):
    """Whether the order of the rows decides what x^tau has in common with x, for colour and patterns in shallow and
    deep layers: root mean square correlations (nearest; translated and exchanged, for the same tau), and told_apart,
    the share of the pairs translated and exchanged whose intervals do not meet. Then the pair that is furthest apart:
    property, depth, tau, its correlation with its interval, and that with exchanged rows.
    """
    table = frame(found, "carried")
    table["half"] = np.where(table.depth <= np.mean(found["depths"]), "shallow", "deep")
    table["about"] = np.where(table.property.isin(COLOUR), "colour", "patterns")
    groups = ["half", "about"]
    keys = [*groups, "depth", "property", "tau"]
    kinds = {kind: rows.set_index(keys)[["correlation", "low", "high"]] for kind, rows in table.groupby("kind")}
    pairs = kinds["translated"].join(kinds["exchanged"].add_suffix("_exchanged"), how="inner")
    pairs = pairs.assign(apart=(pairs.low > pairs.high_exchanged) | (pairs.high < pairs.low_exchanged))

    def size(r):
        return r.pow(2).groupby(groups, sort=False).mean().pow(0.5)

    sizes = pd.DataFrame(dict(nearest=size(kinds["nearest"].correlation), translated=size(pairs.correlation),
                              exchanged=size(pairs.correlation_exchanged)))
    rows = []
    for group, some in pairs.groupby(groups, sort=False):
        most = some.reset_index().iloc[(some.correlation - some.correlation_exchanged).abs().argmax()]
        most = most[["property", "depth", "tau", "correlation", "low", "high", "correlation_exchanged"]]
        share = dict(told_apart=some.apart.mean(), pairs=len(some))
        rows.append(dict(zip(groups, group)) | sizes.loc[group].to_dict() | share | most.to_dict())
    return pd.DataFrame(rows)


def correlations(weights, x, y):
    """Pearson's correlations (m, k) of the columns of x and y, both (n, k), with weights (m, n) for their rows."""
    weights = weights / weights.sum(1, keepdims=True)
    x, y = x - x.mean(0), y - y.mean(0)
    mx, my = weights @ x, weights @ y
    spread = (weights @ x**2 - mx**2) * (weights @ y**2 - my**2)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(spread > 0, (weights @ (x * y) - mx * my) / np.sqrt(spread), 0)
