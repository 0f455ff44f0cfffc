"""Executable companion of "Hierarchical Attribute CNNs" (Jacobsen, Oyallon, Mallat, Smeulders, 2017)."""

from hcnn.architecture import Architecture
from hcnn.network import HCNN, AttributeConv, MultiscaleHCNN
from hcnn.training.trained import load

__version__ = "0.1.0"
__all__ = ["Architecture", "AttributeConv", "HCNN", "MultiscaleHCNN", "load"]
