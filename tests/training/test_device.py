"""Devices and precisions, and that the tests see the device that they are meant for."""

import os

import pytest
import torch

from hcnn.device import apple_gpu_works, autocast_dtype, choose_device, numerics, sum_dtype, switched_off


def test_a_test_that_is_not_marked_gpu_sees_no_cuda_nor_do_its_processes():
    assert choose_device() == torch.device("cpu") and os.environ["CUDA_VISIBLE_DEVICES"] == ""


@pytest.mark.parametrize("name, said", [
    ("tpu", "auto, cpu, cuda"), (None, "auto, cpu, cuda"), ("mps", "no GPU of Apple's"), ("cuda:99", "it has 0 CUDA")])
def test_a_device_that_is_not_there_is_refused(name, said):
    with pytest.raises(ValueError, match=f"device must be .*{said}"):
        choose_device(name)


def test_a_gpu_of_apple_that_computes_nothing_right_is_not_used_and_the_reason_is_said(monkeypatch):
    def wrong(*given, **also):
        raise AssertionError("Tensor-likes are not close!")

    apple_gpu_works.cache_clear()
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)  # as on a Mac
    monkeypatch.setattr(torch.testing, "assert_close", wrong)
    with pytest.warns(UserWarning, match="everything runs on the CPU: "):
        assert choose_device() == torch.device("cpu")
    monkeypatch.setattr("hcnn.device.apple_gpu_works", lambda: True)
    assert choose_device() == torch.device("mps")
    assert (sum_dtype(choose_device()), autocast_dtype("fast", choose_device())) == (torch.float32, torch.float32)


def test_strict_means_float32_and_deterministic_algorithms_for_a_while():
    assert autocast_dtype("strict", torch.device("cpu")) == torch.float32
    with numerics("strict", torch.device("cpu")):
        assert torch.are_deterministic_algorithms_enabled() and not torch.backends.cudnn.allow_tf32
    assert not torch.are_deterministic_algorithms_enabled()


def test_fast_paths_can_be_switched_off_one_by_one(monkeypatch):
    monkeypatch.setenv("HCNN_WITHOUT", "graph")
    assert switched_off("graph") == "HCNN_WITHOUT=graph" and switched_off("fused") is None
