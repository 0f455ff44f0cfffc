"""What had to be chosen because the paper does not say it: one-field departures from a base network, trained and compared.

They are tested on held-out training images, never on the test images, so that a choice may be made by them.
"""

import json
import sys
from dataclasses import fields

import pandas as pd

from .architecture import VARIANTS, Architecture
from .recipe import Recipe, preset_of
from .results import NOT_RUN, data_title, plain, usable
from .runs import canonical
from .sweeps import sized_runs, spread

# What is open, the field of Architecture or Recipe that answers it, and the answers to be compared.
CHOICES = (
    ("boundary", "padding_mode", ("zeros", "periodic")),
    ("over attributes and space", "reduction", ("mean", "sum")),
    ("ELU at j = J - 1", "last_elu", (True, False)),
    ("normalisation after g", "output_norm", (False, True)),
    ("positions of the statistics", "statistics", ("all", "strided")),
    ("eps of the normalisation", "norm_eps", (1e-5, 1e-3)),
    ("momentum of the statistics", "norm_momentum", (0.1, 0.01)),
    ("initialisation", "initialisation", ("he", "normal-0.05")),
    ("last layer", "head", ("classes", "linear")),
    ("padding of even sizes", "padding", ("symmetric", "same")),
    ("depths that subsample space", "subsampled", ((5, 9), (4, 8))),
    ("h and g, or w itself", "factorised", (True, False)),
    ("learning rate", "lr", (0.25, 0.05, 0.02, 0.005)),
    ("schedule", "schedule", ("step", "cosine")),
    ("weight decay", "weight_decay", (2e-4, 6e-4)),
    ("translations in pixels", "shift", (6, 4)),
    ("Nesterov's momentum", "nesterov", (False, True)),
)
FIELDS = [field for _, field, _ in CHOICES]


def departures(architecture, recipe):
    """[(field, value, architecture, recipe)]: the base first, as (None, None, ...), then everything that differs in one field.

    What no such network can have is left out: HCNN(+) that is not factorised, padding as TensorFlow's with periodic boundaries.
    """
    found = [(None, None, architecture, recipe)]
    for _, field, values in CHOICES:
        for value in values:
            ours = architecture if field in {f.name for f in fields(Architecture)} else recipe
            if getattr(ours, field) == value:
                continue
            try:
                changed = ours.replace(**{field: value})
            except ValueError:
                continue
            found.append((field, value, changed, recipe) if ours is architecture else (field, value, architecture, changed))
    return found


def commands(architecture, recipe, dataset, seeds, options=()):
    """{name: command line} of every training that the comparison needs, for each seed the base first."""
    found = {}
    for seed in seeds:
        for field, value, *changed in departures(architecture, recipe):
            preset, overrides = preset_of(*changed, dataset)
            name = "base" if field is None else f"{field}={plain(value)}"
            found[f"{name} seed={seed}"] = [
                sys.executable, "-m", "hcnn", "train", "--dataset", dataset, "--preset", preset, "--variant", architecture.variant,
                *(text for key, new in overrides.items() for text in ("--set", f"{key}={json.dumps(new)}")),
                "--seed", str(seed), "--split", "validation", *options]
    return found


def table(runs):
    """One row for each base and each departure from it in one field: both accuracies, the difference in points, deviation and n.

    Accuracies are means over the seeds with which base and departure were both trained; the deviation is that of the differences
    of single seeds. The base of a group of runs is the one from which the most others differ in one field; runs that differ from
    it in more have bases of their own, found in the same way. What was not run is listed for the first base alone.
    """
    rows = [row for settings, base, first in _groups(runs) for row in _rows(settings, base, first)]
    return pd.DataFrame(rows or _rows({}, None, True))


def in_no_table(runs):
    """The runs whose place is `results.other_runs`: all but those on held-out images that `table` or `sweeps.table` compares."""
    compared = set(sized_runs(runs).run)
    for settings, _, _ in _groups(runs):
        compared |= {run.folder.name for found in settings.values() for run in found}
    return [run for run in runs if run.problem or run.split == "test" or run.folder.name not in compared]


def _groups(runs):
    """[({values of FIELDS: runs} of a base and its departures in one field, the base's values, whether it is the first of its frame)].

    A frame: the runs on held-out images that differ in FIELDS and the seed alone.
    """
    frames = {}
    for run in usable(runs):
        if run.variant in VARIANTS and run.split == "validation":
            parameters = run.info["parameters"]
            values = parameters["architecture"] | parameters["recipe"]
            key = tuple(canonical(values[field]) for field in FIELDS)
            rest = {name: value for name, value in (parameters | values).items() if name not in (*FIELDS, "architecture", "recipe", "seed")}
            frames.setdefault(canonical(rest), {}).setdefault(key, []).append(run)
    found = [groups for frame in frames.values() if (groups := _bases(frame))]
    return [group for groups in sorted(found, key=lambda groups: _label(*groups[0])) for group in groups]


def _bases(frame):
    """The groups of a frame, the largest first; every departure is in one of them."""
    groups, left = [], set(frame)
    while True:
        near = {key: sum(_distance(key, other) == 1 for other in left) for key in frame}
        base = max(frame, key=lambda key: (near[key], -len(frame[key][0].overrides)))
        if not near[base]:
            return groups
        settings = {key: frame[key] for key in frame if key == base or key in left and _distance(base, key) == 1}
        groups.append((settings, base, not groups))
        left -= set(settings)


def _label(settings, base, _):
    return settings[base][0].label


def _rows(settings, base, whole):
    """The rows of one base, with `whole` those of what nobody ran too; without a base those of the paper's network."""
    here = settings[base][0] if settings else None
    values = Architecture.preset().as_dict() | Recipe.preset().as_dict()
    if here:
        values = here.info["parameters"]["architecture"] | here.info["parameters"]["recipe"]
    usual = tuple(canonical(values[field]) for field in FIELDS)
    for place, (words, field, answers) in enumerate(CHOICES):
        seen = {key[place]: found for key, found in settings.items() if key[place] != base[place]}
        for value in dict.fromkeys([*map(canonical, answers), *sorted(seen)]):
            if value == usual[place] or not (whole or value in seen):
                continue
            found = seen.get(value, [])
            reached = [{run.seed: run.accuracy for run in group if run.complete} for group in (settings.get(base, []), found)]
            seeds = sorted(reached[0].keys() & reached[1].keys())
            means = [spread(some[seed] for seed in seeds)["accuracy"] for some in reached]
            if found and not reached[1]:
                means[1] = f"stopped after {max(run.epochs_done for run in found)} of {found[0].epochs} epochs"
            yield {
                "data": here.data if here else data_title("cifar10"), "base": here.label if here else Architecture.preset().name,
                "training images": f"{here.train_images:,}" if here else NOT_RUN, "epochs": here.epochs if here else NOT_RUN,
                "open in the paper": words, "field": field, "base has": plain(json.loads(usual[place])),
                "changed to": plain(json.loads(value)),
                "accuracy, base": means[0], "accuracy, changed": means[1],
                **spread((reached[1][seed] - reached[0][seed] for seed in seeds), "difference (points)", "+"),
                "tested on": here.tested_on if here else NOT_RUN}


def _distance(key, other):
    return sum(a != b for a, b in zip(key, other))
