"""Two measurements with the attribute arrays beyond the paper: what known changes of an image do, and what the class scores see."""

import pandas as pd
import torch

from .attributes import attribute_arrays, permutation, smooth
from .data import standardise

COLOUR = ("brightness", "contrast", "hue")  # the other properties are geometric
STEPS = 8  # positions of a translation in one sample, where it need not be whole


def changes(mean):
    """Known changes of images: {property: (function of uint8 images and an amount, amounts without 0)}; 0 would change nothing.

    Brightness, contrast and scale by 1 + amount, hue in turns, shift in pixels to the right, rotation in degrees, blur: deviation of
    a Gaussian in pixels. What comes in from outside has the colour `mean`.
    """
    from torchvision.transforms.v2 import InterpolationMode, functional  # takes a second to import

    def moved(images, shift=0, angle=0.0, scale=1.0):
        return functional.affine(images, angle, [shift, 0], scale, [0.0, 0.0], InterpolationMode.BILINEAR, fill=[255 * m for m in mean])

    return {
        "brightness": (lambda x, a: functional.adjust_brightness(x, 1 + a), (-0.5, -0.25, 0.25, 0.5)),
        "contrast": (lambda x, a: functional.adjust_contrast(x, 1 + a), (-0.5, -0.25, 0.25, 0.5)),
        "hue": (functional.adjust_hue, (-0.3, -0.15, 0.15, 0.3)),
        "shift": (lambda x, a: moved(x, shift=a), (-6, -3, 3, 6)),
        "rotation": (lambda x, a: moved(x, angle=a), (-30, -15, 15, 30)),
        "scale": (lambda x, a: moved(x, scale=1 + a), (-0.3, -0.15, 0.15, 0.3)),
        "blur": (lambda x, a: functional.gaussian_blur(x, 7, a), (0.5, 1.0, 1.5, 2.0)),
    }


def best_translation(before, after):
    """The circular translation along v_{j-1}, one for all images, that takes arrays nearest to others in least squares.

    before, after: (n, rows, columns), smoothed here, which leaves a translation between samples well defined (its Fourier series
    has no highest frequency). Returns tau in -rows/2 ... rows/2, a multiple of 1/STEPS, 0 where nothing is nearer, and the share
    explained, 1 - |after - translated|^2 / |after - before|^2.
    """
    before, after = smooth(before).double(), smooth(after).double()
    rows = before.shape[-2]
    taus = torch.tensor(sorted(range(-rows * STEPS // 2, rows * STEPS // 2), key=abs)) / STEPS  # 0 first: it wins where all are equal
    cross = (torch.fft.fft(before, dim=-2).conj() * torch.fft.fft(after, dim=-2)).sum((0, 2))
    phases = torch.exp(2j * torch.pi * torch.fft.fftfreq(rows, dtype=torch.float64) * taus.double()[:, None])
    products = (cross * phases).real.sum(1) / rows  # of `after` and of `before` translated by each tau
    best, left = int(products.argmax()), (after - before).square().sum()
    gain = 2 * (products[best] - products[0])
    if gain <= 1e-9 * left:
        return 0.0, 0.0
    return taus[best].item(), (gain / left).item()


def property_shifts(network, images, depths, batch_size=50, log=None):
    """How each property of x moves xbar_j along v_{j-1}: `best_translation` for every depth, property and amount.

    Returns depth, property, amount, moved (|change of the smoothed arrays| / |arrays|), tau, explained, and control: what is explained
    after the rows are put into a fixed non-cyclic order. images: (n, 3, H, W) uint8.
    """
    order, rows = permutation(network.architecture.K // 2), []
    before, _ = attribute_arrays(network, images, depths, batch_size)
    for name, (change, amounts) in changes(network.mean).items():
        for amount in amounts:
            after, _ = attribute_arrays(network, change(images, amount), depths, batch_size)
            for j in depths:
                tau, explained = best_translation(before[j], after[j])
                moved = (smooth(after[j] - before[j]).norm() / smooth(before[j]).norm()).item()
                rows.append(dict(depth=j, property=name, amount=float(amount), moved=moved, tau=tau, explained=explained,
                                 control=best_translation(before[j][:, order], after[j][:, order])[1]))
        if log:
            log(f"{len(images)} images with another {name}")
    return pd.DataFrame(rows)


def monotonicity(shifts):
    """Per property and depth: moved, explained and control as means over the amounts, and the rank correlation of tau with the amount.

    The amount 0, where tau is 0, counts too. Where tau is the same for all amounts there is no relation: 0.
    """
    rows = []
    for (name, depth), group in shifts.groupby(["property", "depth"], sort=False):
        taus, amounts = pd.Series([0.0, *group.tau]).rank(), pd.Series([0.0, *group.amount]).rank()
        rows.append(dict(property=name, depth=depth, **group[["moved", "explained", "control"]].mean(),
                         monotone=taus.corr(amounts) if taus.nunique() > 1 else 0.0))
    return pd.DataFrame(rows)


@torch.no_grad()
def score_changes(network, images, depths, taus, batch_size=50):
    """Proposition 3.1 in this network: x_j translated by tau along v_{j-1}, and what the class scores become.

    Returns depth, tau, exact, change (of the scores, relative to their distance between different images), kept (share of
    predictions that stay). images: (n >= 2, 3, H, W) uint8.
    """
    a, sums = network.architecture, {}
    for part in images.split(batch_size):
        x = standardise(part, network.mean, network.std).to(next(network.parameters()))
        layers = network.activations(x, [*depths, a.J])
        for j in depths:
            for tau in taus:
                x = layers[j].roll(tau, 2)
                for k in range(j + 1, a.J + 1):
                    x = network.layer(x, k)
                sums.setdefault((j, tau), []).append((x.cpu(), layers[a.J].cpu()))
    rows = []
    for (j, tau), parts in sums.items():
        moved, scores = map(torch.cat, zip(*parts))
        apart = torch.cdist(scores, scores).sum() / (len(scores) * (len(scores) - 1))
        rows.append(dict(
            depth=j, tau=tau, exact=tau % a.exact_translation(j, 1) == 0, change=((moved - scores).norm(dim=1).mean() / apart).item(),
            kept=(moved.argmax(1) == scores.argmax(1)).float().mean().item()))
    return pd.DataFrame(rows)
