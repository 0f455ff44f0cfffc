"""The files of CIFAR: what is read is what was published, or an error says which file is wrong and what mends it."""

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

import numpy as np
import pytest
import torch

from hcnn import paths
from hcnn.data import cifar
from hcnn.data.cifar import SOURCES, content_checksum, image_digests
from hcnn.data.datasets import DIGITS_CONTENT, available, fetch_dataset, load_dataset

CLASSES = [f"class {c}" for c in range(10)]
IMAGES = {"train": 40, "test": 10}


def md5(path):
    return hashlib.md5(path.read_bytes()).hexdigest()


def dump(path, content):
    path.write_bytes(pickle.dumps(content, protocol=4))


def fake_split(split):
    rng = np.random.RandomState(len(split))
    return rng.randint(0, 256, (IMAGES[split], 3072), dtype=np.uint8), np.arange(IMAGES[split]) % 10


def digests_of(images, labels):
    return image_digests(torch.from_numpy(images), torch.from_numpy(labels))


def write_fake(name, root):
    """Files of a tiny data set of ten classes in the layout of `name`; returns the Source that describes them."""
    source = SOURCES[name]
    folder = root / source.folder
    folder.mkdir(parents=True)
    dump(folder / source.meta, {source.classes_key: [c.encode() for c in CLASSES]})
    for split, files in source.files.items():
        images, labels = fake_split(split)
        for file, x, y in zip(files, np.split(images, len(files)), np.split(labels, len(files))):
            dump(folder / file, {b"data": x, source.labels_key: y.tolist()})
    content = {split: content_checksum(digests_of(*fake_split(split))) for split in source.files}
    return replace(source, md5={file: md5(folder / file) for file in source.md5}, content=content)


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


def assert_said(error, *texts):
    assert [text for text in texts if text not in str(error.value)] == []


# reading


def test_images_keep_their_labels_layout_and_types_and_statistics_are_of_the_training_images(fake):
    name, root = fake
    dataset, (images, labels) = load_dataset(name, root), fake_split("train")
    assert dataset.name == name and dataset.classes == tuple(CLASSES) and dataset.flip and dataset.substitutes is None
    assert dataset.train_images.dtype == torch.uint8 and dataset.train_labels.dtype == torch.int64
    assert dataset.test_images.shape == (10, 3, 32, 32) and dataset.train_images.is_contiguous()
    digests = digests_of(images, labels)
    order = list(range(40)) if name == "cifar10" else sorted(range(40), key=digests.__getitem__)
    assert (dataset.train_images.numpy().reshape(40, -1) == images[order]).all()
    assert (dataset.train_labels.numpy() == labels[order]).all()
    pixels = dataset.train_images.double() / 255
    assert dataset.mean == pytest.approx(pixels.mean((0, 2, 3)).tolist(), abs=1e-12)
    assert dataset.std == pytest.approx(pixels.std((0, 2, 3), correction=0).tolist(), abs=1e-12)


def test_root_comes_from_the_environment_and_is_else_the_data_folder_of_the_repository(fake100, monkeypatch):
    monkeypatch.setenv("HCNN_DATA", str(fake100.parent))
    assert available("cifar100") and load_dataset("cifar100").name == "cifar100"
    monkeypatch.delenv("HCNN_DATA")
    assert paths.data_folder() == paths.ROOT / "data"


def test_cifar100_in_another_order_gives_the_same_data_set(fake100):
    published = load_dataset("cifar100", fake100.parent)
    for split in ("train", "test"):
        images, labels = fake_split(split)
        dump(fake100 / split, {b"data": images[::-1].copy(), b"fine_labels": labels[::-1].tolist()})
    shuffled = load_dataset("cifar100", fake100.parent)
    assert torch.equal(shuffled.train_images, published.train_images)
    assert torch.equal(shuffled.test_labels, published.test_labels)
    assert (shuffled.checksum, shuffled.mean, shuffled.std) == (published.checksum, published.mean, published.std)


def test_a_pickle_that_calls_a_function_is_refused_and_not_run(fake100, tmp_path):
    class Intruder:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "intruded"),)

    dump(fake100 / "train", {b"data": Intruder()})
    with pytest.raises(ValueError, match="mkdir is not allowed in a data file"):
        load_dataset("cifar100", fake100.parent)
    assert not (tmp_path / "intruded").exists()


# damaged and missing files


def flipped(content):
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1:]


@pytest.mark.parametrize("damage", [flipped, lambda content: content[:100], lambda content: b""])
def test_a_damaged_or_missing_file_is_refused_even_where_digits_may_stand_in(fake, damage):
    name, root = fake
    source = SOURCES[name]
    for file in (source.files["train"][0], source.meta):
        path, expected = root / source.folder / file, source.md5.get(file, source.content["train"])
        right = path.read_bytes()
        path.write_bytes(damage(right))
        with pytest.raises(ValueError) as error:
            load_dataset(name, root, fallback=True)
        assert_said(error, f"{path} ({path.stat().st_size:,} bytes) is damaged", expected, "found", "make data",
                    "python -m hcnn data")
        path.unlink()
        assert not available(name, root)
        with pytest.raises(FileNotFoundError) as error:
            load_dataset(name, root, fallback=True)
        assert_said(error, f"{path} is missing", expected, "make data")
        path.write_bytes(right)


@pytest.mark.parametrize("entries", [
    dict(data=np.zeros((40, 3071), np.uint8)), dict(data=np.zeros((40, 3072))), dict(data=None),
    dict(fine_labels=list(range(39))), dict(fine_labels=["a"] * 40), dict(fine_labels=[10] * 40)])
def test_wrong_image_sizes_and_labels_are_refused(fake100, entries):
    path = fake100 / "train"
    dump(path, pickle.loads(path.read_bytes()) | {key.encode(): value for key, value in entries.items()})
    with pytest.raises(ValueError, match="train .* is damaged: expected train images and labels with content checksum"):
        load_dataset("cifar100", fake100.parent)


def assert_says_what_to_do(error, root):
    source = SOURCES["cifar10"]
    assert_said(error, "could not be downloaded", str(root), source.url, source.folder, "HCNN_DATA", "DATASET=digits")


# downloads, from a server on this machine


@pytest.fixture
def online(monkeypatch):
    monkeypatch.setenv("HCNN_OFFLINE", "0")
    monkeypatch.setenv("no_proxy", "127.0.0.1")


@pytest.fixture
def server(tmp_path, monkeypatch, online):
    """Folder that is served at the address of a tiny CIFAR-10; the archive in it is valid."""
    source = write_fake("cifar10", tmp_path / "published")
    served = tmp_path / "served"
    served.mkdir()
    with tarfile.open(served / "cifar.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "published" / source.folder, source.folder)
    httpd = ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=served))
    threading.Thread(target=httpd.serve_forever, args=(0.01,), daemon=True).start()
    url = f"http://127.0.0.1:{httpd.server_port}/cifar.tar.gz"
    monkeypatch.setitem(SOURCES, "cifar10", replace(source, url=url, archive_md5=md5(served / "cifar.tar.gz")))
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
    for download in (False, True):
        with pytest.raises(FileNotFoundError, match="downloads are switched off") as error:
            load_dataset("cifar10", tmp_path / "new", download=download)
        assert_says_what_to_do(error, tmp_path / "new")
        monkeypatch.setenv("HCNN_OFFLINE", "1")


def test_a_server_without_answer_is_given_up(tmp_path, monkeypatch, online):
    monkeypatch.setattr(cifar, "NETWORK_SECONDS", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts, and says nothing
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/cifar.tar.gz"
        monkeypatch.setitem(SOURCES, "cifar10", replace(SOURCES["cifar10"], url=url))
        start = time.monotonic()
        with pytest.raises(FileNotFoundError) as error:
            load_dataset("cifar10", tmp_path)
    assert time.monotonic() - start < 5
    assert_says_what_to_do(error, tmp_path)


# what is published


def test_addresses_and_checksums_of_the_archives_are_those_of_torchvision():
    from torchvision.datasets import CIFAR10, CIFAR100

    for name, published in (("cifar10", CIFAR10), ("cifar100", CIFAR100)):
        source = SOURCES[name]
        files = dict(published.train_list + published.test_list)
        assert (source.url, source.archive_md5) == (published.url, published.tgz_md5)
        assert source.folder == published.base_folder
        assert files.keys() == {f for fs in source.files.values() for f in fs}
        assert source.md5.items() <= (files | {source.meta: published.meta["md5"]}).items()


def test_checksums_in_the_readme_are_those_of_the_code():
    readme, values = (paths.ROOT / "data" / "README.md").read_text(encoding="utf-8"), [*DIGITS_CONTENT.values()]
    for source in SOURCES.values():
        values += [source.url, source.archive_md5, *source.md5.values(), *source.content.values()]
    assert [value for value in values if value not in readme] == []
