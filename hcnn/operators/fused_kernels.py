"""The kernels of `fused_triton`, where the equations stand.

A tile of z is itself a small product, of the k x k patches of x (`_gather`) with the filters; b_q stands in two more
rows of the filters, as the sum of two numbers of the precision of x, and meets patches that end in 1, 1.

A loop never computes a tile of z while a product that reads the previous one from registers is still under way: the
product with the filters, which is waited for, stands between the two. Triton before 3.7 does not guard that
(https://github.com/triton-lang/triton/issues/9433).
"""

import triton
import triton.language as tl
from triton.language.extra import libdevice

# TRITON_INTERPRET=1: the kernels run on the CPU, slowly, for tests
INTERPRETED = tl.constexpr(bool(triton.knobs.runtime.interpret))


@triton.jit
def _exp(s):
    if s.dtype == tl.float32 and not INTERPRETED:
        return libdevice.fast_expf(s)  # tl.exp spends three more instructions on results below 1e-38
    return tl.exp(s)


@triton.jit
def _elu(s):
    return tl.where(s > 0, s, _exp(s) - 1.0)


@triton.jit
def _patches(tile, tiles: tl.constexpr, V, H, W, top, left, L, width: tl.constexpr, stride: tl.constexpr,
             K: tl.constexpr, T: tl.constexpr, VN: tl.constexpr, PERIODIC: tl.constexpr, BP: tl.constexpr):
    """Image, positions u in it, whether they exist; where the patches of the first VN maps stand, what is read there.

    The last two are (positions, VN * T). A tile never crosses two images.
    """
    image, u, c = tile // tiles, (tile % tiles) * BP + tl.arange(0, BP), tl.arange(0, VN * T)
    t = c % T
    row = (u // width * stride - top)[:, None] + (t // K)[None, :]
    column = (u % width * stride - left)[:, None] + (t % K)[None, :]
    read = (u < L)[:, None] & (t < K * K)[None, :]
    if PERIODIC:
        row, column = (row + H) % H, (column + W) % W
    else:
        read &= (row >= 0) & (row < H) & (column >= 0) & (column < W)
    return image, u, u < L, ((image * V + c // T)[None, :] * H + row) * W + column, read


@triton.jit
def _gather(x, at, read, block, V, area, K: tl.constexpr, T: tl.constexpr, VN: tl.constexpr, RAGGED: tl.constexpr):
    """Patches of the VN maps of a block where `_patches` says: (positions, VN * T), each followed by 1, 1, 0, ..."""
    c = tl.arange(0, VN * T)
    if RAGGED:  # the last block has maps that are not there
        read &= (block * VN + c // T < V)[None, :]
    values = tl.load(x + block * VN * area + at, mask=read, other=0.0)
    ones = tl.where((c % T >= K * K) & (c % T < K * K + 2), 1.0, 0.0).to(values.dtype)
    return tl.where(read, values, tl.broadcast_to(ones[None, :], read.shape))


@triton.jit
def _filters(hb, c, r, Q, dtype: tl.constexpr, K: tl.constexpr, T: tl.constexpr, Qn: tl.constexpr):
    """Filters and b, rows of hb (Q, K * K + 1), as columns r that patches c multiply: for each map on the diagonal."""
    t, q = c % T, r % Qn
    there = (c // T == r // Qn) & (q < Q) & (t < K * K + 2)
    value = tl.load(hb + q * (K * K + 1) + tl.minimum(t, K * K), mask=there, other=0.0)
    high = value.to(dtype).to(value.dtype)
    return tl.where(t == K * K, high, tl.where(t == K * K + 1, value - high, value)).to(dtype)


@triton.jit
def forward(x, hb, m, bias, out, blocks, V, H, W, top, left, O, L, R, Q, filters, listed, groups, width: tl.constexpr,
            stride: tl.constexpr, tiles: tl.constexpr, ACC: tl.constexpr, K: tl.constexpr, T: tl.constexpr,
            VN: tl.constexpr, RAGGED: tl.constexpr, PERIODIC: tl.constexpr, N: tl.constexpr, BP: tl.constexpr,
            BO: tl.constexpr):
    group = tl.program_id(0) % groups  # the programs that share positions are neighbours
    image, u, inside, at, read = _patches(tl.program_id(0) // groups, tiles, V, H, W, top, left, L, width, stride, K,
                                          T, VN, PERIODIC, BP)
    o, r, c = group * BO + tl.arange(0, BO), tl.arange(0, N), tl.arange(0, VN * T)
    h = _filters(hb, c[:, None], r[None, :], Q, x.dtype.element_ty, K, T, N // VN)
    first = blocks + group * listed
    patches = _gather(x, at, read, tl.load(first + 1), V, H * W, K, T, VN, RAGGED)
    acc = tl.zeros((BP, BO), ACC)
    for i in range(tl.load(first)):
        s = tl.dot(patches, h, input_precision="ieee", out_dtype=ACC)
        w = tl.load(m + o[None, :] * R + tl.load(first + i + 1) * N + r[:, None])
        acc = tl.dot(_elu(s).to(w.dtype), w, acc, input_precision="ieee", out_dtype=ACC)
        # of the next round, meanwhile
        patches = _gather(x, at, read, tl.load(first + i + 2), V, H * W, K, T, VN, RAGGED)
    acc += tl.load(bias + o % filters)[None, :]
    there = inside[:, None] & (o < O)[None, :]
    tl.store(out + image * O * L + o[None, :] * L + u[:, None], acc.to(out.dtype.element_ty), mask=there)


@triton.jit
def backward_maps(x, hb, m, g, taps, sums, chunks, V, H, W, top, left, O, L, R, Q, listed, total, each,
                  width: tl.constexpr, stride: tl.constexpr, tiles: tl.constexpr, ACC: tl.constexpr, K: tl.constexpr,
                  T: tl.constexpr, VN: tl.constexpr, RAGGED: tl.constexpr, PERIODIC: tl.constexpr, N: tl.constexpr,
                  BP: tl.constexpr, BK: tl.constexpr):
    block, split = tl.program_id(0), tl.program_id(1)
    r, c = tl.arange(0, N), tl.arange(0, VN * T)
    v, t = block * VN + c // T, c % T
    h = _filters(hb, c[:, None], r[None, :], Q, x.dtype.element_ty, K, T, N // VN)
    first = chunks + block * listed
    count = tl.load(first)
    filters = tl.zeros((VN * T, N), ACC)
    for tile in range(split * each, tl.minimum((split + 1) * each, total)):
        image, u, inside, at, read = _patches(tile, tiles, V, H, W, top, left, L, width, stride, K, T, VN, PERIODIC, BP)
        acc = tl.zeros((BP, N), ACC)  # gradient of z
        for i in range(count):
            o = tl.load(first + i + 1) * BK + tl.arange(0, BK)
            there = inside[:, None] & (o < O)[None, :]
            grad = tl.load(g + image * O * L + o[None, :] * L + u[:, None], mask=there, other=0.0)
            w = tl.load(m + o[:, None] * R + block * N + r[None, :])
            acc = tl.dot(grad, w, acc, input_precision="ieee", out_dtype=ACC)
        patches = _gather(x, at, read, block, V, H * W, K, T, VN, RAGGED)
        s = tl.dot(patches, h, input_precision="ieee", out_dtype=ACC)
        before = (acc * tl.where(s > 0, 1.0, _exp(s))).to(h.dtype)  # gradient of x_v * h_q + b_q
        patch = tl.dot(before, tl.trans(h), input_precision="ieee", out_dtype=ACC)
        there = inside[:, None] & ((t < K * K) & (v < V))[None, :]
        tl.store(taps + ((image * V + v) * K * K + t)[None, :] * L + u[:, None], patch.to(taps.dtype.element_ty),
                 mask=there)
        filters = tl.dot(tl.trans(patches), before, filters, input_precision="ieee", out_dtype=ACC)
    t = tl.arange(0, T)  # of the VN x VN pairs of maps those along the diagonal are kept
    same = tl.where(c[:, None] // T == r[None, :] // (N // VN), filters, 0.0)
    made = tl.sum(tl.sum(tl.reshape(same, (VN, T, VN, N // VN)), 2), 0)
    at = sums + (split * tl.num_programs(0) + block) * (T * (N // VN))
    tl.store(at + t[:, None] * (N // VN) + tl.arange(0, N // VN)[None, :], made)


@triton.jit
def backward_matrix(x, hb, g, sums, pairs, V, H, W, top, left, O, L, R, Q, columns, total, each, width: tl.constexpr,
                    stride: tl.constexpr, tiles: tl.constexpr, ACC: tl.constexpr, K: tl.constexpr, T: tl.constexpr,
                    VN: tl.constexpr, RAGGED: tl.constexpr, PERIODIC: tl.constexpr, N: tl.constexpr, BP: tl.constexpr,
                    BO: tl.constexpr):
    group, block = tl.load(pairs + 2 * tl.program_id(0)), tl.load(pairs + 2 * tl.program_id(0) + 1)
    split = tl.program_id(1)
    o, r, c = group * BO + tl.arange(0, BO), tl.arange(0, N), tl.arange(0, VN * T)
    h = _filters(hb, c[None, :], r[:, None], Q, x.dtype.element_ty, K, T, N // VN)  # transposed: (N, VN * T)
    acc = tl.zeros((N, BO), ACC)
    for tile in range(split * each, tl.minimum((split + 1) * each, total)):
        image, u, inside, at, read = _patches(tile, tiles, V, H, W, top, left, L, width, stride, K, T, VN, PERIODIC, BP)
        patches = _gather(x, at, read, block, V, H * W, K, T, VN, RAGGED)
        s = tl.dot(h, tl.trans(patches), input_precision="ieee", out_dtype=ACC)
        there = inside[:, None] & (o < O)[None, :]
        grad = tl.load(g + image * O * L + o[None, :] * L + u[:, None], mask=there, other=0.0)
        acc = tl.dot(_elu(s).to(grad.dtype), grad, acc, input_precision="ieee", out_dtype=ACC)
    tl.store(sums + (split * R + block * N + r)[:, None] * columns + o[None, :], acc)


@triton.jit
def gradient_of_maps(taps, out, total, H, W, top, left, height, width, stride: tl.constexpr, K: tl.constexpr,
                     ACC: tl.constexpr, PERIODIC: tl.constexpr, B: tl.constexpr):
    """What patches have gathered for the x they hold: taps (maps, K * K, height * width) -> out (maps, H, W)."""
    i = tl.program_id(0) * B + tl.arange(0, B)
    row, column, acc = i // W % H + top, i % W + left, tl.zeros((B,), ACC)
    for t in tl.static_range(K * K):
        y, x = row - t // K, column - t % K
        if PERIODIC:
            y, x = (y + H) % H, (x + W) % W
        read = (i < total) & (y >= 0) & (y % stride == 0) & (y // stride < height)
        read &= (x >= 0) & (x % stride == 0) & (x // stride < width)
        at = ((i // (H * W) * K * K + t) * height + y // stride) * width + x // stride
        acc += tl.load(taps + at, mask=read, other=0.0).to(ACC)
    tl.store(out + i, acc.to(out.dtype.element_ty), mask=i < total)
