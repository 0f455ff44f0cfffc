"""The whole training step as one CUDA graph: what the CPU would launch kernel by kernel, the GPU replays at once.

A graph repeats fixed work on fixed memory. So what changes from step to step (which images, their shifts and flips,
the learning rate) lies in tensors on the device that are filled before each replay, and everything that the step
changes (weights, momenta, running averages, sums of the epoch) is changed in place.
"""

from contextlib import contextmanager

import torch

from hcnn.device import switched_off

WARM_UP = 3  # steps before the capture: they choose algorithms, compile kernels, make the momenta


def why_not(device, precision, processes, draws, optimiser="sgd"):
    """None, or the reason why steps are launched one kernel at a time. draws: the network draws random numbers."""
    if device.type != "cuda":
        return f"the device is {device.type.upper()}"
    if precision == "strict":  # a resumed run captures anew, and nobody has shown yet that it computes the same bits
        return "strict training must give the same bits however often it is resumed"
    if processes > 1:
        return "several processes exchange messages within a step"
    if draws:
        return "the network draws random numbers"
    return switched_off("graph") if optimiser == "sgd" else f"{optimiser} keeps its rate on the CPU"


class GraphedStep:
    """Calls step(*inputs), a function without result of tensors of fixed shapes: WARM_UP times as it is, then as a
    graph.

    Every call is one step: capturing computes nothing. step: the same work in every call, draws no random numbers,
    never waits for the GPU; it is not kept, so that no training keeps itself alive. changed: the tensors that it
    changes in place and that others watch. If the capture fails, `log` gets a line, and every call is made as it is.
    """

    def __init__(self, changed, log):
        self.changed, self.log = changed, log
        self.calls, self.inputs, self.replay = 0, None, None
        self.stream = torch.cuda.Stream()

    def __call__(self, step, *inputs):
        if self.calls == WARM_UP:
            self._capture(step, inputs)
        self.calls += 1
        # autograd remembers the stream of the first steps, and a graph must be captured on the same one
        with _on(self.stream):
            if self.replay is None:
                step(*inputs)
                return
            for mine, given in zip(self.inputs, inputs, strict=True):
                mine.copy_(given)
            self.replay()
        torch.autograd.graph.increment_version(self.changed)  # a replay tells no tensor that it has changed

    def _capture(self, step, inputs):
        self.inputs = [given.clone() for given in inputs]
        try:
            self.replay = _captured(lambda: step(*self.inputs), self.stream)
        except RuntimeError as error:  # of CUDA: what may not be captured, or memory; nothing was computed
            cause = error.__context__ or error  # the end of a capture fails after what has spoilt it
            self.log(f"no CUDA graph, steps go on kernel by kernel: {str(cause).splitlines()[0]}. If memory runs out, "
                     "start again with HCNN_WITHOUT=graph: what the capture had taken is not given back")


@contextmanager
def _on(stream):
    """Work on `stream` that waits for the current stream before, and that the current stream waits for after."""
    outer = torch.cuda.current_stream()
    stream.wait_stream(outer)
    with torch.cuda.stream(stream):
        yield
    outer.wait_stream(stream)


def _captured(work, stream):
    """A function that repeats work() on the GPU."""
    graph, outer = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
    try:
        with torch.cuda.graph(graph, stream=stream):
            work()
    finally:
        torch.cuda.set_stream(outer)  # a capture that fails leaves its own
    return graph.replay
