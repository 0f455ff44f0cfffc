"""Several processes share each minibatch and end with the weights of one process (two CPU processes under torchrun)."""

import subprocess
import sys

import pytest
import torch

from hcnn.companion.commands import main
from hcnn.training import run_folder as runs

# minibatches of 50 (25 images a process), 50, and 1: fewer images than processes
OPTIONS = ["train", "--dataset", "digits", "--K", "4", "--Q", "2", "--J", "4", "--set", "subsampled=[1,2]", "--lr", "0.05", "--epochs", "1",
           "--train-size", "101", "--batch-size", "50", "--precision", "strict", "--threads", "1"]


@pytest.fixture
def threads_kept():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def test_two_processes_of_25_images_end_with_the_weights_of_one_of_50(tmp_path, threads_kept):
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "hcnn"]
    result = subprocess.run([*launcher, *OPTIONS, "--out", str(tmp_path / "two")], capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("epoch ") == 1 and "2 processes" in result.stdout  # rank 0 alone prints
    assert main([*OPTIONS, "--out", str(tmp_path / "one")]) == 0
    (one,), (two,) = (list((tmp_path / name).iterdir()) for name in ("one", "two"))
    assert one.name == two.name and runs.read_run(two)["processes"] == 2
    weights = [runs.read_weights(folder, runs.read_run(folder)) for folder in (one, two)]
    for name, tensor in weights[0].items():
        # the last image is counted by both processes, so n / (n - 1) of the running variance has 2 n in one step of three
        tolerance = dict(atol=1e-5, rtol=2e-3 if name.endswith("running_var") else 1e-4)
        torch.testing.assert_close(weights[1][name], tensor, **tolerance, msg=lambda text: f"{name}: {text}")
    metrics = [[float(v) for v in (f / runs.METRICS).read_text().splitlines()[1].split(",")[:-1]] for f in (one, two)]
    assert metrics[0] == pytest.approx(metrics[1], rel=1e-3)
