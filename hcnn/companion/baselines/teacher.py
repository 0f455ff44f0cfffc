"""Attention transfer: the WRN-16-1 of table 1 learns from a trained WRN-40-1 (arXiv 1612.03928)."""

from pathlib import Path

import torch
import torch.nn.functional as F

from hcnn.companion.baselines.systems import Baseline
from hcnn.training import run_folder
from hcnn.training.recipe import published
from hcnn.training.step import cross_entropy, objective
from hcnn.training.trained import load

BETA = 1000.0  # weight of the distance in the loss, as in the authors' code


def attention_distance(student, teacher):
    """Sum over images and groups j of the mean over positions u of (Q_j(u) - Q'_j(u))^2.

    Q_j(u) = m_j(u) / |m_j|, m_j(u) the mean over channels of the squares of what group j gives, Q' the same of the
    teacher (section 3.1, as in its authors' code). student, teacher: lists of (batch, channels, height, width).
    """
    def attention(x):
        return F.normalize(x.float().square().mean(1).flatten(1))

    pairs = zip(student, teacher, strict=True)
    return sum((attention(ours) - attention(theirs)).square().mean(1).sum() for ours, theirs in pairs)


def teacher_name(dataset):
    """Folder name of the run from which a wrn-student learns by default: WRN-40-1 as published, seed 0."""
    architecture, recipe = published(Baseline.preset(dataset, "wrn-40-1"), dataset)["published"]
    return run_folder.run_name(dict(
        dataset=dataset, substitutes=None, architecture=architecture.as_dict(), recipe=recipe.as_dict(), seed=0,
        split="test", train_size=None, precision="fast"))


def load_teacher(name, root, dataset, split, device):
    """The network that a wrn-student learns from: a finished run of WRN-40-1 on the same images, beside the student's.

    Raises ValueError naming the teacher where there is none such, FileNotFoundError where its weights are not stored.
    """
    name = name or teacher_name(dataset)
    folder = Path(root) / name
    if not (folder / run_folder.RUN).is_file():
        raise ValueError(f"teacher must be the folder name of a finished run of wrn-40-1 beside this one, got {name!r};"
                         f" train it with `python -m hcnn train --dataset {dataset} --variant wrn-40-1`")
    run = run_folder.read_run(folder)
    asked, done = run["parameters"], run["epochs_done"]
    found = asked["architecture"]["variant"], asked["dataset"], asked["split"], done
    if found != ("wrn-40-1", dataset, split, run["epochs"]):
        raise ValueError(f"teacher must be a finished run of wrn-40-1 on {dataset} with split={split!r}"
                         f", got {name!r}: {found[0]} on {found[1]} with split={found[2]!r}, {done} of {run['epochs']} "
                         "epochs")
    return load(folder).network.to(device).eval().requires_grad_(False)


@objective.register
def _(description: Baseline, root, dataset, split, device):
    if description.variant != "wrn-student":
        return cross_entropy
    teacher = load_teacher(description.teacher, root, dataset, split, device)

    def loss(network, x, y):
        """Class scores, the sum of the cross-entropies, and that with BETA times the distance from the teacher."""
        ours = network.body.outputs(x)
        with torch.no_grad():
            theirs = teacher.body.outputs(x)
        logits = network.body.classify(ours[-1])
        entropy = F.cross_entropy(logits.float(), y, reduction="sum")
        return logits, entropy, entropy + BETA * attention_distance(ours, theirs)

    return loss
