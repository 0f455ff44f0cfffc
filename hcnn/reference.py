"""The equations of the paper as literally as code allows: the oracle of every fast operator. Slow on purpose.

Convolution means cross-correlation, sum over t of z(i + t) w(t), as in PyTorch: the paper's filters are ours flipped.
Output i of an axis subsampled by `stride` reads the input around stride * i. Axis order: (batch, a2, a1, a0, height,
width) for (v_{j-2}, v_{j-1}, v_j, u_1, u_2).
"""

from itertools import product

import torch
import torch.nn.functional as F

from hcnn.geometry import Geometry


def convolve(z, w, stride, padding_mode="zeros", padding="symmetric"):
    """Equation (2): z * w along the last w.dim() axes of z, subsampled by stride[axis], extended by zeros or
    periodically.

    z (..., n_1, ..., n_d), w (s_1, ..., s_d) with d = w.dim(). Returns (..., ceil(n_1 / stride_1), ...).
    """
    d, out = w.dim(), 0
    sizes = z.shape[z.dim() - d :]
    for taps in product(*map(range, w.shape)):
        term = z
        for axis, (n, s, t, step) in enumerate(zip(sizes, w.shape, taps, stride)):
            at = torch.arange(0, n, step, device=z.device) + t - Geometry(step, padding=padding).before(n, s)
            inside = ((at >= 0) & (at < n)) | (padding_mode == "periodic")
            dim = z.dim() - d + axis
            term = term.index_select(dim, at % n) * inside.view(-1, *[1] * (z.dim() - dim - 1))
        out = out + w[taps] * term
    return out


def first_layer(x, w, stride=1, padding_mode="zeros", padding="symmetric"):
    """Equation (3) before rho: sum over colours v_0 of x(., v_0) * w_{1, v_0, v_1}(u).

    x (batch, colours, height, width), w (filters, colours, k, k). Returns (batch, filters, height', width').
    """
    rule = ((stride,) * 2, padding_mode, padding)
    maps = [sum(convolve(x[:, v0], w_v1[v0], *rule) for v0 in range(x.shape[1])) for w_v1 in w]
    return torch.stack(maps, dim=1)


def attribute_layer(x, w, stride=1, attribute_stride=2, padding_mode="zeros", padding="symmetric"):
    """Equation (4) before rho: x_{j-1} * w_{v_j}(u, v) for every filter, a new attribute v_j behind the older ones.

    x (batch, *grid, height, width), w (filters, *support, k, k). Returns (batch, *grid', filters, height', width').
    """
    steps = (attribute_stride,) * (x.dim() - 3) + (stride,) * 2
    return torch.stack([convolve(x, w_vj, steps, padding_mode, padding) for w_vj in w], dim=-3)


def marginal(x, reduction="mean"):
    """The sum (by default the mean) over v_{j-3} of equation (6): (batch, a2, a1, ...) -> (batch, a1, ...)."""
    return x.mean(1) if reduction == "mean" else x.sum(1)


def factorised_filter(h, g):
    """Equation (8): w_{v_j}(u, v) = sum_q h_q(u) g_{v_j,q}(v).

    h (Q, k, k), g (filters, Q, s, s') -> (filters, s, s', k, k).
    """
    return torch.einsum("qab,fqst->fstab", h, g)


def normalise(z, scale, shift, dims, statistics=None, eps=1e-5):
    """Batch normalisation, section 4.2: scale (z - m) / sigma + shift, m and sigma over `dims` of `statistics` or z."""
    z0 = z if statistics is None else statistics
    mean, var = z0.mean(dims, keepdim=True), z0.var(dims, unbiased=False, keepdim=True)
    broadcast = [1 if i in [d % z.dim() for d in dims] else -1 for i in range(z.dim())]
    return (z - mean) / torch.sqrt(var + eps) * scale.view(broadcast) + shift.view(broadcast)


def factorised_layer(x, h, g, scale, shift, bias, stride=1, attribute_stride=2, padding_mode="zeros",
                     padding="symmetric", elu=False, statistics="all", eps=1e-5):
    """W_j of section 4.2 before rho: sum_q normalised(x * h_q) * g_{v_j,q}, in HCNN(+) ELU between the two.

    x (batch, a1, a0, height, width), h (Q, k, k), g (filters, Q, s, s'), scale and shift (Q,), bias (filters,) or None.
    Returns (batch, a1', a0', filters, height', width').
    """
    grid_steps = (attribute_stride,) * 2
    strided = torch.stack([convolve(x, h_q, (stride,) * 2, padding_mode, padding) for h_q in h], dim=-3)
    everywhere = strided
    if statistics == "all":
        everywhere = torch.stack([convolve(x, h_q, (1, 1), padding_mode, padding) for h_q in h], dim=-3)
    z = normalise(strided, scale, shift, (0, 1, 2, 4, 5), everywhere, eps)  # (batch, a1, a0, Q, height', width')
    z = F.elu(z) if elu else z
    z = z.movedim((1, 2), (-2, -1))  # (batch, Q, height', width', a1, a0)
    outs = [sum(convolve(z[:, q], g_vj[q], grid_steps, padding_mode, padding) for q in range(len(h))) for g_vj in g]
    x_j = torch.stack(outs, dim=-1).movedim((1, 2), (-2, -1))  # (batch, a1', a0', filters, height', width')
    return x_j if bias is None else x_j + bias.view(-1, 1, 1)


def class_scores(x, reduction="mean"):
    """Equation (7): the sum (mean) of x_{J-1} over space and all attributes but the last. -> (batch, num_classes)."""
    dims = (-1, -2, *range(1, x.dim() - 3))
    return x.mean(dims) if reduction == "mean" else x.sum(dims)


def forward(architecture, state, x, depths=()):
    """The whole network in training mode from a state dict of `hcnn.HCNN`: class scores (batch, num_classes).

    x (batch, colours, height, width). With depths: also a dict {j: x_j} of the layers asked for.
    """
    a, kept = architecture, {}
    rule = dict(padding_mode=a.padding_mode, padding=a.padding)
    for layer in a.layers:
        p, norm = ({name.rsplit(".", 1)[1]: value for name, value in state.items()
                    if name.startswith(f"{part}.{layer.j - 1}.")} for part in ("operators", "norms"))
        x = marginal(x, a.reduction) if layer.sums else x
        if layer.j == 1:
            x = first_layer(x, p["w"], layer.stride, **rule)
        elif layer.Q is None:
            x = attribute_layer(x, p["w"], layer.stride, **rule)
            x = x + p["bias"].view(-1, 1, 1) if "bias" in p else x
        else:
            x = factorised_layer(x, p["h"], p["g"], p["scale"], p["shift"], p.get("bias"), layer.stride, **rule,
                                 elu=a.variant == "hcnn-plus", statistics=a.statistics, eps=a.norm_eps)
        if norm:
            others = [d for d in range(x.dim()) if d != x.dim() - 3]
            x = normalise(x, norm["scale"], norm["shift"], others, eps=a.norm_eps)
        x = F.elu(x) if layer.j < a.J - 1 or a.last_elu or a.head == "linear" else x
        kept[layer.j] = x
    scores = class_scores(x, a.reduction)
    scores = scores @ state["head.weight"].T + state["head.bias"] if a.head == "linear" else scores
    return (scores, {j: kept[j] for j in depths}) if depths else scores


def literal_attribute_conv(x, h, g, scale, shift, bias, stride=1, elu=False, eps=1e-5):
    """The same W_j as a practitioner writes it with PyTorch's convolutions: the denominator of every speed-up we state.

    Attributes into the batch, conv2d 1 -> Q, batch norm, (ELU), space into the batch, conv2d Q -> filters with stride
    2, bias; zeros, symmetric, statistics at all positions. Shapes as in `factorised_layer`.
    """
    batch, a1, a0, height, width = x.shape
    z = F.conv2d(x.reshape(-1, 1, height, width), h[:, None], padding=h.shape[-1] // 2)  # (batch a1 a0, Q, ...)
    z = F.batch_norm(z, None, None, scale, shift, training=True, eps=eps)
    z = F.elu(z) if elu else z
    z = z[:, :, ::stride, ::stride]
    out_size = z.shape[2:]
    z = z.view(batch, a1, a0, len(h), *out_size).permute(0, 4, 5, 3, 1, 2).reshape(-1, len(h), a1, a0)
    z = F.conv2d(z, g, bias, stride=2, padding=(g.shape[2] // 2, g.shape[3] // 2))  # (..., filters, a1', a0')
    return z.view(batch, *out_size, *z.shape[1:]).permute(0, 4, 5, 3, 1, 2)
