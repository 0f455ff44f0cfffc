"""Seconds and memory of the paths of a `Case`, in a process of its own.

All paths take turns after a warm-up, so that what slows the machine slows all of them. A path whose results differ from
the literal equations in float64 by more than rounding explains is not timed.
"""

import ctypes
import gc
import logging
import multiprocessing
import os
import re
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from statistics import median, quantiles
from unittest.mock import patch

import numpy as np
import torch
from scipy.stats import bootstrap

from hcnn.companion.speed.cases import available, multiplications, parity, step_of
from hcnn.device import device_name, memory_kept, tf32
from hcnn.training.graphed import WARM_UP, GraphedStep

MATRIX = {"cpu": 2048, "cuda": 8192}  # side of the matrices whose product is the yardstick of the machine
STEP = 3  # times the multiplications of its forward pass: as many for the gradient of the input and of the filters
BLOCK, YARDSTICK = 0.02, 1.0  # least seconds of a block of steps that are timed together, of the product of matrices


def run(case, log=print):
    """Measure a case: a row of speed.csv for each path. A line for each path that is not timed.

    spread: the quartile range of the seconds; ratio_low, ratio_high: 95% of the ratio of medians; matrix_spread: the
    quartile range of the yardstick as a share of its median. Where the literal path failed its check, what is held
    against it is not a number.
    """
    answer = _answer(case)
    for line in answer["lines"]:
        log(line)
    useful, dense = (2 * STEP * n * case.batch / 1e9 for n in multiplications(case))
    literal, made = answer["seconds"].get(("literal", "fp32")), []
    for (path, precision), seconds in answer["seconds"].items():
        low, _, high = quantiles(seconds, n=4, method="inclusive")
        rate, rate_spread = answer["yardstick"][precision]
        ratio_low, ratio_high = _ratio_interval(literal, seconds)
        made.append(dict(
            asdict(case), processor=device_name(torch.device(case.device)), torch=torch.__version__, path=path,
            precision=precision, seconds=median(seconds), spread=high - low,
            peak_mb=answer["memory"][path, precision], literal_seconds=median(literal or [float("nan")]),
            useful_gflop=useful, dense_gflop=dense, ratio_low=ratio_low, ratio_high=ratio_high, matrix_gflops=rate,
            matrix_spread=rate_spread))
    return made


def _ratio_interval(literal, seconds):
    """95% of median(literal) / median(seconds), rounds drawn again with both that took turns in them."""
    if literal is None:
        return float("nan"), float("nan")
    drawn = bootstrap((literal, seconds), lambda a, b, axis: np.median(a, axis) / np.median(b, axis), paired=True,
                      method="percentile", rng=0)
    return drawn.confidence_interval


def _answer(case):
    """What `measure` says in a new process, with threads and cuDNN as in a training."""
    threads = str(case.threads)
    with (patch.dict(os.environ, OMP_NUM_THREADS=threads, MKL_NUM_THREADS=threads),
          ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), _begin, (case,)) as pool):
        try:
            return pool.submit(measure, case).result()
        except Exception as error:
            raise RuntimeError(f"the measurement of {case} failed: {error}") from error


def _begin(case):
    torch.set_num_threads(case.threads)
    torch.backends.cudnn.benchmark = True


def measure(case):
    """Seconds and memory by (path, precision), the yardstick by precision, lines about the paths that are wrong."""
    steps, lines = _right_steps(case)
    timers = {key: _timer("step()", case.threads, step=step) for key, step in steps.items()}
    block = {}
    for key, timer in timers.items():
        with tf32(key[1] == "TF32"):
            block[key] = timer.blocked_autorange(min_run_time=BLOCK).number_per_run
    seconds = {key: [] for key in steps}
    with memory_kept() if case.device == "cpu" else nullcontext():
        for _ in range(case.rounds):
            for key, timer in timers.items():
                with tf32(key[1] == "TF32"):
                    seconds[key] += timer.timeit(block[key]).times
    memory = {key: _peak(step, key, case.device) for key, step in steps.items()}
    yardstick = {p: _matrix_rate(case.device, p, case.threads) for p in {precision for _, precision in steps}}
    return dict(lines=lines, seconds=seconds, memory=memory, yardstick=yardstick)


def _timer(statement, threads, **names):
    """A Timer of torch.utils.benchmark, without the warning that its import gives where there is no GPU."""
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    from torch.utils.benchmark import Timer

    return Timer(statement, globals=names, num_threads=threads)


def _right_steps(case):
    """{(path, precision): step} of the paths that compute what they should, and a line about each of the others."""
    K, size = (case.K, 4) if case.what == "layer" else (min(case.K, 8), 8)
    small = replace(case, K=K, Q=min(case.Q, 9), size=size, batch=2, threads=1)
    steps, lines = {}, []
    for path, precision in available(case):
        if path == "graph":
            eager = step_of(case, path, precision)
            graph = GraphedStep([], lines.append)
            for _ in range(WARM_UP + 1):
                graph(eager)
            if graph.replay is not None:
                steps[path, precision] = partial(graph, eager)
            continue
        with tf32(precision == "TF32"):
            error, allowed = parity(small, path, precision)
        if error <= allowed:
            steps[path, precision] = step_of(case, path, precision)
        else:
            lines.append(f"{case.variant} {path} {precision} is wrong and not timed: error {error:.1e}, "
                         f"rounding explains {allowed:.1e}")
    return steps, lines


def _peak(step, key, device):
    """Megabytes that a step takes beyond what is there before: by the GPU's allocator, by the resident set on a CPU.

    On a CPU what earlier steps have freed is first given back to the system, and large blocks are from now on as soon
    as they are freed; then the system's high-water mark is reset. None where this is not Linux with its usual C
    library, and for a graph, which has taken its memory before.
    """
    if key[0] == "graph":
        return None
    with tf32(key[1] == "TF32"):
        gc.collect()
        if device == "cuda":
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            step()
            torch.cuda.synchronize()
            return (torch.cuda.max_memory_allocated() - before) / 1e6
        try:
            libc = ctypes.CDLL("libc.so.6")
            libc.mallopt(-3, 65536)  # M_MMAP_THRESHOLD, in bytes
            step()
            libc.malloc_trim(0)
            Path("/proc/self/clear_refs").write_text("5", "ascii")  # resets VmHWM
        except OSError:
            return None
        before = _status("VmRSS")
        step()
        return (_status("VmHWM") - before) / 1e6


def _status(name):
    """Bytes, from what Linux says of this process."""
    return 1024 * int(re.search(rf"^{name}:\s+(\d+) kB", Path("/proc/self/status").read_text("ascii"), re.M)[1])


def _matrix_rate(device, precision, threads):
    """(billions of operations a second of a large matrix product, quartile range / median): the machine's yardstick."""
    n, dtype = MATRIX[device], torch.bfloat16 if precision == "bf16" else torch.float32
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    with tf32(precision == "TF32"):
        product = _timer("torch.mm(a, b)", threads, torch=torch, a=a, b=b).blocked_autorange(min_run_time=YARDSTICK)
    return 2 * n**3 / product.median / 1e9, product.iqr / product.median
