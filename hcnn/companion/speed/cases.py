"""What is compared when speed is measured: every way to compute a training step (forward and backward), and whether it is right.

A `Case` is one network or layer on one machine; `timing` measures it. The paths:

literal: `reference.literal_attribute_conv`, PyTorch's convolutions as a practitioner writes them, the denominator of every ratio.
looped: the 4-D convolution with the filters w, no normalisation, as a loop of 3-D ones; HCNN only. folded, unfused: one convolution
of all attributes (HCNN); ELU(x * h) in memory, then a matrix product (HCNN(+)). windowed: folded without structural zeros.
tiled: HCNN(+) in tiles on the CPU. fused: with kernels of Triton on the GPU, see `operators.fused`. graph: the path of the
network by default, as a CUDA graph.
"""

from dataclasses import dataclass, replace
from math import prod

import torch
import torch.nn.functional as F

from hcnn import counts as cost
from hcnn.architecture import Architecture
from hcnn.device import autocast_dtype
from hcnn.network import HCNN, AttributeConv
from hcnn.reference import attribute_layer, literal_attribute_conv

PATHS = {  # names of the paths of AttributeConv, for HCNN and HCNN(+)
    "hcnn": {"convolution": "folded", "windowed": "windowed", "fused": "fused"},
    "hcnn-plus": {"convolution": "unfused", "tiled": "tiled", "fused": "fused"},
}
PRECISIONS = ("fp32", "TF32", "bf16")
SUPPORT = (7, 11)


@dataclass(frozen=True)
class Case:
    """What is measured. what: a full `layer` (j >= 4) or the whole `network` for CIFAR-10; batch: of all processes together."""

    what: str = "layer"
    variant: str = "hcnn"
    K: int = 16
    Q: int = 32
    batch: int = 8
    size: int = 32
    device: str = "cpu"
    threads: int = 1
    processes: int = 1
    rounds: int = 3

    def __post_init__(self):
        if self.what not in ("layer", "network"):
            raise ValueError(f"what must be layer or network, got {self.what!r}")
        if self.batch % self.processes or self.threads % self.processes:
            raise ValueError(f"batch and threads must be multiples of processes = {self.processes}, got {self.batch} and {self.threads}")
        self.architecture  # its own checks

    @property
    def architecture(self):
        return Architecture.preset("cifar10", self.variant, K=self.K, Q=self.Q, image_size=(self.size, self.size))


def multiplications(case):
    """Of one image's forward pass: (those that meet no zero of the boundary, those of the dense products).

    HCNN: with the filters w. HCNN(+): with h, then with g. Every path of a variant is held against the same two numbers.
    """
    a = case.architecture
    if case.what == "network":
        layers, useful = a.layers, cost.multiply_adds(a)
    else:  # what the network of J = 5 has more than that of J = 4
        deep, shallow = (a.replace(J=J, num_classes=a.K, subsampled=()) for J in (5, 4))
        layers, (more, less) = deep.layers[3:], map(cost.multiply_adds, (deep, shallow))
        useful = {name: more[name] and more[name] - less[name] for name in more}
    return useful["h_g" if case.variant == "hcnn-plus" else "w"], sum(_dense(case, layer) for layer in layers)


def _dense(case, layer):
    inputs, outputs = prod(layer.grid) if layer.grid else 3, prod(layer.out_grid) * layer.filters
    taps = layer.spatial_support**2
    if layer.Q and case.variant == "hcnn-plus":
        return layer.Q * (inputs * taps * prod(layer.size) + outputs * inputs * prod(layer.out_size))
    return outputs * inputs * taps * prod(layer.out_size)


# ---- the paths


def looped(x, w):
    """W_j with the filters w (filters, s, s', k, k) themselves: a 3-D convolution for each of the s taps along v_{j-2}, summed.

    x (batch, a1, a0, height, width), zeros, subsampled by 2. Returns (batch, a1', a0', filters, height, width).
    """
    (n, a1, *inner), (_, s, s1, k, _), rows = x.shape, w.shape, -(-x.shape[1] // 2)
    padded, out = F.pad(x.flatten(3), (0, 0, 0, 0, s // 2, s // 2)).unflatten(3, inner[1:]), 0
    for t in range(s):
        z = padded[:, t : t + 2 * rows - 1 : 2].reshape(-1, 1, *inner)
        out = out + F.conv3d(z, w[:, None, t], stride=(2, 1, 1), padding=(s1 // 2, k // 2, k // 2))
    return out.view(n, rows, *out.shape[1:]).transpose(2, 3)


def _literal(operator, x):
    x = x.mean(1) if x.dim() == 6 else x
    return literal_attribute_conv(x, operator.h, operator.g, operator.scale, operator.shift, operator.bias, operator.space.stride, operator.elu,
                                  operator.eps)


def _layer(case):
    grid = (case.K // 2, case.K)
    return AttributeConv(grid, case.K, SUPPORT, case.Q, elu=case.variant == "hcnn-plus", generator=torch.Generator().manual_seed(0))


def available(case):
    """The (path, precision) of a case, the literal one in float32 first."""
    gpu = case.device == "cuda"
    bf16 = autocast_dtype("fast", torch.device(case.device)) == torch.bfloat16
    precisions = [p for p in PRECISIONS if p == "fp32" or (p == "TF32" and gpu) or (p == "bf16" and bf16)]
    paths = {"folded": precisions, "windowed": [] if gpu else ["fp32"], "fused": precisions if gpu else []}
    if case.variant == "hcnn-plus":
        paths = {"unfused": precisions, "tiled": [] if gpu else precisions, "fused": ["bf16"] if gpu and bf16 else []}
    elif case.what == "layer":
        paths["looped"] = ["fp32"]
    if gpu and case.what == "network":
        paths["graph"] = ["bf16"] if bf16 else ["fp32"]
    found = [("literal", p) for p in precisions] + [(path, p) for path, those in paths.items() for p in those]
    if case.what == "network" and not gpu:  # which takes seconds: the literal one, and what the network chooses by itself
        found = [(path, p) for path, p in found if (path, p) == ("literal", "fp32") or path == chosen(case.device, case.variant, p)]
    return found


def chosen(device, variant, precision):
    """The path that the layers of the paper's network take by themselves, see `operators.choice`."""
    if variant == "hcnn":
        return "fused" if device == "cuda" else "windowed" if precision == "fp32" else "folded"
    return "tiled" if device == "cpu" else "fused" if precision == "bf16" else "unfused"


def step_of(case, path, precision, dtype=torch.float32):
    """step() computes one forward and backward pass and returns (output, *gradients), of the input and the parameters.

    dtype: of input and parameters; bf16 is autocast. The numbers are random and the same for every path.
    """
    device, random = torch.device(case.device), torch.Generator().manual_seed(1)
    n = case.batch // case.processes
    if case.what == "network":
        model = HCNN(case.architecture, torch.Generator().manual_seed(0))
        x, operators = torch.randn(n, 3, case.size, case.size, generator=random), [o for o in model.operators if getattr(o, "Q", None)]
    else:
        model = _layer(case)
        x, operators = torch.randn(n, case.K // 2, case.K, case.size, case.size, generator=random), [model]
    model, x = model.to(device, dtype), x.to(device, dtype).requires_grad_(case.what == "layer")
    for operator in operators:
        if path == "literal":
            operator.path, operator.forward = "convolution", lambda x, operator=operator: _literal(operator, x)
        elif path not in ("looped", "graph"):
            operator.path = {name: own for own, name in PATHS[case.variant].items()}[path]
    leaves = [x, *model.parameters()] if x.requires_grad else [*model.parameters()]
    forward = model
    if path == "looped":
        w = torch.einsum("qab,fqst->fstab", model.h, model.g).detach().requires_grad_()
        convolve = attribute_layer if dtype == torch.float64 else looped  # equation (4) is the oracle
        forward, leaves = lambda x: convolve(x, w), [x, w]
    shape = (case.K // 4, case.K // 2, case.K, case.size, case.size) if case.what == "layer" else (case.architecture.num_classes,)
    direction = torch.randn((n, *shape), generator=random).to(device, dtype)

    def step():
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16"):
            out = forward(x)
        out.backward(direction.to(out.dtype))
        found = out.detach(), *(leaf.grad for leaf in leaves)
        for leaf in leaves:
            leaf.grad = None
        return found

    return step


UNIT = {"fp32": 2.0**-24, "TF32": 2.0**-11, "bf16": 2.0**-8}  # the largest relative error of one rounding
ROUNDINGS = 16
WINOGRAD = 20  # times the error of plain sums: cuDNN may convolve in float32 by Winograd's rule in tiles of up to 6 x 6, or by FFT


def allowed(case, precision):
    """The largest relative error of output and gradients, in the Euclidean norm, that rounding explains.

    A number of the forward pass is rounded as x, h, x * h, g and sum, one of the backward pass as often again, and the
    normalisation passes errors on once more: fewer than 16 roundings of at most one unit each, which stand in line at
    the worst, and float32 adds its own in sums of thousands of terms, which grow with the square root of their number.
    In a network this comes together layer by layer.
    """
    layers = 1 if case.what == "layer" else case.architecture.J - 1
    sums = 64 * UNIT["fp32"] * (WINOGRAD if case.device == "cuda" else 1)
    return layers * (ROUNDINGS * UNIT[precision] + sums)


def parity(case, path, precision):
    """(largest relative error of output and gradients against the literal implementation in float64, what is `allowed`)."""
    found = step_of(case, path, precision)()
    right = step_of(replace(case, device="cpu"), "looped" if path == "looped" else "literal", "fp32", torch.float64)()
    errors = torch.stack([(a.double().cpu() - b).norm() / b.norm() for a, b in zip(found, right)])
    return errors.max().item(), allowed(case, precision)
