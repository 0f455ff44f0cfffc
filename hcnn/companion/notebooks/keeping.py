"""How notebooks show what they make, and where they keep it: nowhere, in results/ or in results/local/."""

import inspect
from pathlib import Path

import matplotlib.pyplot as plt
from IPython.display import Code

from hcnn import paths
from hcnn.companion.figures.common import save


def place(out):
    """The folder that the parameter `out` of a notebook names: "results", "local" or a path; None for ""."""
    return {"": None, "results": paths.RESULTS, "local": paths.LOCAL}.get(out, Path(out))


def keep(fig, name, out):
    """Show a figure; write figures/NAME.png where results are kept."""
    if place(out):
        save(fig, name, place(out) / "figures")
    plt.show()


def shown(table, caption=""):
    """A table as a notebook shows it: no index, text to the left, lines of text as they are."""
    looks = {"text-align": "left", "white-space": "pre-wrap", "vertical-align": "top"}
    return table.style.hide(axis="index").set_caption(caption).set_properties(**looks).format(precision=3, na_rep="")


def source(function):
    """The source text of a function."""
    return Code(inspect.getsource(function), language="python")
