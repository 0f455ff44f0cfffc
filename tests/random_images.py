"""Images that mean nothing, for tests of what is done with images."""

import torch

from hcnn.data.datasets import Dataset


def random_dataset(train, test, size=8, classes=10, seed=1):
    """A Dataset of so many random square images to train and to test on."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (train + test, 3, size, size), dtype=torch.uint8, generator=generator)
    labels = torch.arange(train + test) % classes
    return Dataset("digits", images[:train], labels[:train], images[train:], labels[train:],
                   tuple(map(str, range(classes))), (0.5,) * 3, (0.3,) * 3, "0" * 64)
