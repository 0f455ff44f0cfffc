"""What all figures share, and those of the training notebooks. Every function takes numbers and returns a figure."""

import io
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from PIL import Image

NEW, MIDDLE, OLD, SPACE = "#d95f02", "#1f78b4", "#33a02c", "#6a51a3"  # v_j, v_{j-1}, v_{j-2} and u, in every figure
SECOND, GREY = "#e7298a", "#555555"
IMAGES = {"training": ("^", (2, 1.5)), "test": ("o", ""), "held out": ("s", (5, 1, 1, 1))}  # of curves: marker, dashes


def grid_of_axes(lines=1, columns=1, width=4.4, height=3.4, ruled=False, **options):
    """A figure and its axes, of so many inches each, with pale lines at the ticks where they are `ruled`."""
    fig, axes = plt.subplots(lines, columns, figsize=(width * columns, height * lines), layout="constrained", **options)
    for ax in fig.axes if ruled else ():
        ax.grid(alpha=0.3)
    return fig, axes


def finished(fig, title=None):
    """The figure with a title and without frames."""
    if title:
        fig.suptitle(title, fontsize=11)
    sns.despine(fig)
    return fig


def save(fig, name, folder):
    """Write folder/name.png, the same bytes for the same figure."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    png = io.BytesIO()
    fig.savefig(png, format="png", dpi=150, bbox_inches="tight")
    (Path(folder) / f"{name}.png").write_bytes(compact(png.getvalue()))
    return fig


def compact(png):
    """The same PNG in its 256 best colours: a third of the bytes, where every version of a figure is kept."""
    image, written = Image.open(io.BytesIO(png)).convert("RGB"), io.BytesIO()
    few = image.quantize(256, Image.Quantize.MAXCOVERAGE, kmeans=3, dither=Image.Dither.NONE)
    few.save(written, "PNG", optimize=True)
    return written.getvalue()


def image_grid(rows, titles, title):
    """rows: lists of (3, height, width) images of one size, uint8 or 0..1; titles: the same lists of strings."""
    fig, ax = plt.subplots(figsize=(1.2 * max(map(len, rows)), 1.6 * len(rows) + 0.4), layout="constrained")
    for i, (images, texts) in enumerate(zip(rows, titles)):
        for j, (image, text) in enumerate(zip(images, texts)):
            left, top = 1.1 * j, 1.5 * i
            extent = left, left + 1, top + 1, top
            ax.imshow(np.moveaxis(np.asarray(image), 0, -1), interpolation="nearest", extent=extent)
            ax.text(left + 0.5, top - 0.04, text, ha="center", va="bottom", fontsize=8)
    ax.set(xlim=(0, 1.1 * max(map(len, rows)) - 0.1), ylim=(1.5 * len(rows) - 0.5, -0.35), title=title)
    ax.axis("off")
    return fig


def predictions(images, truth, said, title):
    """Images in rows of eight under their true class, and what the network said where it differs."""
    texts = [true if true == guess else f"{true}\nsaid: {guess}" for true, guess in zip(truth, said)]
    right = sum(true == guess for true, guess in zip(truth, said))
    rows, names = ([some[i:i + 8] for i in range(0, len(texts), 8)] for some in (images, texts))
    return image_grid(rows, names, f"{title}: {right} of {len(texts)} right")


def learning_curves(curves, title):
    """curves: the long table of `results.learning_curves`; a panel a setting, in it a colour a network.

    Several seeds are their mean and a band of one deviation.
    """
    settings = list(dict.fromkeys(curves.setting))
    columns = min(len(settings), 3)
    lines, width = -(-len(settings) // columns), max(6 / columns, 4.4)
    fig, axes = grid_of_axes(lines, columns, width, 4.5, ruled=True, sharey=True, squeeze=False)
    markers, dashes = ({name: both[i] for name, both in IMAGES.items()} for i in (0, 1))
    for ax, setting in zip(axes.flat, settings):
        shown = curves[curves.setting == setting]
        sns.lineplot(shown, x="epoch", y="accuracy", hue="network", hue_order=sorted(set(shown.network)),
                     style="images", palette="colorblind", dashes=dashes, errorbar="sd", ax=ax,
                     markers=markers if shown.epoch.max() <= 20 else False)
        ax.set_ylabel("accuracy (%)")
        ax.set_title(setting, fontsize=10)
        ax.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
        ax.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.18), frameon=False)  # hides no curve
    axes[0, 0].set_ylim(0, 1.05 * curves.accuracy.max())  # shared by all panels
    for ax in axes.flat[len(settings):]:
        ax.axis("off")
    return finished(fig, title)


def shares_by_depth(shares, title):
    """shares: {name: {j: a share of 1}}; a line a name, against the depth."""
    fig, ax = grid_of_axes(width=6, ruled=True)
    for (name, by_depth), colour in zip(shares.items(), (GREY, NEW)):
        ax.plot(by_depth.keys(), by_depth.values(), "o-", color=colour, label=name)
    ax.set(xlabel="depth j", ylabel="share of the variance of $x_j$", ylim=(0, 1.02), xticks=list(by_depth))
    ax.legend(frameon=False)
    return finished(fig, title)
