"""What notebook 06 shows: which run, what is computed or read, verdicts in words, and a look at single searches."""

from dataclasses import dataclass

import matplotlib.pyplot as plt

from hcnn.architecture import VARIANTS, Architecture
from hcnn.companion.figures import interpretation as drawing
from hcnn.companion.interpretation import measure, storage
from hcnn.companion.interpretation.carried import told_apart
from hcnn.companion.interpretation.probability import progression, with_control
from hcnn.companion.interpretation.properties import colour_or_geometry as causes
from hcnn.companion.interpretation.properties import monotonicity
from hcnn.companion.results.runs import best_available, data_title, load_run, load_runs, runs_folder, usable
from hcnn.data.datasets import Dataset, load_dataset
from hcnn.paths import RUNS
from hcnn.training.loop import train
from hcnn.training.recipe import Recipe
from hcnn.training.run_folder import WEIGHTS
from hcnn.training.trained import load

TINY = dict(K=8, Q=9, padding_mode="periodic", subsampled=(1, 2, 5))  # trained on digits where no run is stored


@dataclass(frozen=True)
class Interpreted:
    """The result of `measure.interpret` for a run, its data set, and a title that says what it is of."""

    data: Dataset
    found: dict
    title: str

    used = property(lambda self: storage.used(self.found))
    depths = property(lambda self: self.found["depths"].tolist())

    @property
    def same(self):
        """(depths, taus, images) whether x^tau of the images shown has the class of x; and whether it is far."""
        same = self.found["labels"][self.found["image_index"]] == self.found["image_labels"]
        far = self.found["image_distance"] > storage.close(self.found)[:, None, None]
        return same[:, 1:], far[:, 1:]


def candidates():
    """The stored runs of networks whose channels have an order; K = 4 has two rows, alike once averaged."""
    return [run for run in usable(load_runs()) if run.variant in VARIANTS and run.K >= 8]


def choose(run, dataset, variant, padding_mode):
    """The run of this name, else the stored one trained on the most images; a tiny one where there is none."""
    if run:
        return load_run(RUNS / run)
    stored = [r for r in candidates() if r.padding_mode == padding_mode and (r.folder / WEIGHTS).exists()]
    data = load_dataset(dataset, fallback=True)
    if found := best_available(data.name, variant, [r for r in stored if r.dataset == data.name]):
        return found
    tiny, recipe = Architecture.preset("digits", variant, **TINY), Recipe.preset(epochs=3, lr=0.05, schedule="cosine")
    return load_run(train(tiny, recipe, load_dataset("digits"), train_size=600, out=runs_folder()))


def interpret(run, out="", **asked):
    """The Interpreted of a run: what is stored where that is as much as asked for, else computed.

    out "results" keeps it in the folder of the run; with any `out` a stored result of more images is taken.
    """
    trained, data = load(run.folder), load_dataset(run.dataset)
    asked = measure.ask(trained, data, **asked)
    print(f"Weights: {run.folder.name}, padding_mode {run.padding_mode}, trained on {run.train_images:,} images for "
          f"{run.epochs_done} epochs: {run.accuracy:.2f}% of {run.tested_on} of {run.data}. "
          f"Translations: {asked['taus'][1:]} of {run.K // 2} rows.")
    found = storage.load_interpretation(run.folder, asked, larger=out != "")
    if found is None:
        found = measure.interpret(trained, data, asked)
        if out == "results":
            storage.save_interpretation(run.folder, found)
    used, made, ties = storage.used(found), storage.used(found, "made"), found["ties"]
    print(f"Database: {used['database']:,} training images; {used['queries']:,} test images; {used['altered']} with "
          f"known changes. {made['seconds']:.0f} s on {made['device']}, {made['threads']} threads.")
    print(f"{ties.sum():,} of {ties.size:,} searches have more than one nearest image; the first one is taken.")
    title = (f"{data_title(data.name, data.substitutes)}, {run.system} K={run.K} Q={run.Q}, {run.padding_mode}, "
             f"{run.accuracy:.1f}%; database: {used['database']:,} training images")
    return Interpreted(data, found, title)


def intervals(table):
    """The table of `same_class_probability` as texts, a row a depth."""
    words = [f"{r.probability:.3f} ({r.low:.3f}, {r.high:.3f})" for r in table.itertuples()]
    cases = [r.kind + (f" {r.tau:.0f}" if r.tau > 0 else "") for r in table.itertuples()]
    return table.assign(interval=words, case=cases).pivot(index="depth", columns="case", values="interval")


def signs(table):
    """{statistic: 1 where its interval lies above 0, -1 where it lies below, 0 where it holds 0}."""
    return {row.statistic: int(row.low > 0) - int(row.high < 0) for row in table.itertuples()}


def verdict_on_classes(found, table):
    """In words, whether translated images keep the class the more probably the deeper the layer."""
    statistics, (moved, others) = progression(found), with_control(table)
    of, at = signs(statistics), statistics.set_index("statistic")
    moved = moved if len(moved) else others
    mean, close = moved.groupby("depth").probability.mean(), moved.groupby("depth").close.mean()
    near = (moved.close * moved.if_close.fillna(0)).groupby(moved.depth).mean() / close
    first, last = mean.index[[0, -1]]
    taus = ", ".join(f"{tau:.0f}" for tau in sorted(set(moved.tau)))
    often = {1: "more often than", 0: "as often, within the interval, as", -1: "less often than"}
    words = [f"**Verdict.** The probability (a mean over $\\tau$ = {taus}) {_course(of)}, from {mean[first]:.3f} at "
             f"j = {first} to {mean[last]:.3f} at j = {last}."]
    if "translated - exchanged" in of:
        control = at.loc["translated - exchanged"]
        words.append(f"Where rows are exchanged as far away it {_course(of, 'exchanged: ')}. Over all depths a "
                     f"translated array keeps the class {often[of['translated - exchanged']]} such a one (difference "
                     f"{control.value:.3f}, {control.low:.3f} to {control.high:.3f}).")
    words.append(f"It keeps the class {often[of['translated - nearest']]} the untranslated nearest neighbour. At "
                 f"j = {last} {close[last]:.0%} of the translated arrays have a sufficiently near image; of these "
                 f"{near[last]:.0%} keep the class.")
    return " ".join(words)


def _course(of, start=""):
    """In words, what the signs of `progression` say of the course of a probability."""
    rises = [of[f"{start}rank correlation with depth{words}"] == of[f"{start}deepest - shallowest{words}"] == 1
             for words in ("", ", without the last") if f"{start}deepest - shallowest{words}" in of]
    return ("rises with depth" if all(rises) else "rises at the last depth alone" if rises[0] else
            "does not demonstrably rise with depth")


def verdict_on_appearance(found):
    """In words, whether the order of the rows decides on colour in shallow layers and on patterns in deep ones."""
    parts = [f"* {row.about} in the {row.half} half of the depths: {row.told_apart:.0%} of {row.pairs}, most of all "
             f"{row.property} at j = {row.depth}, $\\tau$ = {row.tau}: {row.correlation:.2f} ({row.low:.2f} to "
             f"{row.high:.2f}) beside {row.correlation_exchanged:.2f}" for row in told_apart(found).itertuples()]
    return ("**Verdict.** How many correlations between $x$ and $x^\\tau$ are told apart from those where rows are "
            "exchanged as far away (one network):\n\n" + "\n".join(parts))


def verdict_on_changes(found):
    """In words, whether translations explain changes of colour in shallow layers and of geometry in deep ones."""
    shares, summary, words = causes(found).set_index("statistic"), monotonicity(found), []
    best = summary.loc[summary.explained.idxmax()]
    for half in ("shallow", "deep"):
        if f"colour, {half}" in shares.index:
            parts = [f"{_percent(row.value)} ({_percent(row.low)} to {_percent(row.high)}) of changes of {kind}"
                     for kind in ("colour", "geometry") for row in [shares.loc[f"{kind}, {half}"]]]
            words.append(f"in the {half} half of the depths {' and '.join(parts)}")
    enough = "enough" if best.explained > 0.1 else "too little"
    return (f"**Verdict.** A translation along $v_{{j-1}}$ explains at most {_percent(best.explained)} "
            f"({_percent(best.low)} to {_percent(best.high)}) of a change, a mean over its amounts ({best.property} at "
            f"j = {best.depth}); on average {'; '.join(words)}. That is {enough} to call a translation such a change "
            f"({storage.used(found)['altered']} images, one network).")


def _percent(share):
    return f"{share:.2%}".replace("-0.00%", "0.00%")


def side_by_side(statistics):
    """The table `progression` of all runs, a column a run."""
    words = [f"{r.value:.4f} ({r.low:.4f}, {r.high:.4f})" for r in statistics.itertuples()]
    columns = ["network", "trained on", "seed", "accuracy"]
    return statistics.assign(interval=words).pivot(index=["about", "statistic"], columns=columns, values="interval")


def explore(shown):
    """One search, drawn; with a running kernel and ipywidgets any of them."""
    def look(image, depth, tau):
        drawing.one_search(shown.found, depth, image, tau, shown.data)
        plt.show()

    depths, taus = shown.depths, shown.found["taus"].tolist()
    look(0, depths[-1], taus[1])
    try:
        from ipywidgets import interact
    except ImportError:
        print("ipywidgets is not installed: the picture above stays as it is")
        return
    interact(look, image=list(range(len(shown.found["images"]))), depth=depths, tau=taus)
