"""Drawing for notebook 01: ranks, taps, translations of layers."""

import numpy as np
import seaborn as sns
from matplotlib.colors import PowerNorm

from hcnn.companion.figures.common import GREY, MIDDLE, NEW, OLD, SPACE, finished, grid_of_axes

LEAST = 1e-17  # where an exact 0 is drawn on a logarithmic axis


def rank(errors, rank_limit):
    """errors: {Q: relative error of the best sum of Q separable filters}."""
    fig, ax = grid_of_axes(width=5.5, height=3)
    ax.semilogy(list(errors), np.maximum(list(errors.values()), LEAST), "o-", color=NEW)
    ax.axvline(rank_limit, color=GREY, linestyle=":", label=f"{rank_limit} taps of h")
    ax.set(xlabel="Q, number of separable filters", ylabel="relative error of w", xticks=list(errors),
           title="Equation (8) loses nothing once Q reaches the rank")
    ax.legend()
    return finished(fig)


def tap_tables(tables, grid, taps):
    """tables: {padding_mode: (outputs, inputs) index of the tap}; `taps`, the number of taps, stands for none."""
    fig, axes = grid_of_axes(len(tables), width=9, height=2.9, squeeze=False)
    for ax, (padding_mode, table) in zip(axes.flat, tables.items()):
        masked = np.ma.masked_equal(np.asarray(table), taps)
        image = ax.imshow(masked, cmap="viridis", vmin=0, vmax=taps - 1, interpolation="nearest", aspect="auto")
        ax.set(title=f"{padding_mode}: {1 - masked.mask.mean():.0%} of the matrix is not zero",
               xlabel=f"input position on the {grid[0]} × {grid[1]} grid", ylabel="output position")
    fig.colorbar(image, ax=axes, label="tap of g", shrink=0.7)
    return fig


def covariance(errors):
    """errors: {padding_mode: {axis translated at x_3: {depth: relative error}}}, a panel each and a line an axis."""
    fig, axes = grid_of_axes(1, len(errors), 5, 3.6, ruled=True, sharey=True)
    for ax, (padding_mode, lines) in zip(axes, errors.items()):
        for (axis, values), colour, marker in zip(lines.items(), (OLD, MIDDLE, NEW, SPACE), "osD^"):
            drawn = np.maximum(list(values.values()), LEAST)
            ax.semilogy(list(values), drawn, marker=marker, color=colour, label=axis, alpha=0.85)
        ax.set(title=padding_mode, xlabel="depth j", xticks=list(values), ylim=(3e-18, 10))
    axes[0].set_ylabel("error relative to the norm of $x_j$")
    axes[0].legend(title="translated at $x_3$", fontsize=8)
    return finished(fig)


def invariance(changes):
    """changes: {(padding_mode, axis): DataFrame of changes of the scores, depth by translation; NaN: no such one}."""
    modes, names = (list(dict.fromkeys(key[i] for key in changes)) for i in (0, 1))
    fig, axes = grid_of_axes(len(modes), len(names), 12.5 / len(names), 3.4, squeeze=False)
    for ((padding_mode, name), frame), ax in zip(changes.items(), axes.flat):
        texts = frame.map(lambda value: "" if np.isnan(value) else "0" if value < 1e-10 else f"{value:.2g}")
        sns.heatmap(frame, annot=texts, fmt="", annot_kws={"fontsize": 8}, cmap="magma", vmin=0, vmax=2, ax=ax,
                    cbar=False)
        ax.set(title=f"{padding_mode}, along {name}", xlabel="translation of $x_j$ (samples)", ylabel="depth j")
    label = "change of the class scores / distance between two images"
    fig.colorbar(axes[0, 0].collections[0], ax=axes, label=label, extend="max", shrink=0.8)
    return fig


def maps(rows, column_titles):
    """rows: {label: [image, map, map, ...]} of 2-D arrays; None leaves a gap. All maps share one scale around 0."""
    fig, axes = grid_of_axes(len(rows), len(column_titles), 11 / len(column_titles), 1.3, squeeze=False)
    high = max(float(abs(array).max()) for arrays in rows.values() for array in arrays[1:])
    for line, (label, (image, *arrays)) in zip(axes, rows.items()):
        if image is not None:
            line[0].imshow(image, cmap="gray")
        for ax, array in zip(line[1:], arrays):
            ax.imshow(array, cmap="RdBu_r", vmin=-high, vmax=high)
        for ax in line:
            ax.set(xticks=[], yticks=[])
        line[0].spines[:].set_visible(image is not None)
        line[0].set_ylabel(label, fontsize=9)
    for ax, title in zip(axes[0], column_titles):
        ax.set_title(title, fontsize=9)
    return fig


def spectrograms(panels, bins_per_octave):
    """panels: {title: (log-frequency, time) amplitudes}, side by side, the highest frequency on top."""
    fig, axes = grid_of_axes(1, len(panels), 3, 3.3, sharey=True)
    for ax, (title, amplitude) in zip(axes, panels.items()):
        ax.imshow(amplitude, origin="lower", aspect="auto", cmap="magma", norm=PowerNorm(0.4))
        ax.set(xlabel="time u (samples)")
        ax.set_title(title, fontsize=10)
    axes[0].set_ylabel(f"$v_1$ (1/{bins_per_octave} octave)")
    return fig
