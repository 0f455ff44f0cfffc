"""Drawing for notebooks 02 and 05. Every function takes numbers and returns a figure."""

import numpy as np
import seaborn as sns
from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter

from hcnn.companion.figures.common import GREY, MIDDLE, NEW, OLD, finished, grid_of_axes

SIDES = ((10, 0), (-10, 0), (0, 10), (0, -10), (8, 8), (-8, 8), (8, -8), (-8, -8))  # of a mark, in points


def bars_by_depth(numbers, ylabel, title):
    """numbers: DataFrame, a row a depth, a group of bars each."""
    fig, ax = grid_of_axes(width=9, height=3)
    colours = [MIDDLE, NEW, OLD][:numbers.shape[1]]
    numbers.plot.bar(ax=ax, rot=0, width=0.8, color=colours, xlabel="depth j", ylabel=ylabel, title=title)
    ax.legend(fontsize=8)
    return finished(fig)


def tap_gradients(gradients):
    """gradients: {title: (s, s') size of the gradient of each tap}; taps without one stay white."""
    fig, axes = grid_of_axes(1, len(gradients), 3.9, 2.9)
    for ax, (title, gradient) in zip(axes, gradients.items()):
        sns.heatmap(gradient, mask=np.asarray(gradient) == 0, cmap="viridis", square=True, cbar=False, ax=ax,
                    linewidths=0.5, linecolor="0.9")
        ax.set(xlabel="tap along $v_{j-1}$", ylabel="tap along $v_{j-2}$")
        ax.set_title(title, fontsize=10)
    return fig


def growth(panels, ylabels, sharey=False):
    """panels: {title: DataFrame, up to three columns, a line each over its named index}, logarithmic."""
    fig, axes = grid_of_axes(1, len(panels), height=3.5, sharey=sharey)
    for ax, (title, lines), ylabel in zip(axes, panels.items(), ylabels):
        styles = ["o-", "o-", "--"][:lines.shape[1]]
        lines.plot(ax=ax, logy=True, style=styles, color=[NEW, MIDDLE, "black"], markersize=3.5, legend=ax is axes[0])
        ax.xaxis.get_major_locator().set_params(integer=True)
        ax.set(xlabel=lines.index.name, ylabel=ylabel)
        ax.set_title(title, fontsize=10)
        ax.grid(alpha=0.3)
    return finished(fig)


def parameters(panels):
    """panels: {title: {network: (millions of parameters, whether it is ours)}}, a logarithmic axis; ours stand out."""
    fig, axes = grid_of_axes(1, len(panels), 5.5, 2.8, ruled=True, sharex=True)
    for ax, (title, networks) in zip(axes, panels.items()):
        for name, (millions, ours) in sorted(networks.items(), key=lambda item: -item[1][0]):
            ax.scatter(millions, name, color=NEW if ours else GREY, zorder=3)
            ax.annotate(f"{millions:.2g}M", (millions, name), (8, 0), textcoords="offset points", va="center",
                        fontsize=8)
        ax.set(xscale="log", xlim=(0.06, 5), xlabel="parameters, millions")
        ax.set_title(title, fontsize=10)
    return finished(fig)


def accuracy_against(points, x, label):
    """points: `results.tables.points`, a panel for each data set: accuracy against the column x on a logarithmic axis.

    Open: the paper's numbers. Filled, with a bar of one deviation: ours. Marks are numbered from left to right. Rows
    without x are left out; None without any.
    """
    points = points.dropna(subset=[x])
    if points.empty:
        return None
    panels = list(points.groupby("data", sort=False))
    fig, axes = grid_of_axes(1, len(panels), 8, 4.5, ruled=True, squeeze=False)
    for ax, (title, rows) in zip(axes[0], panels):
        for number, row in enumerate(rows.sort_values([x, "accuracy"]).itertuples(), 1):
            at, paper = (getattr(row, x), row.accuracy), row.source == "paper"
            colour = NEW if row.ours else GREY
            ax.errorbar(*at, None if np.isnan(row.deviation) else row.deviation, fmt="o", color=colour, capsize=3,
                        markerfacecolor="none" if paper else colour, label=f"{number}  {row.system}")
        ax.set(xscale="log", xlabel=label, ylabel="accuracy (%)")
        ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.xaxis.set_major_formatter(EngFormatter(sep=""))
        ax.xaxis.set_minor_formatter(NullFormatter())
        ax.margins(x=0.1, y=0.1)
        ax.set_title(title, fontsize=10)
        ax.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    fig.canvas.draw()  # gives the marks their places
    for ax in fig.axes:
        _number(ax, [container[0] for container in ax.containers])
    return finished(fig)


def _number(ax, marks):
    """Number the marks, each on that side which is furthest from other marks and numbers."""
    taken = [ax.transData.transform(mark.get_xydata()[0]) for mark in marks]
    for i, mark in enumerate(marks):
        others = np.array(taken[:i] + taken[i + 1:]).reshape(-1, 2)
        places = [taken[i] + np.array(side) * ax.figure.dpi / 72 for side in SIDES]
        free = [np.linalg.norm(others - place, axis=1).min(initial=np.inf) for place in places]
        best = int(np.argmax(free))
        ax.annotate(str(i + 1), mark.get_xydata()[0], SIDES[best], textcoords="offset points", fontsize=8, ha="center",
                    va="center", color=mark.get_color())
        taken.append(places[best])
