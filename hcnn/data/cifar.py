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
from dataclasses import dataclass
from http.client import HTTPException
from io import BytesIO
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
    classes = _read(folder / source.meta, source)[source.classes_key]
    splits = {split: _read_split(folder, source, split) for split in source.files}
    return splits, [c.decode() for c in classes]


def download_files(name, root, allowed=True):
    """Put the files of a CIFAR data set into root, whole or not at all, else FileNotFoundError says what to do."""
    source = SOURCES[name]
    try:
        if not allowed or os.environ.get("HCNN_OFFLINE", "0") not in ("", "0"):
            raise ConnectionError("downloads are switched off")
        urlopen(Request(source.url, method="HEAD"), timeout=NETWORK_SECONDS).close()
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


def content_checksum(digests):
    """sha256 over the sorted digests of all (pixels, label): equal for equal images in whatever order."""
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


def _damaged(path, expected, found):
    size = f" ({path.stat().st_size:,} bytes)" if path.is_file() else ""
    return ValueError(f"{path}{size} is damaged: expected {expected}, found {found}; {MEND}")


def _read(path, source):
    """The dict in one file, its strings as bytes (Python 2 wrote it)."""
    published = path.name in source.md5
    expected = f"md5 {source.md5[path.name]}" if published else f"content checksum {source.content[path.name]}"
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing (expected {expected}); {MEND}")
    content = path.read_bytes()
    found = f"md5 {hashlib.md5(content, usedforsecurity=False).hexdigest()}"
    if published and found != expected:
        raise _damaged(path, expected, found)
    try:
        return dict(_ArrayUnpickler(BytesIO(content), encoding="bytes").load())
    except Exception as error:  # damaged pickles raise nearly any exception, says the documentation of pickle
        raise _damaged(path, expected, f"{type(error).__name__}: {error}") from error


def _read_split(folder, source, split):
    """Images (N, 3, 32, 32) uint8 and labels (N,) int64 of the files of one split, verified."""
    files = source.files[split]
    contents = [_read(folder / file, source) for file in files]
    try:
        images = torch.from_numpy(np.concatenate([content[b"data"] for content in contents])).view(-1, 3, 32, 32)
        labels = torch.tensor([label for content in contents for label in content[source.labels_key]])
        digests = image_digests(images, labels)
        found = content_checksum(digests)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:  # another shape or type than that of images
        found = f"{type(error).__name__}: {error}"
    if found != source.content[split]:
        raise _damaged(folder / files[0], f"{split} images and labels with content checksum {source.content[split]}",
                       found)
    if files[0] in source.md5:
        return images, labels
    order = sorted(range(len(labels)), key=digests.__getitem__)
    return images[order], labels[order]
