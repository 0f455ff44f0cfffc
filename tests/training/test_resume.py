"""Stopped, killed or shared out, a run ends with the weights and metrics of an uninterrupted one, to the last bit.

A training that is killed is a process of its own, forked from a server that has imported torch and computed nothing.
"""

import multiprocessing
import os
import random
import signal
import socket
import time
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from small import OPTIONS, SHORT, checkpoint, content, fit, only, rows, weights

from hcnn import HCNN
from hcnn.companion.commands import main
from hcnn.training import loop, stopping
from hcnn.training import run_folder as runs

STEPS = 5  # an epoch
# In the middle of writing a file, of a pass through the network, and whenever the clock strikes.
MOMENTS = {runs.CHECKPOINT: 6, runs.METRICS: 3, "evaluation": 3, "step": 6, runs.WEIGHTS: 2, runs.RUN: 3, "clock": 1}
processes = multiprocessing.get_context("forkserver")
# SGD imports the last
processes.set_forkserver_preload(["pytest", "small", "hcnn.companion.commands", "torch._dynamo"])


# ---- stopped in this process

MECHANISMS = {
    "sgd": SHORT, "adamw": SHORT.replace(optimiser="adamw", lr=0.01, schedule="cosine"),
    "muon": SHORT.replace(optimiser="muon", lr=0.02, lr_rest=0.01, schedule="linear"),
    "growing": SHORT.replace(sizes=(4, 6, 8), label_smoothing=0.1, nesterov=True),
}


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_a_run_stopped_at_random_steps_ends_bit_for_bit_the_same(tmp_path, stop_after, monkeypatch, mechanism):
    recipe, choose, calls = MECHANISMS[mechanism], random.Random(mechanism), 0
    expected = content(fit(tmp_path / "whole", recipe=recipe))
    done = 0
    while done < 3:
        stop_after(choose.randint(2, 7))
        folder = fit(tmp_path / "parts", recipe=recipe)
        calls, done = calls + 1, runs.read_run(folder)["epochs_done"]
        assert len(rows(folder)) == done and (folder / runs.CHECKPOINT).exists() == (done < 3)
    assert calls > 2 and content(folder) == expected


def test_every_call_gets_on_however_short_its_time(tmp_path):
    done = calls = 0
    while not done and calls < 20:
        folder = fit(tmp_path, recipe=SHORT.replace(epochs=1), max_seconds=1e-9)
        calls, done = calls + 1, runs.read_run(folder)["epochs_done"]
    assert calls == STEPS + 1  # five steps, one evaluation
    assert runs.read_run(folder)["earlier"] == []  # all of them on this hardware, by this code


def test_a_run_continued_on_other_hardware_records_both(whole, stopped, monkeypatch):
    record = loop.provenance
    monkeypatch.setattr(loop, "provenance", lambda *arguments: record(*arguments) | dict(device="another"))
    begun = runs.read_run(stopped)["epochs_done"] + 1
    fit(stopped.parent)
    run, before = runs.read_run(stopped), runs.read_run(whole)
    assert (run["device"], run["first_epoch"]) == ("another", begun) and content(stopped) == content(whole)
    assert [(part["device"], part["first_epoch"]) for part in run["earlier"]] == [(before["device"], 1)]


# ---- signals


def test_a_signal_that_comes_twice_at_once_stops_cleanly_and_a_later_one_acts_as_it_did_before(monkeypatch, request):
    before = signal.default_int_handler  # a shell may start what runs in the background without any
    request.addfinalizer(partial(signal.signal, signal.SIGINT, signal.signal(signal.SIGINT, before)))
    with stopping.stop_on_signals() as stop:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        assert stop.reason() == "signal SIGTERM"
    monkeypatch.setattr(stopping, "REPEAT_SECONDS", 0)
    with pytest.raises(KeyboardInterrupt), stopping.stop_on_signals():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


# ---- other processes


def run(out, moment=None, n=1, number=signal.SIGKILL, device="cpu"):
    """What a process does: train below `out`, a checkpoint after every step, a signal to itself at the n-th
    `moment`.
    """
    left, layer = [n], HCNN.layer

    def strike():
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), number)

    def computed(self, x, j, *more, **options):
        if j == 2 and moment == ("step" if self.training else "evaluation"):
            strike()
        return layer(self, x, j, *more, **options)

    @contextmanager
    def in_halves(path, mode):
        with open(path, mode) as file:
            def write(content):
                file.write(content[:len(content) // 2])
                file.flush()
                strike()
                file.write(content[len(content) // 2:])

            yield SimpleNamespace(write=write, flush=file.flush, fileno=file.fileno)

    HCNN.layer = computed
    runs.open = lambda path, mode: (in_halves if moment and moment in Path(path).name else open)(path, mode)
    loop.CHECKPOINT_SECONDS = 0
    torch.set_num_threads(1)
    fit(out, device=device)


def start(target, *arguments, **options):
    process = processes.Process(target=target, args=arguments, kwargs=options)
    process.start()
    return process


def finish(process):
    """The exit code of a process, negative for a signal."""
    process.join(120)
    assert process.exitcode is not None
    return process.exitcode


def assert_usable(folder):
    """What a kill leaves: whole files only, and no row of metrics that is missing or there twice."""
    if (folder / runs.RUN).exists():
        checkpoint(folder)
    if (folder / runs.METRICS).exists():
        assert [int(row["epoch"]) for row in rows(folder)] == list(range(1, len(rows(folder)) + 1))


def kill(wanted, root, whole, choose):
    """Kill runs so many times at moments drawn by `choose`; start again after each; compare every run that ends."""
    moments = [moment for _ in range(wanted) for moment in MOMENTS][:wanted]
    for attempt in range(10 * wanted):
        out = root / str(attempt)
        while True:  # one run, to its end
            moment = moments[0] if moments else None
            trapped = () if moment in (None, "clock") else (moment, choose.randint(1, MOMENTS[moment]))
            process = start(run, out, *trapped)
            if moment == "clock":
                time.sleep(choose.uniform(0, 1))
                process.kill()
            code = finish(process)
            if code == 0:
                break
            assert code == -signal.SIGKILL
            moments.pop(0)
            for folder in out.glob("*"):
                assert_usable(folder)
                assert "." not in moment or (folder / f".{moment}.tmp").exists(), "killed in the middle of the file"
        assert content(only(out)) == content(whole)
        if not moments:
            return
    raise AssertionError(f"never killed: {moments[0]}")


def test_three_kills_in_a_checkpoint_a_metrics_row_and_an_evaluation_change_no_bit(tmp_path, whole):
    kill(3, tmp_path, whole, random.Random(0))


@pytest.mark.full
@pytest.mark.parametrize("seed", range(3))
def test_twenty_kills_at_random_moments_change_no_bit(tmp_path, whole, seed):
    kill(20, tmp_path, whole, random.Random(seed))


@pytest.mark.parametrize("moment, n, place", [
    ("step", 7, (1, 2)), pytest.param("evaluation", 1, (1, 1), marks=pytest.mark.full)])
def test_sigterm_stops_within_a_step_and_leaves_a_checkpoint_that_continues(tmp_path, whole, moment, n, place):
    assert finish(start(run, tmp_path, moment, n, signal.SIGTERM)) == 0
    folder = only(tmp_path)
    _, state = checkpoint(folder)
    assert (state["epoch"], state["step"]) == place  # the step of the signal, or the next, is the last
    with runs.lock(folder):  # a second process ends at once and changes nothing
        before = (folder / runs.CHECKPOINT).read_bytes()
        with pytest.raises(BlockingIOError, match="is being written by another process; wait for it or stop it"):
            fit(tmp_path)
        assert (folder / runs.CHECKPOINT).read_bytes() == before
    assert content(fit(tmp_path)) == content(whole)


def shared(rank, port, options):
    """One process of two, as torchrun starts them."""
    os.environ |= dict(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1",
                       MASTER_PORT=str(port))
    raise SystemExit(main(options))


def test_two_processes_of_25_images_end_with_the_weights_of_one_of_50(tmp_path):
    # minibatches of 50 (25 images a process), 50, and 1: fewer images than processes
    options = ["train", *OPTIONS, "--lr", "0.05", "--epochs", "1", "--train-size", "101", "--precision", "strict"]
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    both = [start(shared, rank, port, [*options, "--out", str(tmp_path / "two")]) for rank in range(2)]
    assert main([*options, "--out", str(tmp_path / "one")]) == 0
    assert [finish(process) for process in both] == [0, 0]
    one, two = only(tmp_path / "one"), only(tmp_path / "two")
    assert one.name == two.name and runs.read_run(two)["processes"] == 2
    expected, found = weights(one), weights(two)
    for name in expected:  # the last image is counted by both: n / (n - 1) of the variance has 2 n in one step of three
        tolerance = dict(atol=1e-5, rtol=2e-3 if name.endswith("running_var") else 1e-4)
        torch.testing.assert_close({name: found[name]}, {name: expected[name]}, **tolerance)
    metrics = [[float(value) for value in rows(folder)[0].values()] for folder in (one, two)]
    assert metrics[0] == pytest.approx(metrics[1], rel=1e-3)


@pytest.mark.gpu
def test_two_strict_runs_on_the_gpu_give_the_same_weights(tmp_path):
    for name in ("one", "two"):
        assert finish(start(run, tmp_path / name, device="cuda")) == 0
    assert content(only(tmp_path / "one")) == content(only(tmp_path / "two"))
