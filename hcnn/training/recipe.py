"""The training recipes as data: that of the paper, of the authors' released code, and one for a CPU."""

from dataclasses import dataclass
from functools import singledispatch
from math import ceil, cos, pi
from typing import ClassVar

from hcnn.architecture import CONVENTIONS, Architecture
from hcnn.settings import BOOLEAN, Rule, Settings, integer, is_integer, number, one_of, optional, tuple_of

OPTIMISERS = ("sgd", "adamw", "muon")
SCHEDULES = ("step", "cosine", "linear")
COLOURS = "three numbers between 0 and 1 (units of pixel / 255)"
SHARE = number(lambda value: 0 <= value < 1, "a number of at least 0 and below 1")


@dataclass(frozen=True)
class Recipe(Settings):
    """Gradient descent on minibatches, its learning-rate schedule and the augmentation; the defaults are the paper's.

    optimiser: `sgd` with momentum; `adamw` with betas; `muon`, which moves each filter bank as a matrix (rows:
    filters) by its orthogonalised momentum, and everything else by AdamW with the rate lr_rest. lr: the largest rate.
    schedule `step`: lr times multipliers[i] after milestones[i - 1], milestones as fractions of the run, so that
    another number of epochs scales them; `cosine`, `linear`: a linear rise over the share warm_up of the run, then so
    to zero. weight_decay: on filters only (`w -= lr * weight_decay * w`). label_smoothing: share of the training loss
    that all classes have alike. sizes: height and width of the images in equal parts of the run, the last one that of
    the tests too, shrunk by averaging areas; none: the data set's. shift: largest translation in pixels of the data
    set's size, uniform along both axes. flip: mirror images with probability 1/2 where the data set allows it. mean,
    std: standardisation in units of pixel / 255 instead of the data set's own.

    Raises ValueError naming the parameter, its value and the allowed values.
    """

    epochs: int = 240
    batch_size: int = 50
    lr: float = 0.25
    schedule: str = "step"
    milestones: tuple[float, ...] = tuple(epoch / 240 for epoch in (40, 80, 120, 160, 200))
    multipliers: tuple[float, ...] = (1.0, 0.1, 0.01, 1e-3, 1e-4, 1e-5)
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 2e-4
    shift: int = 6
    flip: bool = True
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    optimiser: str = "sgd"
    betas: tuple[float, float] = (0.9, 0.99)
    lr_rest: float | None = None
    warm_up: float = 0.05
    label_smoothing: float = 0.0
    sizes: tuple[int, ...] = ()

    RULES: ClassVar = {
        "epochs": integer(1),
        "batch_size": integer(1),
        "lr": number(lambda value: value > 0, "a positive number"),
        "schedule": one_of(SCHEDULES),
        "milestones": Rule(lambda value: _is_numbers(value, lambda v: 0 < v < 1) and list(value) == sorted(set(value)),
                           "increasing fractions of the run between 0 and 1"),
        "momentum": SHARE,
        "nesterov": BOOLEAN,
        "weight_decay": number(lambda value: value >= 0, "a number that is not negative"),
        "shift": integer(0),
        "flip": BOOLEAN,
        "mean": optional(Rule(lambda value: _is_numbers(value, lambda v: 0 <= v <= 1, 3), COLOURS)),
        "std": optional(Rule(lambda value: _is_numbers(value, lambda v: 0 < v <= 1, 3), COLOURS)),
        "optimiser": one_of(OPTIMISERS),
        "betas": Rule(lambda value: _is_numbers(value, lambda v: 0 <= v < 1, 2),
                      "two numbers of at least 0 and below 1"),
        "lr_rest": optional(number(lambda value: value > 0, "a positive number")),
        "warm_up": SHARE,
        "label_smoothing": SHARE,
        "sizes": tuple_of(lambda n: is_integer(n, 1), "positive integers (pixels), or none"),
    }

    def _check(self):
        n = len(self.milestones) + 1
        self._require("multipliers", _is_numbers(self.multipliers, lambda v: v >= 0, n),
                      f"{n} factors of lr that are not negative, one more than milestones")
        self._require("nesterov", self.momentum > 0 or not self.nesterov, "false without momentum")
        self._require("std", (self.mean is None) == (self.std is None), "given together with mean")
        self._require("lr_rest", (self.lr_rest is not None) == (self.optimiser == "muon"),
                      "given with muon, and only there")

    @classmethod
    def preset(cls, preset: str = "paper", **overrides) -> "Recipe":
        """The paper's recipe, that of the authors' `released` code, or the `short` one; overrides are other fields."""
        if preset not in tuple(PRESETS):
            raise ValueError(f"preset must be one of {', '.join(PRESETS)}, got {preset!r}")
        cls.known(overrides)
        return cls(**(PRESETS[preset] | overrides))


def _is_numbers(value, holds, length=None):
    return isinstance(value, tuple) and length in (None, len(value)) and all(
        isinstance(v, float) and abs(v) < float("inf") and holds(v) for v in value)


PRESETS = {
    "paper": {},
    "released": dict(
        epochs=320, lr=0.35, nesterov=True, shift=4,  # 12.5% of 32 pixels
        milestones=tuple(epoch / 320 for epoch in (40, 80, 120, 160, 200, 240, 260, 280, 300)),
        multipliers=(1, 0.5, 0.25, 0.12, 0.06, 0.03, 0.015, 0.007, 0.00035, 0.00017),
        weight_decay=6e-4,  # Keras adds 3e-4 w^2 to the loss
        mean=tuple(v / 255 for v in (125.3, 123.0, 113.9)), std=tuple(v / 255 for v in (63.0, 62.1, 66.7)),
    ),
    # Chosen on held-out training images of CIFAR-10; `notebooks/tried_short.csv` has what was tried.
    "short": dict(
        epochs=40, batch_size=64, optimiser="muon", lr=0.04, lr_rest=0.015, momentum=0.95, schedule="linear",
        warm_up=0.1, weight_decay=0.01, shift=3, sizes=(16, 16, 24, 32),
    ),
}


def lr_at(recipe: Recipe, progress: float) -> float:
    """The learning rate after a share `progress` (0..1) of all steps of the run."""
    if recipe.schedule == "step":
        return recipe.lr * recipe.multipliers[sum(progress >= milestone for milestone in recipe.milestones)]
    if progress < recipe.warm_up:
        return recipe.lr * progress / recipe.warm_up
    left = 1 - (progress - recipe.warm_up) / (1 - recipe.warm_up)
    return recipe.lr * (left if recipe.schedule == "linear" else 0.5 * (1 - cos(pi * left)))


def size_at(recipe: Recipe, epoch: int) -> int | None:
    """Height and width of the images of an epoch, 0 .. epochs - 1; None: the data set's."""
    return recipe.sizes[ceil((epoch + 1) * len(recipe.sizes) / recipe.epochs) - 1] if recipe.sizes else None


@singledispatch
def published(description, dataset: str) -> dict:
    """What is known of a network of this kind on a data set: {preset: (its description, its Recipe)}.

    An open function: whoever describes other networks registers their recipes.
    """
    raise TypeError(f"nothing says how a {type(description).__name__} is trained; use published.register")


@published.register
def _(description: Architecture, dataset):
    variant = description.variant
    names = [name for name in CONVENTIONS if (name, variant) != ("released", "hcnn")]  # the code has HCNN(+) only
    return {name: (Architecture.preset(dataset, variant, name), Recipe.preset(name)) for name in names}


def preset_of(architecture, recipe, dataset):
    """(name, overrides): the preset nearest to a description and a Recipe, and the fields in which they depart."""
    candidates = []
    for preset, published_pair in published(architecture, dataset).items():
        overrides = {}
        for ours, base in zip((architecture, recipe), published_pair):
            base = base.as_dict()
            overrides |= {name: value for name, value in ours.as_dict().items() if value != base[name]}
        candidates.append((preset, overrides))
    return min(candidates, key=lambda candidate: len(candidate[1]))
