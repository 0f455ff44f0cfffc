"""Where things are: the repository, the results, the notebooks and the data. Nothing here needs torch."""

import os
from pathlib import Path

VERSION = "0.1.0"
ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = ROOT / "notebooks"
RESULTS = Path(os.environ.get("HCNN_RESULTS") or ROOT / "results")
RUNS = RESULTS / "runs"
LOCAL = RESULTS / "local"  # what a user's own `make reproduce` made, as in RESULTS; ignored by git


def data_folder(root=None):
    """The folder that holds the data sets: `root`, else the environment's HCNN_DATA, else data/ of the repository."""
    return Path(root or os.environ.get("HCNN_DATA") or ROOT / "data").expanduser()
