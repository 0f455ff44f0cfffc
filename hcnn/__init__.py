"""Executable companion of "Hierarchical Attribute CNNs" (Jacobsen, Oyallon, Mallat, Smeulders, 2017)."""

from .architecture import Architecture
from .network import HCNN, AttributeConv, MultiscaleHCNN
from .pretrained import load

__version__ = "0.1.0"
__all__ = ["Architecture", "AttributeConv", "HCNN", "MultiscaleHCNN", "load"]
