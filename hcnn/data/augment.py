"""What is done to whole minibatches before the network sees them: standardisation, shifts, flips, smaller sizes."""

from functools import cache

import torch


def standardise(images, mean, std):
    """(pixel / 255 - mean) / std as float32.  images: (..., 3, H, W) uint8; mean, std: 3 numbers or tensors of 3."""
    mean, std = (torch.as_tensor(v, dtype=torch.float32, device=images.device).view(3, 1, 1) for v in (mean, std))
    return (images.float() / 255 - mean) / std


def shrink(images, size):
    """Images (..., H, W) averaged over areas to (..., size, size); as they are where that is their size.

    A new pixel is the mean of the old ones that its square covers, each weighted with the part that is covered.
    """
    if images.shape[-2:] == (size, size):
        return images
    rows, columns = (_areas(n, size).to(images) for n in images.shape[-2:])
    with torch.autocast(images.device.type, enabled=False):  # a training in low precision sees the same images
        return rows @ images @ columns.T


@cache
def _areas(n, size):
    """(size, n): the share of every old pixel in every new one along an axis."""
    edges = torch.arange(size + 1, dtype=torch.float64) * n / size
    old = torch.arange(n)
    covered = torch.minimum(edges[1:, None], old + 1) - torch.maximum(edges[:-1, None], old)
    return covered.clamp(min=0) * size / n


def augment(images, shifts, flips, mean, std):
    """Standardised images whose content moved by (dy, dx) pixels, down and right, and was then flipped left to right.

    What comes in from outside has the mean colour, 0 after standardisation. images: (n, 3, H, W) uint8; shifts: (n, 2)
    int64; flips: (n,) bool; all on one device, where the result is: (n, 3, H, W) float32.
    """
    n, channels, height, width = images.shape
    columns = torch.arange(width, device=images.device)
    columns = torch.where(flips[:, None], columns.flip(0), columns) - shifts[:, 1:]  # source of every column (n, W)
    rows = torch.arange(height, device=images.device) - shifts[:, :1]  # (n, H)
    outside = ((rows < 0) | (rows >= height))[:, :, None] | ((columns < 0) | (columns >= width))[:, None, :]
    image = torch.arange(n, device=images.device).view(n, 1, 1, 1)
    channel = torch.arange(channels, device=images.device).view(1, channels, 1, 1)
    rows, columns = rows.clamp(0, height - 1), columns.clamp(0, width - 1)
    moved = images[image, channel, rows[:, None, :, None], columns[:, None, None, :]]  # (n, 3, H, W)
    return standardise(moved, mean, std).masked_fill(outside[:, None], 0)
