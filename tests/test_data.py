"""The data module: what is read is what was published, or an error says which file is wrong and what mends it."""

import hashlib
import os
import pickle
import shutil
import socket
import tarfile
import threading
import time
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch

from hcnn import data
from hcnn.data import (
    SOURCES, augment, available, content_checksum, duplicate_images, fetch_dataset, load_dataset, split_dataset, standardise,
)

CLASSES = [f"class {c}" for c in range(10)]
IMAGES = {"train": 40, "test": 10}


def md5(path):
    return hashlib.md5(path.read_bytes()).hexdigest()


def dump(path, content):
    path.write_bytes(pickle.dumps(content, protocol=4))


def fake_split(split):
    rng = np.random.RandomState(len(split))
    return rng.randint(0, 256, (IMAGES[split], 3072), dtype=np.uint8), np.arange(IMAGES[split]) % 10


def write_fake(name, root):
    """Files of a tiny data set of ten classes in the layout of `name`; returns the Source that describes them."""
    source = SOURCES[name]
    folder = root / source.folder
    folder.mkdir(parents=True)
    dump(folder / source.meta, {source.classes_key: [c.encode() for c in CLASSES]})
    content = {}
    for split, files in source.files.items():
        images, labels = fake_split(split)
        for file, x, y in zip(files, np.split(images, len(files)), np.split(labels, len(files))):
            dump(folder / file, {b"data": x, source.labels_key: y.tolist()})
        content[split] = content_checksum(torch.from_numpy(images), torch.from_numpy(labels))
    sums = {file: md5(folder / file) for file in source.md5}
    return replace(source, md5=sums, content=content, images=IMAGES)


@pytest.fixture(params=["cifar10", "cifar100"])
def fake(request, tmp_path, monkeypatch):
    """Name and root of a tiny valid data set that stands where the real one would."""
    monkeypatch.setitem(SOURCES, request.param, write_fake(request.param, tmp_path / "data"))
    return request.param, tmp_path / "data"


@pytest.fixture
def fake100(tmp_path, monkeypatch):
    """Folder of a tiny valid CIFAR-100."""
    monkeypatch.setitem(SOURCES, "cifar100", write_fake("cifar100", tmp_path / "data"))
    return tmp_path / "data" / "cifar-100-python"


def first_file(name, root):
    return root / SOURCES[name].folder / SOURCES[name].files["train"][0]


def change(path, **entries):
    content = pickle.loads(path.read_bytes())
    dump(path, content | {key.encode(): value for key, value in entries.items()})


def assert_names_file_checksums_and_remedy(error, path, expected, found):
    for text in (str(path), expected, found, "make data", "python -m hcnn data"):
        assert text in str(error.value)


# reading


def test_valid_files_give_tensors_of_the_promised_types(fake):
    name, root = fake
    dataset = load_dataset(name, root)
    assert dataset.name == name and dataset.classes == tuple(CLASSES) and dataset.flip and dataset.substitutes is None
    for split in ("train", "test"):
        images, labels = getattr(dataset, f"{split}_images"), getattr(dataset, f"{split}_labels")
        assert images.shape == (IMAGES[split], 3, 32, 32) and images.dtype == torch.uint8 and images.is_contiguous()
        assert labels.shape == (IMAGES[split],) and labels.dtype == torch.int64


def test_images_keep_their_labels_and_their_layout(fake):
    dataset = load_dataset(*fake)
    images, labels = fake_split("train")
    read = {row.tobytes(): label for row, label in zip(dataset.train_images.numpy().reshape(40, -1), dataset.train_labels.tolist())}
    assert read == {row.tobytes(): label for row, label in zip(images, labels)}


def test_mean_and_std_are_those_of_the_training_images(fake):
    dataset = load_dataset(*fake)
    pixels = dataset.train_images.double() / 255
    assert dataset.mean == pytest.approx(pixels.mean((0, 2, 3)).tolist(), abs=1e-12)
    assert dataset.std == pytest.approx(pixels.std((0, 2, 3), correction=0).tolist(), abs=1e-12)


def test_root_comes_from_the_environment_and_is_else_the_data_folder_of_the_repository(fake, monkeypatch):
    name, root = fake
    monkeypatch.setenv("HCNN_DATA", str(root))
    assert available(name) and load_dataset(name).name == name
    monkeypatch.delenv("HCNN_DATA")
    assert data._root(name, None) == Path(data.__file__).parents[1] / "data"


def test_content_checksum_ignores_the_order_and_sees_every_pixel_and_label():
    images, labels = map(torch.from_numpy, fake_split("train"))
    checksum = content_checksum(images, labels)
    order = torch.from_numpy(np.random.RandomState(0).permutation(40))
    assert content_checksum(images[order], labels[order]) == checksum
    assert content_checksum(images, labels[order]) != checksum
    other = images.clone()
    other[17, 2000] ^= 1
    assert content_checksum(other, labels) != checksum


def test_cifar100_in_another_order_gives_the_same_data_set(fake100):
    published = load_dataset("cifar100", fake100.parent)
    for split in ("train", "test"):
        images, labels = fake_split(split)
        dump(fake100 / split, {b"data": images[::-1].copy(), b"fine_labels": labels[::-1].tolist()})
    shuffled = load_dataset("cifar100", fake100.parent)
    assert torch.equal(shuffled.train_images, published.train_images) and torch.equal(shuffled.test_labels, published.test_labels)
    assert (shuffled.checksum, shuffled.mean, shuffled.std) == (published.checksum, published.mean, published.std)


def test_a_pickle_that_calls_a_function_is_refused_and_not_run(fake100, tmp_path):
    class Intruder:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "intruded"),)

    dump(fake100 / "train", {b"data": Intruder()})
    with pytest.raises(ValueError, match="mkdir is not allowed in a data file"):
        load_dataset("cifar100", fake100.parent)
    assert not (tmp_path / "intruded").exists()


def test_unknown_names_are_refused():
    for function in (load_dataset, fetch_dataset, available):
        with pytest.raises(ValueError, match="name must be one of cifar10, cifar100, digits, got 'mnist'"):
            function("mnist")


# damaged and missing files


def test_a_truncated_file_is_refused_even_where_digits_may_stand_in(fake):
    name, root = fake
    path = first_file(name, root)
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(ValueError) as error:
        load_dataset(name, root, fallback=True)
    expected = SOURCES[name].md5.get(path.name, SOURCES[name].content["train"])
    assert_names_file_checksums_and_remedy(error, path, expected, md5(path))
    assert "5,000 bytes" in str(error.value)


def test_a_changed_pixel_is_refused(fake):
    name, root = fake
    path = first_file(name, root)
    images = pickle.loads(path.read_bytes())[b"data"]
    images[3, 100] ^= 1
    change(path, data=images)
    with pytest.raises(ValueError) as error:
        load_dataset(name, root)
    labels = torch.arange(len(images)) % 10
    found = md5(path) if name == "cifar10" else content_checksum(torch.from_numpy(images), labels)
    assert_names_file_checksums_and_remedy(error, path, SOURCES[name].md5.get(path.name, SOURCES[name].content["train"]), found)


def test_damaged_class_names_are_refused(fake):
    name, root = fake
    path = root / SOURCES[name].folder / SOURCES[name].meta
    path.write_bytes(path.read_bytes().replace(b"class 3", b"class 4"))
    with pytest.raises(ValueError) as error:
        load_dataset(name, root)
    assert_names_file_checksums_and_remedy(error, path, SOURCES[name].md5[path.name], md5(path))


@pytest.mark.parametrize("entries, message", [
    (dict(data=np.zeros((40, 3071), np.uint8)), r"must hold 40 images of 3 x 32 x 32 bytes.*\(40, 3071\)"),
    (dict(data=np.zeros((39, 3072), np.uint8)), r"must hold 40 images.*\(39, 3072\)"),
    (dict(data=np.zeros((40, 3072))), "must hold 40 images.*float64"),
    (dict(data=None), "must hold 40 images"),
    (dict(fine_labels=list(range(39))), "must hold 40 labels from 0 to 9"),
    (dict(fine_labels=[10] * 40), "must hold 40 labels from 0 to 9"),
    (dict(fine_labels=[-1] * 40), "must hold 40 labels from 0 to 9"),
    (dict(fine_labels=["a"] * 40), "must hold 40 labels from 0 to 9"),
    (dict(fine_labels=[0, 0, *range(2, 10)] * 4), "classes must have 4 train images.*found classes of 0 to 8 images"),
])
def test_wrong_image_sizes_labels_and_class_counts_are_refused(fake100, entries, message):
    change(fake100 / "train", **entries)
    with pytest.raises(ValueError, match=message) as error:
        load_dataset("cifar100", fake100.parent)
    assert_names_file_checksums_and_remedy(error, fake100 / "train", SOURCES["cifar100"].content["train"], "found")


def test_a_missing_file_is_named_even_where_digits_may_stand_in(fake):
    name, root = fake
    path = first_file(name, root)
    path.unlink()
    assert not available(name, root)
    with pytest.raises(FileNotFoundError) as error:
        load_dataset(name, root, fallback=True)
    expected = SOURCES[name].md5.get(path.name, SOURCES[name].content["train"])
    assert_names_file_checksums_and_remedy(error, path, expected, "is missing")


def assert_says_what_to_do(error, root):
    for text in ("could not be downloaded", str(root), SOURCES["cifar10"].url, "cifar-10-batches-py", "HCNN_DATA", "DATASET=digits"):
        assert text in str(error.value)


def test_an_absent_data_set_says_what_to_do(tmp_path):
    assert not available("cifar10", tmp_path)
    with pytest.raises(FileNotFoundError, match="downloads are switched off") as error:
        load_dataset("cifar10", tmp_path, download=False)
    assert_says_what_to_do(error, tmp_path)


def test_digits_stand_in_and_one_line_says_so(tmp_path, capsys):
    dataset = load_dataset("cifar10", tmp_path / "nothing", download=False, fallback=True)
    assert dataset.name == "digits" and dataset.substitutes == "cifar10"
    output = capsys.readouterr()
    lines = (output.out + output.err).splitlines()
    assert len(lines) == 1 and lines[0].startswith("digits")
    for text in ("stand in for cifar10", "HCNN_DATA", SOURCES["cifar10"].url):
        assert text in lines[0]
    assert not (tmp_path / "nothing").exists()


def test_digits_asked_for_print_nothing(capsys):
    assert load_dataset("digits", fallback=True).substitutes is None
    assert capsys.readouterr().out == ""


# downloads, from a server on this machine


@pytest.fixture
def server(tmp_path, monkeypatch):
    """Folder that is served at the address of a tiny CIFAR-10; the archive in it is valid."""
    source = write_fake("cifar10", tmp_path / "published")
    served = tmp_path / "served"
    served.mkdir()
    with tarfile.open(served / "cifar.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "published" / source.folder, source.folder)
    httpd = ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=served))
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{httpd.server_port}/cifar.tar.gz"
    monkeypatch.setitem(SOURCES, "cifar10", replace(source, url=url, archive_md5=md5(served / "cifar.tar.gz")))
    monkeypatch.setenv("HCNN_OFFLINE", "0")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    yield served
    httpd.shutdown()
    httpd.server_close()


def test_an_absent_data_set_is_downloaded_and_nothing_else_is_left(server, tmp_path):
    root = tmp_path / "new" / "data"
    assert load_dataset("cifar10", root).train_images.shape == (40, 3, 32, 32)
    assert available("cifar10", root) and os.listdir(root) == ["cifar-10-batches-py"]
    assert sorted(os.listdir(root / "cifar-10-batches-py")) == sorted(SOURCES["cifar10"].md5)


def test_fetching_mends_damaged_and_missing_files(server, tmp_path, capsys):
    root = tmp_path / "data"
    write_fake("cifar10", root)
    folder = root / "cifar-10-batches-py"
    (folder / "data_batch_1").write_bytes(b"damaged")
    (folder / "test_batch").unlink()
    assert fetch_dataset("cifar10", root).test_images.shape == (10, 3, 32, 32)
    assert "data_batch_1 (7 bytes) is damaged" in capsys.readouterr().out
    shutil.rmtree(server)  # nothing is downloaded where all is well
    assert fetch_dataset("cifar10", root).checksum == load_dataset("cifar10", root).checksum


def test_a_damaged_archive_leaves_nothing(server, tmp_path):
    archive = server / "cifar.tar.gz"
    archive.write_bytes(archive.read_bytes()[:-100])
    with pytest.raises(FileNotFoundError, match="corrupted") as error:
        load_dataset("cifar10", tmp_path / "new")
    assert_says_what_to_do(error, tmp_path / "new")
    assert os.listdir(tmp_path / "new") == []


def test_downloads_can_be_switched_off_by_argument_and_environment(server, tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match="downloads are switched off"):
        load_dataset("cifar10", tmp_path / "new", download=False)
    monkeypatch.setenv("HCNN_OFFLINE", "1")
    with pytest.raises(FileNotFoundError, match="downloads are switched off"):
        load_dataset("cifar10", tmp_path / "new")


def test_a_server_that_never_answers_is_given_up_after_a_few_seconds(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "NETWORK_SECONDS", 0.3)
    monkeypatch.setenv("HCNN_OFFLINE", "0")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts, and says nothing
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/cifar.tar.gz"
        monkeypatch.setitem(SOURCES, "cifar10", replace(SOURCES["cifar10"], url=url))
        start = time.monotonic()
        with pytest.raises(FileNotFoundError) as error:
            load_dataset("cifar10", tmp_path)
    assert time.monotonic() - start < 5
    assert_says_what_to_do(error, tmp_path)


def test_a_name_that_is_never_resolved_is_given_up_after_a_few_seconds(tmp_path, monkeypatch):
    answered = threading.Event()
    monkeypatch.setattr(data, "NETWORK_SECONDS", 0.3)
    monkeypatch.setenv("HCNN_OFFLINE", "0")

    def never_resolved(*args, **kwargs):
        answered.wait(20)
        raise OSError("too late")

    monkeypatch.setattr(data, "urlopen", never_resolved)
    start = time.monotonic()
    with pytest.raises(FileNotFoundError, match="no answer within 0.3 s"):
        load_dataset("cifar10", tmp_path)
    answered.set()
    assert time.monotonic() - start < 5


def test_addresses_and_checksums_of_the_archives_are_those_of_torchvision():
    from torchvision.datasets import CIFAR10, CIFAR100

    for name, published in (("cifar10", CIFAR10), ("cifar100", CIFAR100)):
        source = SOURCES[name]
        files = dict(published.train_list + published.test_list)
        assert (source.url, source.archive_md5, source.folder) == (published.url, published.tgz_md5, published.base_folder)
        assert files.keys() == {f for fs in source.files.values() for f in fs}
        assert source.md5.items() <= (files | {source.meta: published.meta["md5"]}).items()


def test_checksums_in_the_readme_are_those_of_the_code():
    readme = (Path(__file__).parents[1] / "data" / "README.md").read_text()
    for source in SOURCES.values():
        for value in (source.url, source.archive_md5, *source.md5.values(), *source.content.values()):
            assert value in readme
    for value in data.DIGITS_CONTENT.values():
        assert value in readme


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


def test_digits_are_scikit_learns_interpolated_between_the_centres_of_pixels(digits):
    from sklearn.datasets import load_digits

    def literal(image, y, x):
        """Bilinear: pixel (y, x) of 32 lies at ((y + 1/2) / 4 - 1/2, ...) of 8; the border is repeated."""
        v, u, value = max((y + 0.5) / 4 - 0.5, 0), max((x + 0.5) / 4 - 0.5, 0), 0
        for row in (int(v), int(v) + 1):
            for column in (int(u), int(u) + 1):
                value += (1 - abs(v - row)) * (1 - abs(u - column)) * image[min(row, 7), min(column, 7)]
        return round(value * 255 / 16)

    source = load_digits()
    expected = {bytes(literal(image, y, x) for y in range(32) for x in range(32)): label
                for image, label in zip(source.images[:20], source.target)}
    read = {image[0].numpy().tobytes(): label for split in ("train", "test")
            for image, label in zip(getattr(digits, f"{split}_images"), getattr(digits, f"{split}_labels").tolist())}
    assert len(expected) == 20 and expected.items() <= read.items()


def test_other_digits_than_the_known_ones_are_refused(monkeypatch):
    monkeypatch.setitem(data.DIGITS_CONTENT, "test", "0" * 64)
    with pytest.raises(ValueError, match="test digits of the installed scikit-learn .* expected 0000"):
        load_dataset("digits")


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
    assert content_checksum(held.test_images, held.test_labels) == "633ec53de75b52ff1a6f63598dcf696dbaf290432febd4cba721a3d966346cd4"


@pytest.mark.parametrize("split, n", [("test", 1), ("test", 10), ("test", 203), ("test", 1500), ("validation", 203), ("validation", 1350)])
def test_train_size_keeps_the_first_images_of_every_class(digits, split, n):
    whole, part = split_dataset(digits, split), split_dataset(digits, split, train_size=n)
    assert len(part.train_labels) == len(part.train_images) == n
    counts, all_counts = torch.bincount(part.train_labels, minlength=10), torch.bincount(whole.train_labels)
    assert ((counts - all_counts * n / len(whole.train_labels)).abs() < 1).all()
    for c in range(10):
        first = whole.train_images[whole.train_labels == c][: counts[c]]
        assert torch.equal(part.train_images[part.train_labels == c], first)
    assert torch.equal(part.test_images, whole.test_images) and (part.mean, part.std) == (digits.mean, digits.std)


@pytest.mark.parametrize("split, n", [("test", 0), ("test", 1501), ("test", -1), ("test", 10.0), ("test", True), ("validation", 1351)])
def test_impossible_train_sizes_are_refused(digits, split, n):
    most = {"test": "1,500", "validation": "1,350"}[split]
    with pytest.raises(ValueError, match=f"train_size must be an integer from 1 to {most}, .*got {n}"):
        split_dataset(digits, split, train_size=n)


def test_unknown_splits_are_refused(digits):
    with pytest.raises(ValueError, match="split must be 'test' or 'validation', got 'train'"):
        split_dataset(digits, "train")


# augmentation

MEAN, STD = (0.49, 0.48, 0.45), (0.25, 0.24, 0.26)


def test_standardised_images_have_mean_0_and_deviation_1(digits):
    images = standardise(digits.train_images, digits.mean, digits.std)
    assert images.dtype == torch.float32
    assert images.double().mean().abs() < 1e-5 and (images.double().std() - 1).abs() < 1e-5


def test_standardise_takes_numbers_and_tensors():
    images = torch.from_numpy(fake_split("train")[0]).view(40, 3, 32, 32)
    assert torch.equal(standardise(images, MEAN, STD), standardise(images, torch.tensor(MEAN), torch.tensor(STD)))
    assert torch.equal(standardise(images[0], MEAN, STD), standardise(images, MEAN, STD)[0])


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
    return (moved - torch.tensor(MEAN, dtype=torch.float64)[:, None, None]) / torch.tensor(STD, dtype=torch.float64)[:, None, None]


@pytest.mark.parametrize("height, width", [(8, 8), (5, 9)])
def test_augment_moves_then_flips_every_image_by_its_own_shift(height, width):
    generator = torch.Generator().manual_seed(0)
    cases = [(dy, dx, flip) for dy in (-6, -1, 0, 2, height) for dx in (-width, -3, 0, 1, 6) for flip in (False, True)]
    images = torch.randint(0, 256, (len(cases), 3, height, width), generator=generator, dtype=torch.uint8)
    shifts, flips = torch.tensor([case[:2] for case in cases]), torch.tensor([case[2] for case in cases])
    result = augment(images, shifts, flips, MEAN, STD)
    assert result.dtype == torch.float32 and result.shape == images.shape
    expected = torch.stack([literal_augment(image, *case) for image, case in zip(images, cases)])
    torch.testing.assert_close(result.double(), expected, rtol=0, atol=1e-6)
    filled = expected == 0
    assert (result[filled] == 0).all()  # the mean colour is 0 exactly


def test_no_shift_and_no_flip_only_standardises():
    images = torch.from_numpy(fake_split("train")[0]).view(40, 3, 32, 32)
    still = augment(images, torch.zeros(40, 2, dtype=torch.int64), torch.zeros(40, dtype=torch.bool), MEAN, STD)
    assert torch.equal(still, standardise(images, MEAN, STD))


@pytest.mark.gpu
def test_augment_on_the_gpu_equals_the_cpu():
    images = torch.from_numpy(fake_split("train")[0]).view(40, 3, 32, 32)
    shifts, flips = torch.arange(80).view(40, 2) % 13 - 6, torch.arange(40) % 2 == 0
    result = augment(images.cuda(), shifts.cuda(), flips.cuda(), MEAN, STD)
    torch.testing.assert_close(result.cpu(), augment(images, shifts, flips, MEAN, STD))


def test_duplicates_are_found_within_and_across_the_splits(digits):
    train = digits.train_images[[0, 1, 2, 1, 3, 1]]
    dataset = replace(digits, train_images=train, test_images=digits.train_images[[3, 4]])
    expected = {frozenset(pair) for pair in [
        (("train", 1), ("train", 3)), (("train", 1), ("train", 5)), (("train", 3), ("train", 5)), (("train", 4), ("test", 0)),
    ]}
    assert {frozenset(pair) for pair in duplicate_images(dataset)} == expected


# the real CIFAR-10 and CIFAR-100


@pytest.mark.cifar
@pytest.mark.parametrize("name, classes, mean, std", [
    ("cifar10", ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
     (0.49139968, 0.48215841, 0.44653091), (0.24703223, 0.24348513, 0.26158784)),
    ("cifar100", ("apple", "aquarium_fish", "baby"), (0.50707516, 0.48654887, 0.44091784), (0.26733429, 0.25643846, 0.27615047)),
])
def test_cifar_has_the_published_sizes_classes_and_statistics(name, classes, mean, std):
    dataset = load_dataset(name, download=False)
    n = {"cifar10": 10, "cifar100": 100}[name]
    assert dataset.train_images.shape == (50_000, 3, 32, 32) and dataset.test_images.shape == (10_000, 3, 32, 32)
    assert dataset.classes[: len(classes)] == classes and len(dataset.classes) == n
    assert torch.bincount(dataset.train_labels).tolist() == [50_000 // n] * n
    assert torch.bincount(dataset.test_labels).tolist() == [10_000 // n] * n
    assert dataset.mean == pytest.approx(mean, abs=1e-8) and dataset.std == pytest.approx(std, abs=1e-8)


@pytest.mark.cifar
def test_cifar10_comes_in_the_published_order():
    from torchvision.datasets import CIFAR10

    published = CIFAR10(data._root("cifar10", None), train=False, download=False)
    dataset = load_dataset("cifar10", download=False)
    assert dataset.test_labels.tolist() == published.targets
    assert np.array_equal(dataset.test_images.permute(0, 2, 3, 1).numpy(), published.data)


@pytest.mark.cifar
@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_truncated_cifar_is_refused(name, tmp_path):
    source = SOURCES[name]
    folder = data._root(name, None) / source.folder
    (tmp_path / source.folder).mkdir()
    for path in folder.iterdir():
        (tmp_path / source.folder / path.name).symlink_to(path)
    damaged = tmp_path / source.folder / source.files["test"][0]
    damaged.unlink()
    damaged.write_bytes((folder / damaged.name).read_bytes()[:1_000_000])
    with pytest.raises(ValueError) as error:
        load_dataset(name, tmp_path)
    expected = source.md5.get(damaged.name, source.content["test"])
    assert_names_file_checksums_and_remedy(error, damaged, expected, md5(damaged))


@pytest.mark.cifar
def test_validation_split_of_cifar10_holds_out_500_images_a_class():
    held = split_dataset(load_dataset("cifar10", download=False), "validation", train_size=1000)
    assert torch.bincount(held.test_labels).tolist() == [500] * 10
    assert torch.bincount(held.train_labels).tolist() == [100] * 10
    assert not set(rows(held.train_images)) & set(rows(held.test_images))


@pytest.mark.cifar
def test_cifar100_has_26_pairs_of_identical_images_10_of_them_across_train_and_test():
    dataset = load_dataset("cifar100", download=False)
    labels = {"train": dataset.train_labels, "test": dataset.test_labels}
    pairs = duplicate_images(dataset)
    assert len(pairs) == 26
    assert sum(a[0] != b[0] for a, b in pairs) == 10
    assert sum(labels[a[0]][a[1]].item() != labels[b[0]][b[1]].item() for a, b in pairs) == 17
