"""The trainings that the tables and claims of the paper ask for, as data.

Each is a dictionary of parameters: `dataset`, `variant`, `preset`, `seed`, `split`, `train_size`, `precision`, and
fields of the network and of its Recipe. `experiment` says what it means, `command_line` how `python -m hcnn train` is
asked for it; the tables select runs by it.
"""

import json
import sys
from dataclasses import dataclass, fields
from functools import cached_property

from hcnn.architecture import VARIANTS, Architecture, describe
from hcnn.companion.baselines.systems import SYSTEMS, Baseline
from hcnn.device import PRECISIONS
from hcnn.settings import integer
from hcnn.training.recipe import Recipe, preset_of, published
from hcnn.training.run_folder import run_name


@dataclass(frozen=True)
class Experiment:
    """A training, resolved: network and Recipe, and what it is trained and tested on."""

    dataset: str
    architecture: Architecture | Baseline
    recipe: Recipe
    seed: int = 0
    split: str = "test"
    train_size: int | None = None
    precision: str = "fast"
    substitutes: str | None = None

    @classmethod
    def of(cls, parameters):
        """The Experiment of the `parameters` in a run.json."""
        architecture, recipe = describe(parameters["architecture"]), Recipe(**parameters["recipe"])
        return cls(**parameters | dict(architecture=architecture, recipe=recipe))

    @property
    def parameters(self):
        """The `parameters` in a run.json."""
        plain = dict(architecture=self.architecture.as_dict(), recipe=self.recipe.as_dict())
        return {part.name: getattr(self, part.name) for part in fields(self)} | plain

    @cached_property
    def key(self):
        """The name that its run has with seed 0: what repetitions with other seeds have in common."""
        return run_name(self.parameters | dict(seed=0))

    @cached_property
    def nearest(self):
        """(preset, overrides): the published training that this one is nearest to."""
        return preset_of(self.architecture, self.recipe, self.dataset)

    @property
    def label(self):
        """In words, network, recipe and precision where they depart from what was published; not seed and epochs."""
        a, (preset, overrides) = self.architecture, self.nearest
        size = [f"{name}={getattr(a, name)}" for name in "KQ" if hasattr(a, name)]
        others = {name: value for name, value in overrides.items() if name not in ("K", "Q", "epochs")}
        usual = "paper", "published", "fast"
        words = " ".join([a.name, *size]), preset, in_words(others), self.precision
        return ", ".join(word for word in words if word and word not in usual)

    def differences(self, base):
        """{field: value} of what sets it apart from another one."""
        ours, others = (one.architecture.as_dict() | one.recipe.as_dict() | dict(precision=one.precision)
                        for one in (self, base))
        return {name: value for name, value in ours.items() if others.get(name, ...) != value}


def plain(value):
    """The value of a field as a text for tables."""
    if isinstance(value, (list, tuple)):
        return f"({', '.join(plain(v) for v in value)})"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def in_words(changes):
    """Fields and their values as a text for tables."""
    return ", ".join(f"{name} {plain(value)}" for name, value in changes.items())


def experiment(dataset="cifar10", variant=None, preset=None, seed=0, split="test", train_size=None, precision="fast",
               **changes):
    """The Experiment that parameters ask for: a published network and recipe, with fields of both changed.

    variant: default hcnn, with preset `released` hcnn-plus. preset: default the first that was published. Raises
    ValueError naming the parameter, its value and the allowed values.
    """
    integer(0).check("seed", seed)
    variant = variant or ("hcnn-plus" if preset == "released" else "hcnn")
    kind = Baseline if variant in SYSTEMS else Architecture
    presets = published(kind.preset(dataset, variant), dataset)
    if preset is not None and preset not in presets:
        raise ValueError(f"preset must be one of {', '.join(presets)} for {variant}, got {preset!r}")
    network, recipe = presets[preset or next(iter(presets))]
    own, of_recipe = ({item.name for item in fields(part)} for part in (network, recipe))
    if unknown := sorted(set(changes) - own - of_recipe):
        raise ValueError(f"unknown parameter {unknown[0]!r} of {variant}; fields are "
                         + ", ".join(sorted(own | of_recipe)))
    network = network.replace(**{name: value for name, value in changes.items() if name in own})
    recipe = recipe.replace(**{name: value for name, value in changes.items() if name in of_recipe})
    return Experiment(dataset, network, recipe, seed, split, train_size, precision)


OPTIONS = ("dataset", "variant", "preset", "seed", "split", "train_size", "precision", "max_seconds", "out",
           "dataset_root", "device", "threads")  # of `train`, in a command line; all else is given with --set


def command_line(parameters):
    """The command that trains what a dictionary of parameters asks for; it may hold options such as `out` as well."""
    found = [sys.executable, "-m", "hcnn", "train"]
    for name, value in parameters.items():
        if name in OPTIONS:
            found += [f"--{name.replace('_', '-')}", str(value)]
        else:
            found += ["--set", f"{name}={json.dumps(value)}"]
    return found


# What follows the trainings of tables 1 and 2.
FURTHER = [
    # Learns faster at the paper's rate, see the table `choices`; without it periodic boundaries, those of section 5.3,
    # diverge or saturate within fifty steps.
    *(dict(variant=variant, output_norm=True, **boundary) for variant in VARIANTS
      for boundary in ({}, dict(padding_mode="periodic"))),
    dict(variant="hcnn-plus", preset="released"),  # the authors' code
    *(dict(dataset=dataset, variant=variant, seed=seed)
      for dataset in ("cifar10", "cifar100") for seed in (1, 2, 3, 4) for variant in VARIANTS),
    *(dict(variant=variant, Q=Q) for Q in (9, 16) for variant in VARIANTS),  # "increase of 4.2% and then of 1.1%"
    # Does the factorisation precondition and regularise? w itself, and both with the normalisation w may need to learn.
    dict(variant="hcnn", factorised=False), dict(variant="hcnn", factorised=False, output_norm=True),
    dict(variant="hcnn", K=24, Q=64),  # "larger K and Q"
]
# Trained here, on a CPU, in this order; the first is what the others are compared with.
SHORT = dict(preset="short", epochs=40)
HERE = [
    dict(variant="hcnn", K=8, Q=16, **SHORT),
    dict(variant="resnet-20", **SHORT), dict(variant="wrn-16-1", **SHORT),
    dict(variant="hcnn", K=8, Q=16, padding_mode="periodic", **SHORT),
    dict(dataset="cifar100", variant="hcnn", K=8, Q=16, **SHORT),
    dict(variant="hcnn-plus", K=8, Q=9, preset="short", epochs=20),
    *(dict(variant="hcnn", K=8, Q=16, seed=seed, **SHORT) for seed in (1, 2)),
    *(dict(variant="hcnn", K=K, Q=16, **SHORT) for K in (4, 12)),
]
# Trained from nothing by `make reproduce` without a GPU, in minutes.
QUICK = [
    dict(variant="hcnn", K=8, Q=16, preset="short", epochs=2, sizes=[16]),
    dict(variant="hcnn-plus", K=4, Q=9, preset="short", epochs=2, sizes=[16]),
    dict(dataset="cifar100", variant="hcnn", K=8, Q=16, preset="short", epochs=1, sizes=[16]),
]
# What is open in the paper, or claimed of Q; the field of network or recipe that answers it, or `precision`; the
# answers, BASE's first. Not `reduction` or `padding_mode`: with sums, or periodic boundaries, BASE diverges at once.
CHOICES = (
    ("normalisation after g", "output_norm", (False, True)),
    ("ELU at j = J - 1", "last_elu", (True, False)),
    ("initialisation", "initialisation", ("he", "normal-0.05")),
    ("translations in pixels", "shift", (6, 4)),
    ("positions of the statistics", "statistics", ("all", "strided")),
    ("the claim about Q", "Q", (16, 9, 4, 2)),
    ("eps of the normalisation", "norm_eps", (1e-5, 1e-3)),
    ("momentum of the statistics", "norm_momentum", (0.1, 0.01)),
    ("last layer", "head", ("classes", "linear")),
    ("padding of even sizes", "padding", ("symmetric", "same")),
    ("depths that subsample space", "subsampled", ((5, 9), (4, 8))),
    ("h and g, or w itself", "factorised", (True, False)),
    ("learning rate", "lr", (0.25, 0.05, 0.02, 0.005)),
    ("schedule", "schedule", ("step", "cosine")),
    ("weight decay", "weight_decay", (2e-4, 6e-4)),
    ("Nesterov's momentum", "nesterov", (False, True)),
    ("precision of the arithmetic", "precision", PRECISIONS),
)
BASE = dict(variant="hcnn", K=8, Q=16, epochs=12, sizes=[16], split="validation")
# The same questions where trainings of other tables answer them: what is open, a training, another one.
PAIRS = [
    *(("boundary", dict(variant=variant, **norm), dict(variant=variant, padding_mode="periodic", **norm))
      for variant in VARIANTS for norm in ({}, dict(output_norm=True))),
    # With K = 8 the support 7 x 11 is longer than periodic axes of 4 and 8 values: half its taps say the same twice.
    *(("boundary", BASE | size, BASE | dict(padding_mode="periodic", **size))
      for size in (dict(output_norm=True), dict(output_norm=True, attribute_support=[3, 7]))),
    ("boundary", HERE[0], HERE[3]),
    ("h and g, or w itself", dict(variant="hcnn"), dict(variant="hcnn", factorised=False)),
    ("h and g, or w itself", dict(variant="hcnn", output_norm=True),
     dict(variant="hcnn", factorised=False, output_norm=True)),
]


def headline(datasets=None, variants=None, seeds=None, preset=None, further=False):
    """The trainings of tables 1 and 2, seed by seed, with `further` then the rest; with preset `short` those of HERE.

    None: both CIFAR, both variants, seed 0; of HERE all.
    """
    if preset == "short":
        asked = dict(dataset=datasets, variant=variants, seed=seeds)
        usual = dict(dataset="cifar10", seed=0)
        return [given for given in HERE
                if all(allowed is None or (usual | given)[name] in allowed for name, allowed in asked.items())]
    datasets, variants = datasets or ["cifar10", "cifar100"], variants or list(VARIANTS)
    found = [dict(dataset=dataset, variant=variant, seed=seed)
             for seed in seeds or [0] for dataset in datasets for variant in variants]
    more = [dict(dataset="cifar10", seed=0) | given for given in FURTHER] if further else []
    return found + [given for given in more if given["dataset"] in datasets and given["variant"] in variants
                    and given not in found]


def departures(base):
    """[(what is open, base with one answer changed)], for all that CHOICES ask and such a network can have."""
    found, usual = [], experiment(**base)
    for words, name, answers in CHOICES:
        for answer in answers:
            changed = base | {name: list(answer) if isinstance(answer, tuple) else answer}
            try:
                if experiment(**changed).differences(usual):
                    found.append((words, changed))
            except ValueError:  # HCNN(+) that is not factorised, padding as TensorFlow's with periodic boundaries
                continue
    return found


def ablations(base, seeds=(0,)):
    """{name: parameters} of a base and all that departs from it in one answer, on held-out images, seed by seed."""
    found = {}
    for seed in seeds:
        fixed = base | dict(split="validation", seed=seed)
        found[f"base seed={seed}"] = fixed
        for _, changed in departures(fixed):
            ((name, value),) = experiment(**changed).differences(experiment(**fixed)).items()
            found[f"{name}={json.dumps(value)} seed={seed}"] = changed
    return found


def comparisons():
    """[(what is open, Experiment, the same with another answer)] of BASE and of PAIRS."""
    found = [(words, BASE, changed) for words, changed in departures(BASE)] + PAIRS
    return [(words, experiment(**base), experiment(**changed)) for words, base, changed in found]
