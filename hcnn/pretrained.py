"""Trained networks from run folders."""

from pathlib import Path

from . import runs
from .architecture import Architecture
from .network import HCNN


def load(name, root=None):
    """A trained network in evaluation mode, from a run folder or a short name such as "cifar10-hcnn".

    A short name `<data set>-<variant>` takes, of the stored runs with zeros and seed 0, the one that was trained on the most
    images. The network has `run` (its run.json), `classes`, `mean` and `std`, which `predict` needs. root: the folder of the
    runs (default: results/runs). Raises FileNotFoundError naming what is there, ValueError where a file does not have its checksum.
    """
    folder = Path(name)
    if not (folder / runs.RUN).is_file():
        folder = _find(str(name), Path(root or runs.RUNS))
    run = runs.read_run(folder)
    network = HCNN(Architecture(**run["parameters"]["architecture"]))
    weights = runs.read_weights(folder, run)
    runs.check_fit(folder / runs.WEIGHTS, weights, network.state_dict())
    network.load_state_dict(weights)
    network.run, network.classes, network.mean, network.std = run, run["classes"], run["mean"], run["std"]
    return network.eval()


def _find(name, root):
    """The folder of a run called `name`, or of the longest trained one of the short name `<data set>-<variant>`."""
    stored = {f.parent.name: f.parent for f in sorted(root.glob(f"*/{runs.WEIGHTS}"))}
    matches = [folder for key, folder in stored.items() if key == name or key.startswith(name + "-zeros-s0-")]
    if not matches:
        raise FileNotFoundError(f"no trained network {name!r} in {root.name}/; there are: {', '.join(stored) or 'none'}. "
                                "Train one with `python -m hcnn train`")

    def images_seen(folder):
        run = runs.read_run(folder)
        return run["train_images"] * run["epochs_done"]

    return max(matches, key=images_seen)
