"""Loss and accuracy of a network on a set of images."""

import torch
import torch.nn.functional as F

from hcnn.data.augment import shrink, standardise
from hcnn.device import memory_kept, sum_dtype, tf32

BATCH = 50  # with 100 a CPU takes a third longer for an image of K = 16: the arrays leave its caches


def evaluate(network, images, labels, mean, std, batch_size=BATCH, size=None):
    """(loss, accuracy) of a network in evaluation mode: mean cross-entropy and share of right classes.

    In the network's own precision, without TF32. images: (N, 3, H, W) uint8, labels: (N,) int64, both on the network's
    device; mean, std as for `standardise`; size: shrink the images to it. Raises ValueError without images.
    """
    if len(labels) == 0:
        raise ValueError("images must be at least one, got none")
    with tf32(False), memory_kept():
        loss, correct = evaluation_sums(network, images, labels, mean, std, batch_size, size=size).tolist()
    return loss / len(labels), correct / len(labels)


@torch.no_grad()
def evaluation_sums(network, images, labels, mean, std, batch_size=BATCH, check=lambda: None, size=None):
    """Sum of the losses and number of right classes, on the device. `check` may raise before every batch."""
    training, sums = network.training, torch.zeros(2, dtype=sum_dtype(images.device), device=images.device)
    network.eval()
    try:
        for first in range(0, len(labels), batch_size):
            check()
            x = standardise(images[first:first + batch_size], mean, std)
            logits, y = network(x if size is None else shrink(x, size)), labels[first:first + batch_size]
            logits = logits.float() if logits.dtype == torch.bfloat16 else logits  # in autocast
            sums += torch.stack([F.cross_entropy(logits, y, reduction="sum"), (logits.argmax(1) == y).sum()])
    finally:
        network.train(training)
    return sums
