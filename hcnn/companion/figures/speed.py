"""Figures of notebook 07: seconds a step against one size, every path a line, from the rows of speed.csv."""

import matplotlib.pyplot as plt

from hcnn.architecture import VARIANTS
from hcnn.companion.speed.table import PATHS

BASE = {"cpu": dict(K=16, Q=32, batch=8, size=8, processes=1), "cuda": dict(K=16, Q=32, batch=50, size=32, processes=1)}
LABELS = {"K": "K, values of an attribute", "Q": "Q, separable filters", "batch": "images in a minibatch", "processes": "processes"}
COLOURS = {"literal": "#555555", "looped": "#a6761d", "folded": "#1f78b4", "windowed": "#d95f02", "unfused": "#1f78b4", "tiled": "#d95f02",
           "fused": "#d95f02", "graph": "#33a02c"}
LINES = {"fp32": "-", "TF32": "-.", "bf16": ":"}


def along(table, axis, device):
    """The rows of full layers that differ in one size alone, the others as in BASE; of several machines the one with most rows."""
    rows = table[(table.device == device) & (table.what == "layer")]
    for name, value in BASE[device].items():
        rows = rows if name == axis else rows[rows[name] == value]
    most = rows.groupby(["processor", "threads", "torch"]).size()
    return rows[(rows[["processor", "threads", "torch"]] == list(most.idxmax())).all(axis=1)] if len(most) else rows


def cost(table, axis, device="cpu"):
    """Seconds a step of a full layer against K, Q, batch or processes, HCNN on the left and HCNN(+) on the right."""
    rows = along(table, axis, device)
    fig, panels = plt.subplots(1, 2, figsize=(10, 3.4), sharey=True)
    for ax, (variant, name) in zip(panels, VARIANTS.items()):
        for (path, precision), line in rows[rows.variant == variant].sort_values(axis).groupby(["path", "precision"]):
            ax.plot(line[axis], line.seconds, LINES[precision], marker="o", markersize=3, color=COLOURS[path],
                    label=f"{PATHS[path]}, {precision}")
        values = sorted(rows[axis].unique())
        ax.set(xscale="log", yscale="log", xlabel=LABELS[axis], title=name)
        ax.set_xticks(values, values, minor=False)
        ax.minorticks_off()
        if ax.lines:
            ax.legend(fontsize=7)
    panels[0].set_ylabel("seconds a step")
    others = ", ".join(f"{key} {value}" for key, value in BASE[device].items() if key != axis)
    if len(rows):
        fig.suptitle(f"{rows.processor.iloc[0]}, {rows.threads.iloc[0]} threads, torch {rows.torch.iloc[0]}; {others}", fontsize=9)
    fig.tight_layout()
    return fig
