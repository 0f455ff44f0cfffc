"""Where things are: the repository, the results, the notebooks and the data. Nothing here needs torch."""

import os
from pathlib import Path

VERSION = "0.1.0"
PACKAGE = Path(__file__).resolve().parent
CHECKOUT = (PACKAGE.parent / "pyproject.toml").exists()
ROOT = PACKAGE.parent if CHECKOUT else Path.cwd()  # installed from a wheel: the folder where one works
NOTEBOOKS = ROOT / "notebooks"
RESULTS = Path(os.environ.get("HCNN_RESULTS") or ROOT / "results")
RUNS = RESULTS / "runs"
WEIGHTS = PACKAGE / "weights"  # in a wheel: the run folders of the networks that `load` knows by a short name
LOCAL = RESULTS / "local"  # what a user's own `make reproduce` made, as in RESULTS; ignored by git


def data_folder(root=None):
    """The folder that holds the data sets: `root`, else the environment's HCNN_DATA, else data/ of the repository."""
    return Path(root or os.environ.get("HCNN_DATA") or ROOT / "data").expanduser()
