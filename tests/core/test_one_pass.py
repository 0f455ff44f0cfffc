"""The kernels that make statistics, ELU and filters of a layer in one pass each; interpreted without a GPU."""

import os
import subprocess
import sys
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from kernels import DEVICE, MARK, ON_GPU

from hcnn import operators as ops
from hcnn.geometry import Geometry
from hcnn.operators import elu_triton, fused, moments_triton, spread_triton
from hcnn.operators.folding import tap_reads, tap_table

pytestmark = MARK
LAYOUTS = (torch.contiguous_format, torch.channels_last)


def random(*shape, dtype=torch.float64):
    return torch.randn(shape, dtype=dtype).to(DEVICE)


def worst(found, right):
    """The largest relative error of several tensors, in the Euclidean norm."""
    return max(((a.double() - b).norm() / b.norm()).item() for a, b in zip(found, right, strict=True))


SIZES = ((2, 3, 4, 5), 3), ((3, 2, 2, 8), 17), ((2, 130, 3, 3), 3), ((4, 5, 1, 2), 2)


@pytest.mark.parametrize("size, mode, layout", [
    pytest.param(*case, marks=[] if ON_GPU or i % 3 == 0 else pytest.mark.full)
    for i, case in enumerate(product(SIZES, ("zeros", "periodic"), LAYOUTS))])
def test_normalised_filters_and_their_gradients_are_those_of_the_moments(size, mode, layout):
    """In float64 to the last digits; in float32, with a mean of 7 deviations, nothing cancels."""
    shape, Q = size
    x = (random(*shape) * 2 + 14).to(memory_format=layout)
    wide = [x, random(Q, 3, 3) / 3, random(Q) + 2, random(Q)]
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 5e-5)):
        leaves = [t.to(dtype).requires_grad_() for t in wide]
        running = [torch.zeros(Q, dtype=dtype, device=DEVICE), torch.ones(Q, dtype=dtype, device=DEVICE)]
        same, hb = moments_triton.normalised(*leaves, *running, 0.1, 1e-5, mode == "periodic")
        exact = [t.detach().double().requires_grad_() for t in leaves]
        mu, C, n = ops.patch_moments(exact[0].flatten(0, 1), 3, Geometry(1, mode))
        mean, var = ops.filter_statistics(exact[1], mu, C)
        h, b = ops.normalised_filters(exact[1], mean, var, *exact[2:], 1e-5)
        right = torch.cat([h.flatten(1), b[:, None]], 1)
        down, aside = random(*right.shape), random(*shape)
        found = torch.autograd.grad((hb * down).sum() + (same * aside).sum(), leaves)
        expected = torch.autograd.grad((right * down).sum() + (exact[0] * aside).sum(), exact)
        after = 0.1 * mean, 0.9 + 0.1 * var * n / (n - 1)
        assert worst([same, hb, *found, *running], [exact[0], right, *expected, *after]) < tolerance


def test_a_change_of_the_running_averages_is_seen():
    """The cache of evaluation goes by the versions of tensors, which a kernel does not change by itself."""
    running = [torch.zeros(2, device=DEVICE), torch.ones(2, device=DEVICE)]
    before = [t._version for t in running]
    x, h, scale, shift = (random(*shape, dtype=torch.float32) for shape in ((2, 3, 4, 4), (2, 3, 3), (2,), (2,)))
    moments_triton.normalised(x, h, scale, shift, *running, 0.1, 1e-5, False)
    assert all(t._version > version for t, version in zip(running, before))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("mean", [True, False])
def test_elu_over_is_the_marginal_sum_of_elu(layout, mean):
    maps = (3 * random(2, 4 * 3 * 5, 4, 3)).to(memory_format=layout).requires_grad_()
    y = maps.view(2, 4, 3, 5, 4, 3)
    found, right = elu_triton.elu_over(y, mean), F.elu(y).mean(1) if mean else F.elu(y).sum(1)
    down = random(*right.shape)
    assert found.flatten(1, 2).is_contiguous(memory_format=layout)
    assert worst([found, *torch.autograd.grad(found, maps, down)],
                 [right, *torch.autograd.grad(right, maps, down)]) < 1e-14


@pytest.mark.parametrize("shape", [(2, 4, 3, 5, 4, 3), (3, 2, 1, 130, 5, 7), (1, 1, 3, 2, 1, 1)])
def test_elu_over_adds_a_bias_and_gives_its_gradient(shape):
    """Where a tile ends inside of a row, and where its programs go over several."""
    bias = random(shape[1] * shape[2] * shape[3]).requires_grad_()
    y = (3 * random(*shape)).requires_grad_()
    found = elu_triton.elu_over(y, True, bias)
    right = F.elu(y + bias.view(*shape[1:4], 1, 1)).mean(1)
    down = random(*right.shape)
    assert worst([found, *torch.autograd.grad(found, (y, bias), down)],
                 [right, *torch.autograd.grad(right, (y, bias), down)]) < 1e-14


@pytest.mark.parametrize("mode", ["zeros", "periodic"])
@pytest.mark.parametrize("grid, support, Q, filters", [
    ((4, 8), (7, 11), 5, 3), ((3, 5), (3, 3), 2, 4), ((8,), (5,), 3, 2)])
def test_folded_kernel_in_one_launch_is_the_folded_operator(grid, support, Q, filters, mode):
    table, reads = (f(grid, support, Geometry(2, mode)).to(DEVICE) for f in (tap_table, tap_reads))
    leaves = [t.requires_grad_() for t in (random(Q, 3, 3), random(Q), random(filters, Q, *support), random(filters))]
    h, b, g, bias = leaves
    found = spread_triton.folded_operator(torch.cat([h.flatten(1), b[:, None]], 1), g, bias, table, reads,
                                          torch.float64)
    right = ops.folded_operator(h, b, g, bias, table, reads)
    down = [random(*t.shape) for t in right]
    gradients = (torch.autograd.grad(kernels, leaves, down) for kernels in (found, right))
    assert found[0].is_contiguous(memory_format=torch.channels_last)
    assert worst([*found, *next(gradients)], [*right, *next(gradients)]) < 1e-13


COMPILE = """
import triton, triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from hcnn.operators import elu_triton, fused_kernels as fused, moments_triton as moments, spread_triton

tile = dict(ACC=tl.float32, K=3, T=16, RAGGED=False, PERIODIC=False, width=32, stride=1)
column = dict(ACC=tl.float32, LANES=256, PERIODIC=False)
floats = ("bias", "sums", "hb", "h", "scale", "shift", "running_mean", "running_var", "out", "moments", "grad",
          "grad_h", "grad_scale", "grad_shift", "grad_moments", "kernels", "w")
for kernel, halves, own, warps in (
        (fused.forward, "x m out", tile | dict(tiles=8, VN=2, N=64, BP=128, BO=256), 8),
        (fused.backward_maps, "x m g taps", tile | dict(tiles=8, VN=4, N=128, BP=128, BK=64), 8),
        (fused.backward_matrix, "x g", tile | dict(tiles=16, VN=4, N=128, BP=64, BO=256), 8),
        (fused.gradient_of_maps, "taps out", dict(stride=1, K=3, ACC=tl.float32, PERIODIC=False, B=512), 4),
        (moments._sums, "x", column | dict(LAST=False, SAMPLES=256), 8),
        (moments._sums, "x", column | dict(LAST=True, SAMPLES=256), 8),
        (moments._map_gradient, "x g out", column | dict(LAST=True), 8),
        (moments._normalise, "", dict(ACC=tl.float32, N=32, BLOCK=32), 16),
        (moments._filter_gradient, "", dict(ACC=tl.float32, N=32), 4),
        (elu_triton._elu_mean, "y out", dict(A=4, ACC=tl.float32, BIAS=True, R=8, C=128), 4),
        (elu_triton._elu_mean_gradient, "y g out", dict(A=4, ACC=tl.float32, BIAS=True, R=8, C=128), 4),
        (spread_triton._spread, "out constant", dict(IB=64, CB=32, TB=128, CONSTANT=True), 4),
        (spread_triton._collect, "g constant", dict(TB=128, OB=32), 4)):

    def kind(name):
        return ("constexpr" if name in own else "*bf16" if name in halves.split() else "*fp32" if name in floats else
                "*i32" if name in ("blocks", "chunks", "pairs") else "*i64" if name in ("table", "reads") else
                "fp32" if name in ("momentum", "eps", "factor") else "i32")

    signature = {name: kind(name) for name in kernel.arg_names}
    aligned = {(i,): [["tt.divisibility", 16]]
               for i, name in enumerate(kernel.arg_names) if "*" in kind(name) or name in set("OLRVHW") - set(own)}
    source = ASTSource(kernel, signature, {(kernel.arg_names.index(k),): v for k, v in own.items()}, aligned)
    made = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=dict(num_warps=warps, num_stages=3))
    print(kernel.__name__, made.metadata.shared, made.asm["ptx"].count("wgmma.mma_async"),
          made.asm["ptx"].count("mma.sync"))
"""


@pytest.mark.full
def test_kernels_compile_for_an_h100_with_its_matrix_instructions():
    """Triton compiles for a GPU that is not there: shared memory within what `fused` asks for, products by wgmma."""
    done = subprocess.run([sys.executable, "-c", COMPILE], capture_output=True, text=True,
                          env=os.environ | {"TRITON_INTERPRET": "0"})
    made = {name: list(map(int, numbers)) for name, *numbers in (line.split() for line in done.stdout.splitlines())}
    assert len(made) == 12, done.stderr
    assert all(shared <= fused.SHARED_MEMORY - 1024 and mma == 0 for shared, _, mma in made.values())
    products = {name for name, (_, wgmma, _) in made.items() if wgmma}
    assert products == {"forward", "backward_maps", "backward_matrix"}
