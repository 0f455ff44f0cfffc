"""HCNN(+) fused on the GPU: the kernels give what the equations give. Without a GPU they run in Triton's interpreter."""

import os
import subprocess
import sys
from itertools import product
from math import prod

import numpy
import pytest
import torch
import torch.nn.functional as F

from hcnn import Architecture, AttributeConv
from hcnn import operators as ops
from hcnn.geometry import Geometry
from hcnn.operators import fused
from hcnn.operators.choice import choose

fused_triton = pytest.importorskip("hcnn.operators.fused_triton")
ON_GPU = torch.cuda.is_available()
DEVICE = "cuda" if ON_GPU else "cpu"
DTYPES = [torch.bfloat16] if ON_GPU else [torch.float64, torch.float32, torch.float16]  # the interpreter has no bfloat16 products
VERSIONS = [tuple(map(int, module.__version__.split(".")[:2])) for module in (fused_triton.triton, numpy)]
pytestmark = [pytest.mark.gpu] if ON_GPU else [pytest.mark.skipif(
    VERSIONS[0] < (3, 7) and VERSIONS[1] >= (2, 4),
    reason="Triton before 3.7 cannot interpret with NumPy 2.4 or newer (triton issue 9171)")]
ROUNDOFF = {torch.float64: 2.0**-53, torch.float32: 2.0**-24, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}
NAMES = ("output", "x", "h", "b", "matrix", "bias")


def problem(grid, support, Q, filters, mode="zeros", stride=1, dtype=torch.float64, size=(4, 5)):
    """Inputs of mixed_elu on the device, as leaves: x, h, b, matrix, bias; then reads and the stride."""
    reads, table = (f(grid, support, Geometry(2, mode)) for f in (ops.tap_reads, ops.tap_table))
    wide = torch.promote_types(dtype, torch.float32)  # of the parameters
    taps = prod(support)
    x = torch.randn(2, *grid, *size, dtype=torch.float64).to(dtype)
    x = ops.pad_space(x.flatten(1, -3), 3, Geometry(stride, mode))
    h, b, bias = torch.randn(Q, 3, 3) / 3, torch.randn(Q), torch.randn(len(reads) * filters)
    matrix = ops.mixing_matrix(torch.randn(filters, Q, *support) / (Q * taps) ** 0.5, table, reads)
    leaves = [t.to(DEVICE, dtype if t is x else wide).requires_grad_() for t in (x, h, b, matrix, bias)]
    return leaves, reads.to(DEVICE), stride


def unfused(x, h, b, matrix, bias, stride):
    z = F.elu(F.conv2d(x.flatten(0, 1)[:, None], h[:, None], b, stride=stride))
    return F.conv2d(z.view(len(x), -1, *z.shape[-2:]), matrix[:, :, None, None], bias)


def oracle_and_bounds(leaves, stride, direction, u):
    """[(value, bound of its error)] of the output and of every gradient, in float64, bounds for the unit roundoff u.

    Each element is a sum of products. Every bound is that sum with absolute values, times u for each rounding that a term may go
    through: of h, z (ELU and its derivative have Lipschitz constant 1), the matrix, the gradient of z, the taps and the result, at most
    8 in a row. The sums themselves are added in float32: where that is u as well they add u for each of up to 2^12 terms, of which
    the square root, 64, stands here because their signs are as good as random.
    """
    wide = [t.detach().double().requires_grad_() for t in leaves]
    out = unfused(*wide, stride)
    grads = torch.autograd.grad((out * direction).sum(), wide)
    x, h, b, matrix, bias = (t.detach().abs() for t in wide)
    n, O, size = len(out), out.shape[1], out.shape[-2:]
    s = F.conv2d(x.flatten(0, 1)[:, None], h[:, None], b, stride=stride)  # bounds |x * h + b|, hence |z| too
    s = s.view(n, -1, *size)
    out_bound = F.conv2d(s, matrix[:, :, None, None], bias)
    dz = F.conv2d(direction.abs(), matrix.T[:, :, None, None])  # (n, V Q, ...)
    # the derivative of ELU moves by at most the error of its argument: s u, and so does the gradient behind it
    before = (dz * (1 + s)).view(-1, len(h), *size)
    x_bound = F.conv_transpose2d(before, h[:, None], stride=stride)
    x_bound = F.pad(x_bound, (0, x.shape[-1] - x_bound.shape[-1], 0, x.shape[-2] - x_bound.shape[-2])).view_as(x)
    patches = F.unfold(x.flatten(0, 1)[:, None], 3, stride=stride)
    h_bound = torch.einsum("nql,ntl->qt", before.flatten(2), patches).view_as(h)
    m_bound = torch.einsum("nol,nrl->or", direction.abs().flatten(2), s.flatten(2))
    bounds = out_bound, x_bound, h_bound, before.sum((0, 2, 3)), m_bound, direction.abs().sum((0, 2, 3))
    terms = 64 if u < 2**-12 else 8
    return [(value, terms * u * bound) for value, bound in zip((out, *grads), bounds)]


CASES = [((2, 4), (3, 5), 2, 4), ((4, 8), (7, 11), 3, 5), ((4, 8), (3, 5), 5, 16), ((3, 5), (3, 3), 17, 3), ((8,), (5,), 4, 6)]


ALL = list(product(CASES, ("zeros", "periodic"), (1, 2), DTYPES))


@pytest.mark.parametrize("case, mode, stride, dtype", ALL if ON_GPU else ALL[::4])
def test_fused_operator_equals_the_unfused_one(case, mode, stride, dtype):
    """Output and every gradient, each element within the rounding errors of its own sum."""
    leaves, reads, stride = problem(*case, mode, stride, dtype)
    out = fused_triton.mixed_elu(*leaves, reads, stride)
    direction = torch.randn(out.shape, device=DEVICE).to(dtype)
    found = out, *torch.autograd.grad(out, leaves, direction)
    used = (ops.tap_table(case[0], case[1], Geometry(2, mode)) < reads.shape[1]).any(0).repeat_interleave(case[3], 0).repeat_interleave(case[2], 1)
    for name, value, (right, bound) in zip(NAMES, found, oracle_and_bounds(leaves, stride, direction.double(), ROUNDOFF[dtype])):
        excess = (value.double() - right).abs() - bound
        if name == "matrix":  # elsewhere its gradient is not asked for
            excess = excess[used.to(DEVICE)]
        assert excess.max() <= 0, name


def test_b_is_not_rounded_to_the_precision_of_x():
    """Where x * h and b nearly cancel: 1 + 2^-13 - 1, which 16-bit numbers of about 1 cannot tell from 0."""
    (x, h, b, matrix, bias), reads, stride = problem((2, 4), (3, 5), 2, 4, dtype=DTYPES[-1])
    with torch.no_grad():
        x.fill_(1), h.zero_(), b.fill_(1 + 2.0**-13), bias.zero_()
        h[:, 1, 1] = -1
        out = fused_triton.mixed_elu(x, h, b, matrix, bias, reads, stride).double()
    right = (matrix.double().sum(1) * 2.0**-13).view(1, -1, 1, 1)
    assert (out - right).abs().max() <= 4 * ROUNDOFF[DTYPES[-1]] * 2.0**-13 * matrix.abs().sum(1).max()


def test_fused_gradients_are_the_same_bits_every_time():
    leaves, reads, stride = problem((2, 4), (3, 5), 3, 4, dtype=DTYPES[-1])
    first, again = ([*torch.autograd.grad(fused_triton.mixed_elu(*leaves, reads, stride).square().sum(), leaves)] for _ in range(2))
    assert all(map(torch.equal, first, again))


@pytest.mark.skipif(ON_GPU, reason="the interpreter has float64")
def test_gradcheck_of_the_fused_operator():
    leaves, reads, stride = problem((2, 2), (3, 3), 2, 2, size=(2, 3))
    live = leaves[3].detach() != 0
    x, h, b, matrix, bias = leaves
    assert torch.autograd.gradcheck(lambda x, h, b, m, bias: fused_triton.mixed_elu(x, h, b, m * live, bias, reads, stride),
                                    (x, h, b, matrix, bias), fast_mode=True)


def test_blocks_without_a_tap_are_not_visited():
    """Tiles of the network's own size: K = 16, 7 x 11, zeros. A group of 256 outputs reads 6 or 7 of 8 rows of the grid."""
    p = fused_triton.plan(ops.tap_reads((8, 16), (7, 11)), 128, 512, 32, 3)
    assert (p.T, p.Qn, p.VN, p.BO, p.BK) == (16, 32, (2, 4), 256, 64)
    assert p.blocks[:, 0].tolist() == [6 * 8, 7 * 8] and len(p.pairs) == 6 * 4 + 7 * 4
    periodic = fused_triton.plan(ops.tap_reads((8, 16), (7, 11), Geometry(2, "periodic")), 128, 512, 32, 3)
    assert periodic.blocks[:, 0].tolist() == [64, 64]
    assert all(len(set(row[1 : 1 + row[0]])) == row[0] for row in p.chunks.tolist())  # every chunk that reads the block, once
    assert p.chunks[:, 0].sum() == 154 and p.chunks.shape[0] * 8 == 256


def test_layer_takes_the_fused_path_and_computes_the_same(monkeypatch):
    layer = AttributeConv((2, 4), 4, (3, 5), 3, elu=True, stride=2, padding_mode="periodic").to(DEVICE, torch.float32)
    x = torch.randn(2, 2, 4, 6, 6, device=DEVICE)
    if ON_GPU:
        with torch.autocast("cuda", torch.bfloat16):
            assert choose(layer, x) == "fused"
        return
    assert choose(layer, x) == "tiled" and fused.path(x, layer.h, 16) == "unfused: the device is cpu"
    outs = []
    for path in ("convolution", "fused"):
        layer.path = path
        out = layer(x)
        outs.append((out, *torch.autograd.grad(out.square().sum(), [*layer.parameters()])))
    for a, b in zip(*outs):
        assert (a - b).abs().max() <= 1e-4 * a.abs().max()


@pytest.mark.parametrize("dtype, Q, k, reason", [
    (torch.bfloat16, 32, 3, None), (torch.float32, 32, 3, "bfloat16 is needed, this is float32"),
    (torch.bfloat16, 129, 3, "Q = 129 and 3 x 3 filters are more than 128 and 3 x 3"), (torch.bfloat16, 9, 5, "Q = 9 and 5 x 5")])
def test_what_is_not_fused_says_why(monkeypatch, dtype, Q, k, reason):
    for check in ("_device_reason", "_trial_reason"):
        monkeypatch.setattr(fused, check, lambda device: None)
    said = fused.why_not(torch.device("cuda"), dtype, Q, k)
    assert said is None if reason is None else said.startswith(reason)
    monkeypatch.setenv("HCNN_WITHOUT", "graph,fused")
    assert fused.why_not(torch.device("cuda"), dtype, Q, k) == "HCNN_WITHOUT=graph,fused"


class SpoiltGradient(torch.autograd.Function):
    """The identity, whose gradient is not a number."""

    @staticmethod
    def forward(ctx, t):
        return t.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad * float("nan")


@pytest.mark.parametrize("spoilt", range(5))
def test_a_device_whose_kernels_err_is_not_trusted(monkeypatch, spoilt):
    """Also where only one gradient is not a number."""
    device, right = torch.device(DEVICE), fused_triton.mixed_elu
    case = *(fused.TRIALS[0] if ON_GPU else ((4, 8), 5, 2)), DTYPES[0]

    def scaled(x, h, *rest):
        return right(x, h * 1.1, *rest)

    def without_a_number(*arguments):
        return right(*(SpoiltGradient.apply(t) if i == spoilt else t for i, t in enumerate(arguments)))

    for kernel, error in ((scaled, "0."), (without_a_number, "nan")):
        monkeypatch.setattr(fused_triton, "mixed_elu", kernel)
        assert f"wrong here (relative error {error}" in fused.trial(device, *case)


def test_a_device_whose_kernels_fail_is_not_trusted(monkeypatch):
    device, case = torch.device(DEVICE), (*(fused.TRIALS[0] if ON_GPU else ((4, 8), 9, 2)), DTYPES[0])
    assert fused.trial(device, *case) is None

    def broken(*arguments):
        raise RuntimeError("no such instruction")

    monkeypatch.setattr(fused_triton, "mixed_elu", broken)
    assert "fail here (RuntimeError: no such instruction)" in fused.trial(device, *case)


def test_trial_runs_every_tile_that_the_network_has():
    """What a compiler makes of one size of a tile says nothing about another."""
    def tiles(grid, size, stride, filters=16):
        reads, out = ops.tap_reads(grid, (7, 11)), -(-size // stride)
        x, outputs = torch.empty(1, prod(grid), size + 2, size + 2), filters * len(reads)
        p = fused_triton.plan(reads, prod(grid), outputs, 32, 3)
        BP, _ = fused_triton._sizes(x, torch.empty(outputs, 1), (1, outputs, out, out), stride, 128)
        return p.VN, p.BO, p.BK, BP

    a = Architecture.preset("cifar10", "hcnn-plus")
    network = {tiles(layer.grid, a.shape(layer.j - 1)[-1], layer.stride, layer.filters) for layer in a.layers[2:]}
    assert network <= {tiles(*case) for case in fused.TRIALS} and len(network) > 1


@pytest.mark.gpu
def test_fused_step_needs_less_memory_than_one_copy_of_z():
    """K = 16, Q = 32, batch 50, 32 x 32: z in bfloat16 would be 419 MB, and the unfused path keeps it with its gradient."""
    layer = AttributeConv((8, 16), 16, Q=32, elu=True).cuda()
    x = torch.randn(50, 8, 16, 32, 32, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    for _ in range(2):
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        with torch.autocast("cuda", torch.bfloat16):
            out = layer(x)
        out.sum().backward()
    assert choose(layer, x) == "fused" and torch.cuda.max_memory_allocated() - before < x.numel() * 32 * 2


COMPILE = """
import triton, triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from hcnn import fused_triton as ft

sizes = dict(ACC=tl.float32, K=3, T=16, RAGGED=False, width=32, stride=1)
for kernel, own in ((ft._forward, dict(tiles=8, VN=2, N=64, BP=128, BO=256)),
                    (ft._backward_maps, dict(tiles=8, VN=4, N=128, BP=128, BK=64)),
                    (ft._backward_matrix, dict(tiles=16, VN=4, N=128, BP=64, BO=256))):
    known, floats, lists = sizes | own, ("bias", "sums"), ("blocks", "chunks", "pairs")
    arrays = ("x", "hh", "m", "out", "g", "taps")
    kind = lambda name: ("constexpr" if name in known else "*bf16" if name in arrays else "*fp32" if name in floats else
                         "*i32" if name in lists else "i32")
    signature = {name: kind(name) for name in kernel.arg_names}
    divided = [name for name in kernel.arg_names if "*" in kind(name) or name in "OLR"]
    aligned = {(kernel.arg_names.index(name),): [["tt.divisibility", 16]] for name in divided}
    source = ASTSource(kernel, signature, {(kernel.arg_names.index(k),): v for k, v in known.items()}, aligned)
    made = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=dict(num_warps=8, num_stages=3))
    print(kernel.__name__, made.metadata.shared, made.asm["ptx"].count("wgmma.mma_async"), made.asm["ptx"].count("mma.sync"))
"""


@pytest.mark.full
def test_kernels_compile_for_an_h100_with_its_matrix_instructions():
    """Triton compiles for a GPU that is not there: shared memory within what `fused` asks for, products by wgmma only."""
    done = subprocess.run([sys.executable, "-c", COMPILE], capture_output=True, text=True, env=os.environ | {"TRITON_INTERPRET": "0"})
    lines = [line.split() for line in done.stdout.splitlines()]
    assert len(lines) == 3, done.stderr
    for _, shared, wgmma, mma in lines:
        assert int(shared) <= fused.SHARED_MEMORY - 1024 and int(wgmma) > 0 and int(mma) == 0
