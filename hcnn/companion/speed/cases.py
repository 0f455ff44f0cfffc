"""What is compared when speed is measured: every way to compute a training step, and whether it is right.

A `Case` is one network or layer on one machine; `timing` measures it. The paths:

literal: `reference.literal_attribute_conv`, PyTorch's convolutions as a practitioner writes them, the denominator of
every ratio. folded, unfused: one convolution of all attributes (HCNN); ELU(x * h) in memory, then a matrix product
(HCNN(+)). fourier: folded, or in tiles, and transformed along the last attribute, on the CPU. fused: HCNN(+) in Triton
on the GPU. graph: the path of the network by default, as a CUDA graph.
"""

from dataclasses import dataclass, replace
from math import prod

import torch

from hcnn import counts
from hcnn.architecture import Architecture
from hcnn.device import autocast_dtype
from hcnn.network import HCNN, AttributeConv
from hcnn.reference import literal_attribute_conv

PATHS = {  # operators.choice.PATHS: their names here, for HCNN and HCNN(+)
    "hcnn": {"convolution": "folded", "fourier": "fourier", "fused": "fused"},
    "hcnn-plus": {"convolution": "unfused", "fourier": "fourier", "fused": "fused"},
}
PRECISIONS = ("fp32", "TF32", "bf16")
SUPPORT = (7, 11)
UNIT = {"fp32": 2.0**-24, "TF32": 2.0**-11, "bf16": 2.0**-8}  # the largest relative error of one rounding
ROUNDINGS = 16
WINOGRAD = 16  # cuDNN may choose transforms for 3 x 3 filters in fp32, whose constants cost up to four bits


@dataclass(frozen=True)
class Case:
    """What is measured: a full `layer` (j >= 4) or the `network` for CIFAR-10; batch: images."""

    what: str = "layer"
    variant: str = "hcnn"
    K: int = 16
    Q: int = 32
    batch: int = 8
    size: int = 32
    device: str = "cpu"
    threads: int = 1
    rounds: int = 3

    def __post_init__(self):
        if self.what not in ("layer", "network"):
            raise ValueError(f"what must be layer or network, got {self.what!r}")
        _ = self.architecture  # its own checks

    @property
    def architecture(self):
        return Architecture.preset("cifar10", self.variant, K=self.K, Q=self.Q, image_size=(self.size, self.size))

    @property
    def name(self):
        """In words, for a line on a terminal."""
        return (f"{self.what} {self.architecture.name} K={self.K} Q={self.Q} batch {self.batch} size {self.size}, "
                f"{self.device}, {self.threads} threads")


def multiplications(case):
    """Of one image's forward pass: (those that meet no zero of the boundary, those of the dense products).

    HCNN: with the filters w. HCNN(+): with h, then with g. Every path of a variant is held against the same numbers.
    """
    a = case.architecture
    if case.what == "network":
        layers, useful = a.layers, counts.multiply_adds(a)
    else:  # what the network of J = 5 has more than that of J = 4
        deep, shallow = (a.replace(J=J, num_classes=a.K, subsampled=()) for J in (5, 4))
        layers, (more, less) = deep.layers[3:], map(counts.multiply_adds, (deep, shallow))
        useful = {name: more[name] and more[name] - less[name] for name in more}
    return useful["h_g" if case.variant == "hcnn-plus" else "w"], sum(_dense(case, layer) for layer in layers)


def _dense(case, layer):
    inputs, outputs = prod(layer.grid) if layer.grid else 3, prod(layer.out_grid) * layer.filters
    taps = layer.spatial_support**2
    if layer.Q and case.variant == "hcnn-plus":
        return layer.Q * (inputs * taps * prod(layer.size) + outputs * inputs * prod(layer.out_size))
    return outputs * inputs * taps * prod(layer.out_size)


def available(case):
    """The (path, precision) of a case, the literal one in float32 first."""
    gpu = case.device == "cuda"
    bf16 = autocast_dtype("fast", torch.device(case.device)) == torch.bfloat16
    precisions = [p for p in PRECISIONS if p == "fp32" or (p == "TF32" and gpu) or (p == "bf16" and bf16)]
    paths, on_cpu = {"literal": precisions}, [] if gpu else precisions
    if case.variant == "hcnn-plus":
        paths |= {"unfused": precisions, "fourier": on_cpu, "fused": ["bf16"] if gpu and bf16 else []}
    else:
        paths |= {"folded": precisions, "fourier": on_cpu, "fused": precisions if gpu else []}
    if gpu and case.what == "network":
        paths["graph"] = ["bf16"] if bf16 else ["fp32"]
    found = [(path, p) for path, those in paths.items() for p in those]
    if case.what == "network" and not gpu:  # which takes seconds: the literal one, and what the network chooses itself
        found = [(path, p) for path, p in found
                 if (path, p) == ("literal", "fp32") or path == chosen(case.device, case.variant, p)]
    return found


def chosen(device, variant, precision):
    """The path that the layers of the paper's network take by themselves, see `operators.choice`."""
    if device == "cpu":
        return "fourier"
    return "fused" if variant == "hcnn" or precision == "bf16" else "unfused"


def _literal(o):
    """The forward pass of an AttributeConv by the literal equations."""
    def forward(x):
        x = x.mean(1) if x.dim() == 6 else x
        return literal_attribute_conv(x, o.h, o.g, o.scale, o.shift, o.bias, o.space.stride, o.elu, o.eps)

    return forward


def step_of(case, path, precision, dtype=torch.float32):
    """step() computes one forward and backward pass and returns (output, *gradients), of the input and the parameters.

    dtype: of input and parameters; bf16 is autocast. The numbers are random and the same for every path.
    """
    initial, random = (torch.Generator().manual_seed(seed) for seed in (0, 1))
    device, n, grid = torch.device(case.device), case.batch, (case.K // 2, case.K)
    if case.what == "network":
        model = HCNN(case.architecture, initial)
        operators, shape = [o for o in model.operators if getattr(o, "Q", None)], (n, case.architecture.num_classes)
        x = torch.randn(n, 3, case.size, case.size, generator=random)
    else:
        model = AttributeConv(grid, case.K, SUPPORT, case.Q, elu=case.variant == "hcnn-plus", generator=initial)
        operators, shape = [model], (n, *model.out_grid, case.K, case.size, case.size)
        x = torch.randn(n, *grid, case.size, case.size, generator=random)
    model, x = model.to(device, dtype), x.to(device, dtype).requires_grad_(case.what == "layer")
    for operator in operators:
        if path == "literal":
            operator.forward, operator.path = _literal(operator), "convolution"  # one without the next layer's sum
        elif path != "graph":
            operator.path = {name: own for own, name in PATHS[case.variant].items()}[path]
    leaves = [*([x] if x.requires_grad else []), *model.parameters()]
    direction = torch.randn(shape, generator=random).to(device, dtype)

    def step():
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16"):
            out = model(x)
        out.backward(direction.to(out.dtype))
        found = out.detach(), *(leaf.grad for leaf in leaves)
        for leaf in leaves:
            leaf.grad = None
        return found

    return step


def parity(case, path, precision):
    """(largest relative error, what rounding explains) of output and gradients against the literal path in float64.

    Errors are relative in the Euclidean norm. A number of the forward pass is rounded as x, h, x * h, g and sum, one of
    the backward pass as often again, and the normalisation passes errors on once more: fewer than 16 roundings of at
    most one unit each, which stand in line at the worst, and float32 adds its own in sums of thousands of terms, which
    grow with the square root of their number. In a network this comes together layer by layer.
    """
    layers = 1 if case.what == "layer" else case.architecture.J - 1
    unit = UNIT[precision] * (WINOGRAD if (case.device, precision) == ("cuda", "fp32") else 1)
    found = step_of(case, path, precision)()
    right = step_of(replace(case, device="cpu"), "literal", "fp32", torch.float64)()
    errors = torch.stack([(a.double().cpu() - b).norm() / b.norm() for a, b in zip(found, right)])
    return errors.max().item(), layers * (ROUNDINGS * unit + 64 * UNIT["fp32"])
