"""interpretation.npz of a run: the result of `measure.interpret`, written whole, never replaced by a smaller one."""

import hashlib
import io
import json
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pandas as pd

from hcnn.training.run_folder import write_bytes

FILE = "interpretation.npz"
SIZES = ("database", "queries", "altered")  # settings of which more is better
CLOSE = 0.95  # x^tau is sufficiently near if so many untranslated arrays have their nearest neighbour no farther


def used(found, what="settings"):
    """What a result was asked for, or `made`: code, versions, device, threads, seconds."""
    return json.loads(str(found[what]))


def frame(found, name):
    """The DataFrame `shifts` (of `property_shifts`) or `scores` (of `score_changes`) in a result."""
    return pd.DataFrame({key.removeprefix(name + "_"): v for key, v in found.items() if key.startswith(name + "_")})


def close(found):
    """(depths,) the largest distance that is sufficiently small: quantile CLOSE of those of the queries at tau = 0."""
    return np.quantile(found["distance"][:, 0].astype(float), CLOSE, axis=-1)


def searches(found):
    """(depth, kind, tau, index, near) of every search of the queries: kind is translated, nearest (tau = 0) or
    exchanged (see `attributes.exchanged`); near: whose distance is sufficiently small, None for exchanged rows.
    """
    limits = close(found)
    for d, depth in enumerate(found["depths"].tolist()):
        for t, tau in enumerate(found["taus"].tolist()):
            near = found["distance"][d, t] <= limits[d]
            yield depth, "translated" if tau else "nearest", tau, found["index"][d, t], near
        for e, tau in enumerate(found["exchanges"].tolist()):
            yield depth, "exchanged", tau, found["exchanged"][d, e], None


def save_interpretation(folder, found):
    """Write interpretation.npz whole or not at all; returns whether it was written.

    A stored result of the same weights and data that has more of anything (images, queries, depths) is kept.
    """
    stored, new = load_interpretation(folder), used(found)
    if stored is not None:
        old = used(stored)
        same = (old["weights"], old["data"]) == (new["weights"], new["data"])
        if same and max(np.subtract(_sizes(old), _sizes(new))) > 0:
            return False
    narrow = {name: v.astype(np.min_scalar_type(int(v.max()))) if v.dtype.kind == "i" else v  # none is negative
              for name, v in found.items()}
    content = io.BytesIO()
    np.savez_compressed(content, **narrow, checksum=np.array(_fingerprint(found)))
    write_bytes(Path(folder) / FILE, content.getvalue())
    return True


def load_interpretation(folder, asked=None, larger=False):
    """The dict that `save_interpretation` wrote; None where there is none, or one of other settings than asked for.

    larger: one with more images in the database or more test images is taken as well. Raises ValueError where the file
    is damaged or was changed.
    """
    path = Path(folder) / FILE
    if not path.exists():
        return None
    try:
        with np.load(path, allow_pickle=False) as file:
            found = {name: file[name].astype(np.int64) if file[name].dtype.kind == "u" else file[name]
                     for name in file.files}
        checksum, settings = str(found.pop("checksum")), used(found)
    except (ValueError, KeyError, EOFError, OSError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{path} is damaged ({error}); delete it and run notebook 06 again") from error
    if "exchanges" not in found:
        raise ValueError(f"{path} is of an earlier version of this project; delete it and run notebook 06 again")
    if checksum != _fingerprint(found):
        raise ValueError(f"{path} was changed after it was written; delete it and run notebook 06 again")
    if asked is None:
        return found
    differing = {name for name, value in asked.items() if settings[name] != value}
    enough = larger and min(np.subtract(_sizes(settings), _sizes(asked))) >= 0
    return found if not differing or (enough and differing <= set(SIZES)) else None


def _sizes(settings):
    return [settings[key] for key in SIZES] + [len(settings["depths"]), len(settings["taus"])]


def _fingerprint(found):
    """sha256 of all names, types, shapes and numbers."""
    content = hashlib.sha256()
    for name, value in sorted(found.items()):
        content.update(f"{name} {value.dtype} {value.shape} ".encode() + value.tobytes())
    return content.hexdigest()
