"""The data module: digits, splits, standardising and augmenting, and what the real CIFAR data sets hold."""

from dataclasses import replace
from functools import cache, partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from hcnn.data import datasets as data
from hcnn.data.augment import augment, shrink, standardise
from hcnn.data.cifar import SOURCES, content_checksum, image_digests
from hcnn.data.datasets import available, duplicate_images, fetch_dataset, load_dataset, split_dataset


def test_unknown_names_are_refused():
    for function in (load_dataset, fetch_dataset, available):
        with pytest.raises(ValueError, match="name must be one of cifar10, cifar100, digits, got 'mnist'"):
            function("mnist")


# digits


@pytest.fixture(scope="module")
def digits():
    return load_dataset("digits")


def test_digits_are_1500_and_297_grey_images_of_ten_classes(digits):
    assert digits.train_images.shape == (1500, 3, 32, 32) and digits.test_images.shape == (297, 3, 32, 32)
    assert digits.classes == tuple("0123456789") and not digits.flip
    assert (digits.train_images == digits.train_images[:, :1]).all()
    counts = torch.bincount(digits.train_labels), torch.bincount(digits.test_labels)
    share = counts[1] / (counts[0] + counts[1])
    assert ((share - 297 / 1797).abs() < 1 / 174).all()  # less than one image of a class off


def test_other_digits_than_the_known_ones_are_refused(monkeypatch):
    monkeypatch.setitem(data.DIGITS_CONTENT, "test", "0" * 64)
    with pytest.raises(ValueError, match="test digits of the installed scikit-learn .* expected 0000"):
        load_dataset("digits")


def test_digits_stand_in_and_one_line_says_so(tmp_path, capsys):
    dataset = load_dataset("cifar10", tmp_path / "nothing", download=False, fallback=True)
    assert dataset.name == "digits" and dataset.substitutes == "cifar10"
    output = capsys.readouterr()
    lines = (output.out + output.err).splitlines()
    assert len(lines) == 1 and lines[0].startswith("digits")
    assert load_dataset("digits", fallback=True).substitutes is None and capsys.readouterr().out == ""
    for text in ("stand in for cifar10", "HCNN_DATA", SOURCES["cifar10"].url):
        assert text in lines[0]
    assert not (tmp_path / "nothing").exists()


# splits


def rows(images):
    return [image.numpy().tobytes() for image in images]


def test_validation_split_is_disjoint_complete_and_stratified(digits):
    held = split_dataset(digits, "validation")
    assert len(held.test_labels) == 150 and len(held.train_labels) == 1350
    assert sorted(rows(held.train_images) + rows(held.test_images)) == sorted(rows(digits.train_images))
    share = torch.bincount(held.test_labels) / torch.bincount(digits.train_labels)
    assert ((share - 0.1).abs() < 1 / 145).all()
    assert (held.mean, held.std, held.checksum) == (digits.mean, digits.std, digits.checksum)


def test_validation_split_is_fixed_and_does_not_depend_on_the_order_of_the_images(digits):
    order = torch.from_numpy(np.random.RandomState(1).permutation(1500))
    shuffled = replace(digits, train_images=digits.train_images[order], train_labels=digits.train_labels[order])
    held = split_dataset(digits, "validation")
    other = split_dataset(shuffled, "validation")
    assert sorted(rows(held.test_images)) == sorted(rows(other.test_images))
    checksum = content_checksum(image_digests(held.test_images, held.test_labels))
    assert checksum.startswith("633ec53de75b52ff1a6f63598dcf696d")


@pytest.mark.parametrize("split, n", [("test", 1), ("test", 203), ("test", 1500), ("validation", 203)])
def test_train_size_keeps_the_first_images_of_every_class(digits, split, n):
    whole, part = split_dataset(digits, split), split_dataset(digits, split, train_size=n)
    assert len(part.train_labels) == len(part.train_images) == n
    counts, all_counts = torch.bincount(part.train_labels, minlength=10), torch.bincount(whole.train_labels)
    assert ((counts - all_counts * n / len(whole.train_labels)).abs() < 1).all()
    for c in range(10):
        first = whole.train_images[whole.train_labels == c][: counts[c]]
        assert torch.equal(part.train_images[part.train_labels == c], first)
    assert torch.equal(part.test_images, whole.test_images) and (part.mean, part.std) == (digits.mean, digits.std)


def test_impossible_train_sizes_and_splits_are_refused(digits):
    for split, n, most in (("test", 0, "1,500"), ("test", 10.0, "1,500"), ("validation", 1351, "1,350")):
        with pytest.raises(ValueError, match=f"train_size must be an integer from 1 to {most}, .*got {n}"):
            split_dataset(digits, split, train_size=n)
    with pytest.raises(ValueError, match="split must be 'test' or 'validation', got 'train'"):
        split_dataset(digits, "train")


# augmentation

MEAN, STD = (0.49, 0.48, 0.45), (0.25, 0.24, 0.26)


def random_images(n, height, width):
    return torch.randint(0, 256, (n, 3, height, width), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def test_standardised_images_have_mean_0_and_deviation_1(digits):
    images = standardise(digits.train_images, digits.mean, digits.std)
    assert images.dtype == torch.float32
    assert images.double().mean().abs() < 1e-5 and (images.double().std() - 1).abs() < 1e-5


def literal_augment(image, dy, dx, flip):
    """One image, pixel by pixel: move, fill with the mean colour, flip, standardise."""
    moved = torch.tensor(MEAN, dtype=torch.float64)[:, None, None].repeat(1, *image.shape[1:])
    height, width = image.shape[1:]
    for y in range(height):
        for x in range(width):
            if 0 <= y + dy < height and 0 <= x + dx < width:
                moved[:, y + dy, x + dx] = image[:, y, x].double() / 255
    if flip:
        moved = moved.flip(-1)
    mean, std = (torch.tensor(v, dtype=torch.float64)[:, None, None] for v in (MEAN, STD))
    return (moved - mean) / std


@pytest.mark.parametrize("height, width", [(8, 8), (5, 9)])
def test_augment_moves_then_flips_every_image_by_its_own_shift(height, width):
    cases = [(dy, dx, flip) for dy in (-6, -1, 0, 2, height) for dx in (-width, -3, 0, 1, 6) for flip in (False, True)]
    images = random_images(len(cases), height, width)
    shifts, flips = torch.tensor([case[:2] for case in cases]), torch.tensor([case[2] for case in cases])
    result = augment(images, shifts, flips, MEAN, STD)
    assert result.dtype == torch.float32 and result.shape == images.shape
    expected = torch.stack([literal_augment(image, *case) for image, case in zip(images, cases)])
    torch.testing.assert_close(result.double(), expected, rtol=0, atol=1e-6)
    filled = expected == 0
    assert (result[filled] == 0).all()  # the mean colour is 0 exactly


def test_shrunk_images_are_means_over_areas():
    images = random_images(2, 12, 12).double()
    for size, repeats in ((12, 1), (6, 1), (4, 1), (8, 2), (9, 3)):  # repeated, every area is whole pixels
        fine = images.repeat_interleave(repeats, -1).repeat_interleave(repeats, -2)
        torch.testing.assert_close(shrink(images, size), F.avg_pool2d(fine, 12 * repeats // size))
    photos = standardise(random_images(2, 32, 32), MEAN, STD)
    with torch.autocast("cpu", dtype=torch.bfloat16):  # in a training of low precision too
        small = shrink(photos, 24)
    torch.testing.assert_close(small.mean((2, 3)), photos.mean((2, 3)), rtol=0, atol=1e-6)


@pytest.mark.gpu
def test_augment_on_the_gpu_equals_the_cpu():
    images = random_images(40, 32, 32)
    shifts, flips = torch.arange(80).view(40, 2) % 13 - 6, torch.arange(40) % 2 == 0
    result = augment(images.cuda(), shifts.cuda(), flips.cuda(), MEAN, STD)
    torch.testing.assert_close(result.cpu(), augment(images, shifts, flips, MEAN, STD))


def test_duplicates_are_found_within_and_across_the_splits(digits):
    train = digits.train_images[[0, 1, 2, 1, 3, 1]]
    dataset = replace(digits, train_images=train, test_images=digits.train_images[[3, 4]])
    expected = {frozenset(pair) for pair in [
        (("train", 1), ("train", 3)), (("train", 1), ("train", 5)), (("train", 3), ("train", 5)),
        (("train", 4), ("test", 0))]}
    assert {frozenset(pair) for pair in duplicate_images(dataset)} == expected


# the real CIFAR-10 and CIFAR-100


@pytest.fixture(scope="module")
def cifar():
    """A function: name -> that data set, read once."""
    return cache(partial(load_dataset, download=False))


@pytest.mark.cifar
@pytest.mark.parametrize("name, classes, mean, std", [
    ("cifar10", ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
     (0.49139968, 0.48215841, 0.44653091), (0.24703223, 0.24348513, 0.26158784)),
    ("cifar100", ("apple", "aquarium_fish", "baby"),
     (0.50707516, 0.48654887, 0.44091784), (0.26733429, 0.25643846, 0.27615047)),
])
def test_cifar_has_the_published_sizes_classes_and_statistics(cifar, name, classes, mean, std):
    dataset = cifar(name)
    n = {"cifar10": 10, "cifar100": 100}[name]
    assert dataset.train_images.shape == (50_000, 3, 32, 32) and dataset.test_images.shape == (10_000, 3, 32, 32)
    assert dataset.classes[: len(classes)] == classes and len(dataset.classes) == n
    assert torch.bincount(dataset.train_labels).tolist() == [50_000 // n] * n
    assert torch.bincount(dataset.test_labels).tolist() == [10_000 // n] * n
    assert dataset.mean == pytest.approx(mean, abs=1e-8) and dataset.std == pytest.approx(std, abs=1e-8)


@pytest.mark.cifar
def test_validation_split_of_cifar10_holds_out_500_images_a_class(cifar):
    held = split_dataset(cifar("cifar10"), "validation", train_size=1000)
    assert torch.bincount(held.test_labels).tolist() == [500] * 10
    assert torch.bincount(held.train_labels).tolist() == [100] * 10
    assert not set(rows(held.train_images)) & set(rows(held.test_images))


@pytest.mark.cifar
def test_cifar100_has_26_pairs_of_identical_images_10_of_them_across_train_and_test(cifar):
    dataset = cifar("cifar100")
    labels = {"train": dataset.train_labels, "test": dataset.test_labels}
    pairs = duplicate_images(dataset)
    assert len(pairs) == 26
    assert sum(a[0] != b[0] for a, b in pairs) == 10
    assert sum(labels[a[0]][a[1]].item() != labels[b[0]][b[1]].item() for a, b in pairs) == 17
