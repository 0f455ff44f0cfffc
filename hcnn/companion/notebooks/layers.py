"""What notebook 01 computes: fast against literal layers, translated layers, rotated filters, a spectrogram."""

import pandas as pd
import torch

from hcnn.counts import carried
from hcnn.network import AttributeConv
from hcnn.reference import factorised_layer

PATHS = {name: ("convolution", "fourier") for name in ("HCNN", "HCNN(+)")}  # of `operators.choice`, on a CPU


def largest_errors(elu, padding_mode, path):
    """Fast against literal layer: largest differences of the output and of the gradients of x and every parameter."""
    layer = AttributeConv((4, 8), 3, (7, 11), Q=4, elu=elu, padding_mode=padding_mode)
    layer.path = path
    parameters = [layer.h, layer.g, layer.scale, layer.shift, layer.bias]
    x = (torch.randn(2, 4, 8, 5, 5) + 3).requires_grad_()
    both = layer(x), factorised_layer(x, *parameters, padding_mode=padding_mode, elu=elu)
    direction = torch.randn_like(both[0])
    gradients = (torch.autograd.grad(y, [x, *parameters], direction) for y in both)
    return [(u - v).abs().max().item() for u, v in (both, *zip(*gradients))]


def carried_errors(net, arrays, start):
    """{j: error of x_j, relative to its norm} when x_3 is translated by `start` along (v_1, v_2, v_3, u_1).

    arrays: {j: x_j}. Every later layer is computed from the translated x_3 and compared with its own translated self.
    """
    moved, errors = arrays[3].roll(start, (1, 2, 3, 4)), {}
    for j, shift in list(carried(net.architecture, 3, start))[1:]:
        moved, expected = net.layer(moved, j), arrays[j].roll(shift, (1, 2, 3, 4))
        errors[j] = ((moved - expected).norm() / expected.norm()).item()
    return errors


def score_distances(net, x_j, j, axis):
    """RMS change of the scores when x_j moves by tau = 1, 2, ... along an axis, in units of that between two images."""
    a = net.architecture
    taus = range(1, min(8, a.shape(j)[axis]))
    y = torch.cat([x_j.roll(tau, axis + 1) for tau in (0, *taus)])
    for k in range(j + 1, a.J + 1):
        y = net.layer(y, k)
    y = y.view(-1, len(x_j), a.num_classes)  # (translation, image, class)
    change, between = (y[1:] - y[0]).square().sum(-1).mean(-1), torch.pdist(y[0]).square().mean()
    return pd.Series((change / between).sqrt(), taus, float)


def rotated_filters(angles=8, size=47):
    """The Fourier transform of one filter w(r_v^{-1} u), rotated in `angles` steps over half a turn (w is even)."""
    grid, angle = torch.arange(float(size)) - size // 2, torch.arange(angles).view(-1, 1, 1) * torch.pi / angles
    along = grid * angle.cos() - grid[:, None] * angle.sin()
    bank = torch.exp(-(grid**2 + grid[:, None] ** 2) / 12) * torch.cos(1.3 * along)
    return torch.fft.fft2(torch.fft.ifftshift(bank, dim=(1, 2)))


def nearest_image(W, z):
    """The image whose responses to the filters come nearest to z in least squares: each frequency alone."""
    solution = (W.conj() * torch.fft.fft2(z)).sum(0) / (W.abs() ** 2).sum(0)
    return torch.fft.ifft2(solution).real


def octave_bands(N=4096, bins=8, octaves=5):
    """Centre frequencies 2^(4 + v_1 / bins), in cycles in N samples, and the Fourier transforms of their filters."""
    centre = 2 ** (4 + torch.arange(octaves * bins).view(-1, 1) / bins)
    distance = torch.log2(torch.arange(N).clamp(min=0.5) / centre)  # in octaves
    return centre, torch.cos(torch.pi * distance.clamp(-0.5, 0.5)) ** 2


def energy_beyond(array, centre):
    """The share of the energy of a squared spectrogram above the width of each band, (2^(1/2) - 2^(-1/2)) centre."""
    energy = torch.fft.rfft(array**2).abs() ** 2
    outside = torch.arange(energy.shape[-1]) > (2**0.5 - 0.5**0.5) * centre
    return (energy * outside).sum() / energy.sum()
