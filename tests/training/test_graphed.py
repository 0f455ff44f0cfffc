"""The training step as a CUDA graph: the logic of buffers and captures without a GPU, the same weights with one."""

import pytest
import torch
from small import SHORT, TINY, fit, rows, weights

from hcnn import HCNN
from hcnn.training import graphed
from hcnn.training.graphed import WARM_UP, GraphedStep, why_not

RECIPE = SHORT.replace(epochs=2, batch_size=8, lr=0.05, schedule="linear", nesterov=True)


@pytest.fixture
def counter(fake_gpu):
    """A graphed step that adds its inputs to a tensor, and that tensor."""
    total = torch.zeros(())
    graph = GraphedStep([total], pytest.fail)
    return lambda *inputs: graph(lambda a, b: total.add_(a.sum() * b), *inputs), graph, total


def test_every_call_is_one_step_with_its_own_inputs_in_the_same_memory(counter, fake_gpu):
    step, graph, total = counter
    expected, places = 0, set()
    for i in range(2 * WARM_UP + 1):
        a, b = torch.tensor([1.0, i]), torch.tensor(10.0**i)
        step(a, b)
        expected += (1 + i) * 10.0**i
        assert total == expected and len(fake_gpu) == (i >= WARM_UP)
        a.zero_()  # the caller's tensors are not those of the graph
        places |= {t.data_ptr() for t in graph.inputs or ()}
    assert len(places) == 2


def test_a_capture_that_fails_costs_no_step_and_says_so(counter, monkeypatch):
    step, graph, total = counter
    said = []
    graph.log = said.append

    def fail(work, stream):
        try:
            raise RuntimeError("operation not permitted when stream is capturing\nmore")
        finally:
            raise RuntimeError("capturing failed because of a previous error")

    monkeypatch.setattr(graphed, "_captured", fail)
    for _ in range(WARM_UP + 3):
        step(torch.ones(2), torch.ones(()))
    assert total == 2 * (WARM_UP + 3)
    assert len(said) == 1 and said[0].startswith("no CUDA graph, steps go on kernel by kernel: operation not permitted "
                                                 "when stream is capturing. If memory runs out, start")


def test_a_replay_is_seen_by_the_folded_operators_of_evaluation(fake_gpu):
    """The cache of AttributeConv goes by the versions of its tensors, which a real replay does not change."""
    network = HCNN(TINY, torch.Generator().manual_seed(0)).eval()
    p, x = network.operators[2].g, torch.randn(1, 3, 8, 8)
    graph, scores = GraphedStep([*network.parameters(), *network.buffers()], pytest.fail), []
    for _ in range(WARM_UP + 2):
        with torch.no_grad():
            scores.append(network(x))
        graph(lambda: p.data.mul_(2))  # .data: no version
    assert torch.equal(scores[0], scores[WARM_UP]) and not torch.equal(scores[WARM_UP], scores[WARM_UP + 1])


@pytest.mark.parametrize("device, precision, processes, draws, optimiser, reason", [
    ("cuda", "fast", 1, False, "sgd", None), ("cpu", "fast", 1, False, "sgd", "CPU"),
    ("cuda", "strict", 1, False, "sgd", "resumed"), ("cuda", "fast", 2, False, "sgd", "messages"),
    ("cuda", "fast", 1, True, "sgd", "random numbers"), ("cuda", "fast", 1, False, "muon", "muon keeps its rate"),
    ("switched off", "fast", 1, False, "sgd", "HCNN_WITHOUT=graph")])
def test_when_steps_are_no_graph_a_reason_is_given(monkeypatch, device, precision, processes, draws, optimiser, reason):
    if device == "switched off":
        monkeypatch.setenv("HCNN_WITHOUT", "graph")
        device = "cuda"
    said = why_not(torch.device(device), precision, processes, draws, optimiser)
    assert said is None if reason is None else reason in said


@pytest.mark.parametrize("stop_after, sizes", [(None, ()), (8, (4, 8))])
def test_training_by_graph_makes_the_steps_of_eager_training(tmp_path, fake_gpu, monkeypatch, freed, stop_after, sizes):
    """6 steps an epoch, the last with fewer images and never a replay; with a stop and a resume in between; at rates
    that lie in a tensor.
    """
    recipe = RECIPE.replace(sizes=sizes)
    eager = fit(tmp_path / "eager", recipe=recipe)
    monkeypatch.setattr(graphed, "why_not", lambda *arguments: None)
    call, steps = GraphedStep.__call__, [0]

    def count(self, *inputs):
        steps[0] += 1
        call(self, *inputs)
        if steps[0] == stop_after:
            raise KeyboardInterrupt

    monkeypatch.setattr(GraphedStep, "__call__", count)
    if stop_after:
        with pytest.raises(KeyboardInterrupt):
            fit(tmp_path, recipe=recipe)
    with freed("_Training"):  # a graph must not keep its training, nor the GPU's memory, alive
        folder = fit(tmp_path, recipe=recipe)
    assert len(fake_gpu) >= 1 and steps[0] >= 10
    torch.testing.assert_close(weights(folder), weights(eager), rtol=1e-4, atol=1e-6)


@pytest.mark.gpu
def test_captured_steps_on_the_gpu_equal_eager_ones(tmp_path, monkeypatch):
    losses, said = [], []
    for name in ("graph", "eager"):
        folder = fit(tmp_path / name, recipe=RECIPE, device="cuda", precision="fast", log=said.append)
        losses.append([float(row["train_loss"]) for row in rows(folder)])
        monkeypatch.setattr(graphed, "why_not", lambda *arguments: "a test")
    assert not any("no CUDA graph" in line for line in said)
    assert losses[0] == pytest.approx(losses[1], rel=2e-2)  # bfloat16
