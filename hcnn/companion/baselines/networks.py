"""The compared networks of tables 1 and 2 as modules, a few lines each; `systems` says what they are and where they
come from.
"""

from functools import partial

import torch
import torch.nn.functional as F
from torch import nn


class BaselineNetwork(nn.Module):
    """A compared network. forward(x): x (batch, colours, height, width), standardised -> class scores (batch,
    num_classes).

    architecture: the Baseline; its System has the share of zeros and the initial filters.
    """

    def __init__(self, architecture, generator=None):
        super().__init__()
        self.architecture = architecture
        self.body = body(architecture)
        for module in self.body.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                _initialise(module.weight, architecture.system.initialisation, generator)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def filter_parameters(self):
        """The parameters that weight decay applies to: weights of convolutions and linear layers."""
        return [parameter for parameter in self.parameters() if parameter.dim() > 1]

    def forward(self, x):
        return self.body(x)


def body(architecture):
    """The layers alone."""
    dropout = map(nn.Dropout, architecture.system.dropout)
    return BODIES[architecture.variant](architecture.in_channels, architecture.num_classes, *dropout)


@torch.no_grad()
def _initialise(weight, initialisation, generator):
    if initialisation == "he":
        nn.init.kaiming_normal_(weight, nonlinearity="relu", generator=generator)
    elif initialisation == "normal-0.05":
        weight.normal_(0, 0.05, generator=generator)
    else:  # rows of a convolution are its filters; at most as many as a filter has numbers can be orthonormal
        for rows in weight.split(weight[0].numel()):
            nn.init.orthogonal_(rows, generator=generator)


def _conv(inputs, outputs, size=3, stride=1, padding=None):
    return nn.Conv2d(inputs, outputs, size, stride, size // 2 if padding is None else padding), nn.ReLU(inplace=True)


def _average(inputs, classes):
    return nn.Conv2d(inputs, classes, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()


def all_cnn(colours, classes, at_images, later):
    """All-CNN-C: convolutions alone, two of them with stride 2, the seventh without padding.

    The ReLU that was published after the class scores is left out, here and in Network in Network: with it the loss
    did not leave log 10 in 120 steps of 32 images at a rate of 0.01, nor in 80 at 0.05; without it it fell within 75
    (0.01, one seed each).
    """
    return nn.Sequential(
        at_images, *_conv(colours, 96), *_conv(96, 96), *_conv(96, 96, stride=2),
        later, *_conv(96, 192), *_conv(192, 192), *_conv(192, 192, stride=2),
        later, *_conv(192, 192, padding=0), *_conv(192, 192, 1), *_average(192, classes))


def network_in_network(colours, classes, at_images, later):
    """Three convolutions, each followed by two 1 x 1 convolutions; the last one's maps are averaged."""
    return nn.Sequential(
        at_images, *_conv(colours, 192, 5), *_conv(192, 160, 1), *_conv(160, 96, 1), nn.MaxPool2d(3, 2, ceil_mode=True),
        later, *_conv(96, 192, 5), *_conv(192, 192, 1), *_conv(192, 192, 1), nn.AvgPool2d(3, 2, ceil_mode=True),
        later, *_conv(192, 192), *_conv(192, 192, 1), *_average(192, classes))


class Maxout(nn.Module):
    """(batch, 2 n, ...) -> (batch, n, ...): the larger of two linear pieces."""

    def forward(self, x):
        return x.unflatten(1, (2, -1)).amax(1)


class GlobalMaxPool(nn.Module):
    """The largest value of each map; AdaptiveMaxPool2d has no deterministic gradient on a GPU."""

    def forward(self, x):
        return x.amax((-2, -1), keepdim=True)


def fitnet(colours, classes, at_images, later):
    """FitNet-4: 17 maxout convolutions, maximum over what is left of space, 500 maxout units, classes.

    2,544,712 weights with two pieces in the 500 units, the "2.5M" of the paper; the same sum gives 249,576 and
    861,928 for FitNets 1 and 2, published as 250K and 862K. The authors' code has five pieces there: 2,736,712;
    without that layer 2,412,992.
    """
    layers, inputs = [at_images], colours
    groups = ((32,) * 3 + (48,) * 2, nn.MaxPool2d(2)), ((80,) * 6, nn.MaxPool2d(2)), ((128,) * 6, GlobalMaxPool())
    for widths, pool in groups:
        for width in widths:
            layers += [nn.Conv2d(inputs, 2 * width, 3, padding=1), Maxout()]
            inputs = width
        layers += [pool, later]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(inputs, 2 * 500), Maxout(), later, nn.Linear(500, classes))


class Shortcut(nn.Module):
    """Option A of ResNet: every second pixel, and zeros for the new channels."""

    def forward(self, x):
        return F.pad(x[..., ::2, ::2], (0, 0, 0, 0, 0, x.shape[1]))


def resnet_20(colours, classes, *dropout):
    """ResNet-20: three groups of three blocks of two convolutions, with 16, 32 and 64 channels."""
    from torchvision.models.resnet import BasicBlock  # takes as long to import as torch, and only this network needs it

    blocks = [BasicBlock(n, n) for n in (16, 16, 16, 32, 32, 64, 64)]
    for place, n in ((3, 16), (6, 32)):
        blocks.insert(place, BasicBlock(n, 2 * n, stride=2, downsample=Shortcut()))
    return nn.Sequential(
        nn.Conv2d(colours, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(inplace=True), *blocks,
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, classes))


class PreActivation(nn.Module):
    """A block of a wide residual network: normalisation and ReLU before each of two convolutions, then the sum with
    the input.
    """

    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(inputs), nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.norm2, self.conv2 = nn.BatchNorm2d(outputs), nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.shortcut = None if inputs == outputs else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x):
        out = F.relu(self.norm1(x))
        x = x if self.shortcut is None else self.shortcut(out)
        return x + self.conv2(F.relu(self.norm2(self.conv1(out))))


class WideResNet(nn.Module):
    """WRN-(4 + 6 n)-1: three groups of n blocks, with 16, 32 and 64 channels."""

    def __init__(self, n, colours, classes, *dropout):
        super().__init__()
        self.first = nn.Conv2d(colours, 16, 3, padding=1, bias=False)
        self.groups = nn.ModuleList(
            nn.Sequential(PreActivation(inputs, outputs, stride),
                          *(PreActivation(outputs, outputs, 1) for _ in range(n - 1)))
            for inputs, outputs, stride in ((16, 16, 1), (16, 32, 2), (32, 64, 2)))
        self.norm, self.classes = nn.BatchNorm2d(64), nn.Linear(64, classes)

    def forward(self, x):
        x = self.first(x)
        for group in self.groups:
            x = group(x)
        return self.classes(F.relu(self.norm(x)).mean((-2, -1)))


BODIES = {
    "all-cnn": all_cnn, "resnet-20": resnet_20, "nin": network_in_network, "fitnet": fitnet,
    "wrn-16-1": partial(WideResNet, 2), "wrn-40-1": partial(WideResNet, 6),
}
