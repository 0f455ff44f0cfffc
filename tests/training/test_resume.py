"""Killed at random moments, or stopped by a signal, a run ends with the weights and metrics of an uninterrupted one, bit for bit.

Every training is a process of its own, forked from a server that has imported torch and computed nothing.
"""

import csv
import multiprocessing
import os
import random
import signal
import time
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from hcnn import HCNN, Architecture
from hcnn.data.datasets import Dataset
from hcnn.training import loop as training
from hcnn.training import run_folder as runs
from hcnn.training.loop import train
from hcnn.training.recipe import Recipe

TINY = Architecture(K=4, Q=2, J=4, subsampled=(3,), image_size=(8, 8))
RECIPE = Recipe.preset(epochs=4, batch_size=10, lr=0.1, shift=1)
STEPS = 5  # an epoch
BEFORE, AFTER = "before a file gets its name", "after a file got its name"
# In the middle of writing a file, of a pass through the network, between two files; and whenever the clock strikes.
MOMENTS = {runs.CHECKPOINT: 6, runs.METRICS: 3, "evaluation": 4, "step": 6, runs.WEIGHTS: 2, runs.RUN: 3, BEFORE: 9, AFTER: 9, "clock": 1}
processes = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload(["pytest", "hcnn.training.loop", "torch._dynamo"])  # the last: SGD imports it when it is first used


def images():
    """44 images of 8 x 8 in minibatches of 10, 10, 10, 10, 4; 150 to test on, in two batches."""
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randint(0, 256, (194, 3, 8, 8), dtype=torch.uint8, generator=generator)
    labels = torch.arange(194) % 10
    return Dataset("digits", pixels[:44], labels[:44], pixels[44:], labels[44:], tuple("0123456789"), (0.5,) * 3, (0.3,) * 3, "0" * 64)


def run(out, moment=None, n=1, number=signal.SIGKILL, device="cpu", threads=1):
    """What a process does: train below `out`, a checkpoint after every step, a signal to itself at the n-th `moment`."""
    torch.set_num_threads(threads)
    training.CHECKPOINT_SECONDS = 0
    trap(moment, n, number)
    train(TINY, RECIPE, images(), out=out, device=device, precision="strict", log=lambda line: None)


def trap(moment, n, number):
    """Have this process send itself a signal at the n-th `moment`."""
    left, layer, replace = [n], HCNN.layer, os.replace

    def strike():
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), number)

    def computed(self, x, j):
        if j == 2 and moment == ("step" if self.training else "evaluation"):
            strike()
        return layer(self, x, j)

    def replaced(*paths):
        if moment == BEFORE:
            strike()
        replace(*paths)
        if moment == AFTER:
            strike()

    @contextmanager
    def in_halves(path, mode):
        with open(path, mode) as file:
            def write(content):
                file.write(content[:len(content) // 2])
                file.flush()
                strike()
                file.write(content[len(content) // 2:])

            yield SimpleNamespace(write=write, flush=file.flush, fileno=file.fileno)

    HCNN.layer, os.replace = computed, replaced
    runs.open = lambda path, mode: (in_halves if moment and moment in Path(path).name else open)(path, mode)


def start(*arguments, **options):
    process = processes.Process(target=run, args=arguments, kwargs=options)
    process.start()
    return process


def finish(process):
    """The exit code of a process, negative for a signal."""
    process.join(60)
    assert process.exitcode is not None
    return process.exitcode


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of an uninterrupted run, and the seconds that it took."""
    out = tmp_path_factory.mktemp("whole")
    finish(start(out / "first"))  # starts the server
    begin = time.monotonic()
    assert finish(start(out / "second")) == 0
    return only(out / "second"), time.monotonic() - begin


def only(out):
    (folder,) = Path(out).iterdir()
    return folder


def rows(folder):
    """metrics.csv without the seconds, as texts: all digits."""
    with open(folder / runs.METRICS) as file:
        return [{key: value for key, value in row.items() if key != "seconds"} for row in csv.DictReader(file)]


def assert_same(folder, other):
    assert (folder / runs.WEIGHTS).read_bytes() == (other / runs.WEIGHTS).read_bytes()
    assert rows(folder) == rows(other) and [row["epoch"] for row in rows(folder)] == ["1", "2", "3", "4"]
    assert runs.read_run(folder)["weights_sha256"] == runs.read_run(other)["weights_sha256"]
    assert sorted(p.name for p in folder.iterdir()) == [".lock", runs.METRICS, runs.RUN, runs.WEIGHTS]


def assert_usable(folder):
    """What a kill leaves: whole files only, and no row of metrics that is missing or there twice."""
    for file, read in ((runs.CHECKPOINT, runs.read_checkpoint), (runs.RUN, runs.read_run), (runs.METRICS, rows)):
        if (folder / file).exists():
            read(folder)
    if (folder / runs.METRICS).exists():
        assert [int(row["epoch"]) for row in rows(folder)] == list(range(1, len(rows(folder)) + 1))


def kill(wanted, root, whole, choose):
    """Kill runs so many times, each at a moment drawn by `choose`; start again after each, and compare every run that ends."""
    reference, seconds = whole
    moments = [moment for _ in range(wanted) for moment in MOMENTS][:wanted]
    for attempt in range(10 * wanted):
        out = root / str(attempt)
        while True:  # one run, to its end
            moment = moments[0] if moments else None
            process = start(out) if moment in (None, "clock") else start(out, moment, choose.randint(1, MOMENTS[moment]))
            if moment == "clock":
                time.sleep(choose.uniform(0, seconds))
                process.kill()
            code = finish(process)
            if code == 0:
                break
            assert code == -signal.SIGKILL
            moments.pop(0)
            for folder in out.glob("*"):
                assert_usable(folder)
                assert "." not in moment or (folder / f".{moment}.tmp").exists(), "killed in the middle of the file"
        assert_same(only(out), reference)
        if not moments:
            return
    raise AssertionError(f"never killed: {moments[0]}")


def test_three_kills_in_a_checkpoint_a_metrics_row_and_an_evaluation_change_no_bit(tmp_path, whole):
    kill(3, tmp_path, whole, random.Random(0))


@pytest.mark.parametrize("file", range(4))
def test_a_kill_among_the_last_files_of_a_run_changes_no_bit(tmp_path, whole, file):
    names = 2 + 4 * (STEPS + 1 + 3)  # metrics and run.json; then, each epoch, checkpoints and three files
    assert finish(start(tmp_path, AFTER, names - file)) == -signal.SIGKILL
    assert_usable(only(tmp_path))
    assert finish(start(tmp_path)) == 0
    assert_same(only(tmp_path), whole[0])


@pytest.mark.full
@pytest.mark.parametrize("seed", range(3))
def test_twenty_kills_at_random_moments_change_no_bit(tmp_path, whole, seed):
    kill(20, tmp_path, whole, random.Random(seed))


@pytest.mark.parametrize("moment, n, stopped", [("step", 7, (1, 2)), ("evaluation", 1, (0, STEPS)), (runs.CHECKPOINT, 3, (0, 4))])
def test_sigterm_stops_within_a_step_and_leaves_a_checkpoint_that_continues(tmp_path, whole, moment, n, stopped):
    assert finish(start(tmp_path, moment, n, signal.SIGTERM)) == 0
    _, state = runs.read_checkpoint(only(tmp_path))
    assert (state["epoch"], state["step"]) == stopped  # steps that are done: the one of the signal, none after it
    assert finish(start(tmp_path)) == 0
    assert_same(only(tmp_path), whole[0])


def test_a_second_process_on_one_folder_ends_at_once_and_changes_nothing(tmp_path, whole):
    finish(start(tmp_path, "step", 3))
    folder = only(tmp_path)
    before = {p.name: p.read_bytes() for p in folder.iterdir() if p.name != ".lock"}
    with runs.lock(folder):
        assert finish(start(tmp_path)) == 1
    assert {p.name: p.read_bytes() for p in folder.iterdir() if p.name != ".lock"} == before
    assert finish(start(tmp_path)) == 0
    assert_same(folder, whole[0])


def test_another_number_of_threads_moves_weights_by_a_ten_thousandth_at_most(tmp_path, whole):
    assert finish(start(tmp_path, threads=3)) == 0
    weights = [runs.read_weights(folder, runs.read_run(folder)) for folder in (whole[0], only(tmp_path))]
    for name, tensor in weights[0].items():
        torch.testing.assert_close(weights[1][name], tensor, atol=1e-4, rtol=1e-4, msg=lambda text: f"{name}: {text}")


@pytest.mark.gpu
def test_two_strict_runs_on_the_gpu_give_the_same_weights(tmp_path):
    for name in ("one", "two"):
        assert finish(start(tmp_path / name, device="cuda")) == 0
    assert_same(only(tmp_path / "one"), only(tmp_path / "two"))
