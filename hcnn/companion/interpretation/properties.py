"""Two measurements with the attribute arrays beyond the paper: what known changes of an image do, and what the class scores see."""

import numpy as np
import pandas as pd
import torch

from hcnn.companion.interpretation.attributes import attribute_arrays, bootstrap, permutation, smooth
from hcnn.data.augment import standardise

COLOUR = ("brightness", "contrast", "hue")  # the other properties are geometric
STEPS = 8  # positions of a translation in one sample, where it need not be whole
RESAMPLES = 200  # of the images, for intervals


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
    taus, gains, left = _gains(before, after)
    best = int(gains.sum(0).argmax())
    gain, left = gains[:, best].sum(), left.sum()
    return (taus[best].item(), (gain / left).item()) if gain > 1e-9 * left else (0.0, 0.0)


def _gains(before, after):
    """Translations (t,), 0 first, so that it wins where all are equal; what each explains of the change (n, t); the change (n,)."""
    before, after = smooth(before).double(), smooth(after).double()
    rows = before.shape[-2]
    taus = torch.tensor(sorted(range(-rows * STEPS // 2, rows * STEPS // 2), key=abs)) / STEPS
    cross = (torch.fft.fft(before, dim=-2).conj() * torch.fft.fft(after, dim=-2)).sum(2)
    phases = torch.exp(2j * torch.pi * torch.fft.fftfreq(rows, dtype=torch.float64) * taus.double()[:, None])
    products = (cross @ phases.T).real / rows  # of `after` and of `before` translated by each tau
    return taus, 2 * (products - products[:, :1]), (after - before).square().sum((1, 2))


def _resampled(before, after, weights):
    """The share that `best_translation` explains, for images weighted in each way: weights (resamples, n)."""
    _, gains, left = _gains(before, after)
    return (weights @ gains).max(1).values / (weights @ left).clamp_min(1e-300)


def property_shifts(network, images, depths, batch_size=50, log=None):
    """How each property of x moves xbar_j along v_{j-1}: `best_translation` for every depth, property and amount.

    Returns a table of depth, property, amount, moved (|change of the smoothed arrays| / |arrays|), tau, explained, and control: what
    is explained after the rows are put into a fixed non-cyclic order; and (2, RESAMPLES, properties, depths): explained and control,
    means over the amounts, in bootstrap resamples of the images. images: (n, 3, H, W) uint8.
    """
    order, rows, resampled = permutation(network.architecture.K // 2), [], []
    weights = torch.from_numpy(bootstrap(len(images), RESAMPLES))
    before, _ = attribute_arrays(network, images, depths, batch_size)
    for name, (change, amounts) in changes(network.mean).items():
        shares = torch.zeros(2, RESAMPLES, len(depths), dtype=torch.float64)
        for amount in amounts:
            after, _ = attribute_arrays(network, change(images, amount), depths, batch_size)
            for d, j in enumerate(depths):
                tau, explained = best_translation(before[j], after[j])
                moved = (smooth(after[j] - before[j]).norm() / smooth(before[j]).norm()).item()
                rows.append(dict(depth=j, property=name, amount=float(amount), moved=moved, tau=tau, explained=explained,
                                 control=best_translation(before[j][:, order], after[j][:, order])[1]))
                shares[0, :, d] += _resampled(before[j], after[j], weights) / len(amounts)
                shares[1, :, d] += _resampled(before[j][:, order], after[j][:, order], weights) / len(amounts)
        resampled.append(shares)
        if log:
            log(f"{len(images)} images with another {name}")
    return pd.DataFrame(rows), torch.stack(resampled, 2).numpy()


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


def colour_or_geometry(shifts, resampled):
    """What translations explain of changes of colour and of geometry in shallow and deep layers: statistic, value, low, high.

    Means over the properties of each kind and the depths of each half (shallow: up to the mean depth), their differences, and the
    mean difference from the control, with 95% bootstrap intervals over the images, paired. shifts, resampled: of `property_shifts`.
    """
    names, depths = list(shifts.property.unique()), sorted(shifts.depth.unique())
    means = [shifts.pivot_table(column, "property", "depth").loc[names, depths].to_numpy() for column in ("explained", "control")]
    explained, control = np.concatenate([np.array(means)[:, None], resampled.astype(float)], 1)  # the first is the sample itself
    colour, shallow = np.isin(names, COLOUR), np.array(depths) <= np.mean(depths)

    def mean(kind, half):
        return explained[:, kind][:, :, half].mean((1, 2))

    halves = [("shallow", shallow)] + [("deep", ~shallow)] * (not shallow.all())
    kinds = ("colour", colour), ("geometry", ~colour)
    statistics = {f"{name}, {half}": mean(kind, where) for half, where in halves for name, kind in kinds}
    statistics |= {f"colour - geometry, {half}": mean(colour, where) - mean(~colour, where) for half, where in halves}
    statistics["translated - permuted"] = (explained - control).mean((1, 2))
    return pd.DataFrame([(name, v[0], *np.quantile(v[1:], (0.025, 0.975))) for name, v in statistics.items()],
                        columns=["statistic", "value", "low", "high"])


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
