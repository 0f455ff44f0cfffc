"""The architecture of a Hierarchical Attribute CNN: its parameters, the shape at every depth, closed-form counts.

Section 4 of Jacobsen, Oyallon, Mallat, Smeulders, "Hierarchical Attribute CNNs" (2017). Nothing here needs torch.
"""

from dataclasses import dataclass, fields
from math import prod

from hcnn.geometry import pad_before
from hcnn.settings import Settings, is_integer

VARIANTS = {"hcnn": "HCNN", "hcnn-plus": "HCNN(+)"}
CLASSES = {"cifar10": 10, "cifar100": 100, "digits": 10}

# What the paper does not say, as we read it ("paper"), and what the authors' released code does instead.
CONVENTIONS = {
    "paper": {},
    "released": dict(
        padding="same", subsampled=(4, 8), statistics="strided", output_norm=True, head="linear",
        initialisation="normal-0.05", norm_eps=1e-3, norm_momentum=0.01,
    ),
}
SUPPORTS = {"cifar10": (7, 11), "cifar100": (11, 11), "digits": (7, 11)}


@dataclass(frozen=True)
class Layer:
    """One operator W_j: a convolution along (u, v, v') with `filters` filters, then the nonlinearity rho.

    grid: sizes of the convolved attributes (slowest first); out_grid: the same after subsampling by `attribute_stride`.
    size: spatial input size (height, width); out_size: after subsampling by `stride`. sums: whether v_{j-3} is summed first.
    Q is None where the filter is not factorised as in equation (8).
    """

    j: int
    filters: int
    Q: int | None
    grid: tuple[int, ...]
    support: tuple[int, ...]
    attribute_stride: int
    spatial_support: int
    stride: int
    size: tuple[int, int]
    sums: bool

    @property
    def out_grid(self):
        return tuple(-(-n // self.attribute_stride) for n in self.grid)

    @property
    def out_size(self):
        return tuple(-(-n // self.stride) for n in self.size)

    @property
    def full_filter(self):
        """Numbers in the filters w_{v_j}(u, v, v') of this layer (j = 1: one for each colour)."""
        return self.filters * self.spatial_support**2 * prod(self.support)

    @property
    def factorised_filter(self):
        """Numbers in h_{j,q} and g_{v_j,q} of equation (8); the filter itself where it is not factorised."""
        if self.Q is None:
            return self.full_filter
        return self.Q * self.spatial_support**2 + self.filters * self.Q * prod(self.support)


@dataclass(frozen=True)
class Architecture(Settings):
    """A Hierarchical Attribute CNN, `hcnn`, or its version with a nonlinearity between h and g, `hcnn-plus` (HCNN(+)).

    K: attributes take at most K values, the arrays of x_j are K/4 x K/2 x K. Q: separable filters, equation (8).
    J: total depth; x_J are the class scores. attribute_support: (s, s') along (v_{j-2}, v_{j-1}). subsampled: depths j
    whose operator subsamples u by 2. image_size: (height, width). padding_mode: `zeros` or `periodic`, along
    attributes and space alike. The rest fixes what the paper leaves open; see the README.

    Raises ValueError naming the parameter, its value and the allowed values.
    """

    variant: str = "hcnn"
    K: int = 16
    Q: int = 32
    J: int = 12
    attribute_support: tuple[int, int] = (7, 11)
    num_classes: int = 10
    image_size: tuple[int, int] = (32, 32)
    in_channels: int = 3
    subsampled: tuple[int, ...] = (5, 9)
    padding_mode: str = "zeros"
    spatial_support: int = 3
    first_support: int = 11  # along v_1 at j = 2
    factorised: bool = True  # False: train w directly
    padding: str = "symmetric"  # k // 2 on either side; "same" is TensorFlow's, one less on the left when uneven
    statistics: str = "all"  # of x * h_q: at all positions, or at the "strided" ones only
    output_norm: bool = False  # normalise after g as well
    head: str = "classes"  # v_{J-1} is the class; "linear": K attributes, averaged, then a linear layer
    reduction: str = "mean"  # over v_{j-3} and over (u, v_{J-3}, v_{J-2}); the paper writes "sum"
    last_elu: bool = True  # rho after W_{J-1}
    initialisation: str = "he"  # h ~ N(0, 1/9), g ~ N(0, 2/(Q s s')); or "normal-0.05"
    norm_eps: float = 1e-5
    norm_momentum: float = 0.1

    def __post_init__(self):
        for name in ("attribute_support", "image_size", "subsampled"):
            value = getattr(self, name)
            if isinstance(value, list):
                object.__setattr__(self, name, tuple(value))
        self._validate()

    def _validate(self):
        def refuse(name, allowed):
            raise ValueError(f"{name} must be {allowed}, got {getattr(self, name)!r}")

        def is_odd(value):
            return is_integer(value, 1) and value % 2 == 1

        for name, allowed in (
            ("variant", tuple(VARIANTS)), ("padding_mode", ("zeros", "periodic")), ("padding", ("symmetric", "same")),
            ("statistics", ("all", "strided")), ("head", ("classes", "linear")), ("reduction", ("mean", "sum")),
            ("initialisation", ("he", "normal-0.05")),
        ):
            if getattr(self, name) not in allowed:
                refuse(name, "one of " + ", ".join(allowed))
        for name in ("factorised", "output_norm", "last_elu"):
            if not isinstance(getattr(self, name), bool):
                refuse(name, "true or false")
        if not is_integer(self.K, 4) or self.K % 4:
            refuse("K", "a positive multiple of 4")
        if not is_integer(self.J, 4):
            refuse("J", "an integer of at least 4")
        for name, least in (("Q", 1), ("num_classes", 2), ("in_channels", 1)):
            if not is_integer(getattr(self, name), least):
                refuse(name, f"an integer of at least {least}")
        for name in ("spatial_support", "first_support"):
            if not is_odd(getattr(self, name)):
                refuse(name, "a positive odd integer")
        if not (isinstance(self.attribute_support, tuple) and len(self.attribute_support) == 2
                and all(map(is_odd, self.attribute_support))):
            refuse("attribute_support", "two positive odd integers (s, s')")
        if not (isinstance(self.image_size, tuple) and len(self.image_size) == 2 and all(is_integer(n, 1) for n in self.image_size)):
            refuse("image_size", "two positive integers (height, width)")
        depths = self.subsampled
        if not (isinstance(depths, tuple) and all(is_integer(j, 1) and j < self.J for j in depths)
                and list(depths) == sorted(set(depths))):
            refuse("subsampled", f"increasing depths between 1 and J - 1 = {self.J - 1}")
        if not (isinstance(self.norm_eps, float) and 0 < self.norm_eps < 1):
            refuse("norm_eps", "a number between 0 and 1")
        if not (isinstance(self.norm_momentum, float) and 0 < self.norm_momentum <= 1):
            refuse("norm_momentum", "a number between 0 and 1")
        if self.padding == "same" and self.padding_mode == "periodic":
            refuse("padding", "symmetric where padding_mode is periodic")
        if not self.factorised and self.variant == "hcnn-plus":
            refuse("factorised", "true for hcnn-plus, whose nonlinearity stands between h and g")
        if not self.factorised and self.statistics == "strided":
            refuse("statistics", "all where the filters are not factorised")
        for layer in self.layers:
            if self.padding_mode == "periodic" and min(layer.size) < self.spatial_support // 2:
                refuse("image_size", f"large enough that x_{layer.j - 1} is at least {self.spatial_support // 2} pixels wide")

    @classmethod
    def preset(cls, dataset="cifar10", variant="hcnn", preset="paper", **overrides):
        """The network of the paper's section 4 for `cifar10`, `cifar100` or `digits`; overrides are other fields.

        preset `released`: the conventions of the authors' code, which exists for HCNN(+) only.
        """
        if dataset not in tuple(CLASSES):
            raise ValueError(f"dataset must be one of {', '.join(CLASSES)}, got {dataset!r}")
        if preset not in tuple(CONVENTIONS):
            raise ValueError(f"preset must be one of {', '.join(CONVENTIONS)}, got {preset!r}")
        if preset == "released" and variant == "hcnn":
            raise ValueError("variant must be 'hcnn-plus' with preset='released' (the authors' code has a nonlinearity "
                             f"after both h and g), got {variant!r}")
        unknown = set(overrides) - {f.name for f in fields(cls)}
        if unknown:
            raise ValueError(f"unknown parameter {sorted(unknown)[0]!r}; allowed are {', '.join(f.name for f in fields(cls))}")
        values = dict(variant=variant, num_classes=CLASSES[dataset], attribute_support=SUPPORTS[dataset])
        return cls(**(values | CONVENTIONS[preset] | overrides))

    @property
    def name(self):
        """HCNN or HCNN(+), as the paper writes it."""
        return VARIANTS[self.variant]

    @property
    def layers(self):
        """The operators W_1 ... W_{J-1} (W_J is the final average)."""
        K, size, layers = self.K, self.image_size, []
        grids = {2: (K,), 3: (K // 2, K)}
        for j in range(1, self.J):
            last = j == self.J - 1 and self.head == "classes"
            layers.append(Layer(
                j=j,
                filters=self.num_classes if last else K,
                Q=self.Q if j >= 3 and self.factorised else None,
                grid=() if j == 1 else grids.get(j, (K // 2, K)),
                support=(self.in_channels,) if j == 1 else (self.first_support,) if j == 2 else self.attribute_support,
                attribute_stride=2,
                spatial_support=self.spatial_support,
                stride=2 if j in self.subsampled else 1,
                size=size,
                sums=j >= 4,
            ))
            size = layers[-1].out_size
        return tuple(layers)

    def shape(self, j):
        """Shape of x_j without the batch: attributes (slowest first), then (height, width); x_J: (num_classes,)."""
        if not 0 <= j <= self.J:
            raise ValueError(f"j must be between 0 and J = {self.J}, got {j}")
        if j == 0:
            return (self.in_channels, *self.image_size)
        if j == self.J:
            return (self.num_classes,)
        layer = self.layers[j - 1]
        return (*layer.out_grid, layer.filters, *layer.out_size)

    def count(self):
        """Closed-form numbers of parameters of the whole network, as a dict.

        filters: the paper's count (HCNN: the filters w; HCNN(+): h and g; j = 1, 2: plain filters in both).
        trained_filters: what gradient descent moves (h and g in both variants). normalisation, bias: scales and shifts,
        biases (of the linear head too). trained: all trainable numbers. effective: `effective_count` over the layers.
        """
        layers = self.layers
        plus = self.variant == "hcnn-plus"
        trained_filters = sum(l.factorised_filter for l in layers)
        full = sum(l.full_filter for l in layers)
        normalisation = sum(2 * l.filters for l in layers if l.j <= 2)
        normalisation += sum(2 * l.Q for l in layers if l.Q) + sum(2 * l.filters for l in layers if l.j >= 3 and self.output_norm)
        bias = 0 if self.output_norm else sum(l.filters for l in layers if l.j >= 3)
        head = (self.K + 1) * self.num_classes if self.head == "linear" else 0
        return dict(
            filters=trained_filters if plus else full,
            trained_filters=trained_filters,
            normalisation=normalisation,
            bias=bias,
            head=head,
            trained=trained_filters + normalisation + bias + head,
            effective=sum(map(self.effective_count, layers)),
        )

    def effective_count(self, layer):
        """Degrees of freedom of one layer's filters: taps that never touch the grid and the rank limit left out.

        For F filters on T live taps, w is a (spatial taps) x (F T) matrix of rank r = min(Q, spatial taps), and such
        matrices have r (spatial taps + F T - r) degrees of freedom (r at most F T). HCNN(+): h and the live part of g.
        """
        if layer.j == 1:
            return layer.full_filter
        live = prod(self._live_taps(n, s, layer.attribute_stride) for n, s in zip(layer.grid, layer.support))
        space = layer.spatial_support**2
        if layer.Q is None:
            return space * layer.filters * live
        if self.variant == "hcnn-plus":
            return layer.Q * (space + layer.filters * live)
        r = min(layer.Q, space, layer.filters * live)
        return r * (space + layer.filters * live - r)

    def carried(self, j, shift):
        """What a translation of x_j along (v_{j-2}, v_{j-1}, v_j, u) does to later layers: yields (j, shift), (j + 1, ...), ...

        Covariance with subsampling, for periodic boundaries: each W halves the attributes that it convolves, averages the
        oldest, and its new attribute does not move. Ends at x_{J-1}, or where a translation would not be a whole number.
        """
        yield j, shift
        stride = self.layers[j].stride if j < self.J - 1 else 0  # of W_{j+1}
        if stride and shift[1] % 2 == shift[2] % 2 == shift[3] % stride == 0:
            yield from self.carried(j + 1, (shift[1] // 2, shift[2] // 2, 0, shift[3] // stride))

    def exact_translation(self, j, axis):
        """Proposition 3.1 with subsampling: the smallest translation of x_j, j >= 3, that does not change the class scores.

        axis: 0..3 for v_{j-2}, v_{j-1}, v_j, u; periodic boundaries. Returns a power of 2, None where the axis is the class.
        """
        for tau in (2**i for i in range(self.J)):
            last, shift = list(self.carried(j, tuple(tau * (i == axis) for i in range(4))))[-1]
            if last == self.J - 1 and not shift[2]:
                return tau
        return None

    def _live_taps(self, n, support, stride):
        """Taps of one axis that reach the grid from some output index (periodic: distinct inputs read, at most n)."""
        if self.padding_mode == "periodic":
            return min(support, n)
        before = pad_before(n, support, stride, self.padding)
        return sum(any(0 <= o * stride + t - before < n for o in range(-(-n // stride))) for t in range(support))


DESCRIPTIONS = dict.fromkeys(VARIANTS, Architecture)  # the class that describes the networks of a variant


def register(variants, cls):
    """Let `describe` know another class of descriptions, frozen settings like `Architecture`, and the variants that it describes."""
    DESCRIPTIONS.update(dict.fromkeys(variants, cls))


def describe(values):
    """The description of a network whose `as_dict` is `values`, such as `architecture` among the parameters of a run.

    Raises ValueError for a variant that nobody has registered, TypeError for fields that its class does not have.
    """
    variant = values["variant"]
    if variant not in tuple(DESCRIPTIONS):
        raise ValueError(f"variant must be one of {', '.join(DESCRIPTIONS)}, got {variant!r}; compared networks: "
                         "import hcnn.companion.baselines")
    return DESCRIPTIONS[variant](**values)
