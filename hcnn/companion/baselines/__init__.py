"""The networks that the paper compares itself with."""

from hcnn.companion.baselines import systems  # noqa: F401  it registers them
