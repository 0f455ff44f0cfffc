"""What translations along attributes mean, section 5.3: the images x^tau and how probable it is that they keep the class.

For a depth j the array xbar_j of an image is translated along v_{j-1} by tau, and x^tau is the database image whose array is nearest.
"""

import hashlib
import io
import json
import time
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from hcnn.architecture import Architecture
from hcnn.companion.interpretation.attributes import (
    attribute_arrays,
    bootstrap,
    first_of_every_class,
    nearest,
    permutation,
    sequences,
    smooth,
)
from hcnn.companion.interpretation.properties import property_shifts, score_changes
from hcnn.device import choose_device, provenance, tf32
from hcnn.training import run_folder as runs

FILE = "interpretation.npz"
SIZES = ("database", "queries", "altered")  # settings of which more is better
CLOSE = 0.95  # x^tau is sufficiently near if so many untranslated arrays have their nearest neighbour no farther


def images_to_show(data, depths):
    """Indices of training images: two of birds (or of the fourth class) for figure 3, then one for each depth of figure 4."""
    members = [(data.train_labels == label).nonzero()[:, 0].tolist() for label in range(len(data.classes))]
    which = data.classes.index("bird" if "bird" in data.classes else data.classes[3])
    return [*members[which][:2], *(members[j % len(members)][2] for j in depths)]


def settings(network, data, images=None, database=None, queries=None, altered=100, depths=None, taus=None):
    """Everything that the content of interpretation.npz depends on, checked, as plain values.

    images: training images to show, indices (none: `images_to_show`). database, queries: how many training and test images (None:
    all; at most all). altered: test images whose properties are changed. depths: 3 ... J - 1 by default. taus: those that a circle
    of K/2 rows has are kept.
    """
    if not isinstance(network.architecture, Architecture):
        raise ValueError(f"the network must be HCNN or HCNN(+), whose channels have an order, got {network.architecture.name}")
    a = network.architecture
    permutation(a.K // 2)  # refuses K = 4, of which smoothing leaves nothing
    taus = sorted({0, *(tau for tau in taus or range(1, 8) if 0 < tau < a.K // 2)})
    if taus == [0]:
        raise ValueError(f"taus must have one of 1 to K/2 - 1 = {a.K // 2 - 1}")
    depths = sorted(set(depths or range(3, a.J)))
    images = images or images_to_show(data, depths)
    if not all(0 <= i < len(data.train_labels) for i in images):
        raise ValueError(f"images must be indices of training images, 0 to {len(data.train_labels) - 1:,}, got {images}")
    train, test = len(data.train_labels), len(data.test_labels)
    return dict(
        run=network.run["name"], weights=network.run["weights_sha256"], dataset=data.name, substitutes=data.substitutes, data=data.checksum,
        images=list(images), database=min(database or train, train), queries=min(queries or test, test), altered=min(altered, test),
        depths=depths, taus=taus,
    )


def interpret(network, data, asked, batch_size=50, device="auto", log=print):
    """All numbers of notebook 06 for `settings`, a dict of arrays: the content of interpretation.npz.

    The network computes on `device` and comes back; the search is the CPU's.

    database, queries, images: indices of the images; labels, query_labels, image_labels, predictions, ...: their classes, true and
    said. index, distance, ties (depths, taus, queries): x^tau of every query, as a position in `database`; permuted (depths,
    queries): the same for permuted rows. image_index, image_distance, image_ties: x^tau of `images`. arrays_j (images, rows,
    columns), nearest_arrays_j (taus, images, rows, columns): xbar_j of these and of their x^tau. shifts_*, scores_*: see `table`.
    resampled: see `property_shifts`. settings, made: JSON texts, what was asked and with what it was computed.
    """
    home = next(network.parameters()).device
    try:
        with tf32(False):
            return _interpret(network.to(choose_device(device)), data, asked, batch_size, log)
    finally:
        network.to(home)


def _interpret(network, data, asked, batch_size, log):
    begin = time.monotonic()
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
    for prefix, where, labels, predictions in (("", base, data.train_labels, said), ("query_", queries, data.test_labels, query_said),
                                               ("image_", images, data.train_labels, image_said)):
        result |= {prefix + "labels": labels[where].numpy(), prefix + "predictions": predictions.numpy()}
    altered = data.test_images[first_of_every_class(data.test_labels, asked["altered"])]
    shifts, result["resampled"] = property_shifts(network, altered, depths, batch_size, log)
    result |= dict(database=base.numpy(), queries=queries.numpy(), images=images.numpy())
    result = {name: _half(value) for name, value in result.items()}
    for name, frame in (("shifts", shifts), ("scores", score_changes(network, altered, depths, taus[1:], batch_size))):
        result |= {f"{name}_{column}": frame[column].to_numpy(str if column == "property" else None) for column in frame}
    weights = next(network.parameters())
    made = provenance(weights.device, weights.dtype) | dict(seconds=round(time.monotonic() - begin, 1))
    texts = dict(settings=runs.canonical(asked), made=runs.canonical(made))
    return result | {name: np.array(value) for name, value in (dict(depths=depths, taus=taus) | texts).items()}


def _half(values):
    """Floats with 11 significant bits where they fit, so that ten thousand queries take 2 MB."""
    with np.errstate(over="ignore"):
        half = values.astype(np.float16) if values.dtype.kind == "f" else values
    return half if np.isfinite(half).all() else values


def table(found, name):
    """The DataFrame `shifts` (of `property_shifts`) or `scores` (of `score_changes`) in the result of `interpret`."""
    return pd.DataFrame({key.removeprefix(name + "_"): value for key, value in found.items() if key.startswith(name + "_")})


def close(found):
    """(depths,) the largest distance that is sufficiently small: quantile CLOSE of the distances at tau = 0 over the queries."""
    return np.quantile(found["distance"][:, 0].astype(float), CLOSE, axis=-1)


def interval_of_share(right, n):
    """The 95% bootstrap interval of a share `right` / n, exactly: a resample of n zeros and ones has a binomial sum."""
    if right in (0, n):
        return right / n, right / n
    k = np.arange(n + 1)
    factorials = np.concatenate([[0], np.log(k[1:]).cumsum()])
    log_p = factorials[n] - factorials - factorials[::-1] + k * np.log(right / n) + (n - k) * np.log(1 - right / n)
    low, high = np.searchsorted(np.exp(log_p).cumsum(), (0.025, 0.975)) / n
    return low, high


def same_class_probability(found, architecture):
    """P(class of x^tau = class of x) over the query images, a row for each depth, tau and control, with 95% bootstrap intervals.

    kind: translated, nearest (tau = 0), permuted (rows in a fixed non-cyclic order), chance (class frequencies). exact: tau is a
    symmetry of all later layers with periodic boundaries, see `Architecture.exact_translation`. said: the same probability for
    predictions. close: share of the queries with a sufficiently small distance; if_close: the probability among these.
    """
    labels, predictions = found["labels"], found["predictions"]
    classes = range(int(max(labels.max(), found["query_labels"].max())) + 1)
    chance = sum((labels == c).mean() * (found["query_labels"] == c).mean() for c in classes)
    rows, limits = [], close(found)
    for d, j in enumerate(found["depths"].tolist()):
        step = architecture.exact_translation(j, 1)
        cases = [("translated" if tau else "nearest", tau, found["index"][d, t], found["distance"][d, t] <= limits[d])
                 for t, tau in enumerate(found["taus"].tolist())]
        for kind, tau, index, near in [*cases, ("permuted", None, found["permuted"][d], None)]:
            same = labels[index] == found["query_labels"]
            low, high = interval_of_share(same.sum(), len(same))
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
    weights = bootstrap(len(own), 1000)
    replicates = np.concatenate([cases.mean(-1)[None], np.moveaxis(cases @ weights.T, -1, 0)])  # the first is the sample itself
    translated, permuted, untranslated = np.moveaxis(replicates, 1, 0)
    kept = (translated * moved.sum() * len(own)).round()  # whole numbers, so that rounding breaks no tie
    ranks = pd.DataFrame(kept).rank(axis=1)
    statistics = {
        "rank correlation with depth": ranks.corrwith(pd.Series(range(translated.shape[1]), dtype=float), axis=1).to_numpy(),
        "deepest - shallowest": translated[:, -1] - translated[:, 0],
        "translated - permuted": (translated - permuted).mean(1),
        "translated - nearest": (translated - untranslated).mean(1),
    }
    return pd.DataFrame([(name, v[0], *np.nanquantile(v[1:], (0.025, 0.975))) for name, v in statistics.items()],
                        columns=["statistic", "value", "low", "high"])


def used(found, what="settings"):
    """The `settings` that a result was computed with, or `made`: code, versions, device, threads, seconds."""
    return json.loads(str(found[what]))


def save_interpretation(folder, found):
    """Write interpretation.npz, the result of `interpret`, whole or not at all; returns whether it was written.

    A stored result of the same weights and data that has more of anything, images in the database, queries, depths, is kept.
    """
    stored, new = load_interpretation(folder), used(found)
    if stored is not None:
        old = used(stored)
        if (old["weights"], old["data"]) == (new["weights"], new["data"]) and max(np.subtract(_sizes(old), _sizes(new))) > 0:
            return False
    narrow = {name: v.astype(np.min_scalar_type(int(v.max()))) if v.dtype.kind == "i" else v for name, v in found.items()}  # all >= 0
    content = io.BytesIO()
    np.savez_compressed(content, **narrow, checksum=np.array(_fingerprint(found)))
    runs.write_bytes(Path(folder) / FILE, content.getvalue())
    return True


def load_interpretation(folder, asked=None, larger=False):
    """The dict that `save_interpretation` wrote; None where there is none, or one of other `settings` than those asked for.

    larger: one with more images in the database or more test images is taken as well. Raises ValueError where the file is damaged
    or was changed.
    """
    path = Path(folder) / FILE
    if not path.exists():
        return None
    try:
        with np.load(path, allow_pickle=False) as file:
            found = {name: file[name].astype(np.int64) if file[name].dtype.kind == "u" else file[name] for name in file.files}
        checksum, settings = str(found.pop("checksum")), used(found)
    except (ValueError, KeyError, EOFError, OSError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{path} is damaged ({error}); delete it and run notebook 06 again") from error
    if checksum != _fingerprint(found):
        raise ValueError(f"{path} was changed after it was written; delete it and run notebook 06 again")
    if asked is None or settings == asked:
        return found
    enough = larger and min(np.subtract(_sizes(settings), _sizes(asked))) >= 0
    return found if enough and settings | {key: asked[key] for key in SIZES} == asked else None


def _sizes(settings):
    return [settings[key] for key in SIZES] + [len(settings["depths"]), len(settings["taus"])]


def _fingerprint(found):
    """sha256 of all names, types, shapes and numbers."""
    content = hashlib.sha256()
    for name, value in sorted(found.items()):
        content.update(f"{name} {value.dtype} {value.shape} ".encode() + value.tobytes())
    return content.hexdigest()
