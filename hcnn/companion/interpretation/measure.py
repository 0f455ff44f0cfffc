"""What translations along attributes mean, section 5.3: x^tau of many images at every depth, and known changes."""

import time

import numpy as np
import torch

from hcnn.architecture import Architecture
from hcnn.companion.interpretation.attributes import (
    attribute_arrays,
    exchanged,
    lengths,
    nearest,
    permutation,
    sequences,
    smooth,
)
from hcnn.companion.interpretation.carried import appearance, carried
from hcnn.companion.interpretation.properties import property_shifts, score_changes
from hcnn.companion.interpretation.storage import FILE, load_interpretation, save_interpretation
from hcnn.data.datasets import first_of_every_class
from hcnn.device import choose_device, memory_kept, provenance, tf32
from hcnn.settings import integer, optional
from hcnn.training.run_folder import canonical


def images_to_show(data, depths):
    """Indices of training images: two of birds (or of the fourth class) for figure 3, then one a depth for figure 4."""
    members = [(data.train_labels == label).nonzero()[:, 0].tolist() for label in range(len(data.classes))]
    which = data.classes.index("bird" if "bird" in data.classes else data.classes[3])
    return [*members[which][:2], *(members[j % len(members)][2] for j in depths)]


def ask(trained, data, images=None, database=None, queries=None, altered=100, depths=None, taus=None):
    """Everything that the content of interpretation.npz depends on, checked, as plain values.

    images: training images to show, indices (none: `images_to_show`). database, queries, altered: how many training
    images, test images, and of these with changed properties (None: all; at most all). depths: 3 ... J - 1 by default.
    taus: those that a circle of K/2 rows has are kept.
    """
    for name, n in dict(database=database, queries=queries, altered=altered).items():
        optional(integer(1)).check(name, n)
    a = trained.architecture
    if not isinstance(a, Architecture):
        raise ValueError(f"the network must be HCNN or HCNN(+), whose channels have an order, got {a.name}")
    permutation(a.K // 2)  # refuses K = 4, of which smoothing leaves nothing
    taus = sorted({0, *(tau for tau in taus or range(1, 8) if 0 < tau < a.K // 2)})
    if all(exchanged(a.K // 2, tau) is None for tau in taus):
        raise ValueError(f"taus must have one of 1 to K/2 - 1 = {a.K // 2 - 1}, not K/4 = {a.K // 4} alone")
    depths = sorted(j for j in set(depths or range(3, a.J)) if j < a.J)
    images = list(images or images_to_show(data, depths))
    train, test = len(data.train_labels), len(data.test_labels)
    if not all(0 <= i < train for i in images):
        raise ValueError(f"images must be indices of training images, 0 to {train - 1:,}, got {images}")
    return dict(
        weights=trained.run["weights_sha256"], dataset=data.name, substitutes=data.substitutes, data=data.checksum,
        images=images, database=min(database or train, train), queries=min(queries or test, test),
        altered=min(altered or test, test), depths=depths, taus=taus)


def interpret_run(trained, data, device="auto", log=print, **asked):
    """`interpret` a stored run into its folder, where it does not hold as much already."""
    asked, where = ask(trained, data, **asked), f"{trained.folder.name}/{FILE}"
    if load_interpretation(trained.folder, asked, larger=True) is not None:
        log(f"{where} holds as much already")
        return
    save_interpretation(trained.folder, interpret(trained, data, asked, device=device, log=log))
    log(f"{where}: {asked['database']:,} training images, {asked['queries']:,} test images, {asked['altered']} altered")


def interpret(trained, data, asked, device="auto", log=print):
    """All numbers of notebook 06 for what was `ask`ed, a dict of arrays: the content of interpretation.npz.

    The network computes on `device` and comes back; the search is the CPU's.

    database, queries, images: indices of the images; labels, query_labels, image_labels, predictions, ...: their
    classes, true and said. index, distance, ties (depths, taus, queries): x^tau of every query, as a position in
    `database`, and its distance relative to the norm of the array. exchanged (depths, exchanges, queries): the same
    index for rows that are `exchanged`, for each tau in exchanges. image_index, image_distance, image_ties: x^tau of
    `images`. arrays_j (images, rows, columns), nearest_arrays_j (taus, images, rows, columns): xbar_j of these and of
    their x^tau. shifts_*, carried_*, scores_*: see `storage.frame`. resampled: see `property_shifts`. settings, made:
    JSON texts, what was asked and with what it was computed.
    """
    home, begin = next(trained.parameters()).device, time.monotonic()
    try:
        with tf32(False), memory_kept():
            trained.to(choose_device(device))
            found = _sequences(trained, data, asked, log)
            of = [appearance(data.test_images[found["queries"]]), appearance(data.train_images[found["database"]])]
            found |= _columns("carried", carried(found, *of)) | _changes(trained, data, asked, log)
            weights = next(trained.parameters())
            made = provenance(weights.device, weights.dtype) | dict(seconds=round(time.monotonic() - begin, 1))
    finally:
        trained.to(home)
    return found | dict(settings=np.array(canonical(asked)), made=np.array(canonical(made)))


def _sequences(trained, data, asked, log):
    """Arrays of all images at all depths, and every search."""
    depths, taus = asked["depths"], asked["taus"]
    sets = {"": (data.train_images, data.train_labels, first_of_every_class(data.train_labels, asked["database"])),
            "query_": (data.test_images, data.test_labels, first_of_every_class(data.test_labels, asked["queries"])),
            "image_": (data.train_images, data.train_labels, torch.tensor(asked["images"]))}
    arrays, result = {}, {}
    for name, (images, labels, which) in sets.items():
        arrays[name], said = attribute_arrays(trained, images[which], depths, log=log)
        result |= {f"{name}labels": labels[which], f"{name}predictions": said}
    base, queries, images = (which for *_, which in sets.values())
    position = torch.full((len(data.train_labels),), -1)
    position[base] = torch.arange(len(base))
    orders = {tau: exchanged(trained.architecture.K // 2, tau) for tau in taus}
    orders = {tau: order for tau, order in orders.items() if order is not None}
    found = []
    for j in depths:
        of_base, of_queries, of_images = (some[j] for some in arrays.values())
        index, distance, ties = sequences(of_queries, of_base, taus)
        others = [smooth(of_queries[:, order]).flatten(1) for order in orders.values()]
        others = nearest(torch.cat(others), smooth(of_base).flatten(1))[0].view(len(orders), -1)
        shown = sequences(of_images, of_base, taus, position[images])
        shown = shown[0], shown[1] / lengths(of_images), shown[2]
        found.append((index, distance / lengths(of_queries), ties, others, *shown))
        result |= {f"arrays_{j}": of_images, f"nearest_arrays_{j}": of_base[shown[0]]}
        log(f"nearest images at j = {j} found")
    names = "index", "distance", "ties", "exchanged", "image_index", "image_distance", "image_ties"
    result |= {name: torch.stack(values) for name, values in zip(names, zip(*found))}
    result |= dict(database=base, queries=queries, images=images)
    result |= dict(depths=torch.tensor(depths), taus=torch.tensor(taus), exchanges=torch.tensor(list(orders)))
    return {name: _half(value.numpy()) for name, value in result.items()}


def _changes(trained, data, asked, log):
    """What known changes of images do to the arrays, and translations of the arrays to the scores."""
    altered = data.test_images[first_of_every_class(data.test_labels, asked["altered"])]
    shifts, resampled = property_shifts(trained, altered, asked["depths"], log)
    scores = score_changes(trained, altered, asked["depths"], asked["taus"][1:])
    return _columns("shifts", shifts) | _columns("scores", scores) | dict(resampled=_half(resampled))


def _columns(name, table):
    """A table as arrays, a column each, for `storage.frame`."""
    return {f"{name}_{column}": table[column].to_numpy(str if column in ("property", "kind") else None)
            for column in table}


def _half(values):
    """Floats with 11 significant bits where they fit, so that ten thousand queries take 2 MB."""
    with np.errstate(over="ignore"):
        half = values.astype(np.float16) if values.dtype.kind == "f" else values
    return half if np.isfinite(half).all() else values
