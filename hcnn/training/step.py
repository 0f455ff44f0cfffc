"""One minibatch: its images, the loss, the gradient, the step; kernel by kernel, as a CUDA graph, or shared out."""

import hashlib
from dataclasses import dataclass
from functools import partial, singledispatch
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F

from hcnn.data.augment import augment, shrink
from hcnn.device import rank, sum_dtype, world
from hcnn.training import graphed
from hcnn.training.optimisers import Optimiser
from hcnn.training.recipe import size_at


@dataclass(frozen=True)
class Context:
    """What an objective may depend on: where runs are kept, the data set and its split, the device of the training."""

    root: Path
    dataset: str
    split: str
    device: torch.device


def cross_entropy(network, x, y):
    """Class scores, the sum of the images' cross-entropies, and what is minimised: the same."""
    logits = network(x)
    loss = F.cross_entropy(logits.float(), y, reduction="sum")
    return logits, loss, loss


@singledispatch
def objective(description, context: Context):
    """What training minimises: a function (network, x, y) -> class scores, sum of cross-entropies, what is minimised.

    An open function: `cross_entropy`, unless whoever describes another network registers its own.
    """
    return cross_entropy


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

    def __init__(self, network, recipe, loss, images, labels, statistics, dtype, eager, log):
        self.network, self.recipe, self.loss, self.dtype, self.log = network, recipe, loss, dtype, log
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

    def __call__(self, minibatch, lr, wishes=tuple):
        """One step.

        wishes(), asked once the gradient is there: whether this process wants something, such as to stop; returns
        whether any process does.
        """
        self.optimiser.set_lr(lr)
        (chosen, shifts, flips, size), processes = minibatch, world()
        n = len(chosen)
        if self.eager is None and n == self.recipe.batch_size:
            if size not in self.graphs:  # the graph of the size before is not needed again
                self.graphs = {size: graphed.GraphedStep([*self.network.parameters(), *self.network.buffers()],
                                                         self.log)}
            self.graphs[size](partial(self._whole, size), chosen, shifts, flips)
            return wishes()
        share = slice(n * rank() // processes, n * (rank() + 1) // processes) if n >= processes else slice(None)
        weight = 1 if n >= processes else 1 / processes  # fewer images than processes: all compute all, for a part each
        self.gradient(chosen[share], shifts[share], flips[share], size, n, weight)
        wished = wishes()
        if processes > 1:
            wished = self._sum_gradients(wished)
        self.optimiser.step()
        return wished

    def gradient(self, chosen, shifts, flips, size, n, weight=1):
        """The gradient for some images of a minibatch of n, and their part of the totals."""
        x, y = self.inputs(chosen, shifts, flips, size), self.labels[chosen]
        with self.autocast():
            logits, loss, minimised = self.loss(self.network, x, y)
        smoothing = self.recipe.label_smoothing
        if smoothing:  # the share of the loss that all classes have alike
            alike = -F.log_softmax(logits.float(), 1).mean(1).sum()
            minimised = (1 - smoothing) * minimised + smoothing * alike
        self.network.zero_grad()
        (minimised * weight / n).backward()
        self.totals += torch.stack([loss.detach(), (logits.argmax(1) == y).sum()]) * weight

    def inputs(self, chosen, shifts, flips, size):
        """The images of a minibatch as the network sees them."""
        x = augment(self.images[chosen], shifts, flips, *self.statistics)
        return x if size is None else shrink(x, size)

    def autocast(self):
        """The precision of the training, for a while."""
        return torch.autocast(self.images.device.type, dtype=torch.bfloat16, enabled=self.dtype == torch.bfloat16)

    def _whole(self, size, chosen, shifts, flips):
        self.gradient(chosen, shifts, flips, size, self.recipe.batch_size)
        self.optimiser.step()

    def _sum_gradients(self, wishes):
        """Sum the gradients over the processes in one message, which carries the wishes as well."""
        parameters = list(self.network.parameters())
        flat = torch.cat([p.grad.reshape(-1) for p in parameters]
                         + [torch.tensor(wishes, dtype=torch.float32, device=self.images.device)])
        dist.all_reduce(flat)
        parts = flat.split([p.numel() for p in parameters] + [len(wishes)])
        for p, part in zip(parameters, parts):
            p.grad.copy_(part.view_as(p))
        return (parts[-1] > 0).tolist() if wishes else wishes
