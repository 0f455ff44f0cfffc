"""Drawing for sweeps and ablations: every function takes finished numbers and returns a matplotlib figure."""

import matplotlib.pyplot as plt
import seaborn as sns

from hcnn.companion.figures.common import GREY, NEW

MEASURES = {"accuracy": None, "multiply_adds": "h_g", "parameters": "effective"}  # solid line: dotted line beside it
LABELS = {"accuracy": "accuracy (%)",
          "multiply_adds": "multiply-adds an image\n(dotted: h, then g)", "parameters": "parameters (dotted: effective)"}


def sizes(runs, title):
    """runs: rows of `sweeps.sized_runs` of one setting; accuracy and cost against Q, a colour for each K, and against K.

    A band is one standard deviation over seeds. Dotted: the multiply-adds of h, then g (solid: of HCNN's folded w); the effective
    parameters (solid: the paper's count).
    """
    fig, axes = plt.subplots(2, len(MEASURES), figsize=(11, 6.2), layout="constrained")
    for line, x, hue in zip(axes, ("Q", "K"), ("K", "Q")):
        values = sorted(runs[hue].unique())
        options = dict(x=x, hue=hue, hue_order=values, palette=sns.color_palette("viridis", len(values) + 1)[:-1])
        for ax, (measure, beside) in zip(line, MEASURES.items()):
            if beside:
                sns.lineplot(runs, y=beside, errorbar=None, ax=ax, linestyle=":", marker=".", legend=False, **options)
            sns.lineplot(runs, y=measure, errorbar="sd", ax=ax, marker="o", **options)
            ax.set(ylabel=LABELS[measure], xticks=sorted(runs[x].unique()), yscale="log" if beside else "linear")
            ax.grid(alpha=0.3)
            ax.legend(title=hue, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1), frameon=False).set_visible(ax is line[-1])
    axes[0, 0].set_title("against Q, the number of separable filters", loc="left", fontsize=10)
    axes[1, 0].set_title("against K, the values of an attribute", loc="left", fontsize=10)
    fig.suptitle(title, fontsize=10)
    sns.despine(fig)
    return fig


def differences(table, title):
    """table: rows of `ablations.table`; the difference in points of each change that was run, with one deviation to either side."""
    run = table[table["n"] > 0].iloc[::-1]
    fig, ax = plt.subplots(figsize=(8, 0.8 + 0.28 * len(run)), layout="constrained")
    names = [f"{field}: {before} → {after}" for field, before, after in zip(run["field"], run["base has"], run["changed to"])]
    deviations = [0 if text == "one seed" else float(text) for text in run["deviation"]]
    ax.errorbar(run["difference (points)"].astype(float), names, xerr=deviations, fmt="o", color=NEW, ecolor=GREY, capsize=3)
    ax.axvline(0, color=GREY, linewidth=1)
    ax.set(xlabel="difference in accuracy (points)")
    ax.set_title(title, fontsize=10)
    ax.grid(alpha=0.3)
    sns.despine(fig)
    return fig
