"""The data sets as uint8 tensors: CIFAR-10, CIFAR-100 and scikit-learn's digits, verified whenever they are read."""

import hashlib
import itertools
from dataclasses import dataclass, field, replace

import numpy as np
import torch
import torch.nn.functional as F

from hcnn import paths
from hcnn.data.cifar import SOURCES, content_checksum, download_files, file_paths, image_digests, read_files
from hcnn.settings import is_integer

DATASETS = ("cifar10", "cifar100", "digits")
TESTED_ON = {"test": "test images", "validation": "held-out training images"}  # by split
DIGITS_CONTENT = {"train": "6bdefbace9eae46fc546edbb3e02336bd96cc304499a7e69768b9de8117c4c25",
                  "test": "5105d1d3d54d4004b4f052d05bcd3648477d6dd7962a7e5a67a32092f602f7d6"}


@dataclass(frozen=True, eq=False)
class Dataset:
    """Images (N, 3, 32, 32) uint8 and labels (N,) int64, with what a network needs to know about them.

    mean, std: of every colour over all training images, in units of pixel / 255. checksum: sha256 of the content,
    whatever the order of the images. substitutes: the data set that was asked for, where digits stand in. flip:
    whether a horizontal flip keeps the class.
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


def load_dataset(name="cifar10", root=None, download=True, fallback=False):
    """Read, verify and return a data set; CIFAR is downloaded where nothing of it is present.

    root: the folder that holds cifar-10-batches-py/ and cifar-100-python/ (default: the environment's HCNN_DATA, else
    data/ of the repository). fallback: where CIFAR is neither present nor downloadable, print one line and return
    digits. Raises FileNotFoundError saying what to do about missing files, and ValueError naming the file that is
    damaged.
    """
    root = _root(name, root)
    if name == "digits":
        return _load_digits()
    if any(path.exists() for path in file_paths(name, root)):
        return _load_cifar(name, root)  # damaged or incomplete files are an error even with fallback
    try:
        download_files(name, root, allowed=download)
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
        download_files(name, root)
    return _load_cifar(name, root)


def available(name, root=None):
    """Whether all files of the data set are there; nothing is read or downloaded."""
    root = _root(name, root)
    return name == "digits" or all(path.is_file() for path in file_paths(name, root))


def split_dataset(dataset, split="test", train_size=None):
    """The data set with other images to train or to test on; mean and std stay those of all training images.

    split: "test" keeps the test images; "validation" holds out 5,000 training images (a tenth, if that is less) in
    their place, a fixed choice that follows the classes and does not depend on the order of the images. train_size:
    keep so many training images, the first ones of every class, in the proportions of the classes. Raises ValueError
    for another split, or a train_size outside 1 ... number of training images.
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
        if not is_integer(train_size, 1) or train_size > n:
            raise ValueError(f"train_size must be an integer from 1 to {n:,}, the training images of {dataset.name} "
                             f"with split={split!r}, got {train_size!r}")
        kept = first_of_every_class(dataset.train_labels, train_size)
        dataset = replace(dataset, train_images=dataset.train_images[kept], train_labels=dataset.train_labels[kept])
    return dataset


def duplicate_images(dataset):
    """All pairs of images with equal pixels, labels aside: a list of ((split, index), (split, index))."""
    groups = {}
    for split, images in (("train", dataset.train_images), ("test", dataset.test_images)):
        for i, digest in enumerate(image_digests(images)):
            groups.setdefault(digest, []).append((split, i))
    return [pair for group in groups.values() for pair in itertools.combinations(group, 2)]


def _assemble(name, splits, content, classes, **others):
    """The Dataset of verified images and labels; content: their checksums."""
    images = splits["train"][0]
    values = torch.arange(256, dtype=torch.float64) / 255
    # histograms are exact, so the statistics are the same to the last bit for every order of the images
    weights = torch.stack([torch.bincount(images[:, c].reshape(-1), minlength=256) for c in range(3)]).double()
    weights /= weights.sum(1, keepdim=True)
    mean = weights @ values
    std = (weights * (values - mean[:, None]) ** 2).sum(1).sqrt()
    return Dataset(name, *splits["train"], *splits["test"], classes=tuple(classes), mean=tuple(mean.tolist()),
                   std=tuple(std.tolist()),
                   checksum=hashlib.sha256((content["train"] + content["test"]).encode()).hexdigest(), **others)


def first_of_every_class(labels, n, order=None):
    """The first n images in `order` (default: as they stand), with the classes in their proportions; sorted indices.

    Raises ValueError unless n is an integer from 1 to the number of labels.
    """
    if not is_integer(n, 1) or n > len(labels):
        raise ValueError(f"n must be an integer from 1 to {len(labels):,}, got {n!r}")
    labels = labels.numpy()
    order = np.arange(len(labels)) if order is None else np.asarray(order)
    counts = np.bincount(labels)
    quotas, remainders = counts * n // len(labels), counts * n % len(labels)
    quotas[np.argsort(-remainders, kind="stable")[: n - quotas.sum()]] += 1  # the largest remainders
    picked = [order[labels[order] == c][:quota] for c, quota in enumerate(quotas)]
    return torch.from_numpy(np.sort(np.concatenate(picked)))


def _hold_out(images, labels, n):
    """A fixed choice of n images as a mask: in every class those with the smallest digests, as good as random."""
    digests = image_digests(images, labels)
    mask = torch.zeros(len(labels), dtype=torch.bool)
    mask[first_of_every_class(labels, n, sorted(range(len(labels)), key=digests.__getitem__))] = True
    return mask


def _load_cifar(name, root):
    splits, classes = read_files(name, root)
    return _assemble(name, splits, SOURCES[name].content, classes)


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
        if (found := content_checksum(image_digests(*splits[split]))) != expected:
            raise ValueError(f"the {split} digits of the installed scikit-learn have content checksum {found}, "
                             f"expected {expected}; install the scikit-learn version of environment.yml")
    return _assemble("digits", splits, DIGITS_CONTENT, map(str, range(10)), flip=False)


def _root(name, root):
    if name not in DATASETS:
        raise ValueError(f"name must be one of {', '.join(DATASETS)}, got {name!r}")
    return paths.data_folder(root)
