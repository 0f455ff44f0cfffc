"""One minibatch: its images, the loss, the gradient, the step; kernel by kernel, as a CUDA graph, or shared out."""

import hashlib
from functools import partial

import torch
import torch.nn.functional as F
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from hcnn.data.augment import augment, shrink
from hcnn.device import rank, sum_dtype, world
from hcnn.operators import all_sum
from hcnn.training import graphed
from hcnn.training.optimisers import Optimiser
from hcnn.training.recipe import size_at


def place_seed(seed, *place):
    """The seed of a place in a training: (epoch,), or (epoch, step) for dropout."""
    digest = hashlib.sha256(" ".join(map(str, (seed, *place))).encode()).hexdigest()
    return int(digest[:15], 16)


def draw(seed, epoch, n, shift, flip):
    """The order of n images in an epoch, and the shift (n, 2) and flip (n,) of each place in it."""
    generator = torch.Generator().manual_seed(place_seed(seed, epoch))
    order = torch.randperm(n, generator=generator)
    shifts = torch.randint(-shift, shift + 1, (n, 2), generator=generator)
    return order, shifts, (torch.rand(n, generator=generator) < 0.5) & flip


class Step:
    """Takes the steps of a training: `step(minibatch, lr)` moves the network by one minibatch.

    totals: sum of the losses and number of right classes since they were set to zero. images, labels: all of the
    training set. All of these and the statistics (mean, std) are on the device.
    """

    def __init__(self, network, recipe, images, labels, statistics, dtype, eager, log):
        self.network, self.recipe, self.dtype, self.log = network, recipe, dtype, log
        self.images, self.labels, self.statistics = images, labels, statistics
        self.optimiser = Optimiser(network, recipe, on_device=eager is None)
        self.totals = torch.zeros(2, dtype=sum_dtype(images.device), device=images.device)
        self.eager, self.graphs = eager, {}  # why steps are launched kernel by kernel; a graph for each size of images

    def minibatches(self, seed, epoch, flip):
        """A function: step of an epoch -> which images it takes, their shifts and flips, and the size they get."""
        drawn = draw(seed, epoch, len(self.labels), self.recipe.shift, self.recipe.flip and flip)
        parts = [t.to(self.labels.device).split(self.recipe.batch_size) for t in drawn]
        size = size_at(self.recipe, epoch)
        return lambda step: (*(part[step] for part in parts), size)

    def __call__(self, minibatch, lr):
        self.optimiser.set_lr(lr)
        *inputs, size = minibatch
        descend = partial(self._descend, size)
        if self.eager is None and len(inputs[0]) == self.recipe.batch_size:
            if size not in self.graphs:  # the graph of the size before is not needed again
                self.graphs = {size: graphed.GraphedStep([*self.network.parameters(), *self.network.buffers()],
                                                         self.log)}
            descend = partial(self.graphs[size], descend)
        descend(*inputs)

    def _descend(self, size, chosen, shifts, flips):
        """The step of a minibatch, of which every process computes the gradient of its share."""
        n, processes = len(chosen), world()
        share = slice(n * rank() // processes, n * (rank() + 1) // processes) if n >= processes else slice(None)
        weight = 1 if n >= processes else 1 / processes  # fewer images than processes: all compute all, for a part each
        self._gradient(chosen[share], shifts[share], flips[share], size, n, weight)
        if processes > 1:
            gradients = [p.grad for p in self.network.parameters()]
            vector_to_parameters(all_sum(parameters_to_vector(gradients)), gradients)  # one message
        self.optimiser.step()

    def _gradient(self, chosen, shifts, flips, size, n, weight):
        """The gradient for some images of a minibatch of n, and their part of the totals."""
        x, y = augment(self.images[chosen], shifts, flips, *self.statistics), self.labels[chosen]
        x = x if size is None else shrink(x, size)
        with self.autocast():
            logits = self.network(x)
            loss = F.cross_entropy(logits.float(), y, reduction="sum")
        minimised, smoothing = loss, self.recipe.label_smoothing
        if smoothing:  # the share of the loss that all classes have alike
            alike = -F.log_softmax(logits.float(), 1).mean(1).sum()
            minimised = (1 - smoothing) * loss + smoothing * alike
        self.network.zero_grad()
        (minimised * weight / n).backward()
        self.totals += torch.stack([loss.detach(), (logits.argmax(1) == y).sum()]) * weight

    def autocast(self):
        """The precision of the training, for a while."""
        return torch.autocast(self.images.device.type, dtype=torch.bfloat16, enabled=self.dtype == torch.bfloat16)
