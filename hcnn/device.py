"""The machine a run uses: which device, in which precision, and the record of both."""

import os
import platform
import subprocess
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed as dist

from hcnn.paths import ROOT, VERSION

PRECISIONS = ("fast", "strict")
WITHOUT = "HCNN_WITHOUT"  # environment: `graph`, `fused` or both, separated by commas, are not used on a GPU


def choose_device(name="auto"):
    """The torch.device called `name`; "auto" takes a GPU where there is one (the one of this process under torchrun).

    Raises ValueError for a device that is not there.
    """
    gpu = torch.cuda.is_available()
    if name == "auto":
        name = f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if gpu else "cpu"
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"device must be auto, cpu, cuda or cuda:<number>, got {name!r}") from error
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"device must be auto, cpu, cuda or cuda:<number>, got {name!r}")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device must be one of this machine, got {str(name)!r}; it has "
                         f"{torch.cuda.device_count()} CUDA devices")
    return device


def autocast_dtype(precision, device):
    """torch.bfloat16 where `fast` matrix products run in it, in hardware; else torch.float32."""
    if precision == "strict":
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
    """`fast`: TF32 on the GPU and the fastest convolution; `strict`: no TF32 and deterministic algorithms only.
    Restored at the end.
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
        with tf32(fast):
            yield
    finally:
        torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
        torch.backends.cudnn.benchmark = benchmark


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
    commit, changes = _git("rev-parse", "HEAD"), _git("status", "--porcelain", "--", "hcnn")
    return dict(
        git_commit=commit, git_dirty=None if commit is None else bool(changes),
        versions=dict(hcnn=VERSION, python=platform.python_version(), torch=torch.__version__),
        device=device_name(device), device_type=device.type, dtype=str(dtype).removeprefix("torch."),
        threads=torch.get_num_threads(), processes=processes,
    )


def _git(*arguments):
    """What git says about the folder of this package; None without git or outside a repository."""
    try:
        answer = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() if answer.returncode == 0 else None
