"""The training recipes as data: what the paper and the authors' released code do, and the learning rate at any moment."""

from dataclasses import dataclass, fields
from math import cos, pi
from sys import float_info

from hcnn.architecture import CONVENTIONS, Architecture
from hcnn.companion.baselines.systems import SYSTEMS, Baseline
from hcnn.settings import Settings, is_integer

SCHEDULES = ("step", "cosine")
WARM_UP = 0.05  # share of a cosine run in which the learning rate rises


def _number(value):
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= float_info.max


@dataclass(frozen=True)
class Recipe(Settings):
    """Minibatch SGD with momentum, its learning-rate schedule and the augmentation; the defaults are the paper's (section 4.2).

    lr: the starting rate. schedule `step`: lr times multipliers[i] after milestones[i - 1], milestones as fractions of the run,
    so that another number of epochs scales them; `cosine`: a linear rise over the first 5%, then a cosine to zero. weight_decay:
    on filters only (`w -= lr * weight_decay * w`). shift: largest translation in pixels, uniform along both axes. flip: mirror
    images with probability 1/2 where the data set allows it. mean, std: standardisation in units of pixel / 255 instead of the
    data set's own.

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

    def __post_init__(self):
        for field in fields(self):  # one spelling of each value, so that equal recipes have equal hashes
            value = getattr(self, field.name)
            if isinstance(value, (list, tuple)):
                value = tuple(float(v) if _number(v) else v for v in value)
            elif field.type is float and _number(value):
                value = float(value)
            object.__setattr__(self, field.name, value)
        self._validate()

    def _validate(self):
        def require(name, holds, allowed):
            if not holds:
                raise ValueError(f"{name} must be {allowed}, got {getattr(self, name)!r}")

        def is_numbers(value, holds):
            return isinstance(value, tuple) and all(_number(v) and holds(v) for v in value)

        require("epochs", is_integer(self.epochs, 1), "an integer of at least 1")
        require("batch_size", is_integer(self.batch_size, 1), "an integer of at least 1")
        require("lr", _number(self.lr) and self.lr > 0, "a positive number")
        require("schedule", self.schedule in SCHEDULES, "one of " + ", ".join(SCHEDULES))
        require("milestones", is_numbers(self.milestones, lambda v: 0 < v < 1) and list(self.milestones) == sorted(set(self.milestones)),
                "increasing fractions of the run between 0 and 1")
        require("multipliers", is_numbers(self.multipliers, lambda v: v >= 0) and len(self.multipliers) == len(self.milestones) + 1,
                f"{len(self.milestones) + 1} factors of lr that are not negative, one more than milestones")
        require("momentum", _number(self.momentum) and 0 <= self.momentum < 1, "a number of at least 0 and below 1")
        require("nesterov", isinstance(self.nesterov, bool) and (self.momentum > 0 or not self.nesterov),
                "true or false, and false without momentum")
        require("weight_decay", _number(self.weight_decay) and self.weight_decay >= 0, "a number that is not negative")
        require("shift", is_integer(self.shift, 0), "an integer of at least 0 (pixels)")
        require("flip", isinstance(self.flip, bool), "true or false")
        for name, least in (("mean", -1e-9), ("std", 0)):
            value = getattr(self, name)
            require(name, value is None or is_numbers(value, lambda v: least < v <= 1) and len(value) == 3,
                    "none or three numbers between 0 and 1 (units of pixel / 255)")
        require("std", (self.mean is None) == (self.std is None), "given together with mean")

    @classmethod
    def preset(cls, preset="paper", **overrides):
        """The paper's recipe, or that of the authors' `released` code; overrides are other fields."""
        if preset not in tuple(PRESETS):
            raise ValueError(f"preset must be one of {', '.join(PRESETS)}, got {preset!r}")
        unknown = set(overrides) - {field.name for field in fields(cls)}
        if unknown:
            raise ValueError(f"unknown parameter {sorted(unknown)[0]!r}; allowed are {', '.join(f.name for f in fields(cls))}")
        return cls(**(PRESETS[preset] | overrides))


PRESETS = {
    "paper": {},
    "released": dict(
        epochs=320, lr=0.35, nesterov=True, shift=4,  # 12.5% of 32 pixels
        milestones=tuple(epoch / 320 for epoch in (40, 80, 120, 160, 200, 240, 260, 280, 300)),
        multipliers=(1, 0.5, 0.25, 0.12, 0.06, 0.03, 0.015, 0.007, 0.00035, 0.00017),
        weight_decay=6e-4,  # Keras adds 3e-4 w^2 to the loss
        mean=tuple(v / 255 for v in (125.3, 123.0, 113.9)), std=tuple(v / 255 for v in (63.0, 62.1, 66.7)),
    ),
    # The compared networks; `baselines` names the sources. Their rates fall at epochs or steps that are written as fractions.
    "all-cnn": dict(epochs=350, batch_size=128, lr=0.05, milestones=(200 / 350, 250 / 350, 300 / 350), multipliers=(1, 0.1, 0.01, 1e-3),
                    weight_decay=1e-3, shift=5),  # a rate of 0.25, 0.1, 0.05 or 0.01 was chosen on validation images; batches are not given
    "resnet-20": dict(epochs=164, batch_size=128, lr=0.1, milestones=(32 / 64, 48 / 64), multipliers=(1, 0.1, 0.01),  # thousands of steps
                      weight_decay=1e-4, shift=4),
    "nin": dict(epochs=307, batch_size=128, lr=0.1, milestones=(100 / 120, 110 / 120), multipliers=(1, 0.1, 0.01),  # thousands of steps
                weight_decay=1e-4, shift=4),  # twice a tenth when the loss no longer falls; when that is was never published
    **dict.fromkeys(("wrn-16-1", "wrn-40-1", "wrn-student"), dict(
        epochs=200, batch_size=128, lr=0.1, milestones=(60 / 200, 120 / 200, 160 / 200), multipliers=(1, 0.2, 0.04, 0.008),
        weight_decay=5e-4, shift=4)),  # their border is the mirrored image, ours the mean colour
    "fitnet": dict(epochs=230, batch_size=128, lr=0.01, milestones=(40 / 90, 60 / 90, 80 / 90), multipliers=(1, 0.1, 0.01, 1e-3),
                   weight_decay=5e-4, shift=4),  # thousands of steps
}


def presets(dataset, variant):
    """What was published of a system: {preset: (its Architecture or Baseline, its Recipe)}; a compared network's preset is its variant."""
    if variant in SYSTEMS:
        return {variant: (Baseline.preset(dataset, variant), Recipe.preset(variant))}
    names = [name for name in CONVENTIONS if (name, variant) != ("released", "hcnn")]  # the code has HCNN(+) only
    return {name: (Architecture.preset(dataset, variant, name), Recipe.preset(name)) for name in names}


def lr_at(recipe, progress):
    """The learning rate after a share `progress` (0..1) of all steps of the run."""
    if recipe.schedule == "cosine":
        if progress < WARM_UP:
            return recipe.lr * progress / WARM_UP
        return recipe.lr * 0.5 * (1 + cos(pi * (progress - WARM_UP) / (1 - WARM_UP)))
    return recipe.lr * recipe.multipliers[sum(progress >= milestone for milestone in recipe.milestones)]


def preset_of(architecture, recipe, dataset):
    """The preset that architecture and recipe are nearest to, and the fields in which they depart from it: (name, overrides)."""
    candidates = []
    for preset, published in presets(dataset, architecture.variant).items():
        overrides = {}
        for ours, base in zip((architecture, recipe), published):
            base = base.as_dict()
            overrides |= {name: value for name, value in ours.as_dict().items() if value != base[name]}
        candidates.append((preset, overrides))
    return min(candidates, key=lambda candidate: len(candidate[1]))
