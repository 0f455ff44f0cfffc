"""The networks that the paper compares itself with in tables 1 and 2, and the recipes that their authors published.

A `Baseline` stands wherever an `Architecture` does: in a run's parameters, in training, tables and checks. Facts are
from

* All-CNN-C: Springenberg, Dosovitskiy, Brox, Riedmiller (2014), arXiv 1412.6806. Initialisation and batch size are
  not given; its rate, one of 0.25, 0.1, 0.05 and 0.01, was chosen on validation images.
* Network in Network: Lin, Chen, Yan (2013), arXiv 1312.4400; N(0, 0.05) from the authors' Caffe model. Its rate falls
  twice when the loss no longer does; when that is was never published.
* ResNet-20: He, Zhang, Ren, Sun (2015), arXiv 1512.03385, section 4.2, shortcuts without parameters (option A).
* WRN-16-1 and WRN-40-1: Zagoruyko, Komodakis, arXiv 1605.07146 and 1612.03928 and the code of the latter, where
  WRN-40-1 teaches WRN-16-1. As others quote them, the 91.23% of table 1 are WRN-16-1 without a teacher, and the 93.42%
  of section 5.2 are WRN-40-1. Their border is the mirrored image, ours the mean colour.
* FitNet-4: Romero et al. (2014), arXiv 1412.6550. Its authors need a teacher's hints; Mishkin and Matas (2015), arXiv
  1511.06422, train it directly from orthonormal filters, and that is what is done here, with their dropout.

All of them but ResNet and WRN were published on contrast-normalised and whitened images; here every network sees
standardised ones.
"""

from dataclasses import dataclass
from functools import cache
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import nn

from hcnn.architecture import CLASSES, Architecture, register
from hcnn.companion.baselines.networks import BaselineNetwork, body
from hcnn.network import build
from hcnn.settings import Settings, integer, is_integer, one_of, tuple_of
from hcnn.training.recipe import Recipe, published


@dataclass(frozen=True)
class System:
    """A compared network: its name, recipe, dropout (at the images, and after pooling), initial filters."""

    name: str
    recipe: Recipe
    dropout: tuple[float, float] = (0.0, 0.0)
    initialisation: str = "he"


def _falling(epochs, lr, milestones, weight_decay, shift=4, factor=0.1):
    """A Recipe of minibatches of 128 whose rate falls by a factor at milestones, shares of all epochs or steps."""
    multipliers = [factor**i for i in range(len(milestones) + 1)]
    return Recipe(epochs=epochs, batch_size=128, lr=lr, milestones=milestones, multipliers=multipliers,
                  weight_decay=weight_decay, shift=shift)


WRN = _falling(200, 0.1, (60 / 200, 120 / 200, 160 / 200), 5e-4, factor=0.2)
SYSTEMS = {
    "all-cnn": System("All-CNN", _falling(350, 0.05, (200 / 350, 250 / 350, 300 / 350), 1e-3, shift=5), (0.2, 0.5)),
    "resnet-20": System("ResNet-20", _falling(164, 0.1, (32 / 64, 48 / 64), 1e-4)),  # thousands of steps
    "nin": System("Network in Network", _falling(307, 0.1, (100 / 120, 110 / 120), 1e-4), (0.0, 0.5), "normal-0.05"),
    "wrn-16-1": System("WRN-16-1", WRN),
    "wrn-40-1": System("WRN-40-1", WRN),
    "fitnet": System("FitNet-4", _falling(230, 0.01, (40 / 90, 60 / 90, 80 / 90), 5e-4), (0.2, 0.2), "orthonormal"),
}


@dataclass(frozen=True)
class Baseline(Settings):
    """A compared network, one of SYSTEMS.

    Raises ValueError naming the parameter, its value and the allowed values.
    """

    variant: str
    num_classes: int = 10
    image_size: tuple[int, int] = (32, 32)
    in_channels: int = 3
    padding_mode: str = "zeros"

    RULES: ClassVar = {
        "variant": one_of(SYSTEMS), "num_classes": integer(2), "in_channels": integer(1),
        "image_size": tuple_of(lambda n: is_integer(n, 4), "two integers of at least 4 (height, width)", 2),
        "padding_mode": one_of(("zeros",)),
    }
    one_process: ClassVar = True  # normalisations are not shared between processes

    def _check(self):
        if self.variant == "all-cnn":  # so that something is left after subsampling by 4
            self._require("image_size", min(self.image_size) >= 9, "two integers of at least 9 (height, width)")

    @classmethod
    def preset(cls, dataset, variant, **overrides):
        """A compared network for `cifar10`, `cifar100` or `digits` as published; overrides are other fields."""
        if dataset not in tuple(CLASSES):
            raise ValueError(f"dataset must be one of {', '.join(CLASSES)}, got {dataset!r}")
        cls.known(overrides)
        return cls(**(dict(variant=variant, num_classes=CLASSES[dataset]) | overrides))

    @property
    def system(self):
        return SYSTEMS[self.variant]

    @property
    def name(self):
        """The network's usual name."""
        return self.system.name

    @property
    def draws(self):
        """Whether a step draws random numbers of its own: dropout."""
        return any(self.system.dropout)

    def shape(self, j):
        """Shape of the images, j = 0: (colours, height, width); the depths of compared networks have no j."""
        if j != 0:
            raise ValueError(f"j must be 0 for {self.variant}, got {j}")
        return (self.in_channels, *self.image_size)

    def count(self):
        """Numbers of parameters: filters (weights of convolutions and linear layers), normalisation, bias, and all
        trained.
        """
        return dict(_count(self))

    def multiply_adds(self):
        """Multiplications of one image's forward pass in convolutions and linear layers, taps on the boundary left
        out.
        """
        return _multiply_adds(self)


@cache
def _count(baseline):
    with torch.device("meta"):  # shapes without numbers
        layers = body(baseline)
    sizes = dict(filters=0, normalisation=0, bias=0)
    for module in layers.modules():
        for parameter in module.parameters(recurse=False):
            normalises = isinstance(module, nn.BatchNorm2d)
            sizes["normalisation" if normalises else "filters" if parameter.dim() > 1 else "bias"] += parameter.numel()
    return sizes | dict(trained=sum(sizes.values()))


@cache
def _multiply_adds(baseline):
    found = []

    def count(module, inputs, output):
        if isinstance(module, nn.Linear):
            found.append(module.weight.numel())
        if isinstance(module, nn.Conv2d):  # ones everywhere: every product inside the image adds one
            image, taps = (torch.ones(1, 1, *size, device="cpu") for size in (inputs[0].shape[2:], module.kernel_size))
            inside = F.conv2d(image, taps, stride=module.stride, padding=module.padding).sum(dtype=torch.double)
            found.append(module.in_channels * module.out_channels * int(inside))

    with torch.device("meta"):
        layers = body(baseline).eval()
        for module in layers.modules():
            module.register_forward_hook(count)
        layers(torch.empty(1, *baseline.shape(0)))
    return sum(found)


register(SYSTEMS, Baseline)


@build.register
def _(description: Baseline, generator=None):
    return BaselineNetwork(description, generator)


@published.register
def _(description: Baseline, dataset):
    network = Baseline.preset(dataset, description.variant)
    short = published(Architecture.preset(dataset), dataset)["short"][1]
    return {"published": (network, description.system.recipe), "short": (network, short)}
