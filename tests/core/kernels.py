"""Where the kernels of Triton are tested: on a GPU, where there is one, else on the CPU in Triton's interpreter."""

import numpy
import pytest
import torch

triton = pytest.importorskip("triton")
ON_GPU = torch.cuda.is_available()
DEVICE = "cuda" if ON_GPU else "cpu"
VERSIONS = [tuple(map(int, module.__version__.split(".")[:2])) for module in (triton, numpy)]
MARK = pytest.mark.gpu if ON_GPU else pytest.mark.skipif(
    VERSIONS[0] < (3, 7) and VERSIONS[1] >= (2, 4),
    reason="Triton before 3.7 cannot interpret with NumPy 2.4 or newer (triton issue 9171)")
