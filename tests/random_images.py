"""Random images as a Dataset."""

import torch

from hcnn.data.datasets import Dataset


def images(train=44, test=21, size=8, classes=10, seed=1):
    """Square images of random pixels; the defaults make minibatches of 10, 10, 10, 10, 4."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (train + test, 3, size, size), dtype=torch.uint8, generator=generator)
    labels = torch.arange(train + test) % classes
    return Dataset("digits", pixels[:train], labels[:train], pixels[train:], labels[train:],
                   tuple(map(str, range(classes))), (0.5,) * 3, (0.3,) * 3, "0" * 64)
