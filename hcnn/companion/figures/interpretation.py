"""Drawing for notebook 06, the meaning of attributes. Every function takes numbers and returns a figure."""

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from matplotlib.lines import Line2D

from hcnn.companion.figures.common import GREY, MIDDLE, NEW, OLD, SECOND, finished, grid_of_axes
from hcnn.companion.interpretation.probability import with_control
from hcnn.companion.interpretation.storage import close, frame

OTHER = "#b2182b"  # the colour of what does not have the class of x
CONTROLS = {"nearest": ("untranslated nearest neighbour", OLD, "s--"),
            "exchanged": ("rows exchanged as far away", SECOND, "^--"), "chance": ("chance", GREY, ":")}


def caption(label, said, classes, own=None):
    """Two lines under an image: its class, what the network says where that differs; and red where it is not `own`."""
    text = f"{classes[label]}\n" + (f"said: {classes[said]}" if said != label else "")
    return text, "black" if own is None or label == own else OTHER


def _picture(ax, array, text="", colour=GREY, title=None, **options):
    """An image (3, height, width) or an array with a text below."""
    array = np.moveaxis(np.asarray(array), 0, -1) if np.ndim(array) == 3 else array
    ax.imshow(array, interpolation="nearest", **options)
    ax.set(xticks=[], yticks=[])
    ax.set_xlabel(text, fontsize=7.5, color=colour, labelpad=2)
    ax.set_title(title or "", fontsize=9, pad=3)
    for spine in ax.spines.values():
        spine.set(visible=colour == OTHER, color=OTHER, linewidth=1.2)


def _array(ax, array, scale, text="", title=None):
    _picture(ax, array, text, title=title, cmap="gray", vmin=scale[0], vmax=scale[1], aspect="auto")


def _row(found, d, f, data):
    """x and its x^tau at one depth: (image, text, colour, title) of each, and each distance in words."""
    label, said = found["image_labels"][f], found["image_predictions"][f]
    cells = [(data.train_images[found["images"][f]], *caption(label, said, data.classes), "$x$")]
    distances = ["columns $v_j$"]
    for t, tau in enumerate(found["taus"].tolist()[1:], 1):
        i, distance = found["image_index"][d, t, f], found["image_distance"][d, t, f]
        distances.append(f"distance {distance:.3g}" + (", far" if distance > close(found)[d] else ""))
        under = caption(found["labels"][i], found["predictions"][i], data.classes, label)
        cells.append((data.train_images[found["database"][i]], *under, f"$\\tau = {tau}$"))
    return cells, distances


def with_arrays(found, j, images, data, title):
    """Figure 3: for every image x (a position in found["images"]) a row with x^tau, and their arrays xbar_j below."""
    d, columns = found["depths"].tolist().index(j), len(found["taus"])
    fig, axes = grid_of_axes(2 * len(images), columns, 1.4, 1.4, squeeze=False, height_ratios=[1.35, 1] * len(images))
    for row, f in enumerate(images):
        arrays = np.concatenate([found[f"arrays_{j}"][f][None], found[f"nearest_arrays_{j}"][1:, f]])
        for c, (cell, distance, array) in enumerate(zip(*_row(found, d, f, data), arrays)):
            _picture(axes[2 * row, c], *cell)
            _array(axes[2 * row + 1, c], array, (arrays.min(), arrays.max()), distance)
        axes[2 * row + 1, 0].set_ylabel(f"$\\bar{{x}}_{{{j}}}$, rows $v_{{{j - 1}}}$", fontsize=8)
    fig.suptitle(title, fontsize=10)
    return fig


def rows_by_depth(found, images, data, title):
    """Figure 4: a row for each depth, the image x (images[i] for the i-th depth) and its x^tau."""
    depths = found["depths"].tolist()
    fig, axes = grid_of_axes(len(depths), len(found["taus"]), 1.2, 1.55, squeeze=False)
    for d, (j, f) in enumerate(zip(depths, images)):
        for ax, cell in zip(axes[d], _row(found, d, f, data)[0]):
            _picture(ax, *cell[:3], title=cell[3] if d == 0 else None)
        axes[d, 0].set_ylabel(f"j = {j}", fontsize=9, rotation=0, labelpad=16, va="center")
    fig.suptitle(title, fontsize=10)
    return fig


def one_search(found, j, f, tau, data):
    """x, its array, that array translated by tau, the nearest array and its image x^tau."""
    d, t = found["depths"].tolist().index(j), found["taus"].tolist().index(tau)
    own, near, distance = found[f"arrays_{j}"][f], found[f"nearest_arrays_{j}"][t, f], found["image_distance"][d, t, f]
    arrays = {f"$\\bar{{x}}_{{{j}}}$": own, f"translated by {tau}": np.roll(own, tau, 0),
              f"nearest: distance {distance:.3g}": near}
    scale = min(a.min() for a in arrays.values()), max(a.max() for a in arrays.values())
    fig, axes = grid_of_axes(1, 5, 2, 2.2)
    cells, _ = _row(found, d, f, data)
    _picture(axes[0], *cells[0])
    for ax, (name, array) in zip(axes[1:4], arrays.items()):
        _array(ax, array, scale, f"columns $v_{{{j}}}$", name)
    axes[1].set_ylabel(f"rows $v_{{{j - 1}}}$", fontsize=8)
    _picture(axes[4], *cells[t][:3], title=f"$x^{{{tau}}}$")
    return fig


def _probability(ax, rows, name, colour, style, beside=0.0):
    """Probability against depth with its interval, a mean over tau; moved by `beside`, so that none hides another."""
    if len(rows):
        mean = rows.groupby("depth")[["probability", "low", "high"]].mean()
        interval = [mean.probability - mean.low, mean.high - mean.probability]
        ax.errorbar(mean.index + beside, mean.probability, interval, fmt=style, color=colour, label=name, capsize=2,
                    markersize=4, linewidth=1.3)


def _taus(rows):
    return f"translated, $\\tau$ = {', '.join(str(int(tau)) for tau in sorted(set(rows.tau)))}"


def probabilities(table, title):
    """The table of `same_class_probability`: left, means over tau beside the controls; right, every tau."""
    fig, (left, right) = grid_of_axes(1, 2, 6.2, 4.2, width_ratios=(1, 1.2))
    controlled, others = with_control(table)
    _probability(left, controlled, _taus(controlled), NEW, "D-", -0.12)
    if len(others):
        _probability(left, others, _taus(others), MIDDLE, "o-", -0.06)
    for i, (kind, how) in enumerate(CONTROLS.items()):
        _probability(left, table[table.kind == kind], *how, 0.06 * i)
    name, depths = "P(class of $x^\\tau$ = class of $x$)", sorted(set(table.depth))
    left.set(xlabel="depth j", ylabel=name, xticks=depths, ylim=(0, None))
    left.legend(fontsize=8, frameon=False)
    left.grid(alpha=0.3)
    grid = table[table.kind != "chance"].pivot(index="depth", columns=["kind", "tau"], values="probability")
    grid = grid[["nearest", "translated", "exchanged"]]
    grid.columns = [("x" if kind == "exchanged" else "") + f"{tau:.0f}" for kind, tau in grid.columns]
    sns.heatmap(grid, annot=True, fmt=".2f", cmap="viridis", vmin=0, ax=right, annot_kws={"fontsize": 7}, cbar=False)
    right.set(xlabel="$\\tau$ (0: untranslated; x: rows exchanged that are $\\tau$ apart)", ylabel="depth j")
    return finished(fig, title)


def probabilities_by_run(table):
    """The table `same_class` of all runs, a panel for each: translated, its controls, against depth, means over the tau
    with which rows can be exchanged.
    """
    runs = list(table.groupby("run", sort=False))
    lines = -(-len(runs) // 3)
    fig, axes = grid_of_axes(lines, -(-len(runs) // lines), 4, 3.2, ruled=True, squeeze=False, sharex=True, sharey=True)
    for ax, (_, run) in zip(axes.flat, runs):
        _probability(ax, with_control(run)[0], "translated", NEW, "D-")
        for kind, how in CONTROLS.items():
            _probability(ax, run[run.kind == kind], *how)
        first = run.iloc[0]
        ax.set_title(f"{first.network}, seed {first.seed}: {first.accuracy:.2f}%\ntrained on {first['trained on']}\n"
                     f"database {first.database:,}, n = {first.queries:,} test images", fontsize=8)
        ax.set(xlabel="depth j", ylabel="P(same class)", xticks=sorted(set(table.depth)))
        ax.set_ylim(0, 1.05 * table.high.max())
        ax.tick_params(labelbottom=True)
    for ax in axes.flat[len(runs):]:
        ax.set_axis_off()
    names = axes[0, 0].get_legend_handles_labels()
    fig.legend(*names, loc="outside lower center", ncols=len(names[0]), fontsize=8, frameon=False)
    return finished(fig)


def common(found, title):
    """The table of `carried`, a panel for each property: correlations against depth, a line for each tau (the colour
    says how far rows move), dashed where rows are exchanged instead.
    """
    table, rows = frame(found, "carried"), found[f"arrays_{found['depths'][0]}"].shape[1]
    table["far"] = np.minimum(table.tau, rows - table.tau)
    colours = dict(enumerate(["black", *plt.get_cmap("plasma")(np.linspace(0, 0.85, rows // 2))]))
    fig, axes = grid_of_axes(2, 4, 3.1, 2.6, ruled=True, sharex=True, sharey=True)
    for ax, (name, of) in zip(axes.flat, table.groupby("property", sort=False)):
        for (kind, _, far), line in of.groupby(["kind", "tau", "far"]):
            ax.plot(line.depth, line.correlation, "--" if kind == "exchanged" else "-", linewidth=1.2,
                    color=colours[far])
        ax.axhline(0, color=GREY, linewidth=0.8)
        ax.set_title(name, fontsize=9)
        ax.set(xticks=sorted(set(table.depth)))
    for ax in axes[1]:
        ax.set_xlabel("depth j")
    for ax in axes[:, 0]:
        ax.set_ylabel("correlation")
    marks = [Line2D([], [], color=colours[far], label=f"translated by {far}" if far else CONTROLS["nearest"][0])
             for far in sorted(set(table.far))]
    marks += [Line2D([], [], color=GREY, linestyle="--", label=CONTROLS["exchanged"][0])]
    fig.legend(handles=marks, loc="outside lower center", ncols=len(marks), fontsize=8, frameon=False)
    return finished(fig, title)


def known_changes(summary, title):
    """The table of `monotonicity`, properties by depths; rank correlations only where 1% of the change is explained."""
    summary = summary.assign(monotone=summary.monotone.where(summary.explained >= 0.01))
    high = max(0.2, summary[["explained", "control"]].max().max())  # a share near or below 0 shall look like 0
    panels = {"moved": ("size of the change\nrelative to the array", "Greys", 0, None),
              "explained": ("share explained by\na translation", "viridis", 0, high),
              "control": ("the same for rows in\na non-cyclic order", "viridis", 0, high),
              "monotone": ("rank correlation of\n$\\tau$ with the amount", "RdBu_r", -1, 1)}
    fig, axes = grid_of_axes(1, len(panels), 3.75, 3.6, sharey=True)
    for ax, (column, (name, cmap, low, top)) in zip(axes, panels.items()):
        grid = summary.pivot(index="property", columns="depth", values=column).reindex(summary.property.unique())
        grid = grid.round(2) + 0.0  # no -0.00
        sns.heatmap(grid, annot=True, fmt=".2f", cmap=cmap, vmin=low, vmax=top, ax=ax, cbar=False,
                    annot_kws={"fontsize": 7.5})
        ax.set_title(name, fontsize=10)
        ax.set(xlabel="depth j", ylabel="")
    return finished(fig, title)
