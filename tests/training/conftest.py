"""What tests of training share; the network and the images are in small.py."""

import gc
import weakref
from contextlib import contextmanager, nullcontext

import pytest
import torch
from small import fit

from hcnn.training import graphed, loop
from hcnn.training.stopping import Stop


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Where networks are this small, threads wait for each other and nothing else."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def whole(one_thread, tmp_path_factory):
    """The folder of a finished run; nobody writes to it."""
    return fit(tmp_path_factory.mktemp("whole"))


@pytest.fixture
def stop_after(monkeypatch):
    """A function that makes the next run stop when it asks for the n-th time whether it should: after n steps."""
    def set_limit(n):
        asked = [0]

        def reason(self):
            asked[0] += 1
            return "a test" if asked[0] >= n else None

        monkeypatch.setattr(Stop, "reason", reason)

    return set_limit


@pytest.fixture
def stopped(tmp_path, stop_after, monkeypatch):
    """The folder of a run that stopped in its second epoch, after step 2 of 5: a row of metrics, weights, a
    checkpoint.
    """
    stop_after(8)  # 5 steps, an evaluation's one batch, 2 steps
    folder = fit(tmp_path / "stopped")
    monkeypatch.setattr(Stop, "reason", lambda self: None)
    return folder


@pytest.fixture
def fake_gpu(monkeypatch):
    """Streams that are none, and a capture that computes nothing and is replayed by computing; a list of what was
    captured.
    """
    captured = []

    def capture(work, stream):
        captured.append(work)
        return work

    monkeypatch.setattr(torch.cuda, "Stream", lambda: None)
    monkeypatch.setattr(graphed, "_on", lambda stream: nullcontext())
    monkeypatch.setattr(graphed, "_captured", capture)
    return captured


@pytest.fixture
def freed(monkeypatch):
    """A context: what the function `name` of `loop` makes in it is freed at its end without the garbage collector."""
    @contextmanager
    def watch(name):
        make, made = getattr(loop, name), []

        def remembered(*arguments):
            new = make(*arguments)
            made.append(weakref.ref(new))
            return new

        monkeypatch.setattr(loop, name, remembered)
        gc.disable()
        try:
            yield
            assert len(made) == 1 and made[0]() is None
        finally:
            gc.enable()

    return watch
