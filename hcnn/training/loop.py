"""Training: epochs, checkpoints, and what happens when a run is stopped.

Every random choice of an epoch is drawn at its start from a generator that depends on (seed, epoch) alone, and a
checkpoint holds the position inside the epoch: a run that was stopped continues to the same weights.
"""

import time
from contextlib import nullcontext
from functools import partial
from math import inf
from pathlib import Path

import torch
import torch.distributed as dist

from hcnn import paths
from hcnn.data.datasets import Dataset, split_dataset
from hcnn.device import PRECISIONS, autocast_dtype, choose_device, numerics, provenance, rank, tf32, world
from hcnn.network import build
from hcnn.operators import all_sum
from hcnn.settings import is_integer
from hcnn.training import graphed, report, run_folder
from hcnn.training.evaluation import BATCH, evaluation_sums
from hcnn.training.recipe import Recipe, lr_at, size_at
from hcnn.training.step import Step, place_seed
from hcnn.training.stopping import Stopped, stop_on_signals

CHECKPOINT_SECONDS = 120  # between checkpoints inside an epoch
GPU_CHECK_STEPS = 50  # the GPU is asked for its loss, and the CPU waits, once in so many steps


def train(architecture, recipe: Recipe, dataset: Dataset, seed: int = 0, out: str | Path | None = None,
          device: str | torch.device = "auto", precision: str = "fast", split: str = "test",
          train_size: int | None = None, max_seconds: float | None = None, log=print) -> Path:
    """Train the network of a description by `recipe` on a Dataset; return the run's folder, below `out`.

    An unfinished run of the same parameters is continued, a finished one is returned as it is. After `max_seconds`,
    SIGTERM or SIGINT training stops within a step and leaves a checkpoint: run.json then has `epochs_done` below the
    recipe's epochs. architecture: an `Architecture`, or whatever else `build` knows. out: default results/runs.
    precision: `fast` (bfloat16 where the hardware has it, TF32) or `strict` (float32, deterministic). split,
    train_size: see `split_dataset`; with `validation` the columns test_* of metrics.csv are of the held-out images.
    The last row of metrics.csv, which counts, is tested in float32, the others in the precision of the training.
    Under torchrun every process takes its share of each minibatch.

    Raises ValueError for wrong parameters, or a folder that belongs to another run, before anything is written;
    BlockingIOError when another process writes the run; FloatingPointError when the loss is no longer finite, or the
    gradient zero.
    """
    begin = time.monotonic()
    data, device, out = split_dataset(dataset, split, train_size), choose_device(device), Path(out or paths.RUNS)
    _check(architecture, recipe, data, seed, precision, max_seconds)
    parameters = dict(
        dataset=dataset.name, substitutes=dataset.substitutes, architecture=architecture.as_dict(),
        recipe=recipe.as_dict(), seed=seed, split=split, train_size=train_size, precision=precision)
    folder, main = out / run_folder.run_name(parameters), rank() == 0
    log = log if main else lambda line: None
    if run_folder.is_finished(folder, parameters):
        accuracy = run_folder.read_run(folder)["test_accuracy"]
        log(f"{folder.name} is complete: {recipe.epochs} epochs, test accuracy {accuracy:.2%}")
        return folder
    if main:
        folder.mkdir(parents=True, exist_ok=True)
    gpu = device.type == "cuda"
    with (run_folder.lock(folder) if main else nullcontext(), numerics(precision, device),
          stop_on_signals(begin + (max_seconds or inf)) as stop, torch.random.fork_rng([device] if gpu else []),
          torch.cuda.device(device) if gpu else nullcontext()):
        try:
            training = _Training(architecture, recipe, data, parameters, folder, device, log, stop)
            training.restore()
            training.run()
            if world() > 1:
                dist.barrier()  # whoever returns may read what rank 0 has written
        except torch.OutOfMemoryError as error:
            raise MemoryError("the GPU is out of memory; lower batch_size, K or Q, or use precision='fast'. The last "
                              f"checkpoint in {folder} is kept") from error
    return folder


def _check(architecture, recipe, data, seed, precision, max_seconds):
    def require(name, holds, allowed, value):
        if not holds:
            raise ValueError(f"{name} must be {allowed}, got {value!r}")

    require("seed", is_integer(seed, 0) and seed < 2**63, "an integer of at least 0", seed)
    require("precision", precision in PRECISIONS, f"one of {', '.join(PRECISIONS)}", precision)
    require("max_seconds", max_seconds is None or isinstance(max_seconds, (int, float)) and max_seconds > 0,
            "a positive number or none", max_seconds)
    if architecture.one_process and world() > 1:
        raise ValueError(f"{architecture.variant} must be trained in one process, got {world()}: its normalisations "
                         "are not shared")
    shape = tuple(data.train_images.shape[1:])
    for name, value, found in (("num_classes", architecture.num_classes, len(data.classes)),
                               ("image_size", architecture.image_size, shape[1:]),
                               ("in_channels", architecture.in_channels, shape[0])):
        require(name, value == found, f"{found} for {data.name}", value)
    require("sizes", max(recipe.sizes, default=1) <= min(shape[1:]), f"at most {min(shape[1:])} for {data.name}",
            recipe.sizes)
    for name, labels in (("training", data.train_labels), ("test", data.test_labels)):
        if len(labels) == 0:
            raise ValueError(f"{data.name} must have {name} images, got none; choose another split or train_size")
        if labels.min() < 0 or labels.max() >= len(data.classes):
            raise ValueError(f"{name} labels of {data.name} must be 0 to {len(data.classes) - 1}, "
                             f"got {labels.min()} to {labels.max()}")


class _Training:
    """One run in progress: its network and step, and `state`, the part of the checkpoint that is not tensors."""

    def __init__(self, architecture, recipe, data, parameters, folder, device, log, stop):
        self.architecture, self.recipe, self.data, self.parameters = architecture, recipe, data, parameters
        self.folder, self.device, self.log, self.stop = folder, device, log, stop
        precision = parameters["precision"]
        self.dtype = autocast_dtype(precision, device)
        self.network = build(architecture, torch.Generator().manual_seed(parameters["seed"])).to(device)
        self.mean, self.std = recipe.mean or data.mean, recipe.std or data.std
        statistics = [torch.tensor(v, device=device).view(3, 1, 1) for v in (self.mean, self.std)]
        self.test = data.test_images.to(device), data.test_labels.to(device)
        eager = graphed.why_not(device, precision, world(), architecture.draws, recipe.optimiser)
        self.step = Step(self.network, recipe, data.train_images.to(device), data.train_labels.to(device),
                         statistics, self.dtype, eager, log)
        self.steps = -(-len(data.train_labels) // recipe.batch_size)
        self.here = provenance(device, self.dtype, world())
        self.state = dict(parameters=parameters, epoch=0, step=0, totals=[0.0, 0.0], seconds=0.0, train_seconds=0.0,
                          rows=[], provenance=[])

    def restore(self):
        """Continue from the checkpoint, or begin; the other files of the folder are written again from it."""
        self.log(report.announcement(self.architecture, self.data, self.here))
        if self.device.type == "cuda":
            self.log(report.gpu_line(self.network, self.device, self.dtype, self.step.eager))
        checkpoint = run_folder.read_checkpoint(self.folder, self.parameters)
        if checkpoint is not None:
            tensors, self.state = checkpoint
            run_folder.fill(self.network, tensors["network"], self.folder / run_folder.CHECKPOINT)
            self.step.optimiser.load(tensors["optimiser"])
            self.log(f"continuing in epoch {self.state['epoch'] + 1} after step {self.state['step']} of {self.steps}")
            totals = torch.tensor(self.state["totals"], dtype=torch.float64) / world()
            self.step.totals.copy_(totals.to(self.step.totals.dtype))
        here, sessions = self.here | dict(first_epoch=self.state["epoch"] + 1), self.state["provenance"]
        if not sessions or sessions[-1] | dict(first_epoch=here["first_epoch"]) != here:
            sessions.append(here)
        if world() > 1:
            dist.barrier()  # rank 0 may write again only when all have read
        if self.state["step"] == 0:
            self.publish()
        elif rank() == 0 and not (self.folder / run_folder.RUN).exists():  # deleted; the weights are of the last epoch
            weights = self.folder / run_folder.WEIGHTS
            digest = run_folder.sha256(weights.read_bytes()) if weights.exists() else None
            run_folder.write_run(self.folder, report.summary(self, digest))

    def save(self):
        """Write the checkpoint; every process takes part, because the sums of the epoch are shared out."""
        self.state["totals"] = all_sum(self.step.totals).tolist()
        tensors = dict(network=self.network.state_dict(), optimiser=self.step.optimiser.tensors())
        if not all(bool(t.isfinite().all()) for part in tensors.values() for t in part.values()):
            raise _diverged(self, "a weight is not finite", self.state["step"])
        if rank() == 0:
            run_folder.write_checkpoint(self.folder, tensors, self.state)
        self.saved = time.monotonic()

    def publish(self):
        """Write weights, metrics and run.json as of the last whole epoch; a finished run needs no checkpoint more."""
        if rank() != 0:
            return
        done = self.state["epoch"]
        digest = run_folder.write_weights(self.folder, self.network.state_dict()) if done else None
        run_folder.write_metrics(self.folder, self.state["rows"])
        run_folder.write_run(self.folder, report.summary(self, digest))
        if done == self.recipe.epochs:
            (self.folder / run_folder.CHECKPOINT).unlink(missing_ok=True)

    def run(self):
        """Train until the last epoch is done or the run is to stop."""
        state, epochs, self.saved = self.state, self.recipe.epochs, time.monotonic()
        while state["epoch"] < epochs:
            if not self._epoch():
                self.save()
                self.log(f"stopped ({self.stop.reason() or 'by another process'}) at epoch {state['epoch'] + 1} of "
                         f"{epochs}, step {state['step']} of {self.steps}; the same command continues")
                return
            self.save()
            self.publish()
        self.log(f"done: {self.folder.name}, test accuracy {state['rows'][-1]['test_accuracy']:.2%}")

    def _epoch(self):
        """One epoch from where it stands, evaluation included; False when it was broken off."""
        state, n, self.ticked = self.state, len(self.data.train_labels), time.monotonic()
        minibatch = self.step.minibatches(self.parameters["seed"], state["epoch"], self.data.flip)
        # a call that begins with an evaluation ends it: every call gets on, however short
        check = partial(self.stop.check, deadline=state["step"] < self.steps)
        try:
            self._descend(minibatch)
            self._require_gradient()
            loss, accuracy = _tested(self, check)
        except Stopped:
            return False
        finally:
            self._tick("seconds")
        epoch, (train_loss, right) = state["epoch"] + 1, all_sum(self.step.totals).tolist()
        state["rows"].append(dict(
            epoch=epoch, lr=lr_at(self.recipe, (epoch - 0.5) / self.recipe.epochs), train_loss=train_loss / n,
            train_accuracy=right / n, test_loss=loss, test_accuracy=accuracy, seconds=round(state["seconds"], 3)))
        self.log(report.epoch_line(state["rows"], self.recipe.epochs))
        self.step.totals.zero_()
        state.update(epoch=epoch, step=0, seconds=0.0)
        return True

    def _descend(self, minibatch):
        """The steps of an epoch that are left. Raises Stopped."""
        state, recipe, cpu = self.state, self.recipe, self.device.type == "cpu"
        progress = report.Progress(state["epoch"] + 1, self.steps, state["step"], self.log)
        self.network.train()
        try:
            while state["step"] < self.steps:
                step = state["step"]
                if self.architecture.draws:
                    torch.manual_seed(place_seed(self.parameters["seed"], state["epoch"], step))
                lr = lr_at(recipe, (state["epoch"] * self.steps + step) / (recipe.epochs * self.steps))
                asking = cpu or (step + 1) % GPU_CHECK_STEPS == 0 or step + 1 == self.steps
                self.step(minibatch(step), lr)
                if asking and not bool(self.step.totals[0].isfinite()):
                    raise _diverged(self, "the loss is not finite", step + 1)
                state["step"] = step + 1
                self._tick("seconds", "train_seconds")
                seen = min((step + 1) * recipe.batch_size, len(self.data.train_labels))
                progress.step(step + 1, self.step.totals / seen * world() if asking else None)
                stopping, saving = self._wishes(asking)
                if stopping:
                    raise Stopped
                if saving:
                    self.save()
        finally:
            progress.close()

    def _require_gradient(self):
        """Raise FloatingPointError where the last step had none: ELUs are saturated, all images have equal scores."""
        gradients = [p.grad for p in self.network.parameters() if p.grad is not None]
        if gradients and not any(bool(gradient.any()) for gradient in gradients):
            raise _diverged(self, "the gradient is zero and nothing is learnt any more", self.steps)

    def _wishes(self, asking):
        """Whether to stop and whether to save: what this process wants, or any of several where they ask each other."""
        wishes = self.stop.reason() is not None, asking and time.monotonic() - self.saved > CHECKPOINT_SECONDS
        if world() == 1:
            return wishes
        return all_sum(torch.tensor(wishes, dtype=torch.float32, device=self.device)).tolist() if asking else (0, 0)

    def _tick(self, *names):
        """Add the time since the last tick to entries of the state."""
        now = time.monotonic()
        for name in names:
            self.state[name] += now - self.ticked
        self.ticked = now


def _tested(training, check):
    """(loss, accuracy) on the test images, in float32 after the last epoch, before that in the precision of the
    training, which takes a fraction of the time; every process takes its share.
    """
    images, labels = training.test
    mine, step, epoch = slice(rank(), None, world()), training.step, training.state["epoch"]
    check = check if world() == 1 else lambda: None  # one process alone must not leave
    last = epoch + 1 == training.recipe.epochs
    batch_size = 500 if training.device.type == "cuda" and not last else BATCH  # HCNN(+) is not fused in float32
    with tf32(False) if last else step.autocast():
        totals = evaluation_sums(training.network, images[mine], labels[mine], *step.statistics, batch_size, check,
                                 size_at(training.recipe, epoch))
    totals = all_sum(totals)
    if not totals.isfinite().all():
        raise _diverged(training, "the loss on the test images is not finite", training.steps)
    return (totals / len(labels)).tolist()


def _diverged(training, what, step):
    """The error that says where a training broke, and what helps."""
    where = f"step {step}"
    if training.device.type != "cpu":
        where = f"a step between {max(1, step - GPU_CHECK_STEPS)} and {step}"
    return FloatingPointError(
        f"{what} at epoch {training.state['epoch'] + 1}, {where} of {training.steps}; lower lr "
        f"({training.recipe.lr:g}), set output_norm=True where the network has it or use precision='strict'. Nothing "
        f"is lost: the folder {training.folder} stays as it was at the last checkpoint")
