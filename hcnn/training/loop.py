"""Training: the loop, its checkpoints, what it does when it is stopped, and evaluation.

Every random choice of an epoch is drawn at its start from a generator that depends on (seed, epoch) alone, and a checkpoint
holds the position inside the epoch: a run that was stopped continues to the same weights.
"""

import time
from contextlib import nullcontext
from pathlib import Path
from weakref import WeakMethod

import torch
import torch.distributed as dist
import torch.nn.functional as F

from hcnn import paths
from hcnn.architecture import Architecture
from hcnn.companion.baselines.networks import attention_distance
from hcnn.companion.baselines.systems import Baseline, stored_weights
from hcnn.data.augment import augment
from hcnn.data.datasets import split_dataset
from hcnn.device import PRECISIONS, autocast_dtype, choose_device, numerics, provenance, tf32
from hcnn.network import build
from hcnn.operators import fused
from hcnn.training import graphed
from hcnn.training import run_folder as runs
from hcnn.training.evaluation import evaluate, evaluation_sums
from hcnn.training.recipe import Recipe, lr_at, preset_of
from hcnn.training.stopping import Stopped, stop_on_signals
from hcnn.training.trained import load_teacher

__all__ = ["Recipe", "evaluate", "lr_at", "train"]
CHECKPOINT_SECONDS = 120  # between checkpoints inside an epoch
LINE_SECONDS = 60  # between lines inside an epoch
GPU_CHECK_STEPS = 50  # the GPU is asked for its loss, and the CPU waits, once in so many steps


def train(architecture, recipe, dataset, seed=0, out=None, device="auto", precision="fast", split="test", train_size=None,
          max_seconds=None, log=print):
    """Train the network of an Architecture or a Baseline by `recipe` on a Dataset; return the run's folder, a Path below `out`
    (default: results/runs), where a teacher's is looked for as well.

    An unfinished run of the same parameters is continued, a finished one is returned as it is. After `max_seconds`, SIGTERM or
    SIGINT training stops within a step and leaves a checkpoint: run.json then has `epochs_done` below the recipe's epochs.
    precision: `fast` (bfloat16 where the hardware has it, TF32) or `strict` (float32, deterministic). split, train_size: see
    `split_dataset`; with `validation` the columns test_* of metrics.csv are of the held-out images. The last row of metrics.csv,
    which counts, is tested in float32, the others in the precision of the training. Under torchrun every process takes its
    share of each minibatch.

    Raises ValueError for wrong parameters, or a folder that belongs to another run, before anything is written; BlockingIOError
    when another process writes the run; FloatingPointError when the loss is no longer finite.
    """
    begin = time.monotonic()
    dataset_name, data = dataset.name, split_dataset(dataset, split, train_size)
    device = choose_device(device)
    _check(architecture, data, seed, precision, max_seconds)
    out = Path(out or paths.RUNS)
    teacher = load_teacher(architecture, out, dataset_name, split)
    deadline = None if max_seconds is None else begin + max_seconds
    parameters = dict(
        dataset=dataset_name, substitutes=dataset.substitutes, architecture=architecture.as_dict(), recipe=recipe.as_dict(),
        seed=seed, split=split, train_size=train_size, precision=precision,
    )
    folder = out / runs.run_name(parameters)
    main = _rank() == 0
    log = log if main else lambda line: None
    if runs.is_finished(folder, parameters):
        log(f"{folder.name} is complete: {recipe.epochs} epochs, test accuracy {runs.read_run(folder)['test_accuracy']:.2%}")
        return folder
    if main:
        folder.mkdir(parents=True, exist_ok=True)
    if _world() > 1:
        dist.barrier()
    gpu = device.type == "cuda"
    with runs.lock(folder) if main else nullcontext(), numerics(precision, device), stop_on_signals(deadline) as stop, \
            torch.random.fork_rng([device] if gpu else []), torch.cuda.device(device) if gpu else nullcontext():
        try:
            training = _Training(architecture, recipe, data, parameters, folder, device, log, stop, teacher)
            training.restore()
            training.run()
        except torch.OutOfMemoryError as error:
            raise MemoryError("the GPU is out of memory; lower batch_size, K or Q, or use precision='fast'. The last checkpoint "
                               f"in {folder} is kept") from error
    return folder


def _check(architecture, dataset, seed, precision, max_seconds):
    if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 2**63:
        raise ValueError(f"seed must be an integer of at least 0, got {seed!r}")
    if precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")
    if max_seconds is not None and not (isinstance(max_seconds, (int, float)) and max_seconds > 0):
        raise ValueError(f"max_seconds must be a positive number or none, got {max_seconds!r}")
    if isinstance(architecture, Baseline) and _world() > 1:
        raise ValueError(f"{architecture.variant} must be trained in one process, got {_world()}: their normalisations are not shared")
    for name, value, found in (("num_classes", architecture.num_classes, len(dataset.classes)),
                               ("image_size", architecture.image_size, tuple(dataset.train_images.shape[2:])),
                               ("in_channels", architecture.in_channels, dataset.train_images.shape[1])):
        if value != found:
            raise ValueError(f"{name} must be {found} for {dataset.name}, got {value!r}")
    for name, labels in (("training", dataset.train_labels), ("test", dataset.test_labels)):
        if len(labels) == 0:
            raise ValueError(f"{dataset.name} must have {name} images, got none; choose another split or train_size")
        if labels.min() < 0 or labels.max() >= len(dataset.classes):
            raise ValueError(f"{name} labels of {dataset.name} must be 0 to {len(dataset.classes) - 1}, "
                             f"got {labels.min()} to {labels.max()}")


def _rank():
    return dist.get_rank() if dist.is_initialized() else 0


def _world():
    return dist.get_world_size() if dist.is_initialized() else 1


class _Training:
    """One run in progress: the network, its optimiser, and `state`, the part of the checkpoint that is not tensors."""

    def __init__(self, architecture, recipe, data, parameters, folder, device, log, stop, teacher):
        self.architecture, self.recipe, self.data, self.parameters = architecture, recipe, data, parameters
        self.folder, self.device, self.log, self.stop = folder, device, log, stop
        seed = parameters["seed"]
        self.network = build(architecture, torch.Generator().manual_seed(seed)).to(device)
        self.draws = any(isinstance(module, torch.nn.Dropout) for module in self.network.modules())
        self.teacher = None if teacher is None else teacher.to(device)
        self.eager = eager = graphed.why_not(device, parameters["precision"], _world(), self.draws or teacher is not None)
        filters = self.network.filter_parameters()
        others = [p for p in self.network.parameters() if all(p is not f for f in filters)]
        self.optimiser = torch.optim.SGD(
            [dict(params=filters, weight_decay=recipe.weight_decay), dict(params=others, weight_decay=0.0)],
            lr=recipe.lr if eager else graphed.device_lr(recipe.lr, device), momentum=recipe.momentum, nesterov=recipe.nesterov,
            fused=True if device.type == "cuda" or not eager else None)
        step = WeakMethod(self._whole_step)  # a cycle would keep the memory of a training when the next one of a queue begins
        self.graphed = None if eager else graphed.GraphedStep(
            lambda *inputs: step()(*inputs), [*self.network.parameters(), *self.network.buffers()], log)
        self.dtype = autocast_dtype(parameters["precision"], device)
        self.here = provenance(device, self.dtype, _world())
        self.mean, self.std = recipe.mean or data.mean, recipe.std or data.std
        self.statistics = [torch.tensor(v, device=device).view(3, 1, 1) for v in (self.mean, self.std)]
        self.images, self.labels = data.train_images.to(device), data.train_labels.to(device)
        self.test = data.test_images.to(device), data.test_labels.to(device)
        self.steps = -(-len(self.labels) // recipe.batch_size)
        self.totals = torch.zeros(2, dtype=torch.float64, device=device)  # of this epoch: sum of losses, right classes
        self.state = dict(parameters=parameters, epoch=0, step=0, totals=[0.0, 0.0], seconds=0.0, train_seconds=0.0, rows=[], provenance=[])

    # ---- the folder

    def restore(self):
        """Continue from the checkpoint, or begin; the other files of the folder are written again from it."""
        self._announce()
        checkpoint = runs.read_checkpoint(self.folder)
        if checkpoint is not None:
            tensors, state = checkpoint
            if state["parameters"] != self.parameters:
                raise ValueError(f"{self.folder / runs.CHECKPOINT} belongs to another run; delete it to start again")
            self._load(tensors)
            self.state = state
            self.log(f"continuing in epoch {state['epoch'] + 1} after step {state['step']} of {self.steps}")
            self.totals.copy_(torch.tensor(state["totals"], dtype=torch.float64) / _world())
        elif _rank() == 0 and (self.folder / runs.RUN).exists() and runs.read_run(self.folder)["epochs_done"]:
            raise ValueError(f"{self.folder} has {runs.RUN} of an unfinished run, but no {runs.CHECKPOINT} to continue from; "
                             "restore it, or delete the folder to start again")
        self.state["provenance"] = [p for p in self.state["provenance"] if p != self.here] + [self.here]
        if _world() > 1:
            dist.barrier()  # rank 0 may write again only when all have read
        if self.state["step"] == 0:
            self.publish()

    def _load(self, tensors):
        momentum = {"momentum." + name: p for name, p in self.network.named_parameters()} if self.recipe.momentum else {}
        runs.check_fit(self.folder / runs.CHECKPOINT, tensors, self._tensors() | momentum)
        self.network.load_state_dict({name.removeprefix("network."): t for name, t in tensors.items() if name.startswith("network.")})
        for name, p in self.network.named_parameters():
            if "momentum." + name in tensors:
                self.optimiser.state[p]["momentum_buffer"] = tensors["momentum." + name].to(self.device)

    def _tensors(self):
        tensors = {"network." + name: tensor for name, tensor in self.network.state_dict().items()}
        for name, p in self.network.named_parameters():
            if self.optimiser.state[p].get("momentum_buffer") is not None:
                tensors["momentum." + name] = self.optimiser.state[p]["momentum_buffer"]
        return tensors

    def save(self):
        """Write the checkpoint; every process takes part, because the sums of the epoch are shared out."""
        totals = self.totals.clone()
        if _world() > 1:
            dist.all_reduce(totals)
        self.state["totals"] = totals.tolist()
        tensors = self._tensors()
        if not all(bool(t.isfinite().all()) for t in tensors.values() if t.is_floating_point()):
            self._diverged("a weight is not finite", self.state["step"])
        if _rank() == 0:
            runs.write_checkpoint(self.folder, tensors, self.state)
        self.saved = time.monotonic()

    def publish(self):
        """Write weights, metrics and run.json as of the last whole epoch; a finished run needs no checkpoint any more."""
        if _rank() != 0:
            return
        done = self.state["epoch"]
        digest = runs.write_weights(self.folder, stored_weights(self.network)) if done else None
        runs.write_metrics(self.folder, self.state["rows"])
        runs.write_run(self.folder, self._summary(digest))
        if done == self.recipe.epochs:
            runs.delete_checkpoint(self.folder)

    def _summary(self, weights_sha256):
        state, data, rows = self.state, self.data, self.state["rows"]
        preset, overrides = preset_of(self.architecture, self.recipe, data.name)
        images = len(self.labels) * state["epoch"]
        return dict(
            name=self.folder.name, parameters=self.parameters, preset=preset, overrides=overrides,
            epochs=self.recipe.epochs, epochs_done=state["epoch"],
            test_accuracy=rows[-1]["test_accuracy"] if rows else None, test_loss=rows[-1]["test_loss"] if rows else None,
            tested_on="test images" if self.parameters["split"] == "test" else "held-out training images",
            train_images=len(self.labels), test_images=len(self.test[1]), substitutes=data.substitutes, data_checksum=data.checksum,
            classes=list(data.classes), mean=list(self.mean), std=list(self.std), counts=self.architecture.count(),
            seconds=round(sum(row["seconds"] for row in rows), 3),
            images_per_second=round(images / state["train_seconds"], 2) if rows else None,
            **state["provenance"][-1], earlier=state["provenance"][:-1], weights_sha256=weights_sha256,
        )

    # ---- the loop

    def run(self):
        """Train until the last epoch is done or the run is to stop."""
        self.saved = self.printed = time.monotonic()
        while self.state["epoch"] < self.recipe.epochs:
            if not self._epoch():
                self.save()
                epoch, step = self.state["epoch"], self.state["step"]
                self.log(f"stopped ({self.stop.reason() or 'by another process'}) at epoch {epoch + 1} of {self.recipe.epochs}, step "
                         f"{step} of {self.steps}; the same command continues")
                return
            self.save()
            self.publish()
        self.log(f"done: {self.folder.name}, test accuracy {self.state['rows'][-1]['test_accuracy']:.2%}")

    def _epoch(self):
        """One epoch from where it stands, evaluation included; False when it was broken off."""
        state, recipe, begin = self.state, self.recipe, time.monotonic()
        before, before_training = state["seconds"], state["train_seconds"]

        def clock():
            state["seconds"] = before + time.monotonic() - begin

        check = self.stop.check_signal  # a call that begins with an evaluation ends it: every call gets on, however short
        if state["step"] < self.steps:
            check = self.stop.check
            order, shifts, flips = self._draw(state["epoch"])
            self.network.train()
            while state["step"] < self.steps:
                if self.draws:
                    torch.manual_seed(self._seed(state["epoch"], state["step"]))
                stopping, saving = self._step(order, shifts, flips)
                clock()
                state["train_seconds"] = before_training + time.monotonic() - begin
                if stopping:
                    return False
                if saving:
                    self.save()
        try:
            test_loss, test_accuracy = self._evaluate(check)
        except Stopped:
            clock()
            return False
        totals = self.totals.clone()
        if _world() > 1:
            dist.all_reduce(totals)
        loss, accuracy = (totals / len(self.labels)).tolist()
        clock()
        epoch = state["epoch"] + 1
        state["rows"].append(dict(
            epoch=epoch, lr=lr_at(recipe, (epoch - 0.5) / recipe.epochs), train_loss=loss, train_accuracy=accuracy, test_loss=test_loss,
            test_accuracy=test_accuracy, seconds=round(state["seconds"], 3)))
        self._line(state["rows"])
        self.totals.zero_()
        state.update(epoch=epoch, step=0, seconds=0.0)
        return True

    def _draw(self, epoch):
        """The order of the images and the shift and flip of each place in it, on the device."""
        n = len(self.labels)
        generator, shift = torch.Generator().manual_seed(self._seed(epoch)), self.recipe.shift
        order = torch.randperm(n, generator=generator)
        shifts = torch.randint(-shift, shift + 1, (n, 2), generator=generator)
        flips = torch.rand(n, generator=generator) < 0.5
        if not (self.recipe.flip and self.data.flip):
            flips.zero_()
        return order.to(self.device), shifts.to(self.device), flips.to(self.device)

    def _seed(self, *place):
        """The seed of a place in the training: (epoch,), or (epoch, step) for dropout."""
        return int(runs.sha256(" ".join(map(str, (self.parameters["seed"], *place))))[:15], 16)

    def _autocast(self):
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.dtype == torch.bfloat16)

    def _losses(self, x, y):
        """Class scores, the sum of the images' cross-entropies, and what is minimised: the same, or with a teacher more."""
        if self.teacher is None:
            logits = self.network(x)
            loss = F.cross_entropy(logits.float(), y, reduction="sum")
            return logits, loss, loss
        ours = self.network.body.outputs(x)
        with torch.no_grad():
            theirs = self.teacher.body.outputs(x)
        logits = self.network.body.classify(ours[-1])
        loss = F.cross_entropy(logits.float(), y, reduction="sum")
        return logits, loss, loss + self.architecture.beta * attention_distance(ours, theirs)

    def _descend(self, chosen, shifts, flips, n, weight=1):
        """The gradient for some images of a minibatch of n, and their part of the sums of the epoch."""
        x = augment(self.images[chosen], shifts, flips, *self.statistics)
        y = self.labels[chosen]
        with self._autocast():
            logits, loss, objective = self._losses(x, y)
        self.optimiser.zero_grad()
        (objective * weight / n).backward()
        self.totals += torch.stack([loss.detach(), (logits.argmax(1) == y).sum()]) * weight

    def _whole_step(self, chosen, shifts, flips):
        self._descend(chosen, shifts, flips, self.recipe.batch_size)
        self.optimiser.step()

    def _step(self, order, shifts, flips):
        """One step of gradient descent: (whether to stop, whether to write a checkpoint), the same in all processes."""
        state, recipe, world, rank = self.state, self.recipe, _world(), _rank()
        step = state["step"]
        first = step * recipe.batch_size
        n = min(recipe.batch_size, len(order) - first)
        share = slice(first, first + n)
        if n >= world:
            share = slice(first + n * rank // world, first + n * (rank + 1) // world)
        weight = 1 if n >= world else 1 / world  # fewer images than processes: all compute all of them, for 1 / world each
        graphed.set_lr(self.optimiser, lr_at(recipe, (state["epoch"] * self.steps + step) / (recipe.epochs * self.steps)))
        whole = self.graphed is not None and n == recipe.batch_size
        if whole:
            self.graphed(order[share], shifts[share], flips[share])
        else:
            self._descend(order[share], shifts[share], flips[share], n, weight)
        asking = self.device.type == "cpu" or (step + 1) % GPU_CHECK_STEPS == 0 or step + 1 == self.steps
        if asking and not bool(self.totals[0].isfinite()):
            self._diverged("the loss is not finite", step + 1)
        now = time.monotonic()
        wishes = self.stop.reason() is not None, asking and now - self.saved > CHECKPOINT_SECONDS
        if world > 1:
            wishes = self._sum_gradients(wishes, asking)
        if not whole:
            self.optimiser.step()
        state["step"] = step + 1
        if asking and now - self.printed > LINE_SECONDS and step + 1 < self.steps:
            loss, accuracy = (self.totals / (first + n) * world).tolist()  # under torchrun from the images of this process
            self._print(f"  epoch {state['epoch'] + 1} step {step + 1}/{self.steps}  train loss {loss:.4f} accuracy {accuracy:.2%}")
        return wishes

    def _sum_gradients(self, wishes, asking):
        """Sum the gradients over the processes in one message, which carries the wishes to stop and to save as well."""
        parameters = list(self.network.parameters())
        flat = torch.cat([p.grad.reshape(-1) for p in parameters] + [torch.tensor(wishes, dtype=torch.float32).to(self.device)])
        dist.all_reduce(flat)
        parts = flat.split([p.numel() for p in parameters] + [2])
        for p, part in zip(parameters, parts):
            p.grad.copy_(part.view_as(p))
        return (flat[-2:] > 0).tolist() if asking else (False, False)

    def _evaluate(self, check):
        """(loss, accuracy) on the test images, in float32 after the last epoch, before that in the precision of the training, which
        takes a fraction of the time; every process takes its share."""
        world, (images, labels) = _world(), self.test
        mine = slice(_rank(), None, world)
        check = check if world == 1 else lambda: None  # one process alone must not leave
        last = self.state["epoch"] + 1 == self.recipe.epochs
        batch_size = 500 if self.device.type == "cuda" and not last else 100  # HCNN(+) is not fused in float32
        with tf32(False) if last else self._autocast():
            totals = evaluation_sums(self.network, images[mine], labels[mine], *self.statistics, batch_size, check)
        if world > 1:
            dist.all_reduce(totals)
        loss, accuracy = (totals / len(labels)).tolist()
        if not totals.isfinite().all():
            self._diverged("the loss on the test images is not finite", self.steps)
        return loss, accuracy

    def _diverged(self, what, step):
        where = f"step {step}" if self.device.type == "cpu" else f"a step between {max(1, step - GPU_CHECK_STEPS)} and {step}"
        raise FloatingPointError(
            f"{what} at epoch {self.state['epoch'] + 1}, {where} of {self.steps}; lower lr ({self.recipe.lr:g}) or use "
            f"precision='strict'. Nothing is lost: the folder {self.folder} stays as it was at the last checkpoint")

    # ---- what is printed

    def _print(self, line):
        self.log(line)
        self.printed = time.monotonic()

    def _announce(self):
        a, counts, data = self.architecture, self.architecture.count(), self.data
        name = data.name if data.substitutes is None else f"{data.name} in place of {data.substitutes}"
        here = self.here
        size = f" K={a.K} Q={a.Q} J={a.J}" if isinstance(a, Architecture) else ""
        self.log(f"{name} ({len(self.labels):,} images)  {a.name}{size} {a.padding_mode}  {counts['filters']:,} filter "
                 f"weights, {counts['trained']:,} trained  {here['device']}, {here['threads']} threads, {here['dtype']}"
                 + (f", {here['processes']} processes" if here["processes"] > 1 else ""))
        if self.device.type == "cuda":
            step = "a CUDA graph a step" if self.eager is None else f"steps kernel by kernel: {self.eager}"
            if isinstance(a, Architecture) and a.Q is not None:
                unfused = fused.why_not_network(self.network, self.device, self.dtype)
                step += "; kernels of Triton" if unfused is None else f"; no kernels of Triton: {unfused}"
            self.log(step)

    def _line(self, rows):
        row, epochs = rows[-1], self.recipe.epochs
        left = (epochs - row["epoch"]) * sum(r["seconds"] for r in rows) / len(rows)
        self._print(f"epoch {row['epoch']:>3}/{epochs}  lr {row['lr']:.3g}  train loss {row['train_loss']:.4f} accuracy "
                    f"{row['train_accuracy']:.2%}  test loss {row['test_loss']:.4f} accuracy {row['test_accuracy']:.2%}  "
                    f"{row['seconds']:.0f} s, {_duration(left)} left")


def _duration(seconds):
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min {seconds} s" if minutes else f"{seconds} s"
