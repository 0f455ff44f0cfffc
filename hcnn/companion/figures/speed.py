"""Figures of notebook 07: seconds a step against one size, every path a line, from the rows of speed.csv."""

from hcnn.architecture import VARIANTS
from hcnn.companion.figures.common import finished, grid_of_axes
from hcnn.companion.speed.table import PATHS, counted

BASE = {"cpu": dict(K=16, Q=32, batch=8, size=8), "cuda": dict(K=16, Q=32, batch=50, size=32)}
LABELS = {"K": "K, values of an attribute", "Q": "Q, separable filters", "batch": "images in a minibatch"}
COLOURS = {"literal": "#555555", "folded": "#1f78b4", "fourier": "#d95f02", "unfused": "#1f78b4",
           "fused": "#d95f02", "graph": "#33a02c"}
LINES = {"fp32": "-", "TF32": "-.", "bf16": ":"}
MACHINE = ["processor", "threads", "torch"]


def along(rows, axis, device):
    """The rows of full layers that differ in one size alone, the others as in BASE; of the machine that has most."""
    rows = rows[(rows.device == device) & (rows.what == "layer")]
    for name, value in BASE[device].items():
        rows = rows if name == axis else rows[rows[name] == value]
    most = rows.groupby(MACHINE).size()
    return rows[(rows[MACHINE] == list(most.idxmax())).all(axis=1)] if len(most) else rows


def seconds_against(rows, axis, device="cpu"):
    """Seconds a step of a full layer against K, Q or batch, HCNN on the left and HCNN(+) on the right."""
    rows = along(rows, axis, device)
    fig, panels = grid_of_axes(1, 2, 5, sharey=True)
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
    machine = [f"{row.processor}, {counted(row.threads)}, torch {row.torch}" for row in rows[:1].itertuples()]
    fixed = [f"{key} {value}" for key, value in BASE[device].items() if key != axis]
    return finished(fig, "; ".join([*machine, ", ".join(fixed)]))
