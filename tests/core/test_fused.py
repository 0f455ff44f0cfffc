"""HCNN(+) fused on the GPU: the kernels give what the equations give. Without a GPU they are interpreted."""

from itertools import product
from math import prod

import pytest
import torch
import torch.nn.functional as F
from kernels import DEVICE, MARK, ON_GPU
from torch.multiprocessing.reductions import StorageWeakRef

from hcnn import Architecture, AttributeConv
from hcnn import operators as ops
from hcnn.geometry import Geometry
from hcnn.operators import choice, fused, fused_triton
from hcnn.operators.folding import tap_reads, tap_table

pytestmark = MARK
# the interpreter has no bfloat16
DTYPES = [torch.bfloat16] if ON_GPU else [torch.float64, torch.float32, torch.float16]
ROUNDOFF = {torch.float64: 2.0**-53, torch.float32: 2.0**-24, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}
NAMES = ("output", "x", "h and b", "g", "bias")


def problem(grid, support, Q, filters, mode="zeros", stride=1, dtype=torch.float64, size=(4, 5)):
    """Inputs of mixed_elu on the device, as leaves: x, hb, g, bias; then table, reads and the boundary."""
    along, space = Geometry(2, mode), Geometry(stride, mode)
    wide = torch.promote_types(dtype, torch.float32)  # of the parameters
    x = torch.randn(2, prod(grid), *size, dtype=torch.float64)
    hb = torch.cat([torch.randn(Q, 9) / 3, torch.randn(Q, 1)], 1)
    g, bias = torch.randn(filters, Q, *support) / (Q * prod(support)) ** 0.5, torch.randn(filters)
    leaves = [t.to(DEVICE, dtype if t is x else wide).requires_grad_() for t in (x, hb, g, bias)]
    return leaves, tap_table(grid, support, along).to(DEVICE), tap_reads(grid, support, along).to(DEVICE), space


def mixed(leaves, table, reads, space):
    return fused_triton.mixed_elu(*leaves, table, reads, space.stride, (1, 1), space.padding_mode == "periodic")


def matrix_of(g, table, reads):
    return ops.attribute_matrix(g.flatten(2).permute(2, 0, 1), table, reads).flatten(1)


def unfused(x, hb, g, bias, table, reads, space):
    x, matrix = ops.pad_space(x, 3, space), matrix_of(g, table, reads)
    z = F.elu(F.conv2d(x.flatten(0, 1)[:, None], hb[:, :9].view(-1, 1, 3, 3), hb[:, 9], stride=space.stride))
    return F.conv2d(z.view(len(x), -1, *z.shape[-2:]), matrix[:, :, None, None], bias.repeat(len(reads)))


def oracle_and_bounds(leaves, table, reads, space, direction, u):
    """[(value, bound of its error)] of the output and of every gradient, in float64, bounds for the unit roundoff u.

    Each element is a sum of products. Every bound is that sum with absolute values, times u for each rounding that a
    term may go through: of h, z (ELU and its derivative have Lipschitz constant 1), the matrix, the gradient of z, the
    taps and the result, at most 8 in a row. The sums themselves are added in float32: where that is u as well they add
    u for each of up to 2^12 terms, of which the square root, 64, stands here because their signs are as good as random.
    """
    wide = [t.detach().double().requires_grad_() for t in leaves]
    out = unfused(*wide, table, reads, space)
    grads = torch.autograd.grad((out * direction).sum(), wide)
    x, hb, g, bias = (t.detach().abs().requires_grad_() for t in wide)
    padded, matrix = ops.pad_space(x, 3, space).flatten(0, 1)[:, None], matrix_of(g, table, reads)
    s = F.conv2d(padded, hb[:, :9].view(-1, 1, 3, 3), hb[:, 9], stride=space.stride)  # bounds |x * h + b| and |z|
    z = s.detach().view(len(x), -1, *out.shape[-2:])
    out_bound = F.conv2d(z, matrix[:, :, None, None], bias.repeat(len(reads))).detach()
    dz = F.conv2d(direction.abs(), matrix.detach().T[:, :, None, None])  # (n, V Q, ...)
    # the derivative of ELU moves by at most the error of its argument: s u, and so does the gradient behind it
    x_bound, hb_bound = torch.autograd.grad(s, (x, hb), (dz * (1 + z)).view_as(s))
    m_bound = torch.einsum("nol,nrl->or", direction.abs().flatten(2), z.flatten(2))
    (g_bound,) = torch.autograd.grad(matrix, g, m_bound)
    bias_bound = direction.abs().view(len(x), -1, len(g), *z.shape[-2:]).sum((0, 1, 3, 4))
    bounds = out_bound, x_bound, hb_bound, g_bound, bias_bound
    terms = 64 if u < 2**-12 else 8
    return [(value, terms * u * bound) for value, bound in zip((out, *grads), bounds)]


CASES = [((2, 4), (3, 5), 2, 4), ((4, 8), (7, 11), 3, 5), ((4, 8), (3, 5), 5, 16), ((3, 5), (3, 3), 17, 3),
         ((8,), (5,), 4, 6)]
ALL = [pytest.param(*case, marks=[] if ON_GPU or i % 7 == 0 else pytest.mark.full)
       for i, case in enumerate(product(CASES, ("zeros", "periodic"), (1, 2), DTYPES))]


@pytest.mark.parametrize("case, mode, stride, dtype", ALL)
def test_fused_operator_equals_the_unfused_one(case, mode, stride, dtype):
    """Output and every gradient, each element within the rounding errors of its own sum."""
    leaves, *rule = problem(*case, mode, stride, dtype)
    out = mixed(leaves, *rule)
    direction = torch.randn(out.shape, device=DEVICE).to(dtype)
    found = out, *torch.autograd.grad(out, leaves, direction)
    right = oracle_and_bounds(leaves, *rule, direction.double(), ROUNDOFF[dtype])
    for name, value, (expected, bound) in zip(NAMES, found, right):
        assert ((value.double() - expected).abs() - bound).max() <= 0, name


def test_b_is_not_rounded_to_the_precision_of_x():
    """Where x * h and b nearly cancel: 1 + 2^-13 - 1, which 16-bit numbers of about 1 cannot tell from 0."""
    leaves, table, reads, space = problem((2, 4), (3, 5), 2, 4, dtype=DTYPES[-1])
    x, hb, g, bias = leaves
    with torch.no_grad():
        x.fill_(1), hb.zero_(), bias.zero_()
        hb[:, 4], hb[:, 9] = -1, 1 + 2.0**-13
        out = mixed(leaves, table, reads, space).double()
        matrix = matrix_of(g, table, reads).double()
    right = (matrix.sum(1) * 2.0**-13).view(1, -1, 1, 1)
    assert (out - right).abs().max() <= 4 * ROUNDOFF[DTYPES[-1]] * 2.0**-13 * matrix.abs().sum(1).max()


def test_fused_gradients_are_the_same_bits_every_time():
    leaves, *rule = problem((2, 4), (3, 5), 3, 4, dtype=DTYPES[-1])
    first, again = ([*torch.autograd.grad(mixed(leaves, *rule).square().sum(), leaves)] for _ in range(2))
    assert all(map(torch.equal, first, again))


@pytest.mark.full
@pytest.mark.skipif(ON_GPU, reason="the interpreter has float64")
def test_gradcheck_of_the_fused_operator():
    leaves, *rule = problem((2, 2), (3, 3), 2, 2, size=(2, 3))
    assert torch.autograd.gradcheck(lambda *leaves: mixed(leaves, *rule), leaves, fast_mode=True)


def test_the_taps_are_gone_before_the_sums_for_the_matrix_come(monkeypatch):
    """The two largest arrays of the backward pass, 118 and 42 MB in the paper's layer, are never there together."""
    taps, alive = [], []

    class Stub:
        def __init__(self, note):
            self.note = note

        def __getitem__(self, grid):
            return lambda *arguments, **options: self.note(arguments)

    kernels = fused_triton.kernels
    monkeypatch.setattr(kernels, "backward_maps", Stub(lambda a: taps.append(StorageWeakRef(a[4].untyped_storage()))))
    monkeypatch.setattr(kernels, "gradient_of_maps", Stub(lambda a: None))
    monkeypatch.setattr(kernels, "backward_matrix", Stub(lambda a: alive.append(not taps[0].expired())))
    leaves, *rule = problem((2, 4), (3, 5), 3, 4, dtype=DTYPES[-1])
    mixed(leaves, *rule).sum().backward()
    assert alive == [False]


def test_blocks_without_a_tap_are_not_visited():
    """Tiles of the network's size, K = 16, 7 x 11, zeros: 256 outputs read 6 or 7 of the 8 rows of the grid."""
    p = fused_triton.plan(tap_reads((8, 16), (7, 11)), 128, 512, 32, 3, 1024)
    assert (p.T, p.Qn, p.VN, p.BO, p.BK) == (16, 32, (2, 4), 256, 64)
    assert p.blocks[:, 0].tolist() == [6 * 8, 7 * 8] and len(p.pairs) == 6 * 4 + 7 * 4
    periodic = fused_triton.plan(tap_reads((8, 16), (7, 11), Geometry(2, "periodic")), 128, 512, 32, 3, 1024)
    assert periodic.blocks[:, 0].tolist() == [64, 64]
    # every chunk that reads the block, once
    assert all(len(set(row[1 : 1 + row[0]])) == row[0] for row in p.chunks.tolist())
    assert p.chunks[:, 0].sum() == 154 and p.chunks.shape[0] * 8 == 256


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_every_layer_has_work_for_all_multiprocessors(name):
    """Programs of the forward pass at the paper's batch of 50, for 132 multiprocessors: also with 8 x 8 positions."""
    for layer in Architecture.preset(name, "hcnn-plus").layers[2:]:
        reads, L = tap_reads(layer.grid, layer.support, layer.along), prod(layer.out_size)
        p = fused_triton.plan(reads, prod(layer.grid), layer.filters * len(reads), 32, 3, L)
        assert 50 * -(-L // 128) * len(p.blocks) >= 132, layer.j


def layer_of(variant, Q=3, **options):
    return AttributeConv((2, 4), 4, (3, 5), Q, elu=variant == "hcnn-plus", **options).to(DEVICE)


@pytest.mark.parametrize("variant, mode, statistics", [
    ("hcnn", "zeros", "all"), ("hcnn", "periodic", "all"), ("hcnn-plus", "periodic", "all"),
    ("hcnn-plus", "zeros", "strided")])
def test_a_layer_on_the_fused_path_computes_the_same(variant, mode, statistics):
    """Output, gradients and running averages, in training and in evaluation."""
    layer = layer_of(variant, stride=2, padding_mode=mode, statistics=statistics)
    x = torch.randn(2, 2, 4, 6, 6, device=DEVICE)
    state, found = {name: t.clone() for name, t in layer.state_dict().items()}, {}
    for path in ("convolution", "fused"):
        layer.load_state_dict(state)
        layer.path, leaf = path, x.clone().requires_grad_()
        out = layer.train()(leaf)
        grads = torch.autograd.grad(out.square().sum(), [leaf, *layer.parameters()])
        found[path] = [out, *grads, layer.running_mean.clone(), layer.running_var.clone(), layer.eval()(x)]
    for a, b in zip(found["fused"], found["convolution"]):
        assert (a - b).norm() <= (2e-2 if ON_GPU else 1e-5) * b.norm()  # TF32


@pytest.mark.parametrize("variant, training, chosen", [
    ("hcnn", True, "fused"), ("hcnn", False, "convolution"), ("hcnn-plus", True, "fused"),
    ("hcnn-plus", False, "fused")])
def test_a_gpu_takes_the_fused_path_where_it_gains(monkeypatch, variant, training, chosen):
    monkeypatch.setattr(choice, "why_not", lambda *arguments: None)
    monkeypatch.setattr(choice, "product_dtype", lambda x: torch.bfloat16)
    x = torch.randn(2, 2, 4, 6, 6, device="meta")
    assert choice.choose(layer_of(variant).train(training), x) == chosen
    monkeypatch.setattr(choice, "why_not", lambda *arguments: "a reason")
    assert choice.choose(layer_of(variant).train(training), x) == "convolution"


@pytest.mark.parametrize("variant, dtype, Q, k, reason", [
    ("hcnn-plus", torch.bfloat16, 32, 3, None),
    ("hcnn-plus", torch.float32, 32, 3, "bfloat16 is needed, this is float32"),
    ("hcnn", torch.float32, 32, 3, None), ("hcnn", torch.float16, 32, 3, "bfloat16 is needed, this is float16"),
    ("hcnn-plus", torch.bfloat16, 129, 3, "Q = 129 and 3 x 3 filters are more than 128 and 3 x 3"),
    ("hcnn", torch.bfloat16, 9, 5, "Q = 9 and 5 x 5")])
def test_what_is_not_fused_says_why(monkeypatch, variant, dtype, Q, k, reason):
    monkeypatch.setattr(fused, "_device_reason", lambda device: None)
    monkeypatch.setattr(fused, "trial", lambda *arguments: None)
    layer = layer_of(variant, Q, spatial_support=k)
    said = fused.why_not(layer, torch.device("cuda"), dtype, (8, 8))
    assert said is None if reason is None else said.startswith(reason)
    assert reason or "too large" in fused.why_not(layer, torch.device("cuda"), dtype, (8, 8), batch=2**23)
    monkeypatch.setenv("HCNN_WITHOUT", "graph,fused")
    assert fused.why_not(layer, torch.device("cuda"), dtype, (8, 8)) == "HCNN_WITHOUT=graph,fused"


TRIAL = torch.device(DEVICE), DTYPES[0] if ON_GPU else torch.float32, (6, 5)


@pytest.mark.parametrize("spoilt, error", [(None, "0."), *product(range(4), ["nan"])])
def test_a_device_whose_kernels_err_is_not_trusted(monkeypatch, spoilt, error):
    """Also where only one gradient is not a number."""
    right = fused_triton.mixed_elu

    def wrong(*arguments):
        if spoilt is None:
            return 1.1 * right(*arguments)
        copies = [t.clone() if i == spoilt else t for i, t in enumerate(arguments)]
        copies[spoilt].register_hook(lambda grad: grad * float("nan"))
        return right(*copies)

    monkeypatch.setattr(fused, "_tried", {})
    monkeypatch.setattr(fused_triton, "mixed_elu", wrong)
    assert f"wrong here (relative error {error}" in fused.trial(layer_of("hcnn-plus"), *TRIAL)


def test_a_device_whose_kernels_fail_is_not_trusted(monkeypatch):
    def broken(*arguments):
        raise RuntimeError("no such instruction")

    monkeypatch.setattr(fused, "_tried", {})
    monkeypatch.setattr(fused_triton, "mixed_elu", broken)
    assert "fail here (RuntimeError: no such instruction)" in fused.trial(layer_of("hcnn-plus"), *TRIAL)


def test_every_shape_of_a_layer_is_tried_once(monkeypatch):
    """What a compiler makes of one number of filters, boundary or size says nothing about another."""
    tried = []
    monkeypatch.setattr(fused, "_tried", {})
    monkeypatch.setattr(fused, "trial_error", lambda layer, device, dtype, size: tried.append((layer, size)) or 0.0)
    layers = [layer_of("hcnn-plus", 3), layer_of("hcnn-plus", 9), layer_of("hcnn-plus", 3, padding_mode="periodic"),
              layer_of("hcnn-plus", 3, stride=2), layer_of("hcnn", 3), AttributeConv((2, 4), 10, (3, 5), 3, elu=True)]
    for layer, size in 2 * list(product(layers, ((6, 6), (3, 3)))):
        assert fused.trial(layer, *TRIAL[:2], size) is None
    assert tried == list(product(layers, ((6, 6), (3, 3))))


@pytest.mark.parametrize("variant, Q, filters, mode, stride", [
    ("hcnn-plus", 3, 4, "zeros", 1),
    *(pytest.param(*case, marks=pytest.mark.full) for case in product(
        ("hcnn", "hcnn-plus"), (9, 24, 64), (10, 100), ("zeros", "periodic"), (1, 2)))])
def test_trial_passes_where_the_kernels_are_right(variant, Q, filters, mode, stride):
    """At sizes that fill no tile."""
    layer = AttributeConv((2, 4), filters, (3, 5), Q, elu=variant == "hcnn-plus", stride=stride, padding_mode=mode)
    assert fused.trial_error(layer, *TRIAL) <= (fused.TRIAL_ERROR if ON_GPU else 1e-5)


@pytest.mark.gpu
def test_fused_step_needs_less_memory_than_one_copy_of_z():
    """K = 16, Q = 32, batch 50, 32 x 32: z in bfloat16 is 419 MB, which the unfused path keeps with its gradient."""
    layer = AttributeConv((8, 16), 16, Q=32, elu=True).cuda()
    x = torch.randn(50, 8, 16, 32, 32, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    for _ in range(2):
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        with torch.autocast("cuda", torch.bfloat16):
            out = layer(x)
        out.sum().backward()
    assert choice.choose(layer, x.bfloat16()) == "fused"
    assert torch.cuda.max_memory_allocated() - before < x.numel() * 32 * 2
