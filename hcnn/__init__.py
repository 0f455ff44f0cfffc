"""Executable companion of "Hierarchical Attribute CNNs" (Jacobsen, Oyallon, Mallat, Smeulders, 2017).

The method: `architecture`, `reference` (the equations, literally), `operators` (fast, exact), `network`. How it is
trained: `data`, `training`. All else, compared networks, tables, interpretation, speed, figures, notebooks, is in
`companion`.
"""

from hcnn.architecture import Architecture
from hcnn.network import HCNN, AttributeConv, MultiscaleHCNN
from hcnn.paths import VERSION as __version__
from hcnn.training.loop import train
from hcnn.training.recipe import Recipe
from hcnn.training.trained import TrainedNetwork, load

__all__ = [
    "Architecture", "AttributeConv", "HCNN", "MultiscaleHCNN", "Recipe", "TrainedNetwork", "__version__", "load",
    "train",
]
