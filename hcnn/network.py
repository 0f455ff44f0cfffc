"""The networks: thin modules that own parameters and call the functions of `operators`."""

from functools import singledispatch
from math import prod

import torch
import torch.nn.functional as F
from torch import nn

from hcnn import operators as ops
from hcnn.architecture import Architecture
from hcnn.geometry import tap_reads, tap_table, windows
from hcnn.operators import fused
from hcnn.operators.tiled import tiled_product


class AttributeConv(nn.Module):
    """One operator W_j: a multidimensional convolution along space and an attribute grid, section 4.2 of the paper.

    x_j(u, v, v_j) = sum_q n_q(x * h_q) * g_{v_j,q} (2^s u, 2 v) + b_{v_j}, with n_q the batch normalisation of x * h_q
    (statistics over batch, attributes and all positions). Exact: the fast path computes what `reference` does. In
    evaluation the normalisation is constant and the operator is folded once.

    Input (batch, *grid, height, width), or with one more attribute axis after the batch, which is averaged (equation
    (6)). Output (batch, *grid', filters, height', width'), sizes divided by the strides and rounded up. Feed the output
    to the nonlinearity rho, `nn.ELU()` in the paper; the filters become the fastest attribute of the next layer:

        AttributeConv((8, 16), 16) -> nn.ELU() -> AttributeConv((8, 16), 16): (n, 8, 16, h, w) -> (n, 4, 8, 16, h, w)

    grid: sizes of the convolved attributes. support: of g along them, odd. Q: separable filters, equation (8); None: one
    filter w (filters, *support, k, k) without factorisation or normalisation. elu: ELU between h and g, HCNN(+).
    Raises ValueError where a shape or parameter does not fit.
    """

    def __init__(self, grid, filters, support=(7, 11), Q=32, *, elu=False, spatial_support=3, stride=1, attribute_stride=2,
                 padding_mode="zeros", padding="symmetric", statistics="all", reduction="mean", bias=True,
                 initialisation="he", eps=1e-5, momentum=0.1, generator=None):
        super().__init__()
        grid, support = tuple(grid), tuple(support)
        if len(grid) != len(support) or not grid or min(grid) < 1:
            raise ValueError(f"grid and support must have one positive size an attribute, got {grid} and {support}")
        if any(s % 2 == 0 or s < 1 for s in (*support, spatial_support)):
            raise ValueError(f"supports must be odd, got {support} along attributes and {spatial_support} along space")
        if filters < 1 or (Q is not None and Q < 1):
            raise ValueError(f"filters and Q must be at least 1, got {filters} and {Q}")
        if padding_mode not in ("zeros", "periodic"):
            raise ValueError(f"padding_mode must be zeros or periodic, got {padding_mode!r}")
        self.grid, self.support, self.filters, self.Q, self.elu = grid, support, filters, Q, elu
        self.spatial_support, self.stride, self.attribute_stride = spatial_support, stride, attribute_stride
        self.padding_mode, self.padding, self.statistics = padding_mode, padding, statistics
        self.reduction, self.eps, self.momentum = reduction, eps, momentum
        rule = (grid, support, attribute_stride, padding_mode, padding)
        self.register_buffer("reads", tap_reads(*rule), persistent=False)
        self.register_buffer("table", tap_table(*rule), persistent=False)
        self.out_grid = tuple(-(-n // attribute_stride) for n in grid)

        def normal(*shape, variance):
            std = 0.05 if initialisation == "normal-0.05" else variance**0.5
            return nn.Parameter(torch.randn(shape, generator=generator) * std)

        k, taps = spatial_support, prod(support)
        if Q is None:
            self.w = normal(filters, *support, k, k, variance=2 / (k * k * taps))
        else:
            self.h = normal(Q, k, k, variance=1 / (k * k))
            self.g = normal(filters, Q, *support, variance=2 / (Q * taps))
            self.scale, self.shift = nn.Parameter(torch.ones(Q)), nn.Parameter(torch.zeros(Q))
            self.register_buffer("running_mean", torch.zeros(Q))
            self.register_buffer("running_var", torch.ones(Q))
        self.bias = nn.Parameter(torch.zeros(filters)) if bias else None
        self._cache, self.path = None, None

    def filter_parameters(self):
        """The filters, which weight decay applies to: [w] or [h, g]."""
        return [self.w] if self.Q is None else [self.h, self.g]

    def forward(self, x):
        if x.dim() == len(self.grid) + 4:
            x = x.mean(1) if self.reduction == "mean" else x.sum(1)
        if x.dim() != len(self.grid) + 3 or tuple(x.shape[1:-2]) != self.grid:
            raise ValueError(f"input must be (batch, {', '.join(map(str, self.grid))}, height, width), with or without one more "
                             f"attribute axis after the batch; got {tuple(x.shape)}")
        if min(x.shape[-2:]) < (self.spatial_support // 2 if self.padding_mode == "periodic" else 1):
            raise ValueError(f"images of {tuple(x.shape[-2:])} are smaller than the reach of the filters")
        operator, path = self._operator(x), self.path or self.choose_path(x)
        out = getattr(self, f"_{path}")(x, *operator)
        return out.view(len(x), *self.out_grid, self.filters, *out.shape[-2:])

    def choose_path(self, x):
        """How the product is computed here; set `path` to choose yourself.

        convolution: by PyTorch's, z of HCNN(+) in memory. fused: HCNN(+) on a GPU where `fused.path` says so. tiled: HCNN(+) on a
        CPU, z tile by tile. windowed: HCNN on a CPU in float32 or float64, in parts without the structural zeros where these are at
        least a quarter.
        """
        if x.device.type != "cpu":
            fusible = self.elu and self.Q is not None and fused.path(x, self.h, len(self.reads) * self.filters) == fused.FUSED
            return "fused" if fusible else "convolution"
        if self.elu and self.Q is not None:
            return "tiled"
        read = sum((o_end - o) * (i_end - i) for o, o_end, i, i_end in self._windows()) / (self.out_grid[-1] * self.grid[-1])
        return "windowed" if read < 0.75 and not torch.is_autocast_enabled("cpu") else "convolution"

    def _windows(self):
        return windows(self.grid[-1], self.support[-1], self.attribute_stride, self.padding_mode, self.padding, 2)

    def _fused(self, x, matrix, bias, h, b):
        return fused.mixed_elu(x, h, b, matrix, bias, self.reads, self.stride, self.padding_mode, self.padding)

    def _tiled(self, x, matrix, bias, h, b):
        return tiled_product(x, matrix, bias, h, b, grid=self.grid, support=self.support, filters=self.filters, stride=self.stride,
                             attribute_stride=self.attribute_stride, padding_mode=self.padding_mode, padding=self.padding)

    def _windowed(self, x, kernel, bias):
        outer, k = (prod(self.out_grid[:-1]), self.out_grid[-1], self.filters), self.spatial_support
        inner = prod(self.grid[:-1]), self.grid[-1]
        bias = kernel.new_zeros(outer) if bias is None else bias.view(outer)
        out = ops.windowed_conv(x.reshape(len(x), *inner, *x.shape[-2:]), kernel.view(*outer, *inner, k, k), bias, self._windows(),
                                stride=self.stride, padding_mode=self.padding_mode, padding=self.padding)
        return out.flatten(1, 3)

    def _convolution(self, x, matrix, bias, h=None, b=None):
        rule = (self.stride, self.padding_mode, self.padding)
        if h is None:
            return ops.spatial_conv(x.flatten(1, -3), matrix, bias, *rule)
        z = F.elu(ops.spatial_conv(x.reshape(-1, 1, *x.shape[-2:]), h[:, None], b, *rule), inplace=True)
        return F.conv2d(z.view(len(x), -1, *z.shape[-2:]), matrix[:, :, None, None], bias)  # inputs * Q -> outputs * filters

    def _operator(self, x):
        """Kernel and bias, for HCNN(+) matrix, bias, h and b, for this input; kept while the module evaluates without gradients."""
        with torch.autocast(x.device.type, enabled=False):
            if self.training or torch.is_grad_enabled():
                self._cache = None
                return self._build(x)
            tensors = [*self.parameters(), *self.buffers()]
            key = [(t._version, t.data_ptr(), t.dtype, t.device) for t in tensors]
            if self._cache is None or self._cache[0] != key:
                self._cache = key, self._build(x)
            return self._cache[1]

    def _build(self, x):
        if self.Q is None:
            return ops.direct_operator(self.w, self.bias, self.table, self.reads)
        h, b = ops.normalised_filters(self.h, *self._statistics(x), self.scale, self.shift, self.eps)
        bias = self.g.new_zeros(self.filters) if self.bias is None else self.bias
        if not self.elu:
            return ops.folded_operator(h, b, self.g, bias, self.table, self.reads)
        return ops.mixing_matrix(self.g, self.table, self.reads), bias.repeat(len(self.reads)), h, b

    def _statistics(self, x):
        """Mean and variance of x * h_q: of this batch in training (which moves the running ones), else the running ones."""
        if not self.training:
            return self.running_mean, self.running_var
        stride = self.stride if self.statistics == "strided" else 1
        mu, C, n = ops.patch_moments(x.reshape(-1, *x.shape[-2:]), self.spatial_support, stride, self.padding_mode, self.padding)
        mean, var = ops.filter_statistics(self.h, mu.to(self.h.dtype), C.to(self.h.dtype))
        update_running(self, mean, var, n)
        return mean, var

    def extra_repr(self):
        return (f"grid={self.grid}, filters={self.filters}, support={self.support}, Q={self.Q}, elu={self.elu}, stride={self.stride}, "
                f"padding_mode={self.padding_mode}")


@torch.no_grad()
def update_running(module, mean, var, n):
    """PyTorch's rule for batch normalisation in evaluation: running averages, the variance with n / (n - 1)."""
    module.running_mean.lerp_(mean.detach(), module.momentum)
    module.running_var.lerp_(var.detach() * (n / (n - 1).clamp(min=1)).to(var.dtype), module.momentum)


class ColourConv(nn.Module):
    """W_1, equation (3): sum over colours of 2-D convolutions. (batch, colours, height, width) -> (batch, filters, ...)."""

    def __init__(self, in_channels, filters, spatial_support=3, stride=1, padding_mode="zeros", padding="symmetric",
                 initialisation="he", generator=None):
        super().__init__()
        self.rule = (stride, padding_mode, padding)
        fan_in = in_channels * spatial_support**2
        std = 0.05 if initialisation == "normal-0.05" else (2 / fan_in) ** 0.5
        self.w = nn.Parameter(torch.randn(filters, in_channels, spatial_support, spatial_support, generator=generator) * std)

    def filter_parameters(self):
        return [self.w]

    def forward(self, x):
        return ops.spatial_conv(x, self.w, None, *self.rule)


class AttributeNorm(nn.Module):
    """Batch normalisation of each filter v_j: one mean and deviation over batch, older attributes and space.

    (batch, ..., filters, height, width), learnable scale and shift; processes of torch.distributed share the statistics.
    """

    def __init__(self, filters, eps=1e-5, momentum=0.1):
        super().__init__()
        self.eps, self.momentum = eps, momentum
        self.scale, self.shift = nn.Parameter(torch.ones(filters)), nn.Parameter(torch.zeros(filters))
        self.register_buffer("running_mean", torch.zeros(filters))
        self.register_buffer("running_var", torch.ones(filters))

    def forward(self, x):
        z = x.reshape(-1, *x.shape[-3:])  # every older attribute into the batch
        mean, var = self._moments(z) if self.training else (self.running_mean, self.running_var)
        gain = self.scale * torch.rsqrt(var + self.eps)
        offset = self.shift - gain * mean
        return torch.addcmul(offset.view(-1, 1, 1).to(x.dtype), x, gain.view(-1, 1, 1).to(x.dtype))

    def _moments(self, z):
        with torch.autocast(z.device.type, enabled=False):
            z = z.float() if z.dtype in (torch.bfloat16, torch.float16) else z
            count = z.new_full((1,), z.numel() // z.shape[1])
            total = ops.all_sum(torch.cat([z.sum((0, 2, 3)), count]))
            mean, n = total[:-1] / total[-1].detach(), total[-1].detach()
            var = ops.all_sum((z - mean.view(-1, 1, 1)).square().sum((0, 2, 3))) / n
            update_running(self, mean, var, n)
            return mean, var


class HCNN(nn.Module):
    """Hierarchical Attribute CNN: x_j = rho W_j x_{j-1}, j = 1 ... J - 1, then the average (7) over all but the class.

    forward(x): x (batch, colours, height, width), standardised -> class scores (batch, num_classes), for a soft-max.
    generator: a CPU torch.Generator for the initial filters.
    """

    def __init__(self, architecture=None, generator=None):
        super().__init__()
        a = self.architecture = architecture or Architecture()
        space = dict(padding_mode=a.padding_mode, padding=a.padding, initialisation=a.initialisation, generator=generator)
        self.operators, self.norms = nn.ModuleList(), nn.ModuleList()
        for layer in a.layers:
            if layer.j == 1:
                operator = ColourConv(a.in_channels, layer.filters, layer.spatial_support, layer.stride, **space)
            else:
                operator = AttributeConv(
                    layer.grid, layer.filters, layer.support, layer.Q, elu=a.variant == "hcnn-plus" and layer.Q is not None,
                    spatial_support=layer.spatial_support, stride=layer.stride, attribute_stride=layer.attribute_stride,
                    statistics=a.statistics, reduction=a.reduction, bias=layer.j > 2 and not a.output_norm,
                    eps=a.norm_eps, momentum=a.norm_momentum, **space)
            self.operators.append(operator)
            normed = layer.j <= 2 or a.output_norm
            self.norms.append(AttributeNorm(layer.filters, a.norm_eps, a.norm_momentum) if normed else nn.Identity())
        self.head = nn.Identity()
        if a.head == "linear":
            self.head = nn.Linear(a.K, a.num_classes)
            with torch.no_grad():
                self.head.weight.normal_(0, 0.05 if a.initialisation == "normal-0.05" else a.K**-0.5, generator=generator)
                self.head.bias.zero_()

    def filter_parameters(self):
        """The parameters that weight decay applies to: filters and the weight of the linear head, no scale, shift or bias."""
        filters = [p for operator in self.operators for p in operator.filter_parameters()]
        return filters + ([self.head.weight] if self.architecture.head == "linear" else [])

    def layer(self, x, j):
        """x_{j-1} -> x_j, of shape (batch, *architecture.shape(j)); j = J gives the class scores."""
        a = self.architecture
        if j == a.J:
            dims = (-1, -2, *range(1, x.dim() - 3))
            x = x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
            with torch.autocast(x.device.type, enabled=False):
                return self.head(x.mean(dims) if a.reduction == "mean" else x.sum(dims))
        x = self.norms[j - 1](self.operators[j - 1](x))
        return F.elu(x, inplace=True) if j < a.J - 1 or a.last_elu or a.head == "linear" else x

    def forward(self, x):
        self._check(x)
        for j in range(1, self.architecture.J + 1):
            x = self.layer(x, j)
        return x

    def activations(self, x, depths):
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
        if x.dim() != 4 or tuple(x.shape[1:]) != a.shape(0) or len(x) == 0:
            raise ValueError(f"images must be (batch >= 1, {', '.join(map(str, a.shape(0)))}), got {tuple(x.shape)}; "
                             "other sizes: Architecture(image_size=...)")

    def predict(self, images, batch_size=100):
        """Class names of uint8 images, (n, 3, height, width) or (n, height, width, 3); for networks from `hcnn.load`."""
        images = torch.as_tensor(images)
        if images.dim() == 4 and tuple(images.shape[1:]) != self.architecture.shape(0):
            images = images.permute(0, 3, 1, 2)
        self._check(images)
        if images.dtype != torch.uint8:
            raise ValueError(f"images must be uint8 pixels 0..255, got {images.dtype}")
        device = next(self.parameters()).device
        mean, std = (torch.tensor(v, device=device).view(-1, 1, 1) for v in (self.mean, self.std))
        training = self.training
        self.eval()
        with torch.no_grad():
            scores = [self((part.to(device).float() / 255 - mean) / std) for part in images.split(batch_size)]
        self.train(training)
        return [self.classes[i] for i in torch.cat(scores).argmax(1).tolist()]


class MultiscaleHCNN(nn.Module):
    """The general Multiscale Hierarchical CNN of section 3: no marginal sums, x_j indexed by all of (v_1, ..., v_j).

    W_j convolves (u, v_1, ..., v_{j-1}) with plain filters of support 3 along every axis and subsamples the attributes by
    2; its filters have K 3^(j+1) numbers: the exponential growth that HCNN avoids. For small J and K only.
    """

    def __init__(self, K=4, J=5, num_classes=10, in_channels=3, padding_mode="zeros", generator=None):
        super().__init__()
        if K < 1 or J < 3:
            raise ValueError(f"K must be at least 1 and J at least 3, got K = {K} and J = {J}")
        self.operators = nn.ModuleList([ColourConv(in_channels, K, padding_mode=padding_mode, generator=generator)])
        self.norms, grid = nn.ModuleList([AttributeNorm(K)]), (K,)
        for j in range(2, J):
            filters = num_classes if j == J - 1 else K
            conv = AttributeConv(grid, filters, (3,) * len(grid), Q=None, padding_mode=padding_mode, bias=False, generator=generator)
            grid = (*conv.out_grid, filters)
            self.operators.append(conv)
            self.norms.append(AttributeNorm(filters))

    def forward(self, x):
        for operator, norm in zip(self.operators, self.norms):
            x = F.elu(norm(operator(x)))
        return x.mean((-1, -2, *range(1, x.dim() - 3)))


@singledispatch
def build(description, generator=None):
    """The network of a description, with initial filters from a CPU torch.Generator: HCNN for an `Architecture`.

    An open function: whoever describes other networks registers how they are built.
    """
    raise TypeError(f"nothing says how to build the network of a {type(description).__name__}; use build.register")


@build.register
def _(description: Architecture, generator=None):
    return HCNN(description, generator)
