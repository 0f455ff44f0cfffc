"""Figures 1 and 2 of the paper, drawn from an Architecture: `draw`."""

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.patches import Rectangle

from hcnn.companion.figures.common import GREY, MIDDLE, NEW, OLD, SECOND, SPACE

LEGEND = ((0, "$v_{j-2}$", OLD), (26, "$v_{j-1}$", MIDDLE), (52, "$v_j$, the new attribute", NEW),
          (124, "$u$, space", SPACE))
COLOURS = ("#d7301f", "#41ab5d", "#4292c6")  # red, green, blue
PITCH, SIDE = 25, 16  # of a layer and of its largest square, below


def draw(a):
    """Above a layer of a vanilla CNN and W_2, below all layers."""
    fig = plt.figure(figsize=(11, 6.6))
    top, bottom = fig.add_gridspec(2, 1, height_ratios=(1, 1.7), hspace=0.0)
    left, right = (fig.add_subplot(cell) for cell in top.subgridspec(1, 2, wspace=0.03))
    _vanilla_layer(left, a.K, a.layers[1].spatial_support)
    _hcnn_layer(right, a.layers[1])
    _all_layers(fig.add_subplot(bottom), a)
    return fig


def _frame(ax, title, xlim, ylim):
    ax.set(xlim=xlim, ylim=ylim, aspect="equal")
    ax.set_title(title, fontsize=11, loc="left")
    ax.axis("off")


def _arrow(ax, start, end, colour=GREY):
    look = dict(arrowstyle="-|>", color=colour, linewidth=1.2, shrinkA=0, shrinkB=0)
    ax.annotate("", end, start, arrowprops=look)


# ---- above: one layer


def _sheet(ax, x, y, colour, patches, support):
    """A feature map seen from its side; patches: (row, column, colour) of filters laid on it, in pixels of 9 x 9."""
    def square(column, row, n):
        corners = (column, row), (column + n, row), (column + n, row + n), (column, row + n)
        return [(x + 0.42 * c, y + r + 0.36 * c) for c, r in corners]

    ax.add_collection(PolyCollection([square(0, 0, 9)], facecolors=[colour], edgecolors="white", linewidths=0.6))
    for row, column, filled in patches:
        filters = [square(column, row, support)]
        ax.add_collection(PolyCollection(filters, facecolors=filled, edgecolors="black", linewidths=0.5))


def _maps_along(ax, shades, x, width, patches, support, label):
    """A row of feature maps, a shade each; patches[i]: the filters that read map i."""
    gap = width / len(shades)
    for i, shade in enumerate(shades):
        colour = plt.cm.YlGnBu(0.25 + 0.7 * shade / len(shades))
        _sheet(ax, x + gap * i, 0, colour, patches.get(i, ()), support)
    _arrow(ax, (x, -1.3), (x + width - gap + 1, -1.3))
    ax.text(x + width / 2, -1.8, label, ha="center", va="top", fontsize=9)


def _one_layer(ax, title, colour, text):
    _arrow(ax, (31.0, 7), (36.2, 7), colour)
    ax.text(0, 17.6, text, fontsize=9, va="top", color=GREY)
    _frame(ax, title, (-1, 57), (-4.0, 18.5))


def _vanilla_layer(ax, K, support):
    order = np.random.default_rng(1).permutation(K)  # an order that means nothing
    _maps_along(ax, order, 0, 24, {i: ((3, 0.3, NEW),) for i in range(K)}, support, f"$v$: {K} channels, in any order")
    _maps_along(ax, order[::-1], 37, 14, {K // 2: ((4, 0.5, NEW),)}, 1.5, f"{K} output channels, in any order")
    _one_layer(ax, "A vanilla CNN layer: convolution along $u$ alone", NEW,
               f"a filter: {support} $\\times$ {support} $\\times$ {K} weights, over every channel\n"
               f"the layer: {K} $\\times$ {K} $\\times$ {support}² = {K * K * support**2:,} weights")


def _hcnn_layer(ax, layer):
    (n,), (m,), (s,), support = layer.grid, layer.out_grid, layer.support, layer.spatial_support
    places = {(1 + m) // 4: (1, 0.3, NEW), m - 1 - m // 4: (5, 0.3, SECOND)}  # output index: where its filter lies
    reach = {o: layer.along.stride * o for o in places}
    read = {i: tuple(place for o, place in places.items() if abs(i - reach[o]) <= s // 2) for i in range(n)}
    written = {o: ((row + 1, column + 0.5, colour),) for o, (row, column, colour) in places.items()}
    _maps_along(ax, range(n), 0, 24, read, support, f"$v_1$: {n} maps, ordered")
    _maps_along(ax, range(m), 37, 14, written, 1.5, f"$v_1$: {m} maps, ordered, for each of {layer.filters} $v_2$")
    size = f"{support} $\\times$ {support} $\\times$ {s}"
    _one_layer(ax, "An HCNN layer: convolution along $(u, v_1)$", GREY,
               f"a filter: {size} weights, moved along $u$ and $v_1$ (two places shown)\n"
               f"the layer: {layer.filters} $\\times$ {s} $\\times$ {support}² = {layer.full_filter:,} weights")


# ---- below: all layers


def _block(ax, x, y, sizes, cell):
    """An array (v_{j-2}, v_{j-1}, v_j) as a box of cells."""
    (a2, a1, a0), (slant, height, width) = sizes, cell
    right, top, depth = x + a0 * width, y + a1 * height, a2 * slant
    front = [(x, y), (right, y), (right, top), (x, top)]
    roof = [front[3], front[2], (right + depth, top + depth), (x + depth, top + depth)]
    side = [front[1], (right + depth, y + depth), roof[2], front[2]]
    faces = ["#fdebd9", "#f6d3ae", "#eebd8b"]
    ax.add_collection(PolyCollection([front, roof, side], facecolors=faces, edgecolors=GREY, linewidths=0.8))
    paths = [((at, y), (at, top), (at + depth, top + depth)) for at in x + width * np.arange(1, a0)]
    paths += [((x, at), (right, at), (right + depth, at + depth)) for at in y + height * np.arange(1, a1)]
    paths += [((x + d, top + d), (right + d, top + d), (right + d, y + d)) for d in slant * np.arange(1, a2)]
    ax.add_collection(LineCollection(paths, colors="#c9a27c", linewidths=0.35))
    edges = ((x, right), (y, y), NEW, a0), ((x, x), (y, top), MIDDLE, a1), ((x, x + depth), (top, top + depth), OLD, a2)
    for across, along, colour, n in edges:
        if n > 1:
            ax.plot(across, along, color=colour, linewidth=2, solid_capstyle="butt")


def _attributes(ax, x, j, attributes, a):
    """x_j along its attributes; x_0 has its colours."""
    if j == 0:
        for i, colour in enumerate(COLOURS[:a.in_channels]):
            look = dict(facecolor=colour, edgecolor="white", alpha=0.85)
            ax.add_patch(Rectangle((x + 2 * i, 18.5 - 2 * i), 11, 11, **look))
    else:
        padded = (1,) * (3 - len(attributes)) + attributes
        cell = (12 / a.K * (len(attributes) > 2), 24 / a.K, min(SIDE / a.K, SIDE / padded[2]))
        _block(ax, x, 14, padded, cell)


def _all_layers(ax, a):
    shapes = [a.shape(j) for j in range(a.J)] + [(*a.shape(a.J), 1, 1)]
    for j, shape in enumerate(shapes):
        x, before = PITCH * j, shapes[j - 1] if j else ()
        ax.text(x + 9, 37, f"$x_{{{j}}}$", ha="center", fontsize=11)
        if j:
            _arrow(ax, (x - 9.5, 38.2), (x + 2.5 - (j > 9), 38.2))
            ax.text(x - 3.5, 40.6, f"$W_{{{j}}}$", ha="center", fontsize=9)
        _attributes(ax, x, j, shape[:-2], a)
        if shape[:-2] != before[:-2]:
            ax.text(x + 8, 10.5, " × ".join(map(str, shape[:-2])), ha="center", va="top", fontsize=8.5)
        if j < a.J:
            height, width = (SIDE * n / max(a.image_size) for n in shape[-2:])
            corner = x + 8 - width / 2, -2 - SIDE / 2 - height / 2
            ax.add_patch(Rectangle(corner, width, height, facecolor="#dadaeb", edgecolor=SPACE))
            if shape[-2:] != before[-2:]:
                text = f"{shape[-2]} × {shape[-1]}"
                ax.text(x + 8, -20, text, ha="center", va="top", fontsize=8.5, color=SPACE)
    support = " $\\times$ ".join(map(str, (a.spatial_support, a.spatial_support, *a.attribute_support)))
    spans = [(1, 1, "sum over\ncolours, (3)"), (2, 2, "3-D\nconv., (4)"), (3, 3, "4-D\nconv., (4)"),
             (4, a.J - 1, f"{a.reduction} over $v_{{j-3}}$, then convolution along $u$ and $(v_{{j-2}}, v_{{j-1}})$, "
              f"support {support},\nsubsampled by 2 along attributes, equation (6)"),
             (a.J, a.J, f"{a.reduction}\nof all but\nthe class, (7)")]
    for first, last, text in spans:
        left, right = PITCH * first - 4, PITCH * last + 18
        ax.plot([left, right], [-27.5, -27.5], color=GREY, linewidth=1)
        ax.text((left + right) / 2, -29, text, ha="center", va="top", fontsize=8)
    for y, text, colour in ((22, "attributes", "black"), (-10, "space", SPACE)):
        ax.text(-13, y, text, rotation=90, ha="center", va="center", fontsize=9, color=colour)
    for x, text, colour in LEGEND:
        ax.plot([x - 10, x - 2], [49, 49], color=colour, linewidth=3)
        ax.text(x, 49, text, va="center", fontsize=9)
    title = f"{a.name}, J = {a.J}, K = {a.K}: every layer and its size, written where it changes"
    _frame(ax, title, (-18, PITCH * a.J + 24), (-42, 53))
