"""What had to be chosen because the paper does not say it: departures from a base network in one choice, trained and compared.

They are tested on held-out training images, never on the test images, so that a choice may be made by them.
"""

import json
import sys

import pandas as pd

from hcnn.architecture import VARIANTS, Architecture
from hcnn.companion.results.sizes import sized_runs, spread
from hcnn.companion.results.tables import NOT_RUN, data_title, plain, usable
from hcnn.device import PRECISIONS
from hcnn.training.recipe import Recipe, preset_of
from hcnn.training.run_folder import canonical

# What is open, the field of Architecture or Recipe that answers it, or `precision`, and the answers to be compared.
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
    ("precision of the arithmetic", "precision", PRECISIONS),
)
FIELDS = [field for _, field, _ in CHOICES]


def departures(architecture, recipe, precision="fast"):
    """[(field, value, architecture, recipe, precision)]: the base first, as (None, None, ...), then all that differs in one field.

    What no such network can have is left out: HCNN(+) that is not factorised, padding as TensorFlow's with periodic boundaries.
    """
    found = [(None, None, architecture, recipe, precision)]
    for _, field, values in CHOICES:
        for value in values:
            try:
                changed = [ours.replace(**{field: value}) if hasattr(ours, field) else ours for ours in (architecture, recipe)]
            except ValueError:
                continue
            changed = *changed, value if field == "precision" else precision
            if changed != (architecture, recipe, precision):
                found.append((field, value, *changed))
    return found


def commands(architecture, recipe, precision, dataset, seeds, options=()):
    """{name: command line} of every training that the comparison needs, for each seed the base first."""
    found = {}
    for seed in seeds:
        for field, value, *changed, exact in departures(architecture, recipe, precision):
            preset, overrides = preset_of(*changed, dataset)
            name = "base" if field is None else f"{field}={plain(value)}"
            found[f"{name} seed={seed}"] = [
                sys.executable, "-m", "hcnn", "train", "--dataset", dataset, "--preset", preset, "--variant", architecture.variant,
                *(text for key, new in overrides.items() for text in ("--set", f"{key}={json.dumps(new)}")),
                "--seed", str(seed), "--precision", exact, "--split", "validation", *options]
    return found


def table(runs):
    """One row for each base and each departure from it in one field: both accuracies, the difference in points, deviation and n.

    Accuracies are means over the seeds with which base and departure were both trained; the deviation is that of the differences
    of single seeds. The base of a group of runs is the one from which the most others differ in one field. What nobody has run is
    said once, of the base with the most departures.
    """
    tables = [pd.DataFrame(_rows(*group)) for group in _groups(runs) or [({}, None)]]
    ran = [table["accuracy, changed"] != NOT_RUN for table in tables]
    fullest = max(range(len(tables)), key=lambda i: ran[i].sum())
    return pd.concat([table if i == fullest else table[ran[i]] for i, table in enumerate(tables)], ignore_index=True)


def pairs(runs, field):
    """Rows as those of `table` for all settings that differ in `field` alone: does its effect depend on the other choices?

    The base of a pair has the first of the answers in CHOICES.
    """
    groups = _pairs(runs, field) or [({}, None)]
    return pd.DataFrame(row for settings, base in groups for row in _rows(settings, base) if row["field"] == field)


def in_no_table(runs):
    """The runs whose place is `results.other_runs`: all but those on held-out images that the tables here or `sweeps.table` compare."""
    compared = set(sized_runs(runs).run)
    for settings, base in _groups(runs) + _pairs(runs, "factorised") + _pairs(runs, "precision"):
        compared |= {run.folder.name for key, found in settings.items() if _distance(base, key) < 2 for run in found}
    return [run for run in runs if run.problem or run.split == "test" or run.folder.name not in compared]


def _frames(runs):
    """[{values of FIELDS: runs}], one for all runs on held-out images that differ in FIELDS and the seed alone."""
    frames = {}
    for run in usable(runs):
        if run.variant in VARIANTS and run.split == "validation":
            parameters = run.info["parameters"]
            values = _values(run)
            key = tuple(canonical(values[field]) for field in FIELDS)
            rest = {name: value for name, value in (parameters | values).items() if name not in (*FIELDS, "architecture", "recipe", "seed")}
            frames.setdefault(canonical(rest), {}).setdefault(key, []).append(run)
    return list(frames.values())


def _groups(runs):
    """[(a frame, the base among its settings)], where there is anything to compare."""
    groups = []
    for settings in _frames(runs):
        near = {key: sum(_distance(key, other) == 1 for other in settings) for key in settings}
        base = max(near, key=lambda key: (near[key], -len(settings[key][0].overrides)))
        if near[base]:
            groups.append((settings, base))
    return sorted(groups, key=_label)


def _pairs(runs, field):
    """[(settings that differ in `field` alone, the one with its first answer)]"""
    place = FIELDS.index(field)
    lines = {}
    for i, frame in enumerate(_frames(runs)):
        for key, found in frame.items():
            lines.setdefault((i, key[:place], key[place + 1:]), {})[key] = found
    first = canonical(CHOICES[place][2][0])
    return sorted(((line, base) for line in lines.values() for base in line if base[place] == first and len(line) > 1), key=_label)


def _label(group):
    settings, base = group
    return settings[base][0].label


def _rows(settings, base):
    """The rows of one base; without one those of the paper's network, which say that nothing was run."""
    here = settings[base][0] if settings else None
    values = _values(here) if here else Architecture.preset().as_dict() | Recipe.preset().as_dict() | dict(precision=PRECISIONS[0])
    usual = tuple(canonical(values[field]) for field in FIELDS)
    for place, (words, field, answers) in enumerate(CHOICES):
        seen = {key[place]: found for key, found in settings.items() if _distance(base, key) == 1 and key[place] != base[place]}
        for value in dict.fromkeys([*map(canonical, answers), *sorted(seen)]):
            if value == usual[place]:
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


def _values(run):
    """All values of a run that a field may have."""
    parameters = run.info["parameters"]
    return parameters["architecture"] | parameters["recipe"] | dict(precision=run.precision)


def _distance(key, other):
    return sum(a != b for a, b in zip(key, other))
