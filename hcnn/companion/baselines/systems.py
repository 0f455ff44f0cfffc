"""The networks that the paper compares itself with in tables 1 and 2, in plain PyTorch; their recipes are `Recipe.preset(variant)`.

A `Baseline` stands wherever an `Architecture` does: in a run's parameters, in training, tables and checks. Facts are from

* All-CNN-C: Springenberg, Dosovitskiy, Brox, Riedmiller (2014), arXiv 1412.6806. Initialisation and batch size are not given.
* Network in Network: Lin, Chen, Yan (2013), arXiv 1312.4400; N(0, 0.05) from the authors' Caffe model.
* ResNet-20: He, Zhang, Ren, Sun (2015), arXiv 1512.03385, section 4.2, shortcuts without parameters (option A).
* WRN-16-1 and its teacher WRN-40-1: Zagoruyko, Komodakis, arXiv 1605.07146 and 1612.03928 (attention transfer, "AT") and the code of the
  latter. As others quote them, the 91.23% of table 1 are WRN-16-1 without a teacher, and the 93.42% of section 5.2 are WRN-40-1.
* FitNet-4: Romero et al. (2014), arXiv 1412.6550. Its authors need a teacher's hints; Mishkin and Matas (2015), arXiv 1511.06422, train it
  directly from orthonormal filters, and that is what is done here, with their dropout.

All of them but ResNet and WRN were published on contrast-normalised and whitened images; here every network sees standardised ones.
"""

from dataclasses import dataclass, fields
from functools import cache
from math import prod

import torch
from torch import nn

from hcnn.architecture import CLASSES, register
from hcnn.companion.baselines.networks import BODIES, BaselineNetwork
from hcnn.counts import multiply_adds as hcnn_multiply_adds
from hcnn.counts import taps_inside
from hcnn.network import HCNN, build
from hcnn.settings import Settings, is_integer


@dataclass(frozen=True)
class System:
    """A compared network: its name, dropout (at the images, and after pooling or what replaces it), initial filters."""

    name: str
    dropout: tuple[float, float] = (0.0, 0.0)
    initialisation: str = "he"


SYSTEMS = {
    "all-cnn": System("All-CNN", dropout=(0.2, 0.5)),
    "resnet-20": System("ResNet-20"),
    "nin": System("Network in Network", dropout=(0.0, 0.5), initialisation="normal-0.05"),
    "wrn-16-1": System("WRN-16-1"),
    "wrn-student": System("WRN-16-1 with a teacher"),
    "wrn-40-1": System("WRN-40-1"),
    "fitnet": System("FitNet-4", dropout=(0.2, 0.2), initialisation="orthonormal"),
}
INITIALISATIONS = ("he", "normal-0.05", "orthonormal")


@dataclass(frozen=True)
class Baseline(Settings):
    """A compared network, one of SYSTEMS; what is None becomes what was published.

    dropout: shares of zeros at the images and after pooling. initialisation: of all weights, biases are zero; `he`: N(0, 2 / inputs),
    `normal-0.05`, `orthonormal` rows. teacher: folder name of a finished run of WRN-40-1, for wrn-student alone, whose loss has
    beta times `attention_distance` added to it. padding_mode: these networks have zeros.

    Raises ValueError naming the parameter, its value and the allowed values.
    """

    variant: str
    num_classes: int = 10
    image_size: tuple[int, int] = (32, 32)
    in_channels: int = 3
    dropout: tuple[float, float] | None = None
    initialisation: str | None = None
    teacher: str | None = None
    beta: float | None = None
    padding_mode: str = "zeros"

    def __post_init__(self):
        self._require("variant", self.variant in tuple(SYSTEMS), "one of " + ", ".join(SYSTEMS))
        system, student = SYSTEMS[self.variant], self.variant == "wrn-student"
        published = dict(dropout=system.dropout, initialisation=system.initialisation, beta=1000.0 if student else None)
        for field in fields(self):  # one spelling of each value, so that equal networks have equal hashes
            value = getattr(self, field.name)
            value = published.get(field.name) if value is None else value
            if isinstance(value, list):
                value = tuple(value)
            if field.name in ("dropout", "beta") and value is not None:
                value = tuple(map(_as_float, value)) if isinstance(value, tuple) else _as_float(value)
            object.__setattr__(self, field.name, value)
        self._validate(student)

    def _require(self, name, holds, allowed):
        if not holds:
            raise ValueError(f"{name} must be {allowed}, got {getattr(self, name)!r}")

    def _validate(self, student):
        least = 9 if self.variant == "all-cnn" else 4  # so that something is left after subsampling by 4
        for name, smallest in (("num_classes", 2), ("in_channels", 1)):
            self._require(name, is_integer(getattr(self, name), smallest), f"an integer of at least {smallest}")
        self._require("image_size", isinstance(self.image_size, tuple) and len(self.image_size) == 2
                      and all(is_integer(n, least) for n in self.image_size), f"two integers of at least {least} (height, width)")
        self._require("dropout", isinstance(self.dropout, tuple) and len(self.dropout) == 2
                      and all(isinstance(p, float) and 0 <= p < 1 for p in self.dropout), "two shares of at least 0 and below 1")
        self._require("dropout", any(SYSTEMS[self.variant].dropout) or not any(self.dropout), f"(0, 0) for {self.variant}, which has none")
        self._require("initialisation", self.initialisation in INITIALISATIONS, "one of " + ", ".join(INITIALISATIONS))
        self._require("padding_mode", self.padding_mode == "zeros", "zeros for compared networks")
        if student:
            self._require("teacher", self.teacher is None or isinstance(self.teacher, str) and self.teacher, "the folder name of a run")
            self._require("beta", isinstance(self.beta, float) and self.beta > 0, "a positive number")
        else:
            self._require("teacher", self.teacher is None, f"none for {self.variant}; only wrn-student has one")
            self._require("beta", self.beta is None, f"none for {self.variant}; only wrn-student has one")

    @classmethod
    def preset(cls, dataset, variant, **overrides):
        """A compared network for `cifar10`, `cifar100` or `digits` as published; overrides are other fields."""
        if dataset not in tuple(CLASSES):
            raise ValueError(f"dataset must be one of {', '.join(CLASSES)}, got {dataset!r}")
        names = [field.name for field in fields(cls)]
        unknown = sorted(set(overrides) - set(names))
        if unknown:
            raise ValueError(f"{variant} has no parameter {unknown[0]!r}; it has {', '.join(names)}")
        return cls(**(dict(variant=variant, num_classes=CLASSES[dataset]) | overrides))

    @property
    def name(self):
        """The network's usual name."""
        return SYSTEMS[self.variant].name

    def shape(self, j):
        """Shape of the images, j = 0: (colours, height, width); the depths of compared networks have no j."""
        if j != 0:
            raise ValueError(f"j must be 0 for {self.variant}, got {j}")
        return (self.in_channels, *self.image_size)

    def count(self):
        """Numbers of parameters: filters (weights of convolutions and linear layers), normalisation, bias, and all trained."""
        return dict(_count(self))


def _as_float(value):
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


@cache
def _count(baseline):
    with torch.device("meta"):  # shapes without numbers
        body = BODIES[baseline.variant](baseline)
    sizes = dict(filters=0, normalisation=0, bias=0)
    for module in body.modules():
        for parameter in module.parameters(recurse=False):
            kind = "normalisation" if isinstance(module, nn.BatchNorm2d) else "filters" if parameter.dim() > 1 else "bias"
            sizes[kind] += parameter.numel()
    return sizes | dict(trained=sum(sizes.values()))


def multiply_adds(architecture):
    """Multiplications in the convolutions and linear layers of a forward pass of one image, taps on the boundary left out.

    HCNN after folding h, normalisation and g into w; HCNN(+) h first, then g.
    """
    if isinstance(architecture, Baseline):
        return _multiply_adds(architecture)
    costs = hcnn_multiply_adds(architecture)
    return costs["w"] or costs["h_g"]


@cache
def _multiply_adds(baseline):
    found = []

    def count(module, inputs, output):
        (x,) = inputs
        if isinstance(module, nn.Linear):
            found.append(module.weight.numel())
        if isinstance(module, nn.Conv2d):
            axes = zip(x.shape[2:], output.shape[2:], module.kernel_size, module.stride, module.padding)
            taps = prod(taps_inside(*axis) for axis in axes)
            found.append(module.in_channels * module.out_channels * taps)

    with torch.device("meta"):
        body = BODIES[baseline.variant](baseline).eval()
        for module in body.modules():
            module.register_forward_hook(count)
        body(torch.empty(1, *baseline.shape(0)))
    return sum(found)


register(SYSTEMS, Baseline)


@build.register
def _(description: Baseline, generator=None):
    return BaselineNetwork(description, generator)


def stored_weights(network):
    """What weights.safetensors holds: the state of the network; of a compared network the filters in half precision."""
    if isinstance(network, HCNN):
        return network.state_dict()
    return {name: tensor.half() if tensor.dim() > 1 else tensor for name, tensor in network.state_dict().items()}
