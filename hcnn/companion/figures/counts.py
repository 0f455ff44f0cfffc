"""Drawing for notebooks 02 and 05, the counts: every function takes finished numbers and returns a matplotlib figure."""

import re

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns

from hcnn.companion.figures.common import GREY, MIDDLE, NEW, OLD


def by_depth(numbers, ylabel, title):
    """numbers: DataFrame, a row a depth, a group of bars each."""
    fig, ax = plt.subplots(figsize=(9, 3), layout="constrained")
    numbers.plot.bar(ax=ax, rot=0, width=0.8, color=[MIDDLE, NEW, OLD][:numbers.shape[1]], xlabel="depth j", ylabel=ylabel, title=title)
    ax.legend(fontsize=8)
    sns.despine(fig)
    return fig


def tap_gradients(gradients):
    """gradients: {title: (s, s') size of the gradient of each tap}; taps without one stay white."""
    fig, axes = plt.subplots(1, len(gradients), figsize=(3.9 * len(gradients), 2.9), layout="constrained")
    for ax, (title, gradient) in zip(axes, gradients.items()):
        dead = np.asarray(gradient) == 0
        sns.heatmap(gradient, mask=dead, cmap="viridis", square=True, cbar=False, ax=ax, linewidths=0.5, linecolor="0.9")
        ax.set(xlabel="tap along $v_{j-1}$", ylabel="tap along $v_{j-2}$")
        ax.set_title(title, fontsize=10)
    return fig


def growth(panels, ylabels, sharey=False):
    """panels: {title: DataFrame, up to three columns, a line each over its named index}, logarithmic."""
    fig, axes = plt.subplots(1, len(panels), figsize=(4.4 * len(panels), 3.5), sharey=sharey, layout="constrained")
    for ax, (title, lines), ylabel in zip(axes, panels.items(), ylabels):
        for (name, values), colour, style in zip(lines.items(), (NEW, MIDDLE, "black"), ("o-", "o-", "--")):
            ax.semilogy(lines.index, values, style, color=colour, label=name, markersize=3.5)
        ax.xaxis.get_major_locator().set_params(integer=True)
        ax.set(xlabel=lines.index.name, ylabel=ylabel)
        ax.set_title(title, fontsize=10)
        ax.grid(alpha=0.3)
    axes[0].legend(fontsize=8)
    sns.despine(fig)
    return fig


def parameters(panels):
    """panels: {title: {network: millions of parameters}}, a logarithmic axis; names that begin with HCNN stand out."""
    fig, axes = plt.subplots(1, len(panels), figsize=(11, 2.8), sharex=True, layout="constrained")
    for ax, (title, networks) in zip(axes, panels.items()):
        networks = dict(sorted(networks.items(), key=lambda item: -item[1]))
        ax.scatter(list(networks.values()), list(networks), color=[NEW if n.startswith("HCNN") else GREY for n in networks], zorder=3)
        for name, millions in networks.items():
            ax.annotate(f"{millions:.2g}M", (millions, name), (8, 0), textcoords="offset points", va="center", fontsize=8)
        ax.set(xscale="log", xlim=(0.06, 5), xlabel="parameters, millions")
        ax.set_title(title, fontsize=10)
        ax.grid(alpha=0.3)
    sns.despine(fig)
    return fig


def accuracy_against_parameters(tables):
    """tables: {title: `results.table`}, a panel each: the paper's numbers are open marks, ours filled; what was not run says so.

    None without tables.
    """
    if not tables:
        return None
    fig, axes = plt.subplots(1, len(tables), figsize=(6.5 * len(tables), 5), layout="constrained", squeeze=False)
    for ax, (title, table) in zip(axes[0], tables.items()):
        rows = sorted(table.to_dict("records"), key=lambda row: float(row["parameters, paper"].rstrip("M")))
        for i, row in enumerate(rows):
            colour = NEW if row["model"].startswith("Hierarchical") else GREY
            at = float(row["parameters, paper"].rstrip("M")), float(row["accuracy, paper"])
            name = re.sub(r",.*| \(Ha.*", "", row["model"])
            ran = row["accuracy, here"] != "not run"
            ax.scatter(*at, facecolors="none", edgecolors=colour, zorder=3)
            side = dict(xytext=(0, 7), ha="left") if i % 2 else dict(xytext=(0, -7), ha="right")
            ax.annotate(name if ran else f"{name}: not run", at, textcoords="offset points", fontsize=8, rotation=40,
                        rotation_mode="anchor", va="center", color=colour, **side)
            if ran:
                spread = float(row["deviation"]) if row["n"] > 1 else None
                ax.errorbar(row["parameters, here"] / 1e6, float(row["accuracy, here"]), spread, fmt="o", color=colour, capsize=3)
        ax.set(xscale="log", xlim=(0.02, 9), xlabel="parameters, millions", ylabel="accuracy (%)")
        ax.margins(y=0.5)
        ax.set_title(title, fontsize=10)
        ax.grid(alpha=0.3)
    sns.despine(fig)
    return fig
