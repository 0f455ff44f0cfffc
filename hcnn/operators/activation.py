"""The nonlinearity rho, and in the same pass the marginal sum over v_{j-3} that the next operator begins with."""

import torch
from torch.autograd.function import once_differentiable


class _Elu(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, groups, weight):
        y = torch.ops.aten.elu_(x.detach())
        ctx.save_for_backward(y)
        ctx.groups, ctx.weight = groups, weight
        if groups == 1:
            return y
        parts = y.permute(0, 2, 3, 1).unflatten(3, (groups, -1))  # dense where channels come last
        return parts.sum(3).mul_(weight).permute(0, 3, 1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        (y,) = ctx.saved_tensors
        elu_backward = torch.ops.aten.elu_backward
        if ctx.groups == 1:
            return elu_backward(grad, 1, 1, 1, True, y), None, None
        grad = torch.cat([grad * ctx.weight] * ctx.groups, 1)
        return elu_backward.grad_input(grad, 1, 1, 1, True, y, grad_input=grad), None, None


def elu_(x, marginal=False, reduction="mean"):
    """ELU in place of x (batch, a2, ..., height, width), which no other tensor may need; its backward pass reads the
    result only. With `marginal` also the sum (mean) over a2, equation (6): (batch, ..., height, width).

    PyTorch's own costs two copies where x is a view, and a pass for the sum; channels may come last in memory.
    """
    shape, groups = x.shape, x.shape[1] if marginal else 1
    weight = 1 / groups if reduction == "mean" else 1
    y = _Elu.apply(x.flatten(1, -3), groups, weight)
    return y.view(shape[0], *shape[1 + marginal :])
