"""What translations along attributes mean, section 5.3: the images x^tau and how probable it is that they keep the class.

For a depth j the array xbar_j of an image is translated along v_{j-1} by tau, and x^tau is the database image whose array is nearest.
"""

import io
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from . import runs
from .attributes import attribute_arrays, first_of_every_class, nearest, permutation, sequences, smooth
from .properties import property_shifts, score_changes

FILE = "interpretation.npz"
CLOSE = 0.95  # x^tau is sufficiently near if so many untranslated arrays have their nearest neighbour no farther


def settings(network, data, images, database=None, queries=None, altered=100, depths=None, taus=None):
    """Everything that the content of interpretation.npz depends on, checked, as plain values.

    images: training images to show, indices. database, queries: how many training and test images (None: all; at most all). altered:
    test images whose properties are changed. depths: 3 ... J - 1 by default. taus: those that a circle of K/2 rows has are kept.
    """
    a = network.architecture
    permutation(a.K // 2)  # refuses K = 4, of which smoothing leaves nothing
    taus = sorted({0, *(tau for tau in taus or range(1, 8) if 0 < tau < a.K // 2)})
    if taus == [0]:
        raise ValueError(f"taus must have one of 1 to K/2 - 1 = {a.K // 2 - 1}")
    depths = sorted(set(depths or range(3, a.J)))
    if not images or not all(0 <= i < len(data.train_labels) for i in images):
        raise ValueError(f"images must be indices of training images, 0 to {len(data.train_labels) - 1:,}, got {images}")
    train, test = len(data.train_labels), len(data.test_labels)
    return dict(
        run=network.run["name"], weights=network.run["weights_sha256"], dataset=data.name, substitutes=data.substitutes, data=data.checksum,
        images=list(images), database=min(database or train, train), queries=min(queries or test, test), altered=min(altered, test),
        depths=depths, taus=taus,
    )


def interpret(network, data, asked, batch_size=50, log=print):
    """All numbers of notebook 06 for `settings`, a dict of arrays: the content of interpretation.npz.

    database, queries, images: indices of the images; labels, query_labels, image_labels, predictions, ...: their classes, true and
    said. index, distance, ties (depths, taus, queries): x^tau of every query, as a position in `database`; permuted (depths,
    queries): the same for permuted rows. image_index, image_distance, image_ties: x^tau of `images`. arrays_j (images, rows,
    columns), nearest_arrays_j (taus, images, rows, columns): xbar_j of these and of their x^tau. shifts_*, scores_*: see `table`.
    """
    depths, taus, images = asked["depths"], asked["taus"], torch.tensor(asked["images"])
    base = first_of_every_class(data.train_labels, asked["database"])
    queries = first_of_every_class(data.test_labels, asked["queries"])
    arrays, said = attribute_arrays(network, data.train_images[base], depths, batch_size, log)
    of_queries, query_said = attribute_arrays(network, data.test_images[queries], depths, batch_size, log)
    of_images, image_said = attribute_arrays(network, data.train_images[images], depths, batch_size)
    position = torch.full((len(data.train_labels),), -1)
    position[base] = torch.arange(len(base))
    order = permutation(network.architecture.K // 2)
    found = {name: [] for name in ("index", "distance", "ties", "permuted", "image_index", "image_distance", "image_ties")}
    result = {}
    for j in depths:
        tested, shown = sequences(of_queries[j], arrays[j], taus), sequences(of_images[j], arrays[j], taus, position[images])
        permuted = nearest(smooth(of_queries[j][:, order]).flatten(1), smooth(arrays[j]).flatten(1))
        for name, value in zip(found, (*tested, permuted[0], *shown)):
            found[name].append(value)
        result |= {f"arrays_{j}": of_images[j].numpy(), f"nearest_arrays_{j}": arrays[j][shown[0]].numpy()}
        if log:
            log(f"nearest images at j = {j} found")
    result |= {name: torch.stack(values).numpy() for name, values in found.items()}
    result |= {name: np.array(value) for name, value in (("depths", depths), ("taus", taus), ("settings", runs.canonical(asked)))}
    for prefix, where, labels, predictions in (("", base, data.train_labels, said), ("query_", queries, data.test_labels, query_said),
                                               ("image_", images, data.train_labels, image_said)):
        result |= {prefix + "labels": labels[where].numpy(), prefix + "predictions": predictions.numpy()}
    result |= dict(database=base.numpy(), queries=queries.numpy(), images=images.numpy())
    altered = data.test_images[first_of_every_class(data.test_labels, asked["altered"])]
    for name, frame in (("shifts", property_shifts(network, altered, depths, batch_size, log)),
                        ("scores", score_changes(network, altered, depths, taus[1:], batch_size))):
        result |= {f"{name}_{column}": frame[column].to_numpy(str if column == "property" else None) for column in frame}
    return result


def table(found, name):
    """The DataFrame `shifts` (of `property_shifts`) or `scores` (of `score_changes`) in the result of `interpret`."""
    return pd.DataFrame({key.removeprefix(name + "_"): value for key, value in found.items() if key.startswith(name + "_")})


def close(found):
    """(depths,) the largest distance that is sufficiently small: quantile CLOSE of the distances at tau = 0 over the queries."""
    return np.quantile(found["distance"][:, 0], CLOSE, axis=-1)


def resampled(values, resamples=1000, seed=0):
    """Bootstrap over query images: means of values (..., m) in each resample, (resamples, ...); pairs stay pairs."""
    m = values.shape[-1]
    weights = np.random.default_rng(seed).multinomial(m, np.full(m, 1 / m), resamples) / m
    return np.moveaxis(values.astype(float) @ weights.T, -1, 0)


def same_class_probability(found, architecture):
    """P(class of x^tau = class of x) over the query images, a row for each depth, tau and control, with 95% bootstrap intervals.

    kind: translated, nearest (tau = 0), permuted (rows in a fixed non-cyclic order), chance (class frequencies). exact: tau is a
    symmetry of all later layers with periodic boundaries, see `Architecture.exact_translation`. said: the same probability for
    predictions. close: share of the queries with a sufficiently small distance; if_close: the probability among these.
    """
    labels, predictions = found["labels"], found["predictions"]
    classes = np.arange(max(labels.max(), found["query_labels"].max()) + 1)
    chance = sum((labels == c).mean() * (found["query_labels"] == c).mean() for c in classes)
    rows, limits = [], close(found)
    for d, j in enumerate(found["depths"].tolist()):
        step = architecture.exact_translation(j, 1)
        cases = [("translated" if tau else "nearest", tau, found["index"][d, t], found["distance"][d, t] <= limits[d])
                 for t, tau in enumerate(found["taus"].tolist())]
        for kind, tau, index, near in [*cases, ("permuted", None, found["permuted"][d], None)]:
            same = labels[index] == found["query_labels"]
            # a resample of n zeros and ones has a binomial sum, so the bootstrap needs no images
            low, high = np.quantile(np.random.default_rng(0).binomial(len(same), same.mean(), 10_000) / len(same), (0.025, 0.975))
            rows.append(dict(
                depth=j, kind=kind, tau=tau, exact=tau is not None and tau % step == 0, probability=same.mean(), low=low, high=high,
                said=(predictions[index] == found["query_predictions"]).mean(), n=len(same),
                close=None if near is None else near.mean(), if_close=same[near].mean() if near is not None and near.any() else None))
        rows.append(dict(depth=j, kind="chance", exact=False, probability=chance, low=chance, high=chance, n=len(found["query_labels"])))
    return pd.DataFrame(rows)


def progression(found):
    """Whether the probability rises with depth: statistic, value, low, high (95% bootstrap over the query images, paired).

    Means over tau >= 1: its rank correlation with the depth, the deepest minus the shallowest, and the mean over depths of its
    difference from permuted rows and from the untranslated nearest neighbour.
    """
    own, moved = found["query_labels"], found["taus"] > 0
    same = found["labels"][found["index"]] == own  # (depths, taus, m)
    cases = np.stack([same[:, moved].mean(1), found["labels"][found["permuted"]] == own, same[:, ~moved].mean(1)])  # (3, depths, m)
    replicates = np.concatenate([cases.mean(-1)[None], resampled(cases)])  # the first is the sample itself
    translated, permuted, untranslated = np.moveaxis(replicates, 1, 0)
    ranks = pd.DataFrame(translated).rank(axis=1)
    statistics = {
        "rank correlation with depth": ranks.corrwith(pd.Series(range(translated.shape[1]), dtype=float), axis=1).to_numpy(),
        "deepest - shallowest": translated[:, -1] - translated[:, 0],
        "translated - permuted": (translated - permuted).mean(1),
        "translated - nearest": (translated - untranslated).mean(1),
    }
    return pd.DataFrame([(name, v[0], *np.nanquantile(v[1:], (0.025, 0.975))) for name, v in statistics.items()],
                        columns=["statistic", "value", "low", "high"])


def save_interpretation(folder, found):
    """Write interpretation.npz, the result of `interpret`, whole or not at all."""
    content = io.BytesIO()
    np.savez_compressed(content, **found)
    runs.write_bytes(Path(folder) / FILE, content.getvalue())


def load_interpretation(folder, asked=None):
    """The dict that `save_interpretation` wrote; None where there is none, or one of other `settings` than those asked for.

    Raises ValueError where the file is damaged.
    """
    path = Path(folder) / FILE
    if not path.exists():
        return None
    try:
        with np.load(path, allow_pickle=False) as file:
            found = {name: file[name] for name in file.files}
        same = asked is None or str(found["settings"]) == runs.canonical(asked)
    except (ValueError, KeyError, EOFError, OSError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{path} is damaged ({error}); delete it and run notebook 06 again") from error
    return found if same else None
