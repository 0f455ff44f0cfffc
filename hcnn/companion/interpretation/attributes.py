"""Invariant attribute arrays, section 5.3: of many images, translated along attributes, and their nearest neighbours.

The array of an image at depth j has the shape (rows, columns): v_{j-1} counts its K/2 rows, v_j its K columns (the
classes at j = J - 1).
"""

import time
from functools import lru_cache
from itertools import count
from math import gcd

import numpy as np
import torch


@torch.no_grad()
def attribute_arrays(trained, images, depths, batch_size=50, log=lambda line: None):
    """Invariant attribute arrays of uint8 images (n, 3, H, W), and the classes that the network says.

    xbar_j(v_{j-1}, v_j) = sum over v_{j-2} of x_j(u_0, v_{j-2}, v_{j-1}, v_j) at u_0 = (H//2, W//2): equation (9).
    trained: from `hcnn.load`. Returns {j: (n, K/2, K) float32} for 3 <= j <= J - 1, with (n, K/2, C) at J - 1, and
    predictions (n,). Memory: the arrays, and two layers of one batch.
    """
    a = trained.architecture
    if not depths or not set(depths) <= set(range(3, a.J)):
        raise ValueError(f"depths must be between 3 and J - 1 = {a.J - 1}, got {list(depths)}")
    if trained.training:
        raise ValueError("the network must be in evaluation mode: call eval() first")
    arrays = {j: torch.empty(len(images), *a.shape(j)[1:3]) for j in depths}
    predictions = torch.empty(len(images), dtype=torch.int64)
    started = said = time.monotonic()
    for first in range(0, len(images), batch_size):
        part = slice(first, first + batch_size)
        x = prepared(trained, images[part])
        for j in range(1, a.J + 1):
            x = trained.network.layer(x, j)
            if j in arrays:
                arrays[j][part] = x[..., x.shape[-2] // 2, x.shape[-1] // 2].sum(1).cpu()
        predictions[part] = x.argmax(1).cpu()
        done = min(first + batch_size, len(images))
        if time.monotonic() - said > 10 or done == len(images):
            said = time.monotonic()
            log(f"attribute arrays of {done:,} of {len(images):,} images, {said - started:.0f} s")
    return arrays, predictions


def prepared(trained, images):
    """Images as the network takes them, on its device and in its precision."""
    return trained.prepare(images).to(next(trained.parameters()))


def smooth(arrays):
    """The average of two consecutive samples along v_{j-1}, on a circle, before any translation."""
    return (arrays + arrays.roll(-1, -2)) / 2


def translate(arrays, tau):
    """xbar_j(v_{j-1} - tau, v_j), on a circle."""
    return arrays.roll(tau, -2)


def permutation(rows):
    """A fixed order of the rows that moves each of them and is no rotation or reflection of the circle; rows >= 4."""
    if rows < 4:
        raise ValueError(f"rows must be at least 4 (K at least 8): every order of {rows} is a rotation or a reflection")
    for seed in count():
        order = np.random.RandomState(seed).permutation(rows)  # a stream that NumPy has frozen
        steps = set((np.roll(order, -1) - order) % rows)
        if (order != np.arange(rows)).all() and steps != {1} and steps != {rows - 1}:
            return torch.from_numpy(order)


def exchanged(rows, tau):
    """An order in which every row moves as far as by the translation by tau, half of the rows the other way: rows that
    are tau apart change places in pairs (rows - tau: the other pairs). None where nothing else than that translation
    does so (tau = 0 and rows/2), or where going round by tau leaves a row without partner.

    After smoothing, such arrays overlap with the untranslated ones as much as translated ones do.
    """
    length = rows // gcd(rows, tau)  # of each cycle r, r + tau, r + 2 tau, ...
    if length <= 2 or length % 2:
        return None
    order = torch.empty(rows, dtype=torch.int64)
    for row in range(gcd(rows, tau)):
        cycle = (row + tau * torch.arange(length)) % rows
        order[cycle] = cycle.view(-1, 2).flip(1).flatten()
    return order


@lru_cache(4)
def bootstrap(n, resamples):
    """Weights (1 + resamples, n) of n images, always the same: all alike, then bootstrap resamples. Rows sum to 1."""
    alike = np.full(n, 1 / n)
    weights = np.vstack([alike, np.random.RandomState(0).multinomial(n, alike, resamples) / n])  # frozen by NumPy
    weights.flags.writeable = False  # it is kept
    return weights


def nearest(queries, database, exclude=None, chunk=2**22):
    """For every row of `queries` (m, d) the nearest row of `database` (n, d), Euclidean, as products of matrices.

    exclude: (m,) for each query the row of the database that it is itself, -1 where it is none. Returns index, distance
    and ties (m,): the lowest index where several rows are equally near, and how many others are. Not more than
    max(chunk, n) distances are in memory at a time, in float64: 32 MB.
    """
    centre = database.double().mean(0)  # distances stay, and the squares below lose no digits to a common offset
    b = database.double() - centre
    b2, size = b.square().sum(1), max(1, chunk // len(b))
    buffer = b.new_empty(min(size, len(queries)), len(b))  # one for all products: new ones would fragment the memory
    index, ties = torch.empty(2, len(queries), dtype=torch.int64)
    distance = torch.empty(len(queries))
    for first in range(0, len(queries), size):
        part = slice(first, first + size)
        q = queries[part].double() - centre
        d2 = torch.addmm(b2, q, b.T, alpha=-2, out=buffer[:len(q)])  # |q - b|^2 - |q|^2, (rows, n)
        if exclude is not None:
            own = exclude[part].long()
            rows = (own >= 0).nonzero().squeeze(1)
            d2[rows, own[rows]] = torch.inf
        rounding = 1e-13 * (q.square().sum(1, keepdim=True) + b2.max())
        tied = d2 <= d2.min(1, keepdim=True).values + rounding
        index[part] = tied.byte().argmax(1)  # the first one
        distance[part] = (q - b[index[part]]).norm(dim=1).float()
        ties[part] = tied.sum(1) - 1
    return index, distance, ties


def moved(arrays, taus):
    """Arrays (n, rows, columns) translated by every tau, smoothed and flat: (taus, n, d)."""
    return torch.stack([smooth(translate(arrays, tau)).flatten(1) for tau in taus])


def lengths(arrays):
    """Norms (n,) of the smoothed arrays (n, rows, columns), those of all their translations."""
    return smooth(arrays).flatten(1).norm(dim=1)


def sequences(queries, database, taus, exclude=None):
    """The images x^tau at one depth: index in the database, distance and ties, each (len(taus), m).

    x^tau minimises || xbar_j(v_{j-1} - tau, v_j) - xbar_j^tau(v_{j-1}, v_j) || over the database, both arrays smoothed.
    queries (m, rows, columns), database (n, rows, columns), exclude as for `nearest`; tau = 0: the nearest neighbour.
    """
    own = None if exclude is None else exclude.repeat(len(taus))
    found = nearest(moved(queries, taus).flatten(0, 1), smooth(database).flatten(1), own)
    return tuple(t.view(len(taus), -1) for t in found)
