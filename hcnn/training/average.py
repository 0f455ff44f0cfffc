"""The exponential average of a network's weights, and statistics that fit it."""

from copy import deepcopy

import torch


class Average:
    """A network whose weights are the exponential average of those of the network that it follows.

    average <- decay average + (1 - decay) weights after every step, with decay at most (1 + t) / (10 + t) in step t, so
    that the first weights are soon forgotten. Statistics of normalisations are not averaged: averaged weights have
    activations of smaller variance than the weights they come from. `settle` measures them.
    """

    def __init__(self, network, decay):
        self.followed, self.decay = network, decay
        self.network = deepcopy(network)

    @torch.no_grad()
    def follow(self, t):
        """Step t, 0, 1, ... of the run is done."""
        share = 1 - min(self.decay, (1 + t) / (10 + t))
        torch._foreach_lerp_(list(self.network.parameters()), list(self.followed.parameters()), share)

    @torch.no_grad()
    def settle(self, minibatches):
        """Set the running statistics to their plain average over minibatches of training images."""
        for mine, other in zip(self.network.buffers(), self.followed.buffers()):
            mine.copy_(other)
        running = [module for module in self.network.modules() if hasattr(module, "running_mean")]
        momenta = [module.momentum for module in running]
        training = self.network.training
        self.network.train()
        try:
            for i, x in enumerate(minibatches):
                for module in running:
                    module.momentum = 1 / (i + 1)  # the first one replaces what was there
                self.network(x)
        finally:
            self.network.train(training)
            for module, momentum in zip(running, momenta):
                module.momentum = momentum
