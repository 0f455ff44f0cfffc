"""Which tests run: `cifar` where both CIFAR data sets are present, `gpu` where there is one, `full` with --full only."""

import os

import pytest
import torch
from hypothesis import settings

from hcnn.data import available

os.environ.setdefault("HCNN_OFFLINE", "1")  # a test never downloads a data set
settings.register_profile("hcnn", deadline=None)  # the first call of an operator may take a second
settings.load_profile("hcnn")


def pytest_addoption(parser):
    parser.addoption("--full", action="store_true", help="also run the exhaustive tests, marked `full`")


def pytest_collection_modifyitems(config, items):
    absent = [name for name in ("cifar10", "cifar100") if not available(name)]
    skips = {
        "cifar": absent and f"{' and '.join(absent)} not present: run `make data` or set HCNN_DATA (see data/README.md)",
        "gpu": not torch.cuda.is_available() and "no GPU",
        "full": not config.getoption("--full") and "exhaustive: run with --full",
    }
    for item in items:
        for mark, reason in skips.items():
            if reason and item.get_closest_marker(mark):
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(autouse=True)
def same_random_numbers():
    """Every test draws the same random tensors in every order of the tests."""
    torch.manual_seed(0)
