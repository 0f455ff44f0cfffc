"""What all stored interpretation.npz say, as tables, and whether each says what it must: for notebook 06 and `make verify`."""

import numpy as np
import pandas as pd
import torch

from hcnn.companion.interpretation.attributes import attribute_arrays, first_of_every_class, smooth, translate
from hcnn.companion.interpretation.measure import (
    FILE,
    load_interpretation,
    progression,
    same_class_probability,
    table,
    used,
)
from hcnn.companion.interpretation.properties import changes, colour_or_geometry, monotonicity
from hcnn.companion.results import tables as results
from hcnn.training import run_folder as runs
from hcnn.training.trained import load

TOLERANCE = 5e-3  # of an array, relative to its norm: 11 significant bits, other devices
RECOMPUTED = 5  # queries, the first ones, whose nearest images are computed again from the weights


def interpreted(stored, log=print):
    """The (run, result) of all stored runs that have an interpretation.npz; a damaged one is left out, with a line of warning."""
    found = []
    for run in results.usable(stored):
        try:
            result = load_interpretation(run.folder)
        except ValueError as error:
            log(f"WARNING: {run.folder.name} is left out: {error}")
            continue
        if result is not None:
            found.append((run, result))
    return found


def _table(stored, make, columns):
    """make(run, result) of every interpreted run, below one another, with what the run is and how much was searched."""
    parts = []
    for run, found in interpreted(stored, log=lambda line: None):
        head = {"run": run.folder.name, "network": f"{run.system} K={run.K} Q={run.Q}, {run.padding_mode}",
                "trained on": f"{run.data}, {run.train_images:,} images, {run.epochs_done} epoch" + "s" * (run.epochs_done != 1),
                "seed": run.seed, "accuracy": f"{run.accuracy:.2f}", "database": len(found["database"]), "queries": len(found["queries"])}
        parts.append(make(run, found)[columns].round(5).assign(**head)[[*head, *columns]])
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=["run", *columns])


def same_class(stored):
    """`same_class_probability` of every interpreted run."""
    columns = ["depth", "kind", "tau", "exact", "probability", "low", "high", "said", "close", "if_close"]
    return _table(stored, lambda run, found: same_class_probability(found, run.architecture), columns)


def progressions(stored):
    """`progression` and `colour_or_geometry` of every interpreted run."""
    def both(run, found):
        return pd.concat([progression(found).assign(about="same class"),
                          colour_or_geometry(table(found, "shifts"), found["resampled"]).assign(about="known changes")])

    return _table(stored, both, ["about", "statistic", "value", "low", "high"])


def known_changes(stored):
    """`monotonicity` of every interpreted run."""
    columns = ["property", "depth", "moved", "explained", "control", "monotone"]
    return _table(stored, lambda run, found: monotonicity(table(found, "shifts")), columns)


TABLES = {"same_class": same_class, "progression": progressions, "known_changes": known_changes}


def write_tables(folder, stored):
    """Write folder/NAME.csv for each of TABLES, from the stored runs."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, make in TABLES.items():
        runs.write_bytes(folder / f"{name}.csv", make(stored).to_csv(index=False).encode())


# ---- one interpretation.npz


def check_interpretation(run, data=None):
    """interpretation.npz of a run, where there is one, against itself, its run, the data set and the weights: a list of findings.

    data: the Dataset of the run; without it only what the file and run.json say is compared. With it and with stored weights the
    arrays of the images shown and of a few queries are computed again.
    """
    try:
        found = load_interpretation(run.folder)
    except ValueError as error:
        return [str(error).replace(f"{run.folder}/", "")]
    if found is None:
        return []
    findings = _check_settings(run, used(found)) or _check_content(run, found) or _check_distances(found)
    if data is not None:
        findings = findings or _check_labels(run, found, data)
        if (run.folder / runs.WEIGHTS).exists():
            findings = findings or _check_arrays(run, found, data)
    return [f"{FILE}: {finding}" for finding in findings]


def _check_settings(run, asked):
    """What it was made from is this run, and possible."""
    expected = dict(run=run.folder.name, weights=run.info["weights_sha256"], dataset=run.dataset, data=run.info["data_checksum"],
                    substitutes=run.substitutes)
    findings = [f"made with {key} {asked[key]!r}, the run has {value!r}; run notebook 06 again"
                for key, value in expected.items() if asked[key] != value]
    a = run.architecture
    if not set(asked["depths"]) <= set(range(3, a.J)) or not {0} < set(asked["taus"]) <= set(range(a.K // 2)):
        findings.append(f"depths {asked['depths']} and translations {asked['taus']} are not those of K = {a.K}, J = {a.J}")
    return findings


def _check_content(run, found):
    """Names, shapes and ranges of all entries."""
    asked, a = used(found), run.architecture
    D, T, n, m, f = len(asked["depths"]), len(asked["taus"]), asked["database"], asked["queries"], len(asked["images"])
    rows = {j: (a.K // 2, a.K if j < a.J - 1 else a.num_classes) for j in asked["depths"]}
    properties = len(changes((0, 0, 0)))
    shapes = {"database": (n,), "queries": (m,), "images": (f,), "depths": (D,), "taus": (T,), "permuted": (D, m)}
    shapes |= {name: (D, T, m) for name in ("index", "distance", "ties")}
    shapes |= {f"image_{name}": (D, T, f) for name in ("index", "distance", "ties")}
    shapes |= {prefix + name: (size,) for prefix, size in (("", n), ("query_", m), ("image_", f)) for name in ("labels", "predictions")}
    shapes |= {f"arrays_{j}": (f, *shape) for j, shape in rows.items()}
    shapes |= {f"nearest_arrays_{j}": (T, f, *shape) for j, shape in rows.items()}
    for name, shape in shapes.items():
        if name not in found or found[name].shape != shape:
            return [f"{name} must have the shape {shape}, got {found[name].shape if name in found else 'nothing'}"]
    if found["resampled"].shape[::2] != (2, properties) or len(found["shifts_depth"]) % (properties * D):
        return ["known changes of the images are not complete"]
    limits = {"database": results.IMAGES[run.dataset][0], "index": n, "permuted": n, "image_index": n}
    limits |= {name: a.num_classes for name in shapes if name.endswith(("labels", "predictions"))}
    largest = {name: found[name].max() for name in limits}
    findings = [f"{name} must be below {limits[name]:,}, got {value:,}" for name, value in largest.items() if value >= limits[name]]
    numbers = [name for name, value in found.items() if value.dtype.kind == "f"]
    findings += [f"{name} has a number that is not finite" for name in numbers if not np.isfinite(found[name]).all()]
    findings += [f"{name} has a negative number" for name in ("distance", "image_distance") if found[name].min() < 0]
    for name, value in (("depths", asked["depths"]), ("taus", asked["taus"]), ("images", asked["images"])):
        findings += [] if found[name].tolist() == value else [f"{name} {found[name].tolist()}, asked were {value}"]
    return findings


def _moved(arrays, taus):
    """Arrays (n, rows, columns) translated by every tau, smoothed and flat: (taus, n, d)."""
    return torch.stack([smooth(translate(arrays, tau)).flatten(1) for tau in taus])


def _check_distances(found):
    """The images shown: none is its own x^tau, the distances are those of the stored arrays, and no other stored array is nearer."""
    if (found["database"][found["image_index"]] == found["images"]).any():
        return ["an image shown is its own nearest one"]
    for d, (j, taus) in enumerate((j, found["taus"].tolist()) for j in found["depths"]):
        own, near = (torch.from_numpy(found[f"{name}_{j}"]).float() for name in ("arrays", "nearest_arrays"))
        moved, candidates = _moved(own, taus), smooth(near.flatten(0, 1)).flatten(1)
        distances = torch.cdist(moved, candidates)  # (taus, images, candidates)
        said, scale = torch.from_numpy(found["image_distance"][d]).float(), candidates.norm(dim=1).mean() * TOLERANCE
        to_nearest = (moved - smooth(near).flatten(2)).norm(dim=2)
        if ((to_nearest - said).abs() > scale).any():
            return [f"distances at j = {j} are not those of its arrays"]
        index = torch.from_numpy(found["image_index"][d]).flatten()
        is_self = torch.from_numpy(found["database"])[index] == torch.from_numpy(found["images"])[:, None]
        if (distances.masked_fill(is_self, torch.inf).amin(2) < said - scale).any():
            return [f"at j = {j} another of its arrays is nearer than the nearest one"]
    return []


def _check_labels(run, found, data):
    """Indices and labels are those of the data set, and the predictions reach the accuracy of the run."""
    asked = used(found)
    base, queries = (first_of_every_class(labels, asked[name]) for labels, name in
                     ((data.train_labels, "database"), (data.test_labels, "queries")))
    expected = dict(database=base, queries=queries, labels=data.train_labels[base], query_labels=data.test_labels[queries],
                    image_labels=data.train_labels[found["images"]])
    for name, value in expected.items():
        if not np.array_equal(found[name], value):
            return [f"{name} are not those of {data.name}"]
    share, p, m = (found["query_predictions"] == found["query_labels"]).mean(), run.info["test_accuracy"], len(queries)
    near = 1e-3 if m == len(data.test_labels) else 4 * np.sqrt(p * (1 - p) / m)  # four deviations; the whole set on another device
    if run.split == "test" and abs(share - p) > near + 1e-9:
        return [f"{share:.2%} of its {m:,} predictions of test images are right, the run has {p:.2%}"]
    return []


def _check_arrays(run, found, data):
    """Arrays and predictions of the images shown, distances of a few queries: computed again from the weights."""
    network, depths, taus = load(run.folder), found["depths"].tolist(), found["taus"].tolist()
    arrays, said = attribute_arrays(network, data.train_images[found["images"]], depths)
    if (said.numpy() != found["image_predictions"]).any():
        return ["the predictions of the images shown are not those of the weights"]
    few = slice(RECOMPUTED)
    of_queries, _ = attribute_arrays(network, data.test_images[found["queries"][few]], depths)
    for d, j in enumerate(depths):
        if (torch.from_numpy(found[f"arrays_{j}"]) - arrays[j]).norm() > TOLERANCE * arrays[j].norm():
            return [f"the arrays at j = {j} are not those of the weights"]
        moved = _moved(of_queries[j], taus)
        index = found["database"][found["index"][d][:, few]]
        near = attribute_arrays(network, data.train_images[index.ravel()], [j])[0][j]
        distance = (moved - smooth(near).view(*index.shape, *near.shape[1:]).flatten(2)).norm(dim=2).numpy()
        if (abs(distance - found["distance"][d][:, few]) > TOLERANCE * moved.norm(dim=2).numpy()).any():
            return [f"distances of test images at j = {j} are not those of the weights"]
    return []
