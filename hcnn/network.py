"""The networks: thin modules that own parameters and call the functions of `operators`."""

from collections.abc import Iterable
from functools import singledispatch
from math import prod

import torch
import torch.nn.functional as F
from torch import nn

from hcnn.architecture import ODD, RULES, Architecture
from hcnn.geometry import Geometry
from hcnn.normalisation import AttributeNorm, update_running
from hcnn.operators import choice, folding, fourier, moments
from hcnn.operators.convolution import spatial_conv
from hcnn.operators.fused import elu_over
from hcnn.settings import BOOLEAN, integer, optional, tuple_of

OF_CONV = dict(  # what the parameters of AttributeConv must be
    grid=tuple_of(integer(1).holds, "positive integers, one an attribute"),
    support=tuple_of(ODD.holds, "positive odd integers, one an attribute"),
    filters=integer(1), Q=optional(integer(1)), elu=BOOLEAN, spatial_support=ODD, attribute_stride=integer(1),
    statistics=RULES["statistics"], reduction=RULES["reduction"], bias=BOOLEAN,
    initialisation=RULES["initialisation"], eps=RULES["norm_eps"], momentum=RULES["norm_momentum"])


class AttributeConv(nn.Module):
    """One operator W_j: a multidimensional convolution along space and an attribute grid, section 4.2 of the paper.

    x_j(u, v, v_j) = sum_q n_q(x * h_q) * g_{v_j,q} (2^s u, 2 v) + b_{v_j}, with n_q the batch normalisation of x * h_q
    (statistics over batch, attributes and all positions). Exact: the fast path computes what `reference` does. In
    evaluation the normalisation is constant and the operator is folded once.

    Input (batch, *grid, height, width), or with one more attribute axis after the batch, which is averaged (equation
    (6)). Output (batch, *grid', filters, height', width'), sizes divided by the strides and rounded up. Feed the output
    to the nonlinearity rho, `nn.ELU()` in the paper; the filters become the fastest attribute of the next layer:

        AttributeConv((8, 16), 16) -> nn.ELU() -> AttributeConv((8, 16), 16): (n, 8, 16, h, w) -> (n, 4, 8, 16, h, w)

    grid: sizes of the convolved attributes. support: of g along them, odd. Q: separable filters, equation (8); None:
    one filter w (filters, *support, k, k) without factorisation or normalisation. elu: ELU between h and g, HCNN(+).
    Raises ValueError where a shape or parameter does not fit, naming it.
    """

    def __init__(self, grid: tuple[int, ...], filters: int, support: tuple[int, ...] = (7, 11), Q: int | None = 32, *,
                 elu: bool = False, spatial_support: int = 3, stride: int = 1, attribute_stride: int = 2,
                 padding_mode: str = "zeros", padding: str = "symmetric", statistics: str = "all",
                 reduction: str = "mean", bias: bool = True, initialisation: str = "he", eps: float = 1e-5,
                 momentum: float = 0.1, generator: torch.Generator | None = None):
        super().__init__()
        grid, support = (tuple(sizes) if isinstance(sizes, list) else sizes for sizes in (grid, support))
        for name, value in dict(grid=grid, support=support, filters=filters, Q=Q, elu=elu, bias=bias, eps=eps,
                                momentum=momentum, spatial_support=spatial_support, attribute_stride=attribute_stride,
                                statistics=statistics, reduction=reduction, initialisation=initialisation).items():
            OF_CONV[name].check(name, value)
        if not grid or len(grid) != len(support):
            raise ValueError(f"grid and support must have one size an attribute, got {grid} and {support}")
        if elu and Q is None:
            raise ValueError("elu must be false where Q is None, as w has no h and g to stand between, got True")
        self.grid, self.support, self.filters, self.Q, self.elu = grid, support, filters, Q, elu
        self.space, self.along = (Geometry(step, padding_mode, padding) for step in (stride, attribute_stride))
        self.spatial_support, self.statistics, self.reduction = spatial_support, statistics, reduction
        self.eps, self.momentum = eps, momentum
        self.register_buffer("reads", folding.tap_reads(grid, support, self.along), persistent=False)
        self.register_buffer("table", folding.tap_table(grid, support, self.along), persistent=False)
        self.out_grid = tuple(map(self.along.outputs, grid))
        k, taps = spatial_support, prod(support)
        if Q is None:
            self.w = _filters(initialisation, 2 / (k * k * taps), (filters, *support, k, k), generator)
        else:
            self.h = _filters(initialisation, 1 / (k * k), (Q, k, k), generator)
            self.g = _filters(initialisation, 2 / (Q * taps), (filters, Q, *support), generator)
            self.scale, self.shift = nn.Parameter(torch.ones(Q)), nn.Parameter(torch.zeros(Q))
            self.register_buffer("running_mean", torch.zeros(Q))
            self.register_buffer("running_var", torch.ones(Q))
        self.bias = nn.Parameter(torch.zeros(filters)) if bias else None
        self.path = None  # one of `operators.choice.PATHS` instead of the one that is chosen
        self._cache = None

    def filter_parameters(self) -> list[nn.Parameter]:
        """The filters, which weight decay applies to: [w] or [h, g]."""
        return [self.w] if self.Q is None else [self.h, self.g]

    def forward(self, x: torch.Tensor, marginal: bool = False) -> torch.Tensor:
        """W_j x; with `marginal`, which needs the path `fused`, what equation (6) then makes of ELU(W_j x)."""
        more = x.dim() - len(self.grid) - 3
        if more not in (0, 1) or tuple(x.shape[1 + more:-2]) != self.grid or 0 in x.shape[:2]:
            raise ValueError(f"input must be (batch >= 1, {', '.join(map(str, self.grid))}, height, width), with or "
                             f"without one more attribute axis after the batch, got {tuple(x.shape)}")
        if more:
            x = x.sum(1) / x.shape[1] if self.reduction == "mean" else x.sum(1)  # no gradient is divided whole
        if min(x.shape[-2:]) < (self.spatial_support // 2 if self.space.padding_mode == "periodic" else 1):
            raise ValueError(f"images of {tuple(x.shape[-2:])} are smaller than the reach of the filters")
        path = self.path_for(x)
        if path == "fused" and marginal:
            return choice.PATHS[path](self, x, marginal)
        out = choice.PATHS[path](self, x, *(() if path == "fused" else self._operator(x, path)))
        return out.view(len(x), *self.out_grid, self.filters, *out.shape[-2:])

    def path_for(self, x):
        """Which of `operators.choice.PATHS` computes this input."""
        return self.path or choice.choose(self, x)

    def _operator(self, x, path):
        """Kernel and bias, for HCNN(+) matrix, bias, h and b, for this input; kept in evaluation without gradients."""
        with torch.autocast(x.device.type, enabled=False):
            if self.training or torch.is_grad_enabled():
                self._cache = None
                return self._build(x, path)
            tensors = *self.parameters(), *self.buffers()
            key = [path, *((t._version, t.data_ptr(), t.dtype, t.device) for t in tensors)]
            if self._cache is None or self._cache[0] != key:
                self._cache = key, self._build(x, path)
            return self._cache[1]

    def _build(self, x, path):
        rest = ()
        if self.Q is None:
            w, bias = self.w.flatten(1, -3).transpose(0, 1), self.bias
            bias = None if bias is None else bias.repeat(len(self.reads))
        else:
            bias = self.g.new_zeros(self.filters) if self.bias is None else self.bias
            h, b = folding.normalised_filters(self.h, *self.statistics_of(x), self.scale, self.shift, self.eps)
            if self.elu:
                w, bias, rest = self.g.flatten(2).permute(2, 0, 1), bias.repeat(len(self.reads)), (h, b)
            else:
                w, bias = folding.folded_taps(h, b, self.g, bias, self.reads)
        if path == "fourier":
            return fourier.transformed_kernel(w, self.grid, self.support, self.along), bias, *rest
        return folding.attribute_matrix(w, self.table, self.reads), bias, *rest

    def statistics_of(self, x):
        """Mean and variance of x * h_q: the running ones, in training those of this batch, which move the running."""
        if not self.training:
            return self.running_mean, self.running_var
        geometry = self.space if self.statistics == "strided" else self.space.replace(stride=1)
        mu, C, n = moments.patch_moments(x.reshape(-1, *x.shape[-2:]), self.spatial_support, geometry)
        mean, var = moments.filter_statistics(self.h, mu.to(self.h.dtype), C.to(self.h.dtype))
        update_running(self, mean, var, n)
        return mean, var

    def extra_repr(self):
        return (f"grid={self.grid}, filters={self.filters}, support={self.support}, Q={self.Q}, elu={self.elu}, "
                f"stride={self.space.stride}, padding_mode={self.space.padding_mode}")


def _filters(initialisation, variance, shape, generator):
    std = 0.05 if initialisation == "normal-0.05" else variance**0.5
    return nn.Parameter(torch.randn(shape, generator=generator) * std)


class ColourConv(nn.Module):
    """W_1, equation (3), a sum of 2-D convolutions: (batch, colours, height, width) -> (batch, filters, ...)."""

    def __init__(self, in_channels, filters, spatial_support=3, stride=1, padding_mode="zeros", padding="symmetric",
                 initialisation="he", generator=None):
        super().__init__()
        self.space = Geometry(stride, padding_mode, padding)
        shape = (filters, in_channels, spatial_support, spatial_support)
        self.w = _filters(initialisation, 2 / prod(shape[1:]), shape, generator)

    def filter_parameters(self):
        return [self.w]

    def forward(self, x):
        return spatial_conv(x, self.w, None, self.space)


class HCNN(nn.Module):
    """Hierarchical Attribute CNN: x_j = rho W_j x_{j-1}, j = 1 ... J - 1, then the average (7) over all but the class.

    forward(x): x (batch, colours, height, width), standardised -> class scores (batch, num_classes), for a soft-max.
    generator: a CPU torch.Generator for the initial filters.
    """

    def __init__(self, architecture: Architecture | None = None, generator: torch.Generator | None = None):
        super().__init__()
        a = self.architecture = architecture or Architecture()
        shared = dict(padding_mode=a.padding_mode, padding=a.padding, initialisation=a.initialisation,
                      generator=generator)
        self.operators, self.norms = nn.ModuleList(), nn.ModuleList()
        for layer in a.layers:
            if layer.j == 1:
                operator = ColourConv(a.in_channels, layer.filters, layer.spatial_support, layer.stride, **shared)
            else:
                operator = AttributeConv(
                    layer.grid, layer.filters, layer.support, layer.Q,
                    elu=a.variant == "hcnn-plus" and layer.Q is not None,
                    spatial_support=layer.spatial_support, stride=layer.stride, attribute_stride=layer.along.stride,
                    statistics=a.statistics, reduction=a.reduction, bias=layer.j > 2 and not a.output_norm,
                    eps=a.norm_eps, momentum=a.norm_momentum, **shared)
            self.operators.append(operator)
            normed = layer.j <= 2 or a.output_norm
            self.norms.append(AttributeNorm(layer.filters, a.norm_eps, a.norm_momentum) if normed else nn.Identity())
        self.head = nn.Identity()
        if a.head == "linear":
            self.head = nn.Linear(a.K, a.num_classes)
            with torch.no_grad():
                std = 0.05 if a.initialisation == "normal-0.05" else a.K**-0.5
                self.head.weight.normal_(0, std, generator=generator)
                self.head.bias.zero_()

    def filter_parameters(self) -> list[nn.Parameter]:
        """What weight decay applies to: filters and the weight of the linear head, no scale, shift or bias."""
        filters = [p for operator in self.operators for p in operator.filter_parameters()]
        return filters + ([self.head.weight] if self.architecture.head == "linear" else [])

    def layer(self, x: torch.Tensor, j: int, marginal: bool = False) -> torch.Tensor:
        """x_{j-1} -> x_j, of shape (batch, *architecture.shape(j)); j = J gives the class scores.

        marginal: where W_{j+1} begins with the sum over v_{j-2}, x_j may be that sum, which a GPU makes in one pass.
        """
        a = self.architecture
        if j == a.J:
            dims = (-1, -2, *range(1, x.dim() - 3))
            x = x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
            with torch.autocast(x.device.type, enabled=False):
                return self.head(x.mean(dims) if a.reduction == "mean" else x.sum(dims))
        operator = self.operators[j - 1]
        one_pass = marginal and 3 <= j < a.J - 1 and operator.path_for(x) == "fused"
        if one_pass and not a.output_norm:
            return operator(x, marginal=True)
        y = self.norms[j - 1](operator(x))
        if one_pass:
            return elu_over(y, a.reduction == "mean")
        return F.elu(y) if j < a.J - 1 or a.last_elu or a.head == "linear" else y

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self._check(x)
        if x.is_cuda:  # what cuDNN would make of arrays in bfloat16, and the fastest for the norms of j = 1, 2
            x = x.contiguous(memory_format=torch.channels_last)
        for j in range(1, self.architecture.J + 1):
            x = self.layer(x, j, marginal=True)
        return x

    def activations(self, x: torch.Tensor, depths: Iterable[int]) -> dict[int, torch.Tensor]:
        """{j: x_j} for the depths asked for, 1 <= j <= J; computes no layer beyond the deepest."""
        self._check(x)
        kept, depths = {}, set(depths)
        if not depths or not depths <= set(range(1, self.architecture.J + 1)):
            raise ValueError(f"depths must be between 1 and J = {self.architecture.J}, got {sorted(depths)}")
        for j in range(1, max(depths) + 1):
            x = self.layer(x, j)
            kept |= {j: x} if j in depths else {}
        return kept

    def _check(self, x):
        a = self.architecture
        if x.dim() != 4 or x.shape[1] != a.in_channels or min(x.shape) == 0:
            raise ValueError(f"images must be (batch >= 1, {a.in_channels}, height, width), got {tuple(x.shape)}")


class MultiscaleHCNN(nn.Module):
    """The general Multiscale Hierarchical CNN of section 3: no marginal sums, x_j indexed by all of (v_1, ..., v_j).

    W_j convolves (u, v_1, ..., v_{j-1}) with plain filters of support 3 along every axis and subsamples the
    attributes by 2; its filters have K 3^(j+1) numbers: the exponential growth that HCNN avoids. For small J and K
    only.
    """

    def __init__(self, K: int = 4, J: int = 5, num_classes: int = 10, in_channels: int = 3,
                 padding_mode: str = "zeros", generator: torch.Generator | None = None):
        super().__init__()
        if K < 1 or J < 3:
            raise ValueError(f"K must be at least 1 and J at least 3, got K = {K} and J = {J}")
        self.operators = nn.ModuleList([ColourConv(in_channels, K, padding_mode=padding_mode, generator=generator)])
        self.norms, grid = nn.ModuleList([AttributeNorm(K)]), (K,)
        for j in range(2, J):
            filters = num_classes if j == J - 1 else K
            conv = AttributeConv(grid, filters, (3,) * len(grid), Q=None, padding_mode=padding_mode, bias=False,
                                 generator=generator)
            grid = (*conv.out_grid, filters)
            self.operators.append(conv)
            self.norms.append(AttributeNorm(filters))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for operator, norm in zip(self.operators, self.norms):
            x = F.elu(norm(operator(x)))
        return x.mean((-1, -2, *range(1, x.dim() - 3)))


@singledispatch
def build(description, generator: torch.Generator | None = None) -> nn.Module:
    """The network of a description, with initial filters from a CPU torch.Generator: HCNN for an `Architecture`.

    An open function: whoever describes other networks registers how they are built.
    """
    raise TypeError(f"nothing says how to build the network of a {type(description).__name__}; use build.register")


@build.register
def _(description: Architecture, generator=None):
    return HCNN(description, generator)
