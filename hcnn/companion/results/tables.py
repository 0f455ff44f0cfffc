"""What the run folders say as tables: 1 and 2 of the paper, what was trained here, choices compared, every other run.

Each table takes the complete runs of the trainings that `experiments` declares for it, whatever their seeds; all that
is left stands in `other_runs`. Accuracies are those of the last epoch, in percent.
"""

from statistics import mean, stdev

import pandas as pd

from hcnn.architecture import VARIANTS
from hcnn.companion.experiments import BASE, HERE, QUICK, comparisons, experiment, in_words, plain
from hcnn.companion.results.runs import IMAGES, TITLES, in_epochs, usable
from hcnn.data.datasets import TESTED_ON
from hcnn.training.recipe import published

# Tables 1 and 2 of the paper: model, the variant that a run of it has, number of parameters, accuracy in percent.
PAPER = {
    "cifar10": (
        ("Hierarchical CNN", "hcnn", "0.098M", 91.23), ("Hierarchical CNN (+)", "hcnn-plus", "0.34M", 92.30),
        ("All-CNN", "all-cnn", "1.3M", 92.75), ("ResNet 20", "resnet-20", "0.27M", 91.25),
        ("Network in Network", "nin", "0.98M", 91.20), ("WRN-student", "wrn-16-1", "0.17M", 91.23),
        ("FitNet", "fitnet", "2.5M", 91.61),
    ),
    "cifar100": (
        ("Hierarchical CNN", "hcnn", "0.25M", 62.01), ("Hierarchical CNN (+)", "hcnn-plus", "0.89M", 63.19),
        ("All-CNN", "all-cnn", "1.3M", 66.29), ("Network in Network", "nin", "0.98M", 64.32),
        ("FitNet", "fitnet", "2.5M", 64.96),
    ),
}
# Rows that the paper has in its text only (section 5.2). It gives the 93.42% to the WRN-student; they look like those
# of the teacher, WRN-40-1, in arXiv 1612.03928, which it cites: see the errata.
BESIDE = {
    "cifar10": (
        ("WRN-40-1, the teacher (Zagoruyko and Komodakis)", "wrn-40-1", "0.6M", 93.42),
        ("HyperNetworks (Ha et al. 2016), quoted only", None, "0.097M", 91.98),
    ),
    "cifar100": (),
}
TABLE = {"cifar10": 1, "cifar100": 2}
NOT_TRAINED = "not trained yet"

# Section 4.2: the "relative increase" of the accuracy in percent, by (Q before, Q after). Relative to what, on which
# data and for which of the two networks is not said. A reading: the gain of two accuracies, and the accuracy before
# that a gain and the accuracy after imply; all in percent.
GAINS = {(9, 16): 4.2, (16, 32): 1.1}
READINGS = {
    "points": (lambda before, after: after - before,
               lambda gain, after: after - gain),
    "% of the accuracy": (lambda before, after: 100 * (after / before - 1),
                          lambda gain, after: after / (1 + gain / 100)),
    "% of the error": (lambda before, after: 100 * (after - before) / (100 - before),
                       lambda gain, after: 100 - (100 - after) / (1 - gain / 100)),
}
STEPS = (  # of Q, from large to small, and the trainings that differ in it alone
    (dict(variant="hcnn"), (32, 16, 9)), (dict(variant="hcnn-plus"), (32, 16, 9)), (BASE, (16, 9, 4, 2)),
)


def spread(values, name="accuracy", sign=""):
    """Mean, standard deviation and number of some percentages, as texts for a table."""
    values = list(values)
    if not values:
        return {name: NOT_TRAINED, "deviation": "", "n": 0}
    deviation = f"{stdev(values):.2f}" if len(values) > 1 else "one seed"
    return {name: f"{mean(values):{sign}.2f}", "deviation": deviation, "n": len(values)}


def trained(training, runs):
    """The complete runs of an Experiment, whatever their seeds."""
    return [run for run in usable(runs) if run.experiment.key == training.key and run.complete
            and (run.split != "test" or run.test_images == IMAGES[run.dataset][1])]


def under_way(training, runs):
    """In words, how far a training has come that is not complete; empty where none is begun or one is complete."""
    begun = [run for run in usable(runs) if run.experiment.key == training.key and run.epochs_done]
    if not begun or trained(training, runs):
        return ""
    run = max(begun, key=lambda run: run.epochs_done)
    return f"{run.accuracy:.2f}% after {run.epochs_done} of {run.epochs} epochs, {run.seconds:.0f} s, {run.device}"


def by_seed(training, runs):
    """{seed: accuracy} of the complete runs of an Experiment."""
    return {run.seed: run.accuracy for run in trained(training, runs)}


def effective(architecture):
    """The filter weights that can act, see `counts.effective_filters`: of compared networks all."""
    counts = architecture.count()
    return counts.get("effective", counts["filters"])


def devices(runs):
    return " / ".join(sorted({run.device for run in runs}))


def number_formats(runs):
    return " / ".join(sorted(set().union(*(run.formats for run in runs))))


def paper_table(dataset, runs):
    """Table 1 (cifar10) or 2 (cifar100): the paper's rows, and mean and deviation over the runs of its full recipe.

    parameters: the weights of all filters and linear layers; multiply-adds: of one image's forward pass.
    """
    rows = []
    for model, variant, parameters, accuracy in PAPER[dataset] + BESIDE[dataset]:
        training = experiment(dataset=dataset, variant=variant) if variant else None
        ours = trained(training, runs) if variant else []
        rows.append({
            "model": model, "parameters, paper": parameters,
            "parameters, here": training.architecture.count()["filters"] if variant else "",
            "multiply-adds": training.architecture.multiply_adds() if variant else "",
            "accuracy, paper": f"{accuracy:.2f}",
            **spread((run.accuracy for run in ours), "accuracy, here"),
            "seconds an epoch": f"{mean(run.seconds / run.epochs for run in ours):.1f}" if ours else "",
            "seconds": f"{mean(run.seconds for run in ours):.0f}" if ours else "", "device": devices(ours)})
    return pd.DataFrame(rows)


def repetitions(trainings):
    """The Experiments of some dictionaries of parameters, once each, whatever their seeds."""
    return list(dict.fromkeys(experiment(**given | dict(seed=0)) for given in trainings))


def trained_here(runs):
    """Trained here, on a CPU: a row for each training of the short recipe, mean and deviation over its seeds.

    Rows of one data set, recipe and number of epochs are comparable with each other, and with nothing in tables 1 and
    2. effective: those of the parameters that can act. Multiply-adds are those of an image of full size, whatever sizes
    were trained on. Core-hours compare rows of one number format. A user's own runs have rows of their own.
    """
    rows = []
    for training in repetitions(HERE):
        found = trained(training, runs)
        for place, ours in (("results", [run for run in found if not run.local]),
                            ("results/local", [run for run in found if run.local])):
            if ours or place == "results":
                rows.append(_here(training, ours) | {"from": place})
    return pd.DataFrame(rows)


def _here(training, runs):
    """One row of `trained_here`."""
    a, hours, (preset, overrides) = training.architecture, [run.core_hours for run in runs], training.nearest
    others = {name: value for name, value in overrides.items() if name not in ("K", "Q", "epochs", "padding_mode")}
    counts = a.count()
    return {
        "data": TITLES[training.dataset], "system": a.name, "K": getattr(a, "K", ""), "Q": getattr(a, "Q", ""),
        "padding_mode": a.padding_mode, "parameters": counts["filters"], "effective": effective(a),
        "trained": counts["trained"], "multiply-adds": a.multiply_adds(), "epochs": training.recipe.epochs,
        "recipe": ", ".join(filter(None, [preset, in_words(others)])), **spread(run.accuracy for run in runs),
        "core-hours": f"{mean(hours):.1f}" if hours and None not in hours else "",
        "number format": number_formats(runs), "processor": devices(runs)}


def points(runs):
    """Accuracies as numbers, a row a mark: data, system, ours (HCNN or HCNN(+)), source, parameters, core_hours,
    accuracy, deviation. source: `paper`, or `here` for a training of the paper's tables or of HERE that was run.
    parameters: the paper's numbers, and the `effective` ones of what was run here.
    """
    rows = []
    for dataset, systems in PAPER.items():
        for model, variant, parameters, accuracy in systems + BESIDE[dataset]:
            rows.append(dict(data=TITLES[dataset], system=model.partition(",")[0], source="paper",
                             ours=variant in VARIANTS, parameters=float(parameters.rstrip("M")) * 1e6,
                             accuracy=accuracy))
    headline = [dict(dataset=dataset, variant=row[1]) for dataset in PAPER for row in PAPER[dataset]]
    for training in repetitions(headline + HERE):
        if found := trained(training, runs):
            values, hours = [run.accuracy for run in found], [run.core_hours for run in found]
            rows.append(dict(
                data=TITLES[training.dataset], source="here",
                system=f"{training.label}, {in_epochs(training.recipe.epochs)}",
                ours=training.architecture.variant in VARIANTS, parameters=effective(training.architecture),
                core_hours=None if None in hours else mean(hours), accuracy=mean(values),
                deviation=stdev(values) if len(values) > 1 else None))
    columns = ["data", "system", "ours", "source", "parameters", "core_hours", "accuracy", "deviation"]
    return pd.DataFrame(rows, columns=columns).astype({"core_hours": float, "deviation": float})


def choices(runs):
    """What had to be chosen: a row for each declared pair of trainings that differ in one thing, on the same images.

    Accuracies are means over the seeds with which both were trained; the deviation is that of the differences of
    single seeds. number format: all that the two were computed in.
    """
    rows = []
    for words, base, changed in comparisons():
        before, after = by_seed(base, runs), by_seed(changed, runs)
        seeds = sorted(before.keys() & after.keys())
        both = [run for run in trained(base, runs) + trained(changed, runs) if run.seed in seeds]
        rows.append({
            "open in the paper": words, "data": TITLES[base.dataset], "base": base.label,
            "changed to": in_words(changed.differences(base)),
            "accuracy, base": spread(before[seed] for seed in seeds)["accuracy"],
            "accuracy, changed": spread(after[seed] for seed in seeds)["accuracy"],
            **spread((after[seed] - before[seed] for seed in seeds), "difference (points)", "+"),
            "tested on": TESTED_ON[base.split], "number format": number_formats(both)})
    return pd.DataFrame(rows)


def gain_of_Q(runs):
    """The paper's claim on Q, read in each of its possible ways, beside trainings that differ in Q alone.

    accuracy implied: before the step, if the paper's accuracy at Q = 32 and its gains are so read. here: mean over the
    seeds that were trained with both Q of the gain of each.
    """
    accuracies, rows = {row[1]: row[3] for row in PAPER["cifar10"]}, []
    for base, steps in STEPS:
        training, reached = experiment(**base), {Q: by_seed(experiment(**base | dict(Q=Q)), runs) for Q in steps}
        for words, (gain, before) in READINGS.items():
            implied, found = accuracies[base["variant"]] if 32 in steps else None, []
            for low, high in zip(steps[1:], steps):
                claimed = GAINS.get((low, high))
                implied = before(claimed, implied) if implied and claimed else None
                seeds = sorted(reached[low].keys() & reached[high].keys())
                found.append({
                    "network": training.label, "epochs": training.recipe.epochs, "tested on": TESTED_ON[training.split],
                    "Q": f"{low} to {high}", "read as": words, "paper": claimed or "",
                    "accuracy implied": f"{implied:.2f}" if implied else "",
                    **spread((gain(reached[low][seed], reached[high][seed]) for seed in seeds), "here", "+")})
            rows += reversed(found)
    return pd.DataFrame(rows)


def differences(run):
    """In words, what sets a run apart from the published training of its system; empty where it counts for table 1."""
    usual = {}
    for part in published(run.architecture, run.dataset)[run.preset]:
        usual |= part.as_dict()
    train, test = IMAGES[run.dataset]
    train -= run.test_images if run.split == "validation" else 0
    reasons = [] if run.dataset in PAPER else [run.data]
    if run.train_images != train:
        reasons.append(f"{run.train_images:,} of {train:,} training images")
    if run.split != "test" or run.test_images != test:
        reasons.append(f"tested on {run.tested_on}")
    if run.preset not in ("paper", "published"):
        reasons.append(f"preset {run.preset}")
    reasons += [f"{name} {plain(value)} instead of {plain(usual[name])}" for name, value in run.overrides.items()]
    if run.precision != "fast":
        reasons.append(f"precision {run.precision} instead of fast")
    if not run.complete:
        reasons.append(f"unfinished: {run.epochs_done} of {run.epochs} epochs")
    return reasons


def other_runs(runs):
    """Every run that stands in no other table, with what sets it apart from what was published; damaged ones last."""
    shown = {run.folder for training in _declared() for run in trained(training, runs)}
    rows = [{
        "data": run.data, "system": run.system, "padding_mode": run.padding_mode, "preset": run.preset, "K": run.K,
        "Q": run.Q, "epochs": f"{run.epochs_done} of {run.epochs}",
        "training images": f"{run.train_images:,} of {IMAGES[run.dataset][0]:,}", "tested on": run.tested_on,
        "accuracy": NOT_TRAINED if run.accuracy is None else f"{run.accuracy:.2f}", "seed": run.seed,
        "images/s": f"{run.images_per_second:.0f}" if run.images_per_second else "", "seconds": f"{run.seconds:.0f}",
        "device": run.device, "differs in": "; ".join(differences(run)),
        "run": f"{'local/' * run.local}{run.folder.name}",
    } for run in sorted(usable(runs), key=lambda run: (run.data, run.variant, run.K, run.Q, run.folder.name))
        if run.folder not in shown]
    empty = dict.fromkeys(rows[0] if rows else ("data", "differs in", "run"), "")
    rows += [empty | {"data": "damaged", "differs in": run.problem, "run": run.folder.name}
             for run in runs if run.problem]
    return pd.DataFrame(rows, columns=list(empty))


def _declared():
    """Every Experiment that has a place in another table."""
    rows = [(dataset, row[1]) for dataset in PAPER for row in PAPER[dataset] + BESIDE[dataset] if row[1]]
    found = [experiment(dataset=dataset, variant=variant) for dataset, variant in rows] + repetitions(HERE + QUICK)
    found += [experiment(variant=variant, Q=Q) for variant in VARIANTS for Q in (9, 16)]
    return found + [training for _, *pair in comparisons() for training in pair]


def beside_paper(run, dataset):
    """One run beside the paper's row of the same system in table 1 (cifar10) or 2 (cifar100): quantity, paper, here."""
    _, _, parameters, accuracy = next(row for row in PAPER[dataset] if row[1] == run.variant)
    paper, apart = experiment(dataset=dataset, variant=run.variant), differences(run)
    a = paper.architecture
    return pd.DataFrame([
        ("data", TITLES[dataset], run.data),
        ("training images", f"{IMAGES[dataset][0]:,}", f"{run.train_images:,}"),
        ("epochs", paper.recipe.epochs, f"{run.epochs_done} of {run.epochs}"),
        ("K, Q, padding_mode", f"{a.K}, {a.Q}, {a.padding_mode}", f"{run.K}, {run.Q}, {run.padding_mode}"),
        ("filter weights", f"{parameters} ({a.count()['filters']:,})", f"{run.info['counts']['filters']:,}"),
        ("accuracy, last epoch (%)", f"{accuracy:.2f}",
         NOT_TRAINED if run.accuracy is None else f"{run.accuracy:.2f}"),
        ("tested on", f"{IMAGES[dataset][1]:,} test images", run.tested_on),
        ("device", "not given", run.device),
        ("seconds", "not given", f"{run.seconds:.0f}"),
        ("comparable", "", "no: " + "; ".join(apart) if apart else "yes"),
    ], columns=["quantity", "paper", "here"])
