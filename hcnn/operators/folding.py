"""The operator W_j as one matrix: convolutions along attributes as gathered matrices, normalisation and h folded into them, equation (8)."""

import torch


class _SpreadTaps(torch.autograd.Function):
    """Its adjoint is a gather as well, because each output reads one input through each tap: no atomics, any device."""

    @staticmethod
    def forward(ctx, w, table, reads):
        ctx.save_for_backward(reads)
        ctx.inputs = table.shape[2]
        padded = torch.cat([w, w.new_zeros(1, *w.shape[1:])])
        matrix = padded[table[0]]
        for extra in table[1:]:
            matrix = matrix + padded[extra]
        return matrix

    @staticmethod
    def backward(ctx, grad):
        (reads,) = ctx.saved_tensors  # (outputs, taps)
        rows = reads.clamp(min=0) + ctx.inputs * torch.arange(len(reads), device=reads.device)[:, None]
        inside = (reads >= 0).view(*reads.shape, *[1] * (grad.dim() - 2))
        return (grad.flatten(0, 1)[rows] * inside).sum(0), None, None


def spread_taps(w, table, reads):
    """The matrix of a convolution along attributes: w (taps, ...) -> (outputs, inputs, ...), linear in w."""
    return _SpreadTaps.apply(w, table, reads)


def normalised_filters(h, mean, var, scale, shift, eps):
    """h and a bias such that x * h + bias = scale (x * h_q - m_q) / sigma_q + shift: (Q, k, k) and (Q,)."""
    gain = scale * torch.rsqrt(var + eps)
    return gain[:, None, None] * h, shift - gain * mean


def folded_operator(h, b, g, bias, table, reads):
    """HCNN: h, normalisation and g as one spatial convolution from all input attributes to all outputs, equation (8).

    h, b: from `normalised_filters`. Returns kernel (outputs * filters, inputs, k, k) and bias (outputs * filters,). With
    zeros the constant b_q is seen through the taps inside the grid only, so the bias depends on the output position.
    """
    taps = g.flatten(2)  # (filters, Q, taps)
    w = torch.einsum("fqt,qp->tfp", taps, h.flatten(1))
    kernel = spread_taps(w, table, reads).transpose(1, 2)  # (outputs, filters, inputs, k * k)
    constant = torch.einsum("fqt,q,ot->of", taps, b, (reads >= 0).to(b.dtype)) + bias
    return kernel.reshape(-1, kernel.shape[2], *h.shape[1:]), constant.flatten()


def direct_operator(w, bias, table, reads):
    """The same for filters w (filters, *support, k, k) that are not factorised."""
    filters, k = len(w), w.shape[-1]
    taps = w.reshape(filters, -1, k * k).transpose(0, 1)
    kernel = spread_taps(taps, table, reads).transpose(1, 2)
    return kernel.reshape(-1, kernel.shape[2], k, k), None if bias is None else bias.repeat(table.shape[1])


def mixing_matrix(g, table, reads):
    """HCNN(+): g along the attributes as a matrix (outputs * filters, inputs * Q)."""
    matrix = spread_taps(g.flatten(2).permute(2, 0, 1), table, reads)  # (outputs, inputs, filters, Q)
    return matrix.transpose(1, 2).flatten(0, 1).flatten(1)
