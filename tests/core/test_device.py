"""Which device a test sees."""

import os
from types import SimpleNamespace

import pytest
import torch

from hcnn.device import choose_device


@pytest.mark.parametrize("mark, seen", [(None, "cpu"), (pytest.mark.gpu, "cuda")])
def test_only_tests_marked_gpu_see_a_gpu(request, monkeypatch, mark, seen):
    """As `auto` chooses it, where there is one, in this process and in those that it starts."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    conftest = next(p for p in request.config.pluginmanager.get_plugins() if hasattr(p, "random_dataset"))
    running = conftest.pytest_runtest_protocol(SimpleNamespace(get_closest_marker=lambda name: mark))
    next(running)
    assert choose_device("auto").type == seen and (os.environ["CUDA_VISIBLE_DEVICES"] == "0") == (seen == "cuda")
    running.close()
    assert choose_device("auto").type == "cuda"
