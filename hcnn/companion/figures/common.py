"""Drawing only: every function takes finished numbers and returns a matplotlib figure; `save` writes it as PNG and PDF."""

import io
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.colors import PowerNorm
from matplotlib.patches import Rectangle
from PIL import Image

NEW, MIDDLE, OLD, SPACE = "#d95f02", "#1f78b4", "#33a02c", "#6a51a3"  # v_j, v_{j-1}, v_{j-2} and u, in every figure
SECOND, GREY = "#e7298a", "#555555"


def save(fig, name, folder):
    """Write folder/name.png and folder/name.pdf, the same bytes for the same figure."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    png = io.BytesIO()
    fig.savefig(png, format="png", dpi=150, bbox_inches="tight")
    (Path(folder) / f"{name}.png").write_bytes(compact(png.getvalue()))
    fig.savefig(Path(folder) / f"{name}.pdf", bbox_inches="tight", metadata={"CreationDate": None})
    return fig


def compact(png):
    """The same PNG in its 256 best colours: a third of the bytes, in a repository that keeps every version of every figure."""
    image = Image.open(io.BytesIO(png)).convert("RGB")
    written = io.BytesIO()
    image.quantize(256, Image.Quantize.MAXCOVERAGE, kmeans=3, dither=Image.Dither.NONE).save(written, "PNG", optimize=True)
    return written.getvalue()


def architecture(a):
    """Figures 1 and 2 of the paper for an `Architecture`: a layer of a vanilla CNN and W_2 above, all layers below."""
    fig = plt.figure(figsize=(11, 6.6))
    top, bottom = fig.add_gridspec(2, 1, height_ratios=(1, 1.7), hspace=0.0)
    left, right = (fig.add_subplot(cell) for cell in top.subgridspec(1, 2, wspace=0.03))
    second = a.layers[1]
    _vanilla_layer(left, a.K, second.spatial_support)
    _hcnn_layer(right, second)
    _all_layers(fig.add_subplot(bottom), a)
    return fig


def _sheet(ax, x, y, colour, size=9.0, patches=(), support=3):
    """A feature map seen from its side; patches: (row, column, colour) of filters laid on it, in pixels of 9 x 9."""
    def corner(column, row):
        return x + 0.42 * size * column / 9, y + size * row / 9 + 0.36 * size * column / 9

    def square(c, r, n):
        return [corner(c, r), corner(c + n, r), corner(c + n, r + n), corner(c, r + n)]

    ax.add_collection(PolyCollection([square(0, 0, 9)], facecolors=[colour], edgecolors="white", linewidths=0.6))
    for row, column, patch_colour in patches:
        ax.add_collection(PolyCollection([square(column, row, support)], facecolors=patch_colour, edgecolors="black", linewidths=0.5))
    return corner(0, 0), corner(9, 9)


def _arrow(ax, start, end, colour=GREY, style="-|>", **options):
    ax.annotate("", end, start, arrowprops=dict(arrowstyle=style, color=colour, linewidth=1.2, shrinkA=0, shrinkB=0, **options))


def _frame(ax, title, xlim, ylim):
    ax.set(xlim=xlim, ylim=ylim, aspect="equal")
    ax.set_title(title, fontsize=11, loc="left")
    ax.axis("off")


def _maps_along(ax, count, colours, x, gap, patches, support, label):
    """A row of feature maps; patches[i]: the filters that read map i."""
    for i in range(count):
        _sheet(ax, x + gap * i, 0, colours[i], patches=patches.get(i, ()), support=support)
    _arrow(ax, (x, -1.3), (x + gap * (count - 1) + 1, -1.3))
    ax.text(x + gap * count / 2, -1.8, label, ha="center", va="top", fontsize=9)


def _vanilla_layer(ax, K, support):
    gap, start = 24 / K, 24 + 13.0
    order = np.random.default_rng(1).permutation(K)  # an order that means nothing
    colours = [plt.cm.YlGnBu(0.25 + 0.7 * i / K) for i in order]
    _maps_along(ax, K, colours, 0, gap, {i: ((3, 0.3, NEW),) for i in range(K)}, support, f"$v$: {K} channels, in any order")
    outputs = [plt.cm.YlGnBu(0.25 + 0.7 * i / K) for i in order[::-1]]
    _maps_along(ax, K, outputs, start, 14 / K, {K // 2: ((4, 0.5, NEW),)}, 1.5, f"{K} output channels, in any order")
    _arrow(ax, (31.0, 7), (36.2, 7), NEW)
    ax.text(0, 17.6, f"a filter: {support} $\\times$ {support} $\\times$ {K} weights, over every channel\n"
            f"the layer: {K} $\\times$ {K} $\\times$ {support}² = {K * K * support**2:,} weights", fontsize=9, va="top", color=GREY)
    _frame(ax, "A vanilla CNN layer: convolution along $u$ alone", (-1, 57), (-4.0, 18.5))


def _hcnn_layer(ax, layer):
    (n,), (m,), (s,), gap, start = layer.grid, layer.out_grid, layer.support, 24 / layer.grid[0], 24 + 13.0
    stride, support = layer.along.stride, layer.spatial_support
    places = {(1 + m) // 4: (1, 0.3, NEW), m - 1 - m // 4: (5, 0.3, SECOND)}  # output index: where its filter lies
    read = {i: tuple(p for o, p in places.items() if abs(i - stride * o) <= s // 2) for i in range(n)}
    _maps_along(ax, n, [plt.cm.YlGnBu(0.25 + 0.7 * i / n) for i in range(n)], 0, gap, read, support, f"$v_1$: {n} maps, ordered")
    written = {o: ((row + 1, column + 0.5, colour),) for o, (row, column, colour) in places.items()}
    _maps_along(ax, m, [plt.cm.YlGnBu(0.25 + 0.7 * i / m) for i in range(m)], start, 14 / m, written, 1.5,
                f"$v_1$: {m} maps, ordered, for each of {layer.filters} $v_2$")
    _arrow(ax, (31.0, 7), (36.2, 7), GREY)
    ax.text(0, 17.6, f"a filter: {support} $\\times$ {support} $\\times$ {s} weights, moved along $u$ and $v_1$ (two places shown)\n"
            f"the layer: {layer.filters} $\\times$ {s} $\\times$ {support}² = {layer.full_filter:,} weights",
            fontsize=9, va="top", color=GREY)
    _frame(ax, "An HCNN layer: convolution along $(u, v_1)$", (-1, 57), (-4.0, 18.5))


def _block(ax, x, y, sizes, cell):
    """An array (v_{j-2}, v_{j-1}, v_j) as a box of cells; returns its (left, right, top)."""
    a2, a1, a0 = sizes
    width, height, slant = a0 * cell[2], a1 * cell[1], a2 * cell[0]
    front = [(x, y), (x + width, y), (x + width, y + height), (x, y + height)]
    roof = [front[3], front[2], (x + width + slant, y + height + slant), (x + slant, y + height + slant)]
    side = [front[1], (x + width + slant, y + slant), roof[2], front[2]]
    ax.add_collection(PolyCollection([front, roof, side], facecolors=["#fdebd9", "#f6d3ae", "#eebd8b"], edgecolors=GREY, linewidths=0.8))
    right, top = x + width, y + height
    lines = [((x + i * cell[2], y), (x + i * cell[2], top)) for i in range(1, a0)]
    lines += [((x + i * cell[2], top), (x + i * cell[2] + slant, top + slant)) for i in range(1, a0)]
    lines += [((x, y + i * cell[1]), (right, y + i * cell[1])) for i in range(1, a1)]
    lines += [((right, y + i * cell[1]), (right + slant, y + i * cell[1] + slant)) for i in range(1, a1)]
    for i in range(1, a2):
        d = i * cell[0]
        lines += [((x + d, top + d), (right + d, top + d)), ((right + d, y + d), (right + d, top + d))]
    ax.add_collection(LineCollection(lines, colors="#c9a27c", linewidths=0.35))
    ax.plot([x, right], [y, y], color=NEW, linewidth=2, solid_capstyle="butt")
    if a1 > 1:
        ax.plot([x, x], [y, top], color=MIDDLE, linewidth=2, solid_capstyle="butt")
    if a2 > 1:
        ax.plot([x, x + slant], [top, top + slant], color=OLD, linewidth=2, solid_capstyle="butt")


def _all_layers(ax, a):
    pitch, side, largest = 25, 16, max(a.image_size)
    shapes = [a.shape(j) for j in range(a.J + 1)]
    for j, shape in enumerate(shapes):
        x, before = pitch * j, shapes[j - 1] if j else ()
        ax.text(x + 9, 37, f"$x_{{{j}}}$", ha="center", fontsize=11)
        if j:
            _arrow(ax, (x - 9.5, 38.2), (x + 2.5 - (j > 9), 38.2))
            ax.text(x - 3.5, 40.6, f"$W_{{{j}}}$", ha="center", fontsize=9)
        attributes, size = (shape, (1, 1)) if j == a.J else (shape[:-2], shape[-2:])
        if j == 0:
            for i, colour in enumerate(("#d7301f", "#41ab5d", "#4292c6")[: a.in_channels]):
                ax.add_patch(Rectangle((x + 2 * i, 18.5 - 2 * i), 11, 11, facecolor=colour, edgecolor="white", alpha=0.85))
        else:
            padded = (1,) * (3 - len(attributes)) + attributes
            cell = (12 / a.K * (len(attributes) > 2), 24 / a.K, min(side / a.K, side / padded[2]))
            _block(ax, x, 14, padded, cell)
        if attributes != before[:-2]:
            ax.text(x + 8, 10.5, " × ".join(map(str, attributes)), ha="center", va="top", fontsize=8.5)
        if j < a.J:
            height, width = (side * n / largest for n in size)
            ax.add_patch(Rectangle((x + 8 - width / 2, -2 - side / 2 - height / 2), width, height, facecolor="#dadaeb", edgecolor=SPACE))
            if size != before[-2:]:
                ax.text(x + 8, -20, f"{size[0]} × {size[1]}", ha="center", va="top", fontsize=8.5, color=SPACE)
    rows = "{} $\\times$ {}".format(*a.attribute_support)
    spans = [(1, 1, "sum over\ncolours, (3)"), (2, 2, "3-D\nconv., (4)"), (3, 3, "4-D\nconv., (4)"),
             (4, a.J - 1, f"{a.reduction} over $v_{{j-3}}$, then convolution along $u$ and $(v_{{j-2}}, v_{{j-1}})$, "
              f"support {a.spatial_support} $\\times$ {a.spatial_support} $\\times$ {rows},\n"
              "subsampled by 2 along attributes, equation (6)"),
             (a.J, a.J, f"{a.reduction}\nof all but\nthe class, (7)")]
    for first, last, text in spans:
        left, right = pitch * first - 4, pitch * last + 18
        ax.plot([left, right], [-27.5, -27.5], color=GREY, linewidth=1)
        ax.text((left + right) / 2, -29, text, ha="center", va="top", fontsize=8)
    for y, text, colour in ((22, "attributes", "black"), (-10, "space", SPACE)):
        ax.text(-13, y, text, rotation=90, ha="center", va="center", fontsize=9, color=colour)
    legend = (0, "$v_{j-2}$", OLD), (26, "$v_{j-1}$", MIDDLE), (52, "$v_j$, the new attribute", NEW), (124, "$u$, space", SPACE)
    for x, text, colour in legend:
        ax.plot([x - 10, x - 2], [49, 49], color=colour, linewidth=3)
        ax.text(x, 49, text, va="center", fontsize=9)
    _frame(ax, f"{a.name}, J = {a.J}, K = {a.K}: every layer and its size, written where it changes", (-18, pitch * a.J + 24), (-42, 53))


def rank(errors, rank_limit):
    """errors: {Q: relative error of the best sum of Q separable filters}."""
    fig, ax = plt.subplots(figsize=(5.5, 3), layout="constrained")
    ax.semilogy(list(errors), [max(e, 1e-17) for e in errors.values()], "o-", color=NEW)
    ax.axvline(rank_limit, color=GREY, linestyle=":", label=f"{rank_limit} taps of h")
    ax.set(xlabel="Q, number of separable filters", ylabel="relative error of w", xticks=list(errors),
           title="Equation (8) loses nothing once Q reaches the rank")
    ax.legend()
    sns.despine(fig)
    return fig


def tap_tables(tables, grid, taps):
    """tables: {boundary: (outputs, inputs) index of the tap}; `taps`, the number of taps, stands for none."""
    fig, axes = plt.subplots(len(tables), 1, figsize=(9, 2.9 * len(tables)), layout="constrained")
    for ax, (boundary, table) in zip(np.ravel(axes), tables.items()):
        masked = np.ma.masked_equal(np.asarray(table), taps)
        image = ax.imshow(masked, cmap="viridis", vmin=0, vmax=taps - 1, interpolation="nearest", aspect="auto")
        share = 1 - masked.mask.mean()
        ax.set(title=f"{boundary}: {share:.0%} of the matrix is not zero", xlabel=f"input position on the {grid[0]} × {grid[1]} grid",
               ylabel="output position")
    fig.colorbar(image, ax=axes, label="tap of g", shrink=0.7)
    return fig


def covariance(errors):
    """errors: {boundary: {axis: {depth: relative error}}}, one panel a boundary, one line an axis that is translated at x_3."""
    fig, axes = plt.subplots(1, len(errors), figsize=(10, 3.6), sharey=True, layout="constrained")
    for ax, (boundary, lines) in zip(axes, errors.items()):
        for (axis, values), colour, marker in zip(lines.items(), (OLD, MIDDLE, NEW, SPACE), "osD^"):
            ax.semilogy(list(values), [max(v, 1e-17) for v in values.values()], marker=marker, color=colour, label=axis, alpha=0.85)
        ax.set(title=f"boundary: {boundary}", xlabel="depth j", xticks=list(values), ylim=(3e-18, 10))
        ax.grid(alpha=0.3)
    axes[0].set_ylabel("error relative to the norm of $x_j$")
    axes[0].legend(title="translated at $x_3$", fontsize=8)
    sns.despine(fig)
    return fig


def invariance(changes):
    """changes: {(boundary, axis): DataFrame of changes of the class scores, depth by translation; NaN: no such translation}."""
    boundaries, names = (list(dict.fromkeys(key[i] for key in changes)) for i in (0, 1))
    size = 12.5, 3.4 * len(boundaries)
    fig, axes = plt.subplots(len(boundaries), len(names), figsize=size, layout="constrained", squeeze=False)
    for (boundary, name), ax in zip(changes, axes.flat):
        frame = changes[boundary, name]
        image = ax.imshow(frame, cmap="magma", vmin=0, vmax=2, aspect="auto")
        for (row, column), value in np.ndenumerate(frame):
            text = "" if np.isnan(value) else "0" if value < 1e-10 else f"{value:.2g}"
            ax.text(column, row, text, ha="center", va="center", fontsize=8, color="black" if value > 1.2 else "white")
        ax.set(title=f"{boundary}, along {name}", xlabel="translation of $x_j$ (samples)", ylabel="depth j",
               xticks=range(frame.shape[1]), xticklabels=frame.columns, yticks=range(len(frame)), yticklabels=frame.index)
    fig.colorbar(image, ax=axes, label="change of the class scores / distance between two images", extend="max", shrink=0.8)
    return fig


def maps(rows, column_titles):
    """rows: {label: [image, map, map, ...]} of 2-D arrays; None leaves a gap. All maps share one scale, symmetric about 0."""
    fig, axes = plt.subplots(len(rows), len(column_titles), figsize=(11, 1.3 * len(rows)), layout="constrained", squeeze=False)
    high = max(float(abs(array).max()) for arrays in rows.values() for array in arrays[1:])
    for line, (label, (image, *arrays)) in zip(axes, rows.items()):
        if image is not None:
            line[0].imshow(image, cmap="gray")
        for ax, array in zip(line[1:], arrays):
            ax.imshow(array, cmap="RdBu_r", vmin=-high, vmax=high)
        for ax in line:
            ax.set(xticks=[], yticks=[])
        sns.despine(ax=line[0], left=image is None, right=image is None, top=image is None, bottom=image is None)
        line[0].set_ylabel(label, fontsize=9)
    for ax, title in zip(axes[0], column_titles):
        ax.set_title(title, fontsize=9)
    return fig


def spectrograms(panels, bins_per_octave):
    """panels: {title: (log-frequency, time) amplitudes}, side by side, the highest frequency on top."""
    fig, axes = plt.subplots(1, len(panels), figsize=(3 * len(panels), 3.3), sharey=True, layout="constrained")
    for ax, (title, amplitude) in zip(axes, panels.items()):
        ax.imshow(amplitude, origin="lower", aspect="auto", cmap="magma", norm=PowerNorm(0.4))
        ax.set(xlabel="time u (samples)")
        ax.set_title(title, fontsize=10)
    axes[0].set_ylabel(f"$v_1$ (1/{bins_per_octave} octave)")
    return fig


def image_grid(rows, titles, title):
    """rows: lists of (3, height, width) images of one size, uint8 or 0..1; titles: the same lists of strings, set above them."""
    fig, ax = plt.subplots(figsize=(1.2 * max(map(len, rows)), 1.6 * len(rows) + 0.4), layout="constrained")
    for i, (images, texts) in enumerate(zip(rows, titles)):
        for j, (image, text) in enumerate(zip(images, texts)):
            left, top = 1.1 * j, 1.5 * i
            ax.imshow(np.moveaxis(np.asarray(image), 0, -1), interpolation="nearest", extent=(left, left + 1, top + 1, top))
            ax.text(left + 0.5, top - 0.04, text, ha="center", va="bottom", fontsize=8)
    ax.set(xlim=(0, 1.1 * max(map(len, rows)) - 0.1), ylim=(1.5 * len(rows) - 0.5, -0.35), title=title)
    ax.axis("off")
    return fig


def predictions(images, truth, said, title):
    """Images in rows of eight under their true class, and what the network said where it differs."""
    texts = [true if true == guess else f"{true}\nsaid: {guess}" for true, guess in zip(truth, said)]
    right, rows = sum(true == guess for true, guess in zip(truth, said)), range(0, len(texts), 8)
    return image_grid([images[i:i + 8] for i in rows], [texts[i:i + 8] for i in rows], f"{title}: {right} of {len(texts)} right")


def learning_curves(curves, title):
    """curves: the long table of `results.learning_curves`; a panel a setting, in it a colour a network, bands of a deviation over seeds."""
    settings = list(dict.fromkeys(curves.setting))
    columns = min(len(settings), 3)
    lines = -(-len(settings) // columns)
    size = max(6, 4.4 * columns), 4.4 * lines + 0.4
    fig, axes = plt.subplots(lines, columns, figsize=size, sharey=True, layout="constrained", squeeze=False)
    for ax, setting in zip(axes.flat, settings):
        shown = curves[curves.setting == setting]
        sns.lineplot(shown, x="epoch", y="accuracy", hue="network", hue_order=sorted(set(shown.network)), palette="colorblind",
                     style="images", dashes={"training": (2, 1.5), "test": "", "held out": (5, 1, 1, 1)},
                     errorbar="sd", ax=ax, markers={"training": "^", "test": "o", "held out": "s"} if shown.epoch.max() <= 20 else False)
        ax.set_ylabel("accuracy (%)")
        ax.set_title(setting, fontsize=10)
        ax.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
        ax.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.18), frameon=False)  # below: it hides no curve
        ax.grid(alpha=0.3)
    axes[0, 0].set_ylim(0, 1.05 * curves.accuracy.max())  # shared by all panels
    for ax in axes.flat[len(settings):]:
        ax.axis("off")
    fig.suptitle(title, fontsize=11)
    sns.despine(fig)
    return fig
