"""The optimisers of a Recipe under one roof: what moves the filters, on which weight decay acts, and the rest."""

import torch


class Optimiser:
    """Moves the parameters of a network as its Recipe says; weight decay acts on `network.filter_parameters()`.

    on_device: the learning rates are tensors and SGD is fused, so that a step can be captured as a CUDA graph.
    """

    def __init__(self, network, recipe, on_device=None):
        self.names = {p: name for name, p in network.named_parameters()}
        filters = network.filter_parameters()
        kept = set(filters)
        rest = [p for p in network.parameters() if p not in kept]
        self.recipe, self.matrices, self.parts = recipe, {}, []
        device = self.device = filters[0].device
        groups = [dict(params=filters, weight_decay=recipe.weight_decay), dict(params=rest, weight_decay=0.0)]
        if recipe.optimiser == "sgd":
            lr = torch.tensor(recipe.lr, device=device) if on_device else recipe.lr
            self.parts = [torch.optim.SGD(groups, lr=lr, momentum=recipe.momentum, nesterov=recipe.nesterov,
                                          fused=True if on_device or device.type == "cuda" else None)]
        elif recipe.optimiser == "adamw":
            self.parts = [torch.optim.AdamW(groups, lr=recipe.lr, betas=recipe.betas)]
        else:  # torch's Muon wants matrices: views of the filters, a row each
            self.matrices = {torch.nn.Parameter(p.detach().view(len(p), -1)): p for p in filters}
            self.parts = [
                torch.optim.Muon(list(self.matrices), lr=recipe.lr, momentum=recipe.momentum,
                                 weight_decay=recipe.weight_decay),
                torch.optim.AdamW(rest, lr=recipe.lr_rest, betas=recipe.betas, weight_decay=0.0)]
        self.shares = [recipe.lr, recipe.lr_rest or 0.0]  # of the rate, part by part

    def set_lr(self, lr):
        """The rate of the next step, that of the filters; the device's queue does not wait."""
        for part, largest in zip(self.parts, self.shares):
            for group in part.param_groups:
                rate = lr * largest / self.recipe.lr
                if torch.is_tensor(group["lr"]):
                    group["lr"].fill_(rate)
                else:
                    group["lr"] = rate

    def step(self):
        for matrix, p in self.matrices.items():
            matrix.grad = p.grad.view_as(matrix)
        for part in self.parts:
            part.step()

    def _states(self):
        """{name of a parameter: what is remembered of it}."""
        return {self.names[self.matrices.get(p, p)]: part.state[p]
                for part in self.parts for group in part.param_groups for p in group["params"]}

    def tensors(self):
        """{name: tensor} of what it remembers, for a checkpoint: momenta, averages, numbers of steps."""
        return {f"{entry}.{name}": value for name, state in self._states().items() for entry, value in state.items()
                if torch.is_tensor(value)}

    def load(self, tensors):
        """Remember what `tensors` of a checkpoint holds; {} forgets nothing."""
        states = self._states()
        for key, tensor in tensors.items():
            entry, _, name = key.partition(".")
            # torch keeps the number of steps on the CPU
            states[name][entry] = tensor if entry == "step" and tensor.dim() == 0 else tensor.to(self.device)
