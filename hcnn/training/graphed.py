"""The whole training step as one CUDA graph: what the CPU would launch kernel by kernel, the GPU replays at once.

A graph repeats fixed work on fixed memory. So what changes from step to step (which images, their shifts and flips, the learning
rate) lies in tensors on the device that are filled before each replay, and everything that the step changes (weights, momenta,
running averages, sums of the epoch) is changed in place.
"""

from contextlib import contextmanager

import torch

from hcnn.device import switched_off

WARM_UP = 3  # steps before the capture: they choose algorithms, compile kernels, make the momenta


def why_not(device, precision, processes, draws):
    """None, or the reason why steps are launched one kernel at a time. draws: whether the network draws random numbers."""
    if device.type != "cuda":
        return "the device is the CPU"
    if precision == "strict":  # a resumed run captures anew, and nobody has shown yet that it computes the same bits
        return "strict training must give the same bits however often it is resumed"
    if processes > 1:
        return "several processes exchange messages within a step"
    return "the network draws random numbers" if draws else switched_off("graph")


def device_lr(lr, device):
    """The learning rate as a tensor, which fused SGD reads when the step is computed, not when it is launched."""
    return torch.tensor(lr, device=device)


def set_lr(optimiser, lr):
    """The learning rate of the next step, whether it is a number or a tensor; the CPU does not wait."""
    for group in optimiser.param_groups:
        if torch.is_tensor(group["lr"]):
            group["lr"].fill_(lr)
        else:
            group["lr"] = lr


class GraphedStep:
    """step(*inputs), a function without result of tensors of fixed shapes: the first WARM_UP calls as it is, then as a graph.

    Every call is one step: capturing computes nothing. step: draws no random numbers, never waits for the GPU. changed: the
    tensors that it changes in place and that others watch. If the capture fails, `log` gets a line, and every call is made as it is.
    """

    def __init__(self, step, changed, log):
        self.step, self.changed, self.log = step, changed, log
        self.calls, self.inputs, self.replay = 0, None, None
        self.stream = _new_stream()

    def __call__(self, *inputs):
        if self.calls == WARM_UP:
            self._capture(inputs)
        self.calls += 1
        with _on(self.stream):  # autograd remembers the stream of the first steps, and a graph must be captured on the same one
            if self.replay is None:
                self.step(*inputs)
                return
            for mine, given in zip(self.inputs, inputs, strict=True):
                mine.copy_(given)
            self.replay()
        torch.autograd.graph.increment_version(self.changed)  # a replay tells no tensor that it has changed

    def _capture(self, inputs):
        self.inputs = [given.clone() for given in inputs]
        try:
            self.replay = _captured(lambda: self.step(*self.inputs), self.stream)
        except RuntimeError as error:  # of CUDA: what may not be captured, or memory; nothing was computed
            cause = error.__context__ or error  # the end of a capture fails after what has spoilt it
            self.log(f"no CUDA graph, steps go on kernel by kernel: {str(cause).partition(chr(10))[0]}. If memory runs out, start "
                     "again with HCNN_WITHOUT=graph: what the capture had taken is not given back")


def _new_stream():
    return torch.cuda.Stream()


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
