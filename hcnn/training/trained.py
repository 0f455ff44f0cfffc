"""Trained networks from run folders."""

from pathlib import Path

from hcnn import paths
from hcnn.architecture import describe
from hcnn.companion.baselines.systems import Baseline
from hcnn.network import build
from hcnn.training import run_folder as runs
from hcnn.training.recipe import Recipe


def load(name, root=None):
    """A trained network in evaluation mode, from a run folder or a short name such as "cifar10-hcnn".

    A short name `<data set>-<variant>` takes, of the stored runs with zeros and seed 0, the one that was trained on the most
    images. The network has `run` (its run.json), `folder`, `classes`, `mean` and `std`, which `predict` needs. root: the folder of the
    runs (default: results/runs). Raises FileNotFoundError naming what is there, ValueError where a file does not have its checksum.
    """
    folder = Path(name)
    if not (folder / runs.RUN).is_file():
        folder = _find(str(name), Path(root or paths.RUNS))
    run = runs.read_run(folder)
    try:
        network = build(describe(run["parameters"]["architecture"]))
    except TypeError as error:
        raise ValueError(f"{folder / runs.RUN} has an architecture that this version does not know ({error})") from error
    for entry, n, kind in (("classes", network.architecture.num_classes, str), ("mean", 3, float), ("std", 3, float)):
        if len(run[entry]) != n or not all(isinstance(value, kind) for value in run[entry]):
            raise ValueError(f"{folder / runs.RUN} must have {n} {entry}, got {str(run[entry])[:60]}")
    weights = runs.read_weights(folder, run)
    runs.check_fit(folder / runs.WEIGHTS, weights, network.state_dict())
    network.load_state_dict(weights)
    network.run, network.folder = run, folder
    network.classes, network.mean, network.std = run["classes"], run["mean"], run["std"]
    return network.eval()


def teacher_name(dataset, seed=0, split="test", precision="fast"):
    """Folder name of the run from which a wrn-student learns by default: WRN-40-1 as published, on all training images."""
    return runs.run_name(dict(
        dataset=dataset, substitutes=None, architecture=Baseline.preset(dataset, "wrn-40-1").as_dict(),
        recipe=Recipe.preset("wrn-40-1").as_dict(), seed=seed, split=split, train_size=None, precision=precision))


def load_teacher(architecture, root, dataset, split):
    """The network that a wrn-student learns from, a finished run of WRN-40-1 below `root` on the same images; None for other networks.

    Raises ValueError naming the teacher where there is none such, FileNotFoundError where its weights are not stored.
    """
    if architecture.variant != "wrn-student":
        return None
    folder = Path(root) / (architecture.teacher or "none")
    if not (folder / runs.RUN).is_file():
        raise ValueError(f"teacher must be the folder name of a finished run of wrn-40-1 beside this one, got {architecture.teacher!r}; "
                         f"train it with `python -m hcnn train --dataset {dataset} --variant wrn-40-1`")
    run = runs.read_run(folder)
    parameters = run["parameters"]
    found = parameters["architecture"]["variant"], parameters["dataset"], parameters["split"], run["epochs_done"]
    if found != ("wrn-40-1", dataset, split, run["epochs"]):
        raise ValueError(f"teacher must be a finished run of wrn-40-1 on {dataset} with split={split!r}, got {architecture.teacher!r}: "
                         f"{found[0]} on {found[1]} with split={found[2]!r}, {found[3]} of {run['epochs']} epochs")
    return load(folder).requires_grad_(False)


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
