"""Two measurements beyond the paper: what known changes of an image do to the arrays, and what the class scores see."""

import numpy as np
import pandas as pd
import torch
from scipy.stats import spearmanr

from hcnn.companion.interpretation.attributes import attribute_arrays, bootstrap, permutation, prepared, smooth
from hcnn.companion.interpretation.probability import quantiles
from hcnn.companion.interpretation.storage import frame

COLOUR = ("brightness", "contrast", "hue")  # the other properties are geometric
STEPS = 8  # positions of a translation in one sample, where it need not be whole
RESAMPLES = 200  # of the images, for intervals


def changes(mean):
    """Known changes of images: {property: (function of uint8 images and an amount, amounts without 0)}.

    Brightness, contrast and scale by 1 + amount, hue in turns, shift in pixels to the right, rotation in degrees, blur:
    deviation of a Gaussian in pixels. What comes in from outside has the colour `mean`.
    """
    from torchvision.transforms.v2 import InterpolationMode, functional  # takes a second to import

    def affine(images, shift=0, angle=0.0, scale=1.0):
        fill = [255 * m for m in mean]
        return functional.affine(images, angle, [shift, 0], scale, [0.0, 0.0], InterpolationMode.BILINEAR, fill=fill)

    return {
        "brightness": (lambda x, a: functional.adjust_brightness(x, 1 + a), (-0.5, -0.25, 0.25, 0.5)),
        "contrast": (lambda x, a: functional.adjust_contrast(x, 1 + a), (-0.5, -0.25, 0.25, 0.5)),
        "hue": (functional.adjust_hue, (-0.3, -0.15, 0.15, 0.3)),
        "shift": (lambda x, a: affine(x, shift=a), (-6, -3, 3, 6)),
        "rotation": (lambda x, a: affine(x, angle=a), (-30, -15, 15, 30)),
        "scale": (lambda x, a: affine(x, scale=1 + a), (-0.3, -0.15, 0.15, 0.3)),
        "blur": (lambda x, a: functional.gaussian_blur(x, 7, a), (0.5, 1.0, 1.5, 2.0)),
    }


def best_translation(before, after, weights):
    """The circular translation along v_{j-1}, one for all images, that takes arrays nearest to others (least squares).

    before, after: (n, rows, columns), smoothed here, which leaves a translation between samples well defined (its
    Fourier series has no highest frequency). weights (m, n): how much the images count, in m ways. Returns, each (m,),
    tau in -rows/2 ... rows/2, a multiple of 1/STEPS, 0 where nothing is nearer, and the share that is explained of
    images that did not choose it: 1 - |after - translated|^2 / |after - before|^2, where the best translation of every
    second image translates the others, and theirs these. A share below 0: worse than none.
    """
    before, after = smooth(before).double(), smooth(after).double()
    rows = before.shape[-2]
    taus = torch.tensor(sorted(range(-rows * STEPS // 2, rows * STEPS // 2), key=abs)) / STEPS  # 0 wins among equals
    cross = (torch.fft.fft(before, dim=-2).conj() * torch.fft.fft(after, dim=-2)).sum(2)
    phases = torch.exp(2j * torch.pi * torch.fft.fftfreq(rows, dtype=torch.float64) * taus.double()[:, None])
    products = (cross @ phases.T).real / rows  # of `after` and of `before` translated by each tau
    gain, change = 2 * (products - products[:, :1]), (after - before).square().sum((1, 2))
    halves = [weights[:, i::2] @ gain[i::2] for i in (0, 1)]  # (m, taus)

    def best(gain):
        most, which = gain.max(1)
        return torch.where(most > 1e-9 * (weights @ change), which, 0)

    first, second = map(best, halves)
    explained = halves[1].gather(1, first[:, None]) + halves[0].gather(1, second[:, None])
    total = weights @ change
    return taus[best(sum(halves))], torch.where(total > 0, explained[:, 0] / total, 0)


def property_shifts(trained, images, depths, log=lambda line: None):
    """How each property of x moves xbar_j along v_{j-1}: `best_translation` for every depth, property and amount.

    Returns a table of depth, property, amount, moved (|change of the smoothed arrays| / |arrays|), tau, explained, and
    control: what is explained after the rows are put into a fixed non-cyclic order; and (2, RESAMPLES, properties,
    depths): explained and control, means over the amounts, in bootstrap resamples of the images (n, 3, H, W) uint8.
    """
    order, rows, resampled = permutation(trained.architecture.K // 2), [], []
    weights = torch.tensor(bootstrap(len(images), RESAMPLES))  # the images themselves first
    before, _ = attribute_arrays(trained, images, depths)
    for name, (change, amounts) in changes(trained.mean).items():
        for amount in amounts:
            after, _ = attribute_arrays(trained, change(images, amount), depths)
            for j in depths:
                tau, explained = best_translation(before[j], after[j], weights)
                _, control = best_translation(before[j][:, order], after[j][:, order], weights)
                size = (smooth(after[j] - before[j]).norm() / smooth(before[j]).norm()).item()
                rows.append(dict(depth=j, property=name, amount=float(amount), moved=size, tau=tau[0].item(),
                                 explained=explained[0].item(), control=control[0].item()))
                resampled.append(torch.stack([explained, control])[:, 1:])
        log(f"{len(images)} images with another {name}")
    shares = torch.stack(resampled, 2).unflatten(2, (-1, len(amounts), len(depths)))  # all have as many amounts
    return pd.DataFrame(rows), shares.mean(3).numpy()


def monotonicity(found):
    """Per property and depth: moved, explained and control, means over the amounts; low, high: 95% bootstrap interval
    of explained over the images; and monotone: Spearman's correlation of tau with the amount. The amount 0, where tau
    is 0, counts too; 0 where tau is the same for all.
    """
    shifts, rows = frame(found, "shifts"), []
    limits = np.quantile(found["resampled"][0].astype(float), (0.025, 0.975), axis=0)  # (2, properties, depths)
    depths = sorted(shifts.depth.unique())
    for i, (name, of_property) in enumerate(shifts.groupby("property", sort=False)):
        for d, depth in enumerate(depths):
            group = of_property[of_property.depth == depth]
            taus, amounts = [0.0, *group.tau], [0.0, *group.amount]
            monotone = spearmanr(taus, amounts).statistic if len(set(taus)) > 1 else 0.0
            low, high = limits[:, i, d]
            means = group[["moved", "explained", "control"]].mean()
            rows.append(dict(property=name, depth=depth, **means, low=low, high=high, monotone=monotone))
    return pd.DataFrame(rows)


def colour_or_geometry(found):
    """What translations explain of changes of colour and of geometry in shallow and deep layers: see `quantiles`.

    Means over the properties of each kind and the depths of each half (shallow: up to the mean depth), their
    differences, and the mean difference from the control, with 95% bootstrap intervals over the images, paired.
    """
    shifts, resampled = frame(found, "shifts"), found["resampled"].astype(float)
    names, depths = list(shifts.property.unique()), sorted(shifts.depth.unique())
    means = [shifts.pivot_table(column, "property", "depth").loc[names, depths].to_numpy()
             for column in ("explained", "control")]
    explained, control = np.concatenate([np.array(means)[:, None], resampled], 1)  # the sample first
    colour, shallow = np.isin(names, COLOUR), np.array(depths) <= np.mean(depths)
    found = {}
    for half, where in [("shallow", shallow)] + [("deep", ~shallow)] * (not shallow.all()):
        kinds = [explained[:, kind][:, :, where].mean((1, 2)) for kind in (colour, ~colour)]
        found |= {f"colour, {half}": kinds[0], f"geometry, {half}": kinds[1]}
        found[f"colour - geometry, {half}"] = kinds[0] - kinds[1]
    found["translated - permuted"] = (explained - control).mean((1, 2))
    return quantiles(found)


@torch.no_grad()
def score_changes(trained, images, depths, taus, batch_size=50):
    """Proposition 3.1 in this network: x_j translated by tau along v_{j-1}, and what the class scores become.

    Returns depth, tau, exact, change (of the scores, relative to their distance between different images), kept (share
    of predictions that stay). images: (n >= 2, 3, H, W) uint8.
    """
    a, sums = trained.architecture, {}
    for part in images.split(batch_size):
        layers = trained.network.activations(prepared(trained, part), [*depths, a.J])
        for j in depths:
            for tau in taus:
                x = layers[j].roll(tau, 2)
                for k in range(j + 1, a.J + 1):
                    x = trained.network.layer(x, k)
                sums.setdefault((j, tau), []).append((x.cpu(), layers[a.J].cpu()))
    rows = []
    for (j, tau), parts in sums.items():
        moved, scores = map(torch.cat, zip(*parts))
        apart = torch.cdist(scores, scores).sum() / (len(scores) * (len(scores) - 1))
        change = (moved - scores).norm(dim=1).mean() / apart
        kept = (moved.argmax(1) == scores.argmax(1)).float().mean()
        exact = tau % a.exact_translation(j, 1) == 0
        rows.append(dict(depth=j, tau=tau, exact=exact, change=change.item(), kept=kept.item()))
    return pd.DataFrame(rows)
