"""The training step as a CUDA graph: the logic of buffers and captures without a GPU, the same weights with one."""

import gc
import weakref
from contextlib import nullcontext

import pytest
import torch

from hcnn import HCNN, Architecture
from hcnn.training import graphed, loop
from hcnn.training.graphed import WARM_UP, GraphedStep, why_not
from hcnn.training.loop import train
from hcnn.training.recipe import Recipe
from hcnn.training.run_folder import read_run, read_weights

ARCHITECTURE = Architecture.preset("digits", K=4, Q=2, J=4, subsampled=(1,), image_size=(8, 8))
RECIPE = Recipe(epochs=2, batch_size=8, lr=0.05)


class Bound(GraphedStep):
    """A graphed step that knows what it repeats."""

    def __init__(self, step, changed, log):
        super().__init__(changed, log)
        self.step = step

    def __call__(self, *inputs):
        super().__call__(self.step, *inputs)


@pytest.fixture
def fake_gpu(monkeypatch):
    """Streams that are none, and a capture that computes nothing and is replayed by computing; a list of what was captured."""
    captured = []

    def capture(work, stream):
        captured.append(work)
        return work

    monkeypatch.setattr(graphed, "_new_stream", lambda: None)
    monkeypatch.setattr(graphed, "_on", lambda stream: nullcontext())
    monkeypatch.setattr(graphed, "_captured", capture)
    return captured


@pytest.fixture
def counter(fake_gpu):
    """A graphed step that notes its inputs in a tensor, and that tensor."""
    total = torch.zeros(())
    return Bound(lambda a, b: total.add_(a.sum() * b), [total], pytest.fail), total


def test_every_call_is_one_step_with_its_own_inputs(counter, fake_gpu):
    step, total = counter
    expected = 0
    for i in range(2 * WARM_UP + 1):
        a, b = torch.tensor([1.0, i]), torch.tensor(10.0**i)
        step(a, b)
        expected += (1 + i) * 10.0**i
        assert total == expected and len(fake_gpu) == (i >= WARM_UP)
        a.zero_()  # the caller's tensors are not those of the graph


def test_a_replay_reads_the_same_memory_every_time(counter):
    step, _ = counter
    for i in range(WARM_UP + 1):
        step(torch.ones(2), torch.ones(()))
    places = [t.data_ptr() for t in step.inputs]
    step(torch.zeros(2), torch.zeros(()))
    assert [t.data_ptr() for t in step.inputs] == places and all((t == 0).all() for t in step.inputs)


def test_inputs_of_another_shape_or_number_are_refused(counter):
    step, _ = counter
    for i in range(WARM_UP + 1):
        step(torch.ones(2), torch.ones(()))
    with pytest.raises(ValueError):
        step(torch.ones(2))
    with pytest.raises(RuntimeError):
        step(torch.ones(3), torch.ones(()))


def test_a_capture_that_fails_costs_no_step_and_says_so(counter, monkeypatch):
    step, total = counter
    said = []
    step.log = said.append

    def fail(work, stream):
        try:
            raise RuntimeError("operation not permitted when stream is capturing\nmore")
        finally:
            raise RuntimeError("capturing failed because of a previous error")

    monkeypatch.setattr(graphed, "_captured", fail)
    for i in range(WARM_UP + 3):
        step(torch.ones(2), torch.ones(()))
    assert total == 2 * (WARM_UP + 3)
    assert len(said) == 1 and said[0].startswith(
        "no CUDA graph, steps go on kernel by kernel: operation not permitted when stream is capturing. If memory runs out, start")


def test_a_replay_is_seen_by_the_folded_operators_of_evaluation(fake_gpu):
    """The cache of AttributeConv goes by the versions of its tensors, which a real replay does not change."""
    network = HCNN(Architecture(K=4, Q=2, J=4, subsampled=(), image_size=(4, 4)), torch.Generator().manual_seed(0)).eval()
    p, x = network.operators[2].g, torch.randn(1, 3, 4, 4)
    step = Bound(lambda: p.data.mul_(2), [*network.parameters(), *network.buffers()], pytest.fail)  # .data: no version
    scores = []
    for _ in range(WARM_UP + 2):
        with torch.no_grad():
            scores.append(network(x))
        step()
    assert torch.equal(scores[0], scores[WARM_UP]) and not torch.equal(scores[WARM_UP], scores[WARM_UP + 1])


def test_a_rate_in_a_tensor_moves_the_weights_as_a_number_does():
    weights = []
    for lr, fused in ((0.1, False), (torch.tensor(0.1), True)):
        p = torch.nn.Parameter(torch.linspace(-1, 1, 5))
        optimiser = torch.optim.SGD([dict(params=[p], weight_decay=0.1)], lr=lr, momentum=0.9, nesterov=True, fused=fused)
        for step in range(4):
            p.grad = torch.sin(p.detach() * step)
            rate = 0.1 / (step + 1)
            for group in optimiser.param_groups:
                group["lr"] = group["lr"].fill_(rate) if fused else rate
            optimiser.step()
        weights.append(p.detach())
    assert torch.allclose(*weights, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("device, precision, processes, draws, reason", [
    ("cuda", "fast", 1, False, None), ("cpu", "fast", 1, False, "CPU"), ("cuda", "strict", 1, False, "resumed"),
    ("cuda", "fast", 2, False, "messages"), ("cuda", "fast", 1, True, "random numbers")])
def test_when_steps_are_no_graph_a_reason_is_given(device, precision, processes, draws, reason):
    said = why_not(torch.device(device), precision, processes, draws)
    assert said is None if reason is None else reason in said


def test_the_user_can_do_without_graphs(monkeypatch):
    monkeypatch.setenv("HCNN_WITHOUT", "graph")
    assert why_not(torch.device("cuda"), "fast", 1, False) == "HCNN_WITHOUT=graph"


@pytest.mark.parametrize("stop_after", [None, 2, 5])
def test_training_by_graph_makes_the_steps_of_eager_training(random_dataset, tmp_path, fake_gpu, monkeypatch, stop_after):
    """6 steps an epoch, the last with fewer images and never a replay; with a stop and a resume in between."""
    data = random_dataset(44, 10)
    eager = train(ARCHITECTURE, RECIPE, data, out=tmp_path / "eager", device="cpu", log=lambda line: None)
    monkeypatch.setattr(graphed, "why_not", lambda *arguments: None)
    steps = 0
    step = GraphedStep.__call__

    def count(self, *inputs):
        nonlocal steps
        steps += 1
        step(self, *inputs)
        if steps == stop_after:
            raise KeyboardInterrupt

    monkeypatch.setattr(GraphedStep, "__call__", count)
    if stop_after:
        with pytest.raises(KeyboardInterrupt):
            train(ARCHITECTURE, RECIPE, data, out=tmp_path, device="cpu", log=lambda line: None)
    folder = train(ARCHITECTURE, RECIPE, data, out=tmp_path, device="cpu", log=lambda line: None)
    assert len(fake_gpu) >= 1 and steps >= 10
    a, b = (read_weights(f, read_run(f)) for f in (eager, folder))
    assert all(torch.allclose(a[name], b[name], rtol=1e-4, atol=1e-6) for name in a)


def test_a_training_leaves_no_memory_to_the_collector(random_dataset, tmp_path, fake_gpu, monkeypatch):
    """A queue of trainings would keep the GPU's memory of the earlier ones until the collector happens to run."""
    networks = []
    monkeypatch.setattr(graphed, "why_not", lambda *arguments: None)
    monkeypatch.setattr(loop, "build", lambda *arguments: networks.append(weakref.ref(made := HCNN(*arguments))) or made)
    monkeypatch.setattr(graphed, "_captured", lambda work, stream: nullcontext)  # a graph, too, keeps what it works on
    gc.disable()
    try:
        train(ARCHITECTURE, RECIPE, random_dataset(44, 10), out=tmp_path, device="cpu", log=lambda line: None)
        assert len(networks) == 1 and networks[0]() is None
    finally:
        gc.enable()


@pytest.mark.gpu
def test_captured_steps_on_the_gpu_equal_eager_ones(random_dataset, tmp_path, monkeypatch):
    data = random_dataset(44, 10)
    losses, said = [], []
    for name in ("graph", "eager"):
        folder = train(ARCHITECTURE, RECIPE, data, out=tmp_path / name, device="cuda", log=said.append)
        losses.append([float(row.split(",")[2]) for row in (folder / "metrics.csv").read_text().splitlines()[1:]])
        monkeypatch.setattr(graphed, "why_not", lambda *arguments: "a test")
    assert not any("no CUDA graph" in line for line in said)
    assert losses[0] == pytest.approx(losses[1], rel=2e-2)  # bfloat16
