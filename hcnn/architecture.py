"""The architecture of a Hierarchical Attribute CNN: its parameters, the shape at every depth, closed-form counts.

Section 4 of Jacobsen, Oyallon, Mallat, Smeulders, "Hierarchical Attribute CNNs" (2017). Nothing here needs torch.
"""

from dataclasses import dataclass
from math import prod
from typing import ClassVar

from hcnn import counts
from hcnn.geometry import PADDING_MODES, PADDINGS, Geometry
from hcnn.settings import BOOLEAN, Rule, Settings, integer, is_integer, number, one_of, tuple_of

VARIANTS = {"hcnn": "HCNN", "hcnn-plus": "HCNN(+)"}
CLASSES = {"cifar10": 10, "cifar100": 100, "digits": 10}

# What the paper does not say, as we read it ("paper"), and what the authors' released code does instead.
CONVENTIONS = {
    "paper": {},
    "released": dict(
        padding="same", subsampled=(4, 8), statistics="strided", output_norm=True, head="linear",
        initialisation="normal-0.05", norm_eps=1e-3, norm_momentum=0.01,
    ),
    "short": dict(output_norm=True),  # with the recipe of that name, which learns faster so
}
SUPPORTS = {"cifar10": (7, 11), "cifar100": (11, 11), "digits": (7, 11)}


ODD = Rule(lambda value: is_integer(value, 1) and value % 2 == 1, "a positive odd integer")
RULES = {
    "variant": one_of(VARIANTS),
    "K": Rule(lambda K: is_integer(K, 4) and K % 4 == 0, "a positive multiple of 4"),
    "Q": integer(1),
    "J": integer(4),
    "attribute_support": tuple_of(ODD.holds, "two positive odd integers (s, s')", 2),
    "num_classes": integer(2),
    "image_size": tuple_of(lambda n: is_integer(n, 1), "two positive integers (height, width)", 2),
    "in_channels": integer(1),
    "padding_mode": one_of(PADDING_MODES),
    "spatial_support": ODD,
    "first_support": ODD,
    "factorised": BOOLEAN,
    "padding": one_of(PADDINGS),
    "statistics": one_of(("all", "strided")),
    "output_norm": BOOLEAN,
    "head": one_of(("classes", "linear")),
    "reduction": one_of(("mean", "sum")),
    "last_elu": BOOLEAN,
    "initialisation": one_of(("he", "normal-0.05")),
    "norm_eps": number(lambda value: 0 < value < 1, "a number between 0 and 1"),
    "norm_momentum": number(lambda value: 0 < value <= 1, "a number between 0 and 1"),
}


@dataclass(frozen=True)
class Layer:
    """One operator W_j: a convolution along (u, v, v') with `filters` filters, then the nonlinearity rho.

    grid: sizes of the convolved attributes (slowest first); out_grid: the same after subsampling. size: spatial input
    size (height, width); out_size: after subsampling. along, space: which inputs the taps read along attributes and
    space. sums: whether v_{j-3} is summed first. Q is None where the filter is not factorised as in equation (8).
    """

    j: int
    filters: int
    Q: int | None
    grid: tuple[int, ...]
    support: tuple[int, ...]
    along: Geometry
    spatial_support: int
    space: Geometry
    size: tuple[int, int]
    sums: bool

    @property
    def stride(self):
        return self.space.stride

    @property
    def out_grid(self):
        return tuple(map(self.along.outputs, self.grid))

    @property
    def out_size(self):
        return tuple(map(self.space.outputs, self.size))

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

    RULES: ClassVar = RULES
    draws: ClassVar = False  # random numbers in its layers
    one_process: ClassVar = False  # its statistics are shared by processes

    def _check(self):
        depths, last = self.subsampled, self.J - 1
        self._require("subsampled", isinstance(depths, tuple) and all(is_integer(j, 1) and j <= last for j in depths)
                      and list(depths) == sorted(set(depths)), f"increasing depths between 1 and J - 1 = {last}")
        if self.variant == "hcnn-plus":
            self._require("factorised", self.factorised,
                          "true for hcnn-plus, whose nonlinearity stands between h and g")
        if not self.factorised:
            self._require("statistics", self.statistics == "all", "all where the filters are not factorised")
        reach = self.spatial_support // 2 if self.padding_mode == "periodic" else 0
        for layer in self.layers:
            self._require("image_size", min(layer.size) >= reach,
                          f"large enough that x_{layer.j - 1} is at least {reach} pixels wide")

    @classmethod
    def preset(cls, dataset: str = "cifar10", variant: str = "hcnn", preset: str = "paper",
               **overrides) -> "Architecture":
        """The network of the paper's section 4 for `cifar10`, `cifar100` or `digits`; overrides are other fields.

        preset `released`: the conventions of the authors' code, which exists for HCNN(+) only; `short`: what goes with
        the recipe of that name.
        """
        one_of(CLASSES).check("dataset", dataset)
        one_of(CONVENTIONS).check("preset", preset)
        if preset == "released" and variant == "hcnn":
            raise ValueError("variant must be 'hcnn-plus' with preset='released' (the authors' code has a nonlinearity "
                             f"after both h and g), got {variant!r}")
        cls.known(overrides)
        values = dict(variant=variant, num_classes=CLASSES[dataset], attribute_support=SUPPORTS[dataset])
        return cls(**(values | CONVENTIONS[preset] | overrides))

    @property
    def name(self) -> str:
        """HCNN or HCNN(+), as the paper writes it."""
        return VARIANTS[self.variant]

    @property
    def layers(self) -> tuple[Layer, ...]:
        """The operators W_1 ... W_{J-1} (W_J is the final average)."""
        K, size, layers, boundary = self.K, self.image_size, [], (self.padding_mode, self.padding)
        grids = {2: (K,), 3: (K // 2, K)}
        for j in range(1, self.J):
            last = j == self.J - 1 and self.head == "classes"
            layers.append(Layer(
                j=j,
                filters=self.num_classes if last else K,
                Q=self.Q if j >= 3 and self.factorised else None,
                grid=() if j == 1 else grids.get(j, (K // 2, K)),
                support=(self.in_channels,) if j == 1 else (self.first_support,) if j == 2 else self.attribute_support,
                along=Geometry(2, *boundary),
                spatial_support=self.spatial_support,
                space=Geometry(2 if j in self.subsampled else 1, *boundary),
                size=size,
                sums=j >= 4,
            ))
            size = layers[-1].out_size
        return tuple(layers)

    def shape(self, j: int) -> tuple[int, ...]:
        """Shape of x_j without the batch: attributes (slowest first), then (height, width); x_J: (num_classes,)."""
        if not 0 <= j <= self.J:
            raise ValueError(f"j must be between 0 and J = {self.J}, got {j}")
        if j == 0:
            return (self.in_channels, *self.image_size)
        if j == self.J:
            return (self.num_classes,)
        layer = self.layers[j - 1]
        return (*layer.out_grid, layer.filters, *layer.out_size)

    def count(self) -> dict[str, int]:
        """Numbers of parameters of the whole network, see `counts.parameters`."""
        return counts.parameters(self)

    def multiply_adds(self) -> int:
        """Multiplications of one image's forward pass: of HCNN with folded filters w, of HCNN(+) h first, then g."""
        costs = counts.multiply_adds(self)
        return costs["w"] or costs["h_g"]

    def exact_translation(self, j: int, axis: int) -> int | None:
        """The smallest translation of x_j that changes no class score, see `counts.exact_translation`."""
        return counts.exact_translation(self, j, axis)


DESCRIPTIONS = dict.fromkeys(VARIANTS, Architecture)  # the class that describes the networks of a variant


def register(variants, cls):
    """Let `describe` know another class of frozen settings, like `Architecture`, and the variants it describes."""
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
