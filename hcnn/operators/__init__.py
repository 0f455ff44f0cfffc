"""Exact fast operators for the attribute convolution W_j, as pure functions of tensors.

Four observations make W_j fast without changing a number (tested in float64 against `reference`):

1. A convolution along a small attribute grid is a matrix whose entries are gathered from the filter by an index table
   (`geometry`, `folding.spread_taps`). Boundaries and subsampling only change the table.
2. The mean and variance of x * h_q are h_q . mu and h_q' C h_q, with mu and C the moments of the patches of x
   (`moments`): the Q convolutions need not be computed in order to be normalised.
3. HCNN has no nonlinearity between h and g, so h, normalisation and g fold into one spatial convolution
   (`folding.folded_operator`); HCNN(+) folds the normalisation into h (`folding.normalised_filters`).
4. A convolution along an attribute is a product of Fourier transforms, a quarter to a sixth of the multiplications of
   the matrix of the paper's size (`fourier`).

Shapes: x is (batch, *grid, height, width) with grid = (a1, a0) at j >= 3; h is (Q, k, k), g is (filters, Q, s, s').
"""

from hcnn.operators.convolution import pad_space, spatial_conv
from hcnn.operators.folding import (
    attribute_matrix,
    folded_operator,
    folded_taps,
    normalised_filters,
    spread_taps,
    tap_reads,
    tap_table,
)
from hcnn.operators.fourier import products, transformed_kernel
from hcnn.operators.moments import all_sum, filter_statistics, patch_moments

__all__ = [
    "all_sum", "attribute_matrix", "filter_statistics", "folded_operator", "folded_taps",
    "normalised_filters", "pad_space", "patch_moments", "products", "spatial_conv", "spread_taps", "tap_reads",
    "tap_table", "transformed_kernel",
]
