"""What notebook 06 shows: which run, what is computed or read, verdicts in words, and a look at single searches."""

from dataclasses import dataclass

import matplotlib.pyplot as plt
import numpy as np

from hcnn.architecture import VARIANTS, Architecture
from hcnn.companion.figures import interpretation as drawing
from hcnn.companion.interpretation import measure, storage
from hcnn.companion.interpretation.probability import progression
from hcnn.companion.interpretation.properties import colour_or_geometry as causes
from hcnn.companion.interpretation.properties import monotonicity
from hcnn.companion.results.runs import Run, best_available, data_title, load_run, load_runs, runs_folder, usable
from hcnn.data.datasets import Dataset, load_dataset
from hcnn.paths import RUNS
from hcnn.training.loop import train
from hcnn.training.recipe import Recipe
from hcnn.training.run_folder import WEIGHTS
from hcnn.training.trained import TrainedNetwork, load

TINY = dict(K=8, Q=9, padding_mode="periodic", subsampled=(1, 2, 5))  # trained on digits where no run is stored


@dataclass(frozen=True)
class Interpreted:
    """A run, its data set, and the result of `interpret` with what was asked of it."""

    run: Run
    trained: TrainedNetwork
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
    return Interpreted(run, trained, data, found, title)


def intervals(table):
    """The table of `same_class_probability` as texts, a row a depth."""
    words = [f"{r.probability:.3f} ({r.low:.3f}, {r.high:.3f})" for r in table.itertuples()]
    cases = [r.kind + (f" {r.tau:.0f}" if r.kind == "translated" else "") for r in table.itertuples()]
    return table.assign(interval=words, case=cases).pivot(index="depth", columns="case", values="interval")


def verdict_on_classes(found, table):
    """In words, whether translated images keep the class the more probably the deeper the layer."""
    by = progression(found).set_index("statistic")
    moved = table[table.kind == "translated"]
    last, mean = moved[moved.depth == moved.depth.max()], moved.groupby("depth").probability.mean()
    inner = moved[moved.depth < moved.depth.max()]  # where odd translations are no symmetries
    even, odd = (inner[inner.tau % 2 == rest].probability.mean() for rest in (0, 1))
    rises = (by.low[["rank correlation with depth", "deepest - shallowest"]] > 0).all()

    def against(name):
        low, high = by.loc[name, ["low", "high"]]
        return ("more often than" if low > 0 else "less often than" if high < 0
                else "as often, within the interval, as")

    return (f"**Verdict.** The probability {'rises' if rises else 'does not demonstrably rise'} with depth, from "
            f"{mean.iloc[0]:.3f} at j = {mean.index[0]} to {mean.iloc[-1]:.3f} at j = {mean.index[-1]} (rank "
            f"correlation {by.value.iloc[0]:.2f}). Over all depths a translated array keeps the class "
            f"{against('translated - permuted')} one with its rows in a non-cyclic order, and "
            f"{against('translated - nearest')} the untranslated nearest neighbour. Before the last depth even "
            f"translations keep it in {even:.1%} of the cases, odd ones in {odd:.1%}. At j = {mean.index[-1]} "
            f"{last.close.mean():.0%} of the translated arrays have a sufficiently near image; these keep the class in "
            f"{last.if_close.mean():.0%} of the cases.")


def verdict_on_changes(found):
    """In words, whether shallow attributes follow colour and deep ones larger patterns."""
    shifts, altered = storage.frame(found, "shifts"), storage.used(found)["altered"]
    summary = monotonicity(shifts)
    shares = causes(found).set_index("statistic")
    best, ahead = summary.loc[summary.explained.idxmax()], shares[shares.index.str.startswith("colour - geometry")]
    signs = (np.sign(ahead.low) + np.sign(ahead.high)) / 2  # 0: the interval holds both
    holds = best.explained > 0.1 and shares.low["translated - permuted"] > 0 and signs.tolist() == [1, -1]
    words = {1: "more of the changes of colour than of the geometric ones", 0: "as much of both, within the interval",
             -1: "less of the changes of colour than of the geometric ones"}
    halves = " ".join(f"In the {name.split(', ')[1]} half of the depths it explains {words[np.trunc(sign)]}."
                      for name, sign in signs.items())
    return (f"**Verdict.** A translation along $v_{{j-1}}$ explains at most {best.explained:.1%} of a change "
            f"({best.property} at j = {best.depth}), on average {summary.explained.mean():.2%}, with rows out of order "
            f"{summary.control.mean():.2%}. {halves} That translations follow colour in shallow layers and large "
            f"patterns in deep ones is {'supported' if holds else 'not supported'} by this network ({altered} images, "
            "n = 1 network).")


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
