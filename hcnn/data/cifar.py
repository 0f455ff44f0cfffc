"""The files of CIFAR-10 and CIFAR-100: where they are, what they must hold, reading, verifying and downloading them.

Contents are compared by a checksum that does not depend on the order of the images (`content_checksum`), so that a
copy of CIFAR-100 in another order than the published one is accepted and a single changed pixel or label is not.
"""

import hashlib
import os
import pickle
import socket
import tarfile
import tempfile
import threading
from dataclasses import dataclass, field
from http.client import HTTPException
from pathlib import Path
from urllib.request import Request, urlopen

import numpy as np
import torch

MEND = "`make data` (or `python -m hcnn data`) fetches it again"
NETWORK_SECONDS = 5  # to answer at all
STALL_SECONDS = 30  # without a byte, while downloading


@dataclass(frozen=True)
class Source:
    """Files of a CIFAR data set and what they hold: md5 where only the published file is right, else the content."""

    folder: str
    url: str
    archive_md5: str
    files: dict[str, tuple[str, ...]]  # split -> files
    meta: str
    labels_key: bytes
    classes_key: bytes
    md5: dict[str, str]  # file -> md5
    content: dict[str, str]  # split -> content_checksum
    images: dict[str, int] = field(default_factory=lambda: {"train": 50_000, "test": 10_000})


SOURCES = {
    "cifar10": Source(
        "cifar-10-batches-py", "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
        "c58f30108f718f92721af3b95e74349a",
        {"train": tuple(f"data_batch_{i}" for i in range(1, 6)), "test": ("test_batch",)}, "batches.meta", b"labels",
        b"label_names",
        md5={
            "data_batch_1": "c99cafc152244af753f735de768cd75f", "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
            "data_batch_3": "54ebc095f3ab1f0389bbae665268c751", "data_batch_4": "634d18415352ddfa80567beed471001a",
            "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb", "test_batch": "40351d587109b95175f43aff81a1287e",
            "batches.meta": "5ff9c542aee3614f3951f8cda6e48888",
        },
        content={"train": "fc36ff26702a9efdf08d3de274034c378032d3423bf7dd6c1022bebe6a7b810a",
                 "test": "11be7cf3ed0bf1df2a473c0d4d3db6eafcac4518b49a5b4224077d754106b38d"},
    ),
    "cifar100": Source(
        "cifar-100-python", "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
        "eb9058c3a382ffc7106e4002c42a8d85",
        {"train": ("train",), "test": ("test",)}, "meta", b"fine_labels", b"fine_label_names",
        md5={"meta": "7973b15100ade9c7d40fb424638fde48"},  # train and test may hold their images in any order
        content={"train": "eb2821554fda8c7f4668a001ee774fc1a64e3583c2729a86c673281a0c1943b1",
                 "test": "ed2f54d86be17f2d8cf60b6023ddd15bfdc63dc3aaf9ac4aae466fb982227a9c"},
    ),
}


def file_paths(name, root):
    """Where in root the files of a CIFAR data set are."""
    source = SOURCES[name]
    return [root / source.folder / file for file in (*source.files["train"], *source.files["test"], source.meta)]


def read_files(name, root):
    """Read and verify a CIFAR data set in root: {"train" and "test": (images, labels)}, and the names of the classes.

    CIFAR-100 comes in the order of the image digests. Its files exist in several orders; brought to one, runs and
    stored image indices mean the same on every copy. Raises FileNotFoundError and ValueError that name the file and
    what mends it.
    """
    source = SOURCES[name]
    folder = root / source.folder
    classes = _read(folder / source.meta, f"md5 {source.md5[source.meta]}")[source.classes_key]
    splits = {}
    for split, files in source.files.items():
        images, labels = _read_split(source, folder, split, len(classes))
        digests = image_digests(images, labels)
        if (found := _checksum(digests)) != source.content[split]:
            raise _damaged(folder / files[0], f"the {split} images have other pixels or labels",
                           f"content checksum {source.content[split]}", f"content checksum {found}")
        if files[0] not in source.md5:
            order = sorted(range(len(labels)), key=digests.__getitem__)
            images, labels = images[order], labels[order]
        splits[split] = images, labels
    return splits, [c.decode() for c in classes]


def download_files(name, root, allowed=True):
    """Put the files of a CIFAR data set into root, whole or not at all, else FileNotFoundError says what to do."""
    source = SOURCES[name]
    try:
        if not allowed or os.environ.get("HCNN_OFFLINE", "0") not in ("", "0"):
            raise ConnectionError("downloads are switched off")
        _ask(source.url)
        from torchvision.datasets.utils import download_and_extract_archive  # seconds to import, needed once

        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=root, prefix="download-", suffix=".tmp") as temporary:
            before = socket.getdefaulttimeout()
            socket.setdefaulttimeout(STALL_SECONDS)  # torchvision sets none
            try:
                download_and_extract_archive(source.url, temporary, md5=source.archive_md5, remove_finished=True)
            finally:
                socket.setdefaulttimeout(before)
            read_files(name, Path(temporary))
            (root / source.folder).mkdir(exist_ok=True)
            for new, path in zip(file_paths(name, Path(temporary)), file_paths(name, root)):
                os.replace(new, path)
    except (OSError, HTTPException, RuntimeError, EOFError, tarfile.TarError) as error:
        raise FileNotFoundError(
            f"{name} could not be downloaded to {root} ({error}); put the folder {source.folder} of {source.url} "
            f"there, or set HCNN_DATA to the folder that holds it, or choose DATASET=digits") from error


def content_checksum(images, labels):
    """sha256 over the sorted sha256 digests of all (pixels, label): equal for equal images in whatever order."""
    return _checksum(image_digests(images, labels))


def _checksum(digests):
    return hashlib.sha256(b"".join(sorted(digests))).hexdigest()


def image_digests(images, labels=None):
    """sha256 of every image: 3 x 32 x 32 bytes and, if given, one more for the label."""
    rows = images.numpy().reshape(len(images), -1)
    if labels is not None:
        rows = np.concatenate([rows, labels.numpy().astype(np.uint8)[:, None]], axis=1)
    return [hashlib.sha256(row).digest() for row in rows]


class _ArrayUnpickler(pickle.Unpickler):
    """Unpickles numbers, strings, lists, dicts and numpy arrays, and nothing else.

    A pickle may name any function to be called while it is read. Files of CIFAR-100 in another order can only be
    verified after they have been read, so the three names that an array needs are admitted and every other one is
    refused.
    """

    NAMES = {
        ("numpy.core.multiarray", "_reconstruct"): np.zeros(0).__reduce__()[0],
        ("numpy._core.multiarray", "_reconstruct"): np.zeros(0).__reduce__()[0],
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
    }

    def find_class(self, module, name):
        if (module, name) not in self.NAMES:
            raise pickle.UnpicklingError(f"{module}.{name} is not allowed in a data file")
        return self.NAMES[module, name]


def _damaged(path, problem, expected, found):
    size = f" ({path.stat().st_size:,} bytes)" if path.is_file() else ""
    return ValueError(f"{path}{size} is damaged: {problem}; expected {expected}, found {found}; {MEND}")


def _md5(file):
    return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def _read(path, expected):
    """The dict in one file, its strings as bytes (Python 2 wrote it); expected: "md5 ..." or "content checksum ..."."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing (expected {expected}); {MEND}")
    with open(path, "rb") as file:
        if expected.startswith("md5") and (found := f"md5 {_md5(file)}") != expected:
            raise _damaged(path, "it is not the published file", expected, found)
        file.seek(0)
        try:
            return dict(_ArrayUnpickler(file, encoding="bytes").load())
        except Exception as error:  # damaged pickles raise nearly any exception, says the documentation of pickle
            file.seek(0)
            problem = f"it cannot be read ({type(error).__name__}: {error})"
            raise _damaged(path, problem, expected, f"nothing readable (md5 of the file {_md5(file)})") from error


def _read_split(source, folder, split, num_classes):
    """Images (N, 3, 32, 32) uint8 and labels (N,) int64 of the files of one split, their shapes and counts checked."""
    images, labels = [], []
    n = source.images[split] // len(source.files[split])
    for file in source.files[split]:
        expected = f"md5 {source.md5[file]}" if file in source.md5 else f"content checksum {source.content[split]}"
        content = _read(folder / file, expected)
        x, y = np.asarray(content.get(b"data")), np.asarray(content.get(source.labels_key))
        if x.dtype != np.uint8 or x.shape != (n, 3 * 32 * 32):
            raise _damaged(folder / file, f"it must hold {n:,} images of 3 x 32 x 32 bytes", expected,
                           f"an array of shape {x.shape}, {x.dtype}")
        if y.shape != (n,) or y.dtype.kind != "i" or y.min() < 0 or y.max() >= num_classes:
            raise _damaged(folder / file, f"it must hold {n:,} labels from 0 to {num_classes - 1}", expected, "others")
        images.append(x)
        labels.append(y)
    return torch.from_numpy(np.concatenate(images)).view(-1, 3, 32, 32), torch.from_numpy(np.concatenate(labels)).long()


def _ask(url):
    """Raise OSError unless url answers within NETWORK_SECONDS; a thread, as the look-up of names knows no time-out."""
    problem = [TimeoutError(f"no answer within {NETWORK_SECONDS} s")]

    def ask():
        try:
            urlopen(Request(url, method="HEAD"), timeout=NETWORK_SECONDS).close()
            problem[0] = None
        except (OSError, HTTPException) as error:
            problem[0] = error

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(NETWORK_SECONDS)
    if error := problem[0]:
        raise error
