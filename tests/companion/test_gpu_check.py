"""python -m hcnn gpu-check, its stages on the CPU at tiny sizes, and that the first fault ends it with a remedy."""

import json

import pytest
import torch

from hcnn import Architecture
from hcnn.companion.commands import main
from hcnn.companion.speed import gpu_check
from hcnn.companion.speed.gpu_check import Check, Failure

TINY = {variant: Architecture.preset("cifar10", variant, K=4, Q=2, J=4, subsampled=(1,), image_size=(4, 4))
        for variant in ("hcnn", "hcnn-plus")}


@pytest.fixture
def check(tmp_path):
    said = []
    check = Check(torch.device("cpu"), tmp_path / "out", dict(TINY), steps=2, log=said.append)
    check.said = said
    return check


@pytest.fixture
def right_kernels(monkeypatch):
    monkeypatch.setattr(gpu_check.fused, "trial_error", lambda layer, device, dtype, size: 0.001)


def test_all_stages_pass_on_a_machine_without_a_fault(check, right_kernels):
    assert gpu_check.gpu_check(check, stages=gpu_check.STAGES[1:]) and check.said[-1].startswith("no fault found after")
    report = json.loads((check.out / "report.json").read_text())
    assert report["failed"] is None and {row["variant"] for row in report["trials"]} == set(TINY)
    trained = (check.out / "graph").stat().st_mtime_ns
    assert gpu_check.gpu_check(check, stages=gpu_check.STAGES[2:4]), "a second check trains again"
    assert (check.out / "graph").stat().st_mtime_ns > trained
    assert report["hcnn graph"]["loss"] == report["hcnn eager"]["loss"] > 0 and report["hcnn-plus graph"]["ms"] > 0
    assert all("aten::" in (check.out / f"profile-{variant}.txt").read_text() for variant in TINY)


def spoil_the_second_loss(monkeypatch):
    right, calls = gpu_check._epochs, []

    def epochs(folder):
        calls.append(folder)
        return [row | dict(train_loss=row["train_loss"] * (1 if len(calls) % 2 else 1.03)) for row in right(folder)]

    monkeypatch.setattr(gpu_check, "_epochs", epochs)


def refuse_capture(monkeypatch):
    right = gpu_check.train

    def train(*arguments, log, **options):
        log("no CUDA graph, steps go on kernel by kernel")
        return right(*arguments, log=log, **options)

    monkeypatch.setattr(gpu_check, "train", train)


@pytest.mark.parametrize("spoil, stage, remedy", [
    (lambda m: m.setattr(gpu_check.fused, "trial_error", lambda *a: float("nan")), "kernels", "HCNN_WITHOUT=fused"),
    (lambda m: m.setattr(gpu_check.fused, "trial_error", lambda *a: "its kernels fail here"), "kernels",
     "HCNN_WITHOUT=fused"),
    (spoil_the_second_loss, "graph", "HCNN_WITHOUT=graph"), (refuse_capture, "graph", "HCNN_WITHOUT=graph"),
    (lambda m: m.setattr(gpu_check, "step_of", lambda *a: 1 / 0), "profile", "HCNN_WITHOUT=graph,fused")])
def test_the_first_fault_ends_the_check_with_what_to_switch_off(check, right_kernels, monkeypatch, spoil, stage,
                                                                remedy):
    spoil(monkeypatch)
    del check.architectures["hcnn"]
    number = [stage.__name__ for stage in gpu_check.STAGES].index(stage)
    assert not gpu_check.gpu_check(check, stages=gpu_check.STAGES[number:])
    assert check.said[-2].startswith(f"FAILED at {stage}: ") and remedy in check.said[-2]
    assert sum(" of " in line and line[0].isdigit() for line in check.said) == 1


def test_a_training_that_is_not_continued_is_a_fault(check, monkeypatch):
    right = gpu_check.train
    monkeypatch.setattr(gpu_check, "train", lambda *a, max_seconds, **k: right(*a, **k))  # never stopped
    with pytest.raises(Failure, match="was not continued"):
        gpu_check.resume(check)


def test_no_stage_begins_after_four_minutes(check):
    assert not gpu_check.gpu_check(check, max_seconds=-1) and "FAILED at versions: not begun" in check.said[0]


def test_the_command_says_that_there_is_no_gpu(tmp_path, capsys):
    assert main(["gpu-check", "--out", str(tmp_path)]) == 1
    assert "FAILED at versions: there is no CUDA device" in capsys.readouterr().out
