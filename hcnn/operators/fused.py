"""W_j on a GPU in a few launches: kernels of Triton where they can be trusted, else PyTorch's operators, and why.

HCNN: the statistics, the normalised filters and the folded kernel are made by Triton, the convolution is PyTorch's.
HCNN(+): z = ELU(x * h + b) is made inside the products that consume it, and never in memory.
"""

from copy import deepcopy
from functools import cache
from importlib.util import find_spec

import torch
import torch.nn.functional as F

from hcnn.device import switched_off, world
from hcnn.operators import folding
from hcnn.operators.convolution import product_dtype, spatial_conv

SHARED_MEMORY = 132 * 1024  # bytes that a block of threads must be able to have, for the gradient of the matrix
TRIAL_ERROR = 0.03  # relative, in the Euclidean norm: seven roundings to bfloat16
LARGEST = 2**31 - 1  # addresses are 32-bit


def why_not(layer, device, dtype, size, batch=1):
    """None, or the reason why `layer` does not take the fused path for images of this size, in this dtype."""
    reason = _device_reason(device) or switched_off("fused") or _reason(layer, dtype)
    _, positions, maps = layer.table.shape
    numbers = batch * size[0] * size[1] * max(positions * layer.filters, maps * layer.spatial_support**2)
    if reason is None and numbers > LARGEST:
        reason = f"the minibatch of {batch} is too large"
    return reason or trial(layer, device, dtype, size)


def why_not_network(network, device, dtype):
    """The same for a whole `HCNN`: the first reason of a layer."""
    a = network.architecture
    layers = ((o, a.shape(j)[-2:]) for j, o in enumerate(network.operators) if getattr(o, "Q", None) is not None)
    return next(filter(None, (why_not(o, device, dtype, size) for o, size in layers)), None)


def fused(layer, x, marginal=False):
    """W_j of a layer that has Q, with its own statistics in training: x (batch, *grid, height, width).

    marginal: ELU follows and the mean or sum over the first attribute that is left, equation (6), which take HCNN's
    bias along: (batch, *out_grid[1:], filters, height', width').
    """
    from hcnn.operators import fused_triton, moments_triton, spread_triton  # Triton is not everywhere

    space, k = layer.space, layer.spatial_support
    form = torch.contiguous_format if layer.elu else torch.channels_last
    x = x.flatten(1, -3).to(product_dtype(x), memory_format=form)
    periodic = space.padding_mode == "periodic"
    bias = layer.g.new_zeros(layer.filters) if layer.bias is None else layer.bias
    with torch.autocast(x.device.type, enabled=False):
        if layer.training and _in_one_pass(layer):
            x, hb = moments_triton.normalised(x, layer.h, layer.scale, layer.shift, layer.running_mean,
                                              layer.running_var, layer.momentum, layer.eps, periodic)
        else:
            h, b = folding.normalised_filters(layer.h, *layer.statistics_of(x), layer.scale, layer.shift, layer.eps)
            hb = torch.cat([h.flatten(1), b[:, None]], 1)
        if layer.elu:
            before = tuple(space.before(n, k) for n in x.shape[-2:])
            y, bias = fused_triton.mixed_elu(x, hb, layer.g, bias, layer.table, layer.reads, space.stride, before,
                                             periodic), None
        else:
            kernel, bias = spread_triton.folded_operator(hb, layer.g, bias, layer.table, layer.reads, x.dtype)
            y = spatial_conv(x, kernel, None if marginal else bias.to(x.dtype), space)
        if not marginal:
            return y
        y = y.view(len(y), *layer.out_grid, layer.filters, *y.shape[-2:])
        return elu_over(y, layer.reduction == "mean", bias)


def elu_over(y, mean, bias=None):
    """The mean or sum over the first attribute of ELU(y + bias), in one pass."""
    from hcnn.operators.elu_triton import elu_over as kernel

    return kernel(y, mean, bias)


def _in_one_pass(layer):
    every = layer.statistics == "all" or layer.space.stride == 1
    return every and layer.spatial_support == 3 and layer.space.padding == "symmetric" and world() == 1


@cache
def _device_reason(device):
    if device.type != "cuda":
        return f"the device is {device.type}"
    if find_spec("triton") is None:
        return "Triton is not installed"
    properties = torch.cuda.get_device_properties(device)
    if properties.major < 8:
        return f"{properties.name} has no matrix products in bfloat16"
    if properties.shared_memory_per_block_optin < SHARED_MEMORY:
        return f"{properties.name} has less than {SHARED_MEMORY // 1024} KiB of shared memory"


def _reason(layer, dtype):
    if dtype != torch.bfloat16 and (layer.elu or dtype != torch.float32):
        return f"bfloat16 is needed, this is {str(dtype).removeprefix('torch.')}"
    Q, k = layer.Q, layer.spatial_support
    return f"Q = {Q} and {k} x {k} filters are more than 128 and 3 x 3" if Q > 128 or k > 3 else None


_tried = {}


def trial(layer, device, dtype, size):
    """None, or what is wrong when this device computes such a layer.

    Kernels are compiled on the machine they run on; what its compiler makes of them is checked before a training
    relies on it, once for every shape of a layer: what it makes of one says nothing about another.
    """
    shape = (layer.grid, layer.support, layer.filters, layer.Q, layer.elu, layer.space, layer.along, layer.statistics,
             layer.spatial_support, layer.reduction, layer.bias is None)
    key = device, dtype, size, shape
    if key not in _tried:
        error = trial_error(layer, device, dtype, size)
        if not isinstance(error, str):
            error = None if error < TRIAL_ERROR else f"its kernels are wrong here (relative error {error:.2g})"
        _tried[key] = error
    return _tried[key]


@torch.enable_grad()
def trial_error(layer, device, dtype, size):
    """The largest relative error of a layer, its ELU and its gradients beside PyTorch's operators in float32.

    On random numbers, in the Euclidean norm, NaN wherever a number is; or what failed, in words.
    """
    random = torch.Generator().manual_seed(0)
    layer = deepcopy(layer).to(device).float().train()
    for p in layer.parameters():
        p.data.copy_(torch.randn(p.shape, generator=random) * p[0].numel() ** -0.5)
    x = torch.randn(2, *layer.grid, *size, generator=random).to(device)
    direction = torch.randn(2, *layer.out_grid[1:], layer.filters, *map(layer.space.outputs, size),
                            generator=random).to(device)

    def found(path, dtype):
        copy, leaf = deepcopy(layer), x.clone().requires_grad_()
        copy.path, mean = path, layer.reduction == "mean"
        with torch.autocast(device.type, enabled=False):
            if path == "fused":
                out = copy(leaf.to(dtype), marginal=True)
            else:
                y = F.elu(copy(leaf.to(dtype)))
                out = y.mean(1) if mean else y.sum(1)
        gradients = torch.autograd.grad(out, [leaf, *copy.parameters()], direction.to(out.dtype))
        return [t.detach().float() for t in (out, *gradients, copy.running_mean, copy.running_var)]

    try:
        pairs = zip(found("fused", dtype), found("convolution", torch.float32))
    except Exception as error:  # whatever the compiler or the driver says: training goes on without
        said = str(error).strip().partition("\n")[0]
        return f"its kernels fail here ({type(error).__name__}: {said or 'no message'})"
    return torch.stack([(a - b).norm() / b.norm() for a, b in pairs]).max().item()
