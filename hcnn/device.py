"""The machine a run uses: which device, in which precision, and the record of both."""

import ctypes
import os
import platform
import subprocess
import warnings
from contextlib import contextmanager, nullcontext
from functools import lru_cache
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F

from hcnn.paths import CHECKOUT, PACKAGE, VERSION

PRECISIONS = ("fast", "strict")
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -3, -4  # options of mallopt, as malloc.h numbers them
WITHOUT = "HCNN_WITHOUT"  # environment: `graph`, `fused` or both, separated by commas, are not used on a GPU


def choose_device(name="auto"):
    """The torch.device called `name`; "auto" takes a GPU where there is one: of CUDA (that of this process under
    torchrun), else Apple's where a small convolution and its gradient are right there.

    Raises ValueError for a device that is not there.
    """
    allowed = f"device must be auto, cpu, cuda, cuda:<number> or mps, got {name!r}"
    if name == "auto":
        if torch.cuda.is_available():
            name = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
        else:
            name = "mps" if torch.backends.mps.is_available() and apple_gpu_works() else "cpu"
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError) as error:
        raise ValueError(allowed) from error
    if device.type not in ("cpu", "cuda", "mps"):
        raise ValueError(allowed)
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ValueError(f"{allowed}; this machine has no GPU of Apple's that PyTorch can use")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device must be one of this machine, got {str(name)!r}; it has "
                         f"{torch.cuda.device_count()} CUDA devices")
    return device


@lru_cache
def apple_gpu_works():
    """Whether a convolution, the gradient of ELU and an indexed gather give on Apple's GPU what they give on the CPU.

    Warns with the reason where they do not, once a process.
    """
    def gradient(device):
        x = torch.linspace(-1, 1, 2 * 3 * 8 * 8, device=device).view(2, 3, 8, 8).requires_grad_()
        kernel = x[0].flatten()[torch.arange(4 * 3 * 9, device=device)].view(4, 3, 3, 3)
        F.elu(F.conv2d(x, kernel, stride=2, padding=1)).square().mean().backward()
        return x.grad.cpu()

    try:
        torch.testing.assert_close(gradient("mps"), gradient("cpu"), rtol=1e-3, atol=1e-5)
    except (RuntimeError, AssertionError, TypeError) as error:
        warnings.warn(f"Apple's GPU is not used, everything runs on the CPU: {str(error).strip().splitlines()[0]}",
                      stacklevel=3)
        return False
    return True


def sum_dtype(device):
    """The type of sums over an epoch: torch.float64, but torch.float32 on Apple's GPUs, which have no other."""
    return torch.float32 if device.type == "mps" else torch.float64


def autocast_dtype(precision, device):
    """torch.bfloat16 where `fast` matrix products run in it, in hardware; else torch.float32."""
    if precision == "strict" or device.type == "mps":
        return torch.float32
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
        fast = capabilities.get("amx_bf16", False) or capabilities.get("avx512_bf16", False)
    return torch.bfloat16 if fast else torch.float32


def switched_off(what):
    """The reason, where the user does without a fast path (HCNN_WITHOUT=graph,fused); else None."""
    return f"{WITHOUT}={os.environ[WITHOUT]}" if what in os.environ.get(WITHOUT, "").split(",") else None


@contextmanager
def numerics(precision, device):
    """For a while `fast`: TF32 and the fastest convolutions of a GPU; or `strict`: deterministic, without TF32.

    On a CPU memory is kept.
    """
    fast = precision == "fast" and device.type == "cuda"
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    benchmark = torch.backends.cudnn.benchmark
    if precision == "strict":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS is deterministic only with it
    try:
        torch.use_deterministic_algorithms(precision == "strict")
        torch.backends.cudnn.benchmark = fast
        with tf32(fast), nullcontext() if device.type == "cuda" else memory_kept():
            yield
    finally:
        torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
        torch.backends.cudnn.benchmark = benchmark


@contextmanager
def memory_kept():
    """What is freed stays with the process until the end, where the C library is that of Linux.

    It would else give large arrays back to the system and get them again as pages that the system first fills with
    zeros: up to a third of a training step on a CPU.
    """
    try:
        libc = ctypes.CDLL(None)
        options = libc.mallopt, libc.malloc_trim
    except (AttributeError, OSError, TypeError):  # another system or C library
        yield
        return
    mallopt, trim = options
    mallopt(M_MMAP_MAX, 0)
    mallopt(M_TRIM_THRESHOLD, -1)  # never
    try:
        yield
    finally:
        mallopt(M_MMAP_MAX, 65536)
        mallopt(M_MMAP_THRESHOLD, 2**25)  # these two are what the library itself arrives at, where it is let alone
        mallopt(M_TRIM_THRESHOLD, 2**26)
        trim(0)


@contextmanager
def tf32(allowed):
    """Whether float32 products and convolutions may run in TF32 on a GPU, PyTorch's default for convolutions."""
    kept = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    try:
        torch.set_float32_matmul_precision("high" if allowed else "highest")
        torch.backends.cudnn.allow_tf32 = allowed
        yield
    finally:
        torch.set_float32_matmul_precision(kept[0])
        torch.backends.cudnn.allow_tf32 = kept[1]


def rank():
    """The number of this process among those of torch.distributed; 0 where there is one."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def world():
    """How many processes of torch.distributed train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def device_name(device):
    """The name of the GPU or of the processor."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines() if cpuinfo.exists() else []:
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def provenance(device, dtype, processes=1):
    """What a run was computed with: code, versions, device, precision."""
    commit, changes = _git("rev-parse", "HEAD"), _git("status", "--porcelain", "--", ".")
    return dict(
        git_commit=commit, git_dirty=None if commit is None else bool(changes),
        versions=dict(hcnn=VERSION, python=platform.python_version(), torch=torch.__version__),
        device=device_name(device), device_type=device.type, dtype=str(dtype).removeprefix("torch."),
        threads=torch.get_num_threads(), processes=processes,
    )


def _git(*arguments):
    """What git says about the folder of this package; None without git or outside the project's repository."""
    if not CHECKOUT:
        return None
    try:
        answer = subprocess.run(["git", *arguments], cwd=PACKAGE, capture_output=True, encoding="utf-8", timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() if answer.returncode == 0 else None
