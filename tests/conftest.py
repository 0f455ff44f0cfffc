"""Which tests run: `cifar` where both CIFAR data sets are present, `gpu` where there is one, `full` with --full."""

import os
from functools import lru_cache

import pytest
import torch
from hypothesis import settings

from hcnn.data.datasets import available

os.environ.setdefault("HCNN_OFFLINE", "1")  # a test never downloads a data set
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # its kernels run on the CPU; read when Triton is imported
if os.name == "nt":  # they need make and sh, or signals and ways to start a process that Windows lacks
    collect_ignore = ["core/test_packaging.py", "training/test_resume.py", "companion/test_parallel.py"]
settings.register_profile("hcnn", deadline=None)  # the first call of an operator may take a second
settings.load_profile("hcnn")


def pytest_addoption(parser):
    parser.addoption("--full", action="store_true", help="also run the exhaustive tests, marked `full`")


def pytest_collection_modifyitems(config, items):
    absent = [name for name in ("cifar10", "cifar100") if not available(name)]
    skips = {
        "cifar": absent and f"{' and '.join(absent)} not present: run `make data` or set HCNN_DATA",
        "gpu": not torch.cuda.is_available() and "no GPU",
        "full": not config.getoption("--full") and "exhaustive: run with --full",
    }
    for item in items:
        for mark, reason in skips.items():
            if reason and item.get_closest_marker(mark):
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    """A test that is not marked `gpu` sees no GPU, nor do its fixtures and, of CUDA, its processes."""
    with pytest.MonkeyPatch.context() as patch:
        if not item.get_closest_marker("gpu"):
            patch.setenv("CUDA_VISIBLE_DEVICES", "")
            patch.setattr(torch.cuda, "is_available", lambda: False)
            patch.setattr(torch.cuda, "device_count", lambda: 0)
            patch.setattr(torch.backends.mps, "is_available", lru_cache(lambda: False))  # cached as PyTorch's own
        return (yield)


@pytest.fixture(autouse=True)
def same_random_numbers():
    """Every test draws the same random tensors in every order of the tests."""
    torch.manual_seed(0)
