"""The networks that the paper compares itself with."""

from hcnn.companion.baselines import systems, teacher  # noqa: F401  they register what training asks of a network
