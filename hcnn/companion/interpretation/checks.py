"""Whether an interpretation.npz is what it says: for `make verify`."""

import numpy as np
import torch

from hcnn.companion.interpretation.attributes import attribute_arrays, moved, smooth
from hcnn.companion.interpretation.storage import FILE, load_interpretation, used
from hcnn.data.datasets import first_of_every_class
from hcnn.training.run_folder import WEIGHTS
from hcnn.training.trained import load

TOLERANCE = 5e-3  # of an array, relative to its norm: 11 significant bits, other devices
RECOMPUTED = 5  # queries, the first ones, whose nearest images are computed again from the weights


def check_interpretation(run, data=None):
    """interpretation.npz of a run, where there is one, against its run, itself, the data set and the weights: findings.

    data: the Dataset of the run; without it only what the file and run.json say is compared. With it and with stored
    weights the arrays of the images shown and of a few queries are computed again.
    """
    steps = [_of_this_run, _in_range, _distances_of_arrays]
    if data is not None:
        steps += [_labels_of_data, *([_arrays_of_weights] if (run.folder / WEIGHTS).exists() else [])]
    try:
        found = load_interpretation(run.folder)
        findings = (finding for step in steps for finding in step(run, found, data)) if found is not None else ()
        return [f"{FILE}: {finding}" for finding in findings][:1]
    except ValueError as error:
        return [str(error).replace(f"{run.folder}/", "")]
    except (KeyError, IndexError, RuntimeError) as error:
        return [f"{FILE}: its entries do not belong together ({error!r}); run notebook 06 again"]


def _of_this_run(run, found, data):
    """It was made from these weights and data, for depths and translations that the network has."""
    asked, a = used(found), run.architecture
    expected = dict(weights=run.info["weights_sha256"], dataset=run.dataset, data=run.info["data_checksum"],
                    substitutes=run.substitutes, database=len(found["database"]), queries=len(found["queries"]),
                    **{name: found[name].tolist() for name in ("depths", "taus", "images")})
    if not set(asked["depths"]) <= set(range(3, a.J)) or not {0} < set(asked["taus"]) <= set(range(a.K // 2)):
        yield f"depths {asked['depths']} and translations {asked['taus']} are not those of K = {a.K}, J = {a.J}"
    for key, value in expected.items():
        if asked[key] != value:
            yield f"made with {key} {asked[key]!r}, it must be {value!r}; run notebook 06 again"


def _in_range(run, found, data):
    """Indices and classes that exist, numbers that are finite, distances that are not negative."""
    below = dict.fromkeys(("index", "exchanged", "image_index"), len(found["database"]))
    below |= {name: run.architecture.num_classes for name in found if name.endswith(("labels", "predictions"))}
    for name, limit in below.items():
        if found[name].max() >= limit:
            yield f"{name} must be below {limit:,}, got {found[name].max():,}"
    for name, value in found.items():
        if value.dtype.kind == "f" and not np.isfinite(value).all():
            yield f"{name} has a number that is not finite"
        if name.endswith("distance") and value.min() < 0:
            yield f"{name} has a negative number"


def _distances_of_arrays(run, found, data):
    """The images shown: none is its own x^tau, distances are those of the arrays, no other stored array is nearer."""
    if (found["database"][found["image_index"]] == found["images"]).any():
        yield "an image shown is its own nearest one"
    for d, j in enumerate(found["depths"].tolist()):
        own, near = (torch.from_numpy(found[f"{name}_{j}"]).float() for name in ("arrays", "nearest_arrays"))
        own, near = moved(own, found["taus"].tolist()), smooth(near).flatten(2)  # (taus, images, numbers)
        length = own.norm(dim=2)  # of an image, whatever its tau
        said, scale = torch.from_numpy(found["image_distance"][d]).float() * length, TOLERANCE * near.norm(dim=2).mean()
        if (((own - near).norm(dim=2) - said).abs() > scale).any():
            yield f"distances at j = {j} are not those of its arrays"
        itself = (found["database"][found["image_index"][d]].ravel() == found["images"][:, None])[None]
        others = torch.cdist(own, near.flatten(0, 1)).masked_fill(torch.from_numpy(itself), torch.inf)
        if (others.amin(2) < said - scale).any():
            yield f"at j = {j} another of its arrays is nearer than the nearest one"


def _labels_of_data(run, found, data):
    """Indices and labels are those of the data set, and the predictions reach the accuracy of the run."""
    base = first_of_every_class(data.train_labels, len(found["database"]))
    queries = first_of_every_class(data.test_labels, len(found["queries"]))
    expected = dict(database=base, queries=queries, labels=data.train_labels[base],
                    query_labels=data.test_labels[queries], image_labels=data.train_labels[found["images"]])
    for name, value in expected.items():
        if not np.array_equal(found[name], value):
            yield f"{name} are not those of {data.name}"
    share, p, m = (found["query_predictions"] == found["query_labels"]).mean(), run.info["test_accuracy"], len(queries)
    near = 1e-3 if m == len(data.test_labels) else 4 * np.sqrt(p * (1 - p) / m)  # the whole set on another device
    if run.split == "test" and abs(share - p) > near + 1e-9:
        yield f"{share:.2%} of its {m:,} predictions of test images are right, the run has {p:.2%}"


def _arrays_of_weights(run, found, data):
    """Arrays and predictions of the images shown, distances of a few queries: computed again from the weights."""
    trained, depths, taus, few = load(run.folder), found["depths"].tolist(), found["taus"].tolist(), slice(RECOMPUTED)
    arrays, said = attribute_arrays(trained, data.train_images[found["images"]], depths)
    of_queries, _ = attribute_arrays(trained, data.test_images[found["queries"][few]], depths)
    if (said.numpy() != found["image_predictions"]).any():
        yield "the predictions of the images shown are not those of the weights"
    for d, j in enumerate(depths):
        if (torch.from_numpy(found[f"arrays_{j}"]) - arrays[j]).norm() > TOLERANCE * arrays[j].norm():
            yield f"the arrays at j = {j} are not those of the weights"
        own, index = moved(of_queries[j], taus), found["database"][found["index"][d][:, few]]
        near = attribute_arrays(trained, data.train_images[index.ravel()], [j])[0][j]
        distance = ((own - smooth(near).flatten(1).view_as(own)).norm(dim=2) / own.norm(dim=2)).numpy()
        if (abs(distance - found["distance"][d][:, few]) > TOLERANCE).any():
            yield f"distances of test images at j = {j} are not those of the weights"
