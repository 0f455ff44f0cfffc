"""python -m hcnn gpu-check: does this machine's GPU train as the CPU's tests promise? Four minutes at most.

Five stages, from what is needed most; the first that fails ends the check with what to switch off. What is measured is
written to report.json of the folder, with the profile of each variant: it says how fast this machine is, and is no
result of the paper.
"""

import csv
import importlib
import json
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from unittest.mock import patch

import torch

from hcnn import device as machine
from hcnn.architecture import VARIANTS, Architecture
from hcnn.companion.speed.cases import Case, step_of
from hcnn.data.datasets import Dataset
from hcnn.network import build
from hcnn.operators import fused
from hcnn.training.graphed import WARM_UP
from hcnn.training.loop import train
from hcnn.training.recipe import Recipe
from hcnn.training.run_folder import METRICS, read_run

MAX_SECONDS = 240
LOSSES = 0.02  # relative difference of the mean loss of an epoch, graph beside eager, that bfloat16 explains
WITHOUT = machine.WITHOUT


class Failure(Exception):
    """What is wrong, and what to do without."""


@dataclass
class Check:
    """What is checked, where, and what has been found. steps: of each training, after which losses are compared."""

    device: torch.device
    out: Path
    architectures: dict = field(default_factory=lambda: {v: Architecture.preset("cifar10", v) for v in VARIANTS})
    steps: int = 200
    log: Callable = print
    found: dict = field(default_factory=dict)

    @property
    def gpu(self):
        return self.device.type == "cuda"

    def note(self, line, **numbers):
        self.log("  " + line)
        self.found.update(numbers)

    def train(self, architecture, data, name, epochs, log, max_seconds=None):
        """A training in minibatches of 50; its folder."""
        return train(architecture, Recipe(epochs=epochs, batch_size=50, lr=0.05), data, out=self.out / name,
                     device=str(self.device), max_seconds=max_seconds, log=log)


def images(n, architecture):
    """Random images whose colours tell their class apart, so that a loss falls within a few steps."""
    generator, C = torch.Generator().manual_seed(0), architecture.num_classes
    labels = torch.arange(n + C) % C
    mean = torch.randint(60, 196, (C, 3, 1, 1), generator=generator)[labels]
    noise = 40 * torch.randn(n + C, 3, *architecture.image_size, generator=generator)
    pixels = (mean + noise).clamp(0, 255).to(torch.uint8)
    return Dataset("cifar10", pixels[:n], labels[:n], pixels[n:], labels[n:], tuple(map(str, range(C))), (0.5,) * 3,
                   (0.25,) * 3, "0" * 64)


def versions(check):
    """What is installed, and the GPU."""
    if not check.gpu:
        raise Failure("there is no CUDA device for PyTorch; nothing to switch off: everything runs on the CPU")
    found = dict.fromkeys(("torch", "triton", "numpy", "safetensors"), "absent")
    for name in found:
        with suppress(ImportError):
            found[name] = importlib.import_module(name).__version__
    properties = torch.cuda.get_device_properties(check.device)
    check.note(f"Python {platform.python_version()}, " + ", ".join(f"{k} {v}" for k, v in found.items()))
    check.note(f"{properties.name}, {properties.multi_processor_count} multiprocessors, CUDA {torch.version.cuda}, "
               f"{properties.total_memory / 2**30:.0f} GiB", versions=found, gpu=properties.name)


def kernels(check):
    """Every kernel of Triton beside PyTorch's operators, at every shape of a layer that the trainings have."""
    dtype, rows = machine.autocast_dtype("fast", check.device), check.found.setdefault("trials", [])
    for variant, architecture in check.architectures.items():
        begin, errors = time.monotonic(), {}
        for layer, operator in zip(architecture.layers, build(architecture).operators):
            shape = layer.grid, layer.size, layer.filters, layer.space.stride
            if layer.Q is None or shape in errors:
                continue
            errors[shape] = error = fused.trial_error(operator, check.device, dtype, layer.size)
            rows.append(dict(variant=variant, grid=layer.grid, size=layer.size, filters=layer.filters,
                             stride=layer.space.stride, error=error))
            if isinstance(error, str) or not error < fused.TRIAL_ERROR:
                raise Failure(f"{VARIANTS[variant]}, layer {layer.j}: {error}; train with {WITHOUT}=fused")
        check.note(f"{VARIANTS[variant]}: {len(errors)} shapes of a layer right, relative error at most "
                   f"{max(errors.values(), default=0):.1e} of {fused.TRIAL_ERROR}, {time.monotonic() - begin:.0f} s")


def graph(check):
    """Each variant on random images as a CUDA graph and kernel by kernel: the same losses, and the time of a step."""
    for variant, architecture in check.architectures.items():
        data, losses = images(50 * check.steps, architecture), []
        for way, without in (("graph", ""), ("eager", "graph")):
            lines, peaks = [], []

            def log(line, lines=lines, peaks=peaks):
                lines.append(line)
                if check.gpu and line.startswith("epoch"):
                    peaks.append(torch.cuda.max_memory_allocated() / 1e6)
                    torch.cuda.reset_peak_memory_stats()

            with patch.dict("os.environ", {WITHOUT: f"{os.environ.get(WITHOUT, '')},{without}"}):
                folder = check.train(architecture, data, way, 3, log)
            if spoilt := [line for line in lines if "no CUDA graph" in line]:
                raise Failure(f"{VARIANTS[variant]}: {spoilt[0]}; train with {WITHOUT}=graph")
            # of the second epoch: cuDNN tries its algorithms in the first, the last is tested in float32
            first, second, _ = _epochs(folder)
            loss, ms = first["train_loss"], 1000 * second["seconds"] / check.steps
            memory = peaks[1] if len(peaks) > 1 else 0
            check.note(f"{VARIANTS[variant]} {way}: loss {loss:.4f}, {ms:.2f} ms a step, {memory:.0f} MB",
                       **{f"{variant} {way}": dict(loss=loss, ms=ms, mb=memory, said=lines[1:2])})
            losses.append(loss)
        if not abs(losses[0] - losses[1]) <= LOSSES * losses[1]:
            raise Failure(f"{VARIANTS[variant]}: losses {losses[0]:.4f} and {losses[1]:.4f}, as a graph and kernel by "
                          f"kernel; train with {WITHOUT}=graph")


def _epochs(folder):
    """The rows of metrics.csv."""
    with open(folder / METRICS, newline="", encoding="utf-8") as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]


def resume(check):
    """A training that is stopped after a step is continued to its end."""
    architecture, said = next(iter(check.architectures.values())), []
    data = images(500, architecture)
    for seconds in (1e-9, None):
        folder = check.train(architecture, data, "resume", 2, said.append, max_seconds=seconds)
    continued = [line for line in said if line.startswith("continuing")]
    if not continued or read_run(folder)["epochs_done"] != 2:
        raise Failure(f"the training was not continued to its end: {said[-1]}; train with {WITHOUT}=graph")
    check.note(f"{continued[0]}; {said[-1]}")


def profile(check):
    """Milliseconds of a forward and backward pass, and of its 30 longest kernels, in a file of each variant."""
    for variant, architecture in check.architectures.items():
        case = Case("network", variant, K=architecture.K, Q=architecture.Q, batch=50, size=architecture.image_size[0],
                    device=check.device.type)
        step = step_of(case, "graph", "bf16" if check.gpu else "fp32")
        for _ in range(WARM_UP):
            step()
        kind, steps = check.device.type, min(10, check.steps)
        with torch.profiler.profile(activities=[getattr(torch.profiler.ProfilerActivity, kind.upper())]) as seen:
            for _ in range(steps):
                step()
            if check.gpu:
                torch.cuda.synchronize()
        table = seen.key_averages().table(sort_by=f"self_{kind}_time_total", row_limit=30, max_name_column_width=90)
        path = check.out / f"profile-{variant}.txt"
        path.write_text(table, encoding="utf-8")
        check.note(f"{VARIANTS[variant]}: the 30 longest kernels of {steps} steps, kernel by kernel, in {path}")


STAGES = (versions, kernels, graph, resume, profile)


def gpu_check(check, max_seconds=MAX_SECONDS, stages=STAGES):
    """Run the stages; whether all of them were right. Raises nothing for what fails: it says so, and what to do
    without.
    """
    begin, advice = time.monotonic(), f"train with {WITHOUT}=graph,fused, or on the CPU with --device cpu"
    for name in ("graph", "eager", "resume"):  # trainings of an earlier check, which would not be trained again
        shutil.rmtree(check.out / name, ignore_errors=True)
    check.out.mkdir(parents=True, exist_ok=True)
    failure = None
    for number, stage in enumerate(stages, 1):
        if time.monotonic() - begin > max_seconds:
            failure = f"not begun after {max_seconds:g} s; what came before was right"
        else:
            check.log(f"{number} of {len(stages)} {stage.__name__}: {stage.__doc__.partition(chr(10))[0]}")
            try:
                stage(check)
            except Failure as error:
                failure = str(error)
            except Exception as error:  # a check says what has happened, whatever it is
                failure = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}; {advice}"
        check.found.update(failed=failure, seconds=round(time.monotonic() - begin, 1))
        report = json.dumps(check.found, indent=1) + "\n"
        (check.out / "report.json").write_text(report, "utf-8")  # now: the next stage may end the process
        if failure:
            check.log(f"FAILED at {stage.__name__}: {failure}")
            break
    check.log(f"{'no fault found' if not failure else 'stopped'} after {check.found['seconds']} s; "
              f"{check.out / 'report.json'}")
    return failure is None


def run_gpu_check(options):
    out = Path(options.out or tempfile.mkdtemp(prefix="hcnn-gpu-check-"))
    return 0 if gpu_check(Check(machine.choose_device(options.device), out)) else 1
