"""The data sets as uint8 tensors: CIFAR-10, CIFAR-100 and scikit-learn's digits, verified whenever they are read.

Contents are compared by a checksum that does not depend on the order of the images (`content_checksum`), so that a copy of
CIFAR-100 in another order than the published one is accepted and a single changed pixel or label is not.
"""

import hashlib
import itertools
import os
import pickle
import socket
import tarfile
import tempfile
import threading
from dataclasses import dataclass, field, replace
from http.client import HTTPException
from pathlib import Path
from urllib.request import Request, urlopen

import numpy as np
import torch
import torch.nn.functional as F

DATASETS = ("cifar10", "cifar100", "digits")
MEND = "`make data` (or `python -m hcnn data`) fetches it again"
NETWORK_SECONDS = 5  # to answer at all
STALL_SECONDS = 30  # without a byte, while downloading


@dataclass(frozen=True, eq=False)
class Dataset:
    """Images (N, 3, 32, 32) uint8 and labels (N,) int64, with what a network needs to know about them.

    mean, std: of every colour over all training images, in units of pixel / 255. checksum: sha256 of the content, whatever
    the order of the images. substitutes: the data set that was asked for, where digits stand in. flip: whether a horizontal
    flip keeps the class.
    """

    name: str
    train_images: torch.Tensor = field(repr=False)
    train_labels: torch.Tensor = field(repr=False)
    test_images: torch.Tensor = field(repr=False)
    test_labels: torch.Tensor = field(repr=False)
    classes: tuple[str, ...] = field(repr=False)
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    checksum: str
    substitutes: str | None = None
    flip: bool = True


@dataclass(frozen=True)
class Source:
    """Files of a CIFAR data set and what they must hold: md5 where only the published file is right, else the content."""

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
        "cifar-10-batches-py", "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz", "c58f30108f718f92721af3b95e74349a",
        {"train": tuple(f"data_batch_{i}" for i in range(1, 6)), "test": ("test_batch",)}, "batches.meta", b"labels", b"label_names",
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
        "cifar-100-python", "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz", "eb9058c3a382ffc7106e4002c42a8d85",
        {"train": ("train",), "test": ("test",)}, "meta", b"fine_labels", b"fine_label_names",
        md5={"meta": "7973b15100ade9c7d40fb424638fde48"},  # train and test may hold their images in any order
        content={"train": "eb2821554fda8c7f4668a001ee774fc1a64e3583c2729a86c673281a0c1943b1",
                 "test": "ed2f54d86be17f2d8cf60b6023ddd15bfdc63dc3aaf9ac4aae466fb982227a9c"},
    ),
}
DIGITS_CONTENT = {"train": "6bdefbace9eae46fc546edbb3e02336bd96cc304499a7e69768b9de8117c4c25",
                  "test": "5105d1d3d54d4004b4f052d05bcd3648477d6dd7962a7e5a67a32092f602f7d6"}


def load_dataset(name="cifar10", root=None, download=True, fallback=False):
    """Read, verify and return a data set; CIFAR is downloaded where nothing of it is present.

    root: the folder that holds cifar-10-batches-py/ and cifar-100-python/ (default: the environment's HCNN_DATA, else data/
    of the repository). fallback: where CIFAR is neither present nor downloadable, print one line and return digits.
    Raises FileNotFoundError saying what to do about missing files, and ValueError naming the file that is damaged.
    """
    root = _root(name, root)
    if name == "digits":
        return _load_digits()
    source = SOURCES[name]
    if any(path.exists() for path in _paths(source, root)):
        return _load_cifar(name, root)  # damaged or incomplete files are an error even with fallback
    try:
        _download(name, root, allowed=download)
    except FileNotFoundError as error:
        if not fallback:
            raise
        print(f"digits (1,797 images of scikit-learn) stand in for {name}: {error}", flush=True)
        return replace(_load_digits(), substitutes=name)
    return _load_cifar(name, root)


def fetch_dataset(name, root=None):
    """As load_dataset, but damaged or incomplete files are downloaded again: what `python -m hcnn data` does."""
    root = _root(name, root)
    if name == "digits":
        return _load_digits()
    try:
        return _load_cifar(name, root)
    except (FileNotFoundError, ValueError) as problem:
        print(problem, flush=True)
        _download(name, root)
    return _load_cifar(name, root)


def available(name, root=None):
    """Whether all files of the data set are there; nothing is read or downloaded."""
    root = _root(name, root)
    return name == "digits" or all(path.is_file() for path in _paths(SOURCES[name], root))


def split_dataset(dataset, split="test", train_size=None):
    """The data set with other images to train or to test on; mean and std stay those of all training images.

    split: "test" keeps the test images; "validation" holds out 5,000 training images (a tenth, if that is less) in their
    place, a fixed choice that follows the classes and does not depend on the order of the images.
    train_size: keep so many training images, the first ones of every class, in the proportions of the classes.
    Raises ValueError for another split, or a train_size outside 1 ... number of training images.
    """
    if split not in ("test", "validation"):
        raise ValueError(f"split must be 'test' or 'validation', got {split!r}")
    if split == "validation":
        images, labels = dataset.train_images, dataset.train_labels
        held_out = _hold_out(images, labels, min(5_000, len(labels) // 10))
        dataset = replace(dataset, train_images=images[~held_out], train_labels=labels[~held_out],
                          test_images=images[held_out], test_labels=labels[held_out])
    if train_size is not None:
        n = len(dataset.train_labels)
        if not isinstance(train_size, int) or isinstance(train_size, bool) or not 1 <= train_size <= n:
            raise ValueError(f"train_size must be an integer from 1 to {n:,}, the training images of {dataset.name} "
                             f"with split={split!r}, got {train_size!r}")
        kept = _first_of_every_class(dataset.train_labels, range(n), train_size)
        dataset = replace(dataset, train_images=dataset.train_images[kept], train_labels=dataset.train_labels[kept])
    return dataset


def standardise(images, mean, std):
    """(pixel / 255 - mean) / std as float32.  images: (..., 3, H, W) uint8; mean, std: 3 numbers or tensors of 3."""
    mean, std = (torch.as_tensor(v, dtype=torch.float32, device=images.device).view(3, 1, 1) for v in (mean, std))
    return (images.float() / 255 - mean) / std


def augment(images, shifts, flips, mean, std):
    """Standardised images whose content moved by (dy, dx) pixels, down and right, and was then flipped left to right.

    What comes in from outside has the mean colour, 0 after standardisation. images: (n, 3, H, W) uint8; shifts: (n, 2)
    int64; flips: (n,) bool; all on one device, where the result is: (n, 3, H, W) float32.
    """
    n, channels, height, width = images.shape
    columns = torch.arange(width, device=images.device)
    columns = torch.where(flips[:, None], columns.flip(0), columns) - shifts[:, 1:]  # source of every column (n, W)
    rows = torch.arange(height, device=images.device) - shifts[:, :1]  # (n, H)
    outside = ((rows < 0) | (rows >= height))[:, :, None] | ((columns < 0) | (columns >= width))[:, None, :]  # (n, H, W)
    image = torch.arange(n, device=images.device).view(n, 1, 1, 1)
    channel = torch.arange(channels, device=images.device).view(1, channels, 1, 1)
    rows, columns = rows.clamp(0, height - 1), columns.clamp(0, width - 1)
    moved = images[image, channel, rows[:, None, :, None], columns[:, None, None, :]]  # (n, 3, H, W)
    return standardise(moved, mean, std).masked_fill(outside[:, None], 0)


def duplicate_images(dataset):
    """All pairs of images with equal pixels, labels aside: a list of ((split, index), (split, index))."""
    groups = {}
    for split, images in (("train", dataset.train_images), ("test", dataset.test_images)):
        for i, digest in enumerate(_digests(images)):
            groups.setdefault(digest, []).append((split, i))
    return [pair for group in groups.values() for pair in itertools.combinations(group, 2)]


def content_checksum(images, labels):
    """sha256 over the sorted sha256 digests of all (pixels, label): equal for equal images in whatever order."""
    return _checksum(_digests(images, labels))


def _checksum(digests):
    return hashlib.sha256(b"".join(sorted(digests))).hexdigest()


def _digests(images, labels=None):
    """sha256 of every image: 3 x 32 x 32 bytes and, if given, one more for the label."""
    rows = images.numpy().reshape(len(images), -1)
    if labels is not None:
        rows = np.concatenate([rows, labels.numpy().astype(np.uint8)[:, None]], axis=1)
    return [hashlib.sha256(row).digest() for row in rows]


def _assemble(name, splits, content, classes, **others):
    """The Dataset of verified images and labels; content: their checksums."""
    images = splits["train"][0]
    values = torch.arange(256, dtype=torch.float64) / 255
    # histograms are exact, so the statistics are the same to the last bit for every order of the images
    weights = torch.stack([torch.bincount(images[:, c].reshape(-1), minlength=256) for c in range(3)]).double()
    weights /= weights.sum(1, keepdim=True)
    mean = weights @ values
    std = (weights * (values - mean[:, None]) ** 2).sum(1).sqrt()
    return Dataset(name, *splits["train"], *splits["test"], classes=tuple(classes), mean=tuple(mean.tolist()), std=tuple(std.tolist()),
                   checksum=hashlib.sha256((content["train"] + content["test"]).encode()).hexdigest(), **others)


def _first_of_every_class(labels, order, n):
    """The first n in `order`, with the classes in the proportions of `labels` (largest remainders); sorted indices."""
    labels = labels.numpy()
    counts = np.bincount(labels)
    quotas = counts * n // len(labels)
    remainders = counts * n % len(labels)
    quotas[np.argsort(-remainders, kind="stable")[: n - quotas.sum()]] += 1
    order = np.asarray(order)
    picked = [order[labels[order] == c][:quota] for c, quota in enumerate(quotas)]
    return torch.from_numpy(np.sort(np.concatenate(picked)))


def _hold_out(images, labels, n):
    """A fixed choice of n images as a mask: in every class those with the smallest digests, as good as random."""
    digests = _digests(images, labels)
    mask = torch.zeros(len(labels), dtype=torch.bool)
    mask[_first_of_every_class(labels, sorted(range(len(labels)), key=digests.__getitem__), n)] = True
    return mask


def _load_digits():
    """scikit-learn's 1,797 digits, 8 x 8 with 17 grey levels, as 3 x 32 x 32; 1,500 to train, 297 to test."""
    from sklearn.datasets import load_digits  # takes a second to import, and only digits need it

    digits = load_digits()
    grey = torch.from_numpy(digits.images)[:, None]  # 0..16; every product below is exact in float64
    images = (F.interpolate(grey, size=(32, 32), mode="bilinear") * 255 / 16).round().to(torch.uint8)
    images, labels = images.repeat(1, 3, 1, 1), torch.from_numpy(digits.target).long()
    test = _hold_out(images, labels, 297)
    splits = {"train": (images[~test], labels[~test]), "test": (images[test], labels[test])}
    for split, expected in DIGITS_CONTENT.items():
        if (found := content_checksum(*splits[split])) != expected:
            raise ValueError(f"the {split} digits of the installed scikit-learn have content checksum {found}, expected "
                             f"{expected}; install the scikit-learn version of environment.yml")
    return _assemble("digits", splits, DIGITS_CONTENT, map(str, range(10)), flip=False)


def _root(name, root):
    if name not in DATASETS:
        raise ValueError(f"name must be one of {', '.join(DATASETS)}, got {name!r}")
    return Path(root or os.environ.get("HCNN_DATA") or Path(__file__).resolve().parents[1] / "data").expanduser()


def _paths(source, root):
    return [root / source.folder / file for file in (*source.files["train"], *source.files["test"], source.meta)]


class _ArrayUnpickler(pickle.Unpickler):
    """Unpickles numbers, strings, lists, dicts and numpy arrays, and nothing else.

    A pickle may name any function to be called while it is read. Files of CIFAR-100 in another order can only be verified
    after they have been read, so the three names that an array needs are admitted and every other one is refused.
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
    """The dict in one file, its keys and strings as bytes (Python 2 wrote it); expected: "md5 ..." or "content checksum ..."."""
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


def _load_cifar(name, root):
    """Read and verify the files of CIFAR-10 or CIFAR-100 in root; CIFAR-100 comes in the order of the image digests.

    Its files exist in several orders; brought to one, runs and stored image indices mean the same on every copy.
    """
    source = SOURCES[name]
    folder = root / source.folder
    classes = _read(folder / source.meta, f"md5 {source.md5[source.meta]}")[source.classes_key]
    splits = {}
    for split, files in source.files.items():
        images, labels = _read_split(source, folder, split, len(classes))
        digests = _digests(images, labels)
        if (found := _checksum(digests)) != source.content[split]:
            raise _damaged(folder / files[0], f"the {split} images have other pixels or labels",
                           f"content checksum {source.content[split]}", f"content checksum {found}")
        if files[0] not in source.md5:
            order = sorted(range(len(labels)), key=digests.__getitem__)
            images, labels = images[order], labels[order]
        splits[split] = images, labels
    return _assemble(name, splits, source.content, [c.decode() for c in classes])


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
    counts = np.bincount(np.concatenate(labels), minlength=num_classes)
    if len(set(counts)) > 1:
        raise _damaged(folder / source.files[split][0], f"classes must have {source.images[split] // num_classes:,} {split} images",
                       f"content checksum {source.content[split]}", f"classes of {counts.min():,} to {counts.max():,} images")
    return torch.from_numpy(np.concatenate(images)).view(-1, 3, 32, 32), torch.from_numpy(np.concatenate(labels)).long()


def _download(name, root, allowed=True):
    """Put the files of a CIFAR data set into root, whole or not at all; FileNotFoundError saying what to do otherwise."""
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
            _load_cifar(name, Path(temporary))
            (root / source.folder).mkdir(exist_ok=True)
            for new, path in zip(_paths(source, Path(temporary)), _paths(source, root)):
                os.replace(new, path)
    except (OSError, HTTPException, RuntimeError, EOFError, tarfile.TarError) as error:
        raise FileNotFoundError(
            f"{name} could not be downloaded to {root} ({error}); put the folder {source.folder} of {source.url} there, or set "
            f"HCNN_DATA to the folder that holds it, or choose DATASET=digits") from error


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
