"""Trained networks from run folders."""

from pathlib import Path

import torch
from torch import nn

from hcnn import paths
from hcnn.architecture import describe
from hcnn.data.augment import shrink, standardise
from hcnn.network import build
from hcnn.training import run_folder
from hcnn.training.recipe import Recipe, size_at


class TrainedNetwork(nn.Module):
    """A trained network in evaluation mode, with what is needed to use it.

    network: the module, an `HCNN` or a compared network. run: its run.json. folder: where it was found. classes, mean,
    std: of its data set. size: height and width of the images that it was last trained and tested on. forward(x): class
    scores of images that `prepare` has made ready.
    """

    def __init__(self, network: nn.Module, run: dict, folder: Path):
        super().__init__()
        self.network, self.run, self.folder = network, run, folder
        self.classes, self.mean, self.std = run["classes"], run["mean"], run["std"]
        self.architecture = network.architecture
        recipe = Recipe(**run["parameters"]["recipe"])
        self.size = size_at(recipe, max(run["epochs_done"], 1) - 1)
        self.eval()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.network(x)

    def prepare(self, images: torch.Tensor) -> torch.Tensor:
        """uint8 images (n, 3, height, width) -> what it has learnt from: standardised, of its size, float32."""
        x = standardise(images, self.mean, self.std)
        return x if self.size is None else shrink(x, self.size)

    @torch.no_grad()
    def predict(self, images, batch_size: int = 100) -> list[str]:
        """Class names of uint8 images, (n, 3, height, width) or (n, height, width, 3).

        Raises ValueError for images of another type or shape, or none.
        """
        images = torch.as_tensor(images)
        if images.dim() == 4 and images.shape[1] != 3:
            images = images.permute(0, 3, 1, 2)
        shape = (3, *self.architecture.image_size)
        if images.dim() != 4 or tuple(images.shape[1:]) != shape or len(images) == 0:
            raise ValueError(f"images must be (batch >= 1, {', '.join(map(str, shape))}), or with the colours last, "
                             f"got {tuple(images.shape)}")
        if images.dtype != torch.uint8:
            raise ValueError(f"images must be uint8 pixels 0..255, got {images.dtype}")
        device = next(self.parameters()).device
        training = self.training
        self.eval()
        scores = [self(self.prepare(part.to(device))) for part in images.split(batch_size)]
        self.train(training)
        return [self.classes[i] for i in torch.cat(scores).argmax(1).tolist()]


def load(name: str | Path, root: str | Path | None = None) -> TrainedNetwork:
    """A trained network from a run folder or a short name such as "cifar10-hcnn".

    A short name `<data set>-<variant>` takes, of the stored runs with zeros and seed 0, the one that was trained on the
    most images, finished or not. root: the folder of the runs (default: results/runs, and what an installed wheel
    holds). Raises FileNotFoundError naming what is there, ValueError where a file does not have its checksum.
    """
    folder = Path(name)
    if not (folder / run_folder.RUN).is_file():
        folder = _find(str(name), [Path(root)] if root else [paths.RUNS, paths.WEIGHTS])
    run = run_folder.read_run(folder)
    try:
        network = build(describe(run["parameters"]["architecture"]))
    except TypeError as error:
        raise ValueError(f"{folder / run_folder.RUN} has an architecture that this version does not know "
                         f"({error})") from error
    for entry, n, kind in (("classes", network.architecture.num_classes, str), ("mean", 3, float), ("std", 3, float)):
        if len(run[entry]) != n or not all(isinstance(value, kind) for value in run[entry]):
            raise ValueError(f"{folder / run_folder.RUN} must have {n} {entry}, got {str(run[entry])[:60]}")
    run_folder.fill(network, run_folder.read_weights(folder, run), folder / run_folder.WEIGHTS)
    return TrainedNetwork(network, run, folder)


def _find(name, roots):
    """The folder of a run called `name`, or of the longest trained one of the short name `<data set>-<variant>`."""
    stored = {f.parent.name: f.parent for root in roots for f in sorted(root.glob(f"*/{run_folder.WEIGHTS}"))}
    matches = [folder for key, folder in stored.items() if key == name or key.startswith(name + "-zeros-s0-")]
    if not matches and Path(name).is_dir():
        return Path(name)  # it has no run.json, as whoever reads it says
    if not matches:
        raise FileNotFoundError(f"no trained network {name!r} in {roots[0].name}/; there are: "
                                f"{', '.join(stored) or 'none'}. Train one with `python -m hcnn train`")

    def images_seen(folder):
        run = run_folder.read_run(folder)
        return run["train_images"] * run["epochs_done"], folder.name

    return max(matches, key=images_seen)
