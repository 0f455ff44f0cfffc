"""Drawing for notebook 06, the meaning of attributes: every function takes finished numbers and returns a matplotlib figure."""

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns

from hcnn.companion.figures.common import GREY, MIDDLE, NEW, OLD, SECOND
from hcnn.companion.interpretation.measure import close

OTHER = "#b2182b"  # the colour of what does not have the class of x


def caption(label, said, classes, own=None):
    """Text, always two lines, and colour under an image: its class, what the network says where that differs, red where it is not `own`."""
    text = f"{classes[label]}\n" + (f"said: {classes[said]}" if said != label else "")
    return text, "black" if own is None or label == own else OTHER


def _image(ax, image, text, colour, title=None):
    ax.imshow(np.moveaxis(np.asarray(image), 0, -1), interpolation="nearest")
    _bare(ax, text, colour)
    if title:
        ax.set_title(title, fontsize=9, pad=3)


def _array(ax, array, scale, text="", colour=GREY):
    ax.imshow(array, cmap="gray", vmin=scale[0], vmax=scale[1], interpolation="nearest", aspect="auto")
    _bare(ax, text, colour)


def _bare(ax, text, colour):
    ax.set(xticks=[], yticks=[])
    ax.set_xlabel(text, fontsize=7.5, color=colour, labelpad=2)
    for spine in ax.spines.values():
        spine.set(visible=colour == OTHER, color=OTHER, linewidth=1.2)


def _row(found, d, f, data):
    """x and its x^tau at one depth, as (image, (text, colour)), and beside each the distance in words."""
    label, said = found["image_labels"][f], found["image_predictions"][f]
    cells = [(data.train_images[found["images"][f]], caption(label, said, data.classes), "")]
    for t in range(1, len(found["taus"])):
        i, distance = found["image_index"][d, t, f], found["image_distance"][d, t, f]
        text = f"distance {distance:.3g}" + (", far" if distance > close(found)[d] else "")
        under = caption(found["labels"][i], found["predictions"][i], data.classes, label)
        cells.append((data.train_images[found["database"][i]], under, text))
    return cells


def _titles(found):
    return ["$x$", *(f"$\\tau = {tau}$" for tau in found["taus"][1:])]


def with_arrays(found, j, images, data, title):
    """Figure 3: for every image x (a position in found["images"]) a row with x^tau and a row with the arrays xbar_j below."""
    d, columns = found["depths"].tolist().index(j), len(found["taus"])
    fig, axes = plt.subplots(2 * len(images), columns, figsize=(1.35 * columns + 0.6, 2.75 * len(images) + 0.5), layout="constrained",
                             squeeze=False, height_ratios=[1.35, 1] * len(images))
    for row, f in enumerate(images):
        arrays = np.concatenate([found[f"arrays_{j}"][f][None], found[f"nearest_arrays_{j}"][1:, f]])  # (columns, rows, columns of xbar)
        for c, ((image, text, distance), name, array) in enumerate(zip(_row(found, d, f, data), _titles(found), arrays)):
            _image(axes[2 * row, c], image, *text, title=name)
            _array(axes[2 * row + 1, c], array, (arrays.min(), arrays.max()), distance or "columns $v_j$")
        axes[2 * row + 1, 0].set_ylabel(f"$\\bar{{x}}_{{{j}}}$, rows $v_{{{j - 1}}}$", fontsize=8)
    fig.suptitle(title, fontsize=10)
    return fig


def by_depth(found, images, data, title):
    """Figure 4: a row for each depth, the image x (images[i] for the i-th depth) and its x^tau."""
    depths, columns = found["depths"].tolist(), len(found["taus"])
    size = 1.15 * columns + 0.6, 1.5 * len(depths) + 0.5
    fig, axes = plt.subplots(len(depths), columns, figsize=size, layout="constrained", squeeze=False)
    for d, (j, f) in enumerate(zip(depths, images)):
        for c, ((image, text, _), name) in enumerate(zip(_row(found, d, f, data), _titles(found))):
            _image(axes[d, c], image, *text, title=name if d == 0 else None)
        axes[d, 0].set_ylabel(f"j = {j}", fontsize=9, rotation=0, labelpad=16, va="center")
    fig.suptitle(title, fontsize=10)
    return fig


def one(found, j, f, tau, data):
    """x, its array, that array translated by tau, the nearest array and its image x^tau."""
    d, t = found["depths"].tolist().index(j), found["taus"].tolist().index(tau)
    own, near = found[f"arrays_{j}"][f], found[f"nearest_arrays_{j}"][t, f]
    i, distance, label = found["image_index"][d, t, f], found["image_distance"][d, t, f], found["image_labels"][f]
    arrays = {f"$\\bar{{x}}_{{{j}}}$": own, f"translated by {tau}": np.roll(own, tau, 0), f"nearest: distance {distance:.3g}": near}
    scale = min(a.min() for a in arrays.values()), max(a.max() for a in arrays.values())
    fig, axes = plt.subplots(1, 5, figsize=(10, 2.2), layout="constrained")
    _image(axes[0], data.train_images[found["images"][f]], *caption(label, found["image_predictions"][f], data.classes), title="$x$")
    for ax, (name, array) in zip(axes[1:4], arrays.items()):
        _array(ax, array, scale, f"columns $v_{{{j}}}$")
        ax.set_title(name, fontsize=9, pad=3)
    axes[1].set_ylabel(f"rows $v_{{{j - 1}}}$", fontsize=8)
    _image(axes[4], data.train_images[found["database"][i]], *caption(found["labels"][i], found["predictions"][i], data.classes, label),
           title=f"$x^{{{tau}}}$")
    return fig


def probabilities(table, title):
    """The table of `same_class_probability`: left, means of even and odd tau beside the controls; right, every tau."""
    fig, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), width_ratios=(1.25, 1), layout="constrained")
    moved = table[table.kind == "translated"]
    lines = [("even $\\tau$", moved[moved.tau % 2 == 0], MIDDLE, "o-"), ("odd $\\tau$", moved[moved.tau % 2 == 1], NEW, "D-"),
             ("untranslated nearest neighbour", table[table.kind == "nearest"], OLD, "s--"),
             ("rows in a non-cyclic order", table[table.kind == "permuted"], SECOND, "^--"),
             ("chance", table[table.kind == "chance"], GREY, ":")]
    for i, (name, rows, colour, style) in enumerate(lines):
        if rows.empty:
            continue
        mean = rows.groupby("depth")[["probability", "low", "high"]].mean()
        at = mean.index + 0.06 * (i - 2) * (name != "chance")  # side by side, so that no interval hides another
        interval = [mean.probability - mean.low, mean.high - mean.probability]
        left.errorbar(at, mean.probability, interval, fmt=style, color=colour, label=name, capsize=2, markersize=5, linewidth=1.3)
    left.set(xlabel="depth j", ylabel="P(class of $x^\\tau$ = class of $x$)", xticks=sorted(set(table.depth)), ylim=(0, None))
    left.legend(fontsize=8, frameon=False)
    left.grid(alpha=0.3)
    sns.despine(ax=left)
    grid = table[table.kind.isin(("nearest", "translated"))].pivot(index="depth", columns="tau", values="probability")
    grid.columns = grid.columns.astype(int)
    sns.heatmap(grid, annot=True, fmt=".2f", cmap="viridis", vmin=0, ax=right, annot_kws={"fontsize": 8}, cbar=False)
    right.set(xlabel="$\\tau$ (0: untranslated)", ylabel="depth j")
    right.tick_params(axis="y", rotation=0)
    fig.suptitle(title, fontsize=11)
    return fig


def properties(summary, title):
    """The table of `monotonicity`, properties by depths; rank correlations only where a translation explains 1% of the change."""
    summary = summary.assign(monotone=summary.monotone.where(summary.explained >= 0.01))
    panels = [("moved", "size of the change\nrelative to the array", "Greys", 0, None),
              ("explained", "share explained by\na translation", "viridis", 0, None),
              ("control", "the same for rows in\na non-cyclic order", "viridis", 0, None),
              ("monotone", "rank correlation of\n$\\tau$ with the amount", "RdBu_r", -1, 1)]
    high = max(0.2, summary[["explained", "control"]].max().max())  # a share near 0 shall look like 0
    fig, axes = plt.subplots(1, len(panels), figsize=(15, 3.6), sharey=True, layout="constrained")
    for ax, (column, name, cmap, low, top) in zip(axes, panels):
        grid = summary.pivot(index="property", columns="depth", values=column).reindex(summary.property.unique())
        sns.heatmap(grid, annot=True, fmt=".2f", cmap=cmap, vmin=low, vmax=high if cmap == "viridis" else top, ax=ax, cbar=False,
                    annot_kws={"fontsize": 7.5})
        ax.set_title(name, fontsize=10)
        ax.set(xlabel="depth j", ylabel="")
    if summary.monotone.isna().all():
        axes[-1].text(0.5, 0.5, "no translation explains 1%", transform=axes[-1].transAxes, ha="center", va="center", fontsize=9)
    fig.suptitle(title, fontsize=11)
    return fig


def by_run(table):
    """The table of `interpretation_results.same_class`, a panel for each run: translated (mean over tau), its controls, against depth."""
    runs = list(table.groupby("run", sort=False))
    height = -(-len(runs) // 3)
    columns = -(-len(runs) // height)
    size = 4 * columns, 3.2 * height
    fig, axes = plt.subplots(height, columns, figsize=size, layout="constrained", squeeze=False, sharex=True, sharey=True)
    lines = [("translated", "translated, mean over $\\tau$", MIDDLE, "o-"), ("nearest", "untranslated nearest neighbour", OLD, "s--"),
             ("permuted", "rows in a non-cyclic order", SECOND, "^--"), ("chance", "chance", GREY, ":")]
    for ax, (_, run) in zip(axes.flat, runs):
        for kind, name, colour, style in lines:
            mean = run[run.kind == kind].groupby("depth")[["probability", "low", "high"]].mean()
            interval = [mean.probability - mean.low, mean.high - mean.probability]
            ax.errorbar(mean.index, mean.probability, interval, fmt=style, color=colour, label=name, capsize=2, markersize=4, linewidth=1.2)
        first = run.iloc[0]
        ax.set_title(f"{first.network}, seed {first.seed}: {first.accuracy}%\ntrained on {first['trained on']}\n"
                     f"database {first.database:,}, n = {first.queries:,} test images", fontsize=8)
        ax.set(xlabel="depth j", ylabel="P(same class)", xticks=sorted(set(table.depth)), ylim=(0, 1.05 * table.high.max()))
        ax.label_outer()
        ax.grid(alpha=0.3)
    for ax in axes.flat[len(runs):]:
        ax.set_axis_off()
    for ax in axes.flat[max(0, len(runs) - columns):len(runs)]:  # the lowest of each column
        ax.tick_params(labelbottom=True)
        ax.set_xlabel("depth j")
    fig.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=len(lines), fontsize=8, frameon=False)
    sns.despine(fig)
    return fig
