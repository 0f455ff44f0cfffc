"""Which GPU operator computes HCNN(+): the fused one of `fused_triton` where it can, else the unfused one, and why."""

from functools import lru_cache
from importlib.util import find_spec

import torch
import torch.nn.functional as F

from hcnn.device import switched_off
from hcnn.geometry import Geometry
from hcnn.operators.convolution import pad_space
from hcnn.operators.folding import mixing_matrix, tap_reads, tap_table

FUSED = "fused"
SHARED_MEMORY = 132 * 1024  # bytes that a block of threads must be able to have, for the gradient of the matrix
TRIAL_ERROR = 0.02  # relative, in the Euclidean norm: five roundings to bfloat16
TRIALS = ((8, 16), 32, 1), ((8, 16), 17, 2), ((8, 16), 8, 1)  # grid, size, stride: all tiles, and a partial one
LARGEST = 2**31 - 1  # addresses are 32-bit


def path(x, h, outputs):
    """FUSED, or "unfused: " and the reason. x (n, ..., height, width), h (Q, k, k); outputs: of all positions and
    filters.
    """
    reason = why_not(x.device, _dtype(x), *h.shape[:2])
    if reason is None and max(x.numel() * h.shape[1] ** 2, len(x) * outputs * x.shape[-2] * x.shape[-1]) > LARGEST:
        reason = f"the minibatch of {len(x)} is too large"
    return FUSED if reason is None else f"unfused: {reason}"


def why_not(device, dtype, Q, k=3):
    """None, or the reason why Q filters of k x k are not fused on this device in this dtype."""
    return _device_reason(device) or switched_off(FUSED) or _reason(dtype, Q, k) or _trial_reason(device)


def mixed_elu(x, h, b, matrix, bias, reads, geometry=Geometry()):  # noqa: B008  frozen
    """ELU between h and g: sum over (v, q) of matrix[o, (v, q)] ELU(x_v * h_q + b_q) + bias[o], on the GPU, where
    `path` is FUSED.

    x (n, *grid, height, width); the rest as in `fused_triton.mixed_elu`, with the boundary rule of `spatial_conv`. In
    autocast x is converted to its dtype. Returns (n, outputs, height', width').
    """
    from hcnn.operators.fused_triton import mixed_elu as kernel  # Triton takes a second to import and is not everywhere

    padded = pad_space(x.flatten(1, -3).to(_dtype(x)), h.shape[-1], geometry)
    return kernel(padded, h, b, matrix, bias, reads, geometry.stride)


def _dtype(x):
    return torch.get_autocast_dtype(x.device.type) if torch.is_autocast_enabled(x.device.type) else x.dtype


@lru_cache
def _device_reason(device):
    if device.type != "cuda":
        return f"the device is {device.type}"
    if find_spec("triton") is None:
        return "Triton is not installed"
    properties = torch.cuda.get_device_properties(device)
    if properties.major < 8:
        return f"{properties.name} has no matrix products in bfloat16"
    if properties.shared_memory_per_block_optin < SHARED_MEMORY:
        return f"{properties.name} has less than {SHARED_MEMORY // 1024} KiB of shared memory"


@lru_cache
def _trial_reason(device):
    with torch.autocast(device.type, enabled=False):
        return next(filter(None, (trial(device, *case) for case in TRIALS)), None)


@torch.enable_grad()
def trial(device, grid, size, stride, dtype=torch.bfloat16):
    """None, or what is wrong when this device computes a layer and its gradients: they are compared with the unfused
    ones.

    Kernels are compiled on the machine they run on; what its compiler makes of them is checked before a training
    relies on it.
    """
    generator = torch.Generator().manual_seed(0)
    support, Q, filters = (7, 11), 32, 16
    reads, table = tap_reads(grid, support).to(device), tap_table(grid, support).to(device)

    def normal(*shape):
        return torch.randn(shape, generator=generator).to(device)

    h, b, bias = normal(Q, 3, 3) / 3, normal(Q), normal(len(reads) * filters)
    side = -(-size // stride)
    x, direction = normal(2, *grid, size, size), normal(2, len(reads) * filters, side, side)
    matrix = mixing_matrix(normal(filters, Q, *support) / (Q * 77) ** 0.5, table, reads)
    leaves = [t.requires_grad_() for t in (x, h, b, matrix, bias)]
    try:
        found = mixed_elu(x.to(dtype), h, b, matrix, bias, reads, Geometry(stride))
        found = [found, *torch.autograd.grad(found, leaves, direction.to(found.dtype))]
    except Exception as error:  # whatever the compiler or the driver says: training goes on unfused
        said = str(error).strip().partition("\n")[0]
        return f"its kernels fail here ({type(error).__name__}: {said or 'no message'})"
    z = F.elu(F.conv2d(x.flatten(0, 2)[:, None], h[:, None], b, stride=stride, padding=1))
    expected = F.conv2d(z.view(len(x), -1, side, side), matrix[:, :, None, None], bias)
    expected = [expected, *torch.autograd.grad(expected, leaves, direction)]
    live = matrix.detach() != 0
    found[4], expected[4] = found[4] * live, expected[4] * live
    pairs = [(a.detach().float(), e.detach()) for a, e in zip(found, expected)]
    worst = torch.stack([(a - e).norm() / e.norm() for a, e in pairs]).max().item()  # NaN wherever there is one
    return None if worst < TRIAL_ERROR else f"its kernels are wrong here (relative error {worst:.2g})"


def _reason(dtype, Q, k):
    if dtype != torch.bfloat16:
        return f"bfloat16 is needed, this is {str(dtype).removeprefix('torch.')}"
    return f"Q = {Q} and {k} x {k} filters are more than 128 and 3 x 3" if Q > 128 or k > 3 else None
