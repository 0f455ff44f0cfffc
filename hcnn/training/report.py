"""What a training says: its first line, a line an epoch, progress inside one; and the content of run.json."""

import time

from tqdm import tqdm

from hcnn.data.datasets import TESTED_ON
from hcnn.network import HCNN
from hcnn.operators import fused
from hcnn.training.recipe import preset_of

LINE_SECONDS = 60  # between lines inside an epoch, where no terminal shows progress


def announcement(architecture, data, here):
    """The first line: data, network, counts, machine."""
    a, counts = architecture, architecture.count()
    name = data.name if data.substitutes is None else f"{data.name} in place of {data.substitutes}"
    size = "".join(f" {letter}={getattr(a, letter)}" for letter in "KQJ" if hasattr(a, letter))
    processes = f", {here['processes']} processes" if here["processes"] > 1 else ""
    return (f"{name} ({len(data.train_labels):,} images)  {a.name}{size} {a.padding_mode}  "
            f"{counts['filters']:,} filter weights, {counts['trained']:,} trained  "
            f"{here['device']}, {here['threads']} threads, {here['dtype']}{processes}")


def gpu_line(network, device, dtype, eager):
    """Whether a step is one graph and made by kernels of Triton; eager: why it is launched kernel by kernel, or
    None.
    """
    step = "a CUDA graph a step" if eager is None else f"steps kernel by kernel: {eager}"
    if not isinstance(network, HCNN):
        return step
    unfused = fused.why_not_network(network, device, dtype)
    return step + ("; kernels of Triton" if unfused is None else f"; no kernels of Triton: {unfused}")


def epoch_line(rows, epochs):
    """The line of the last of `rows` of metrics.csv."""
    row = rows[-1]
    left = round((epochs - row["epoch"]) * sum(r["seconds"] for r in rows) / len(rows))
    hours, minutes, seconds = left // 3600, left // 60 % 60, left % 60
    left = f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s" if minutes else f"{seconds} s"
    return (f"epoch {row['epoch']:>3}/{epochs}  lr {row['lr']:.3g}  train loss {row['train_loss']:.4f} accuracy "
            f"{row['train_accuracy']:.2%}  test loss {row['test_loss']:.4f} accuracy {row['test_accuracy']:.2%}  "
            f"{row['seconds']:.0f} s, {left} left")


class Progress:
    """Steps of an epoch: a bar where a terminal is attached, else a line a minute."""

    def __init__(self, epoch, steps, done, log):
        self.epoch, self.steps, self.log, self.said = epoch, steps, log, time.monotonic()
        self.bar = tqdm(total=steps, initial=done, desc=f"epoch {epoch}", leave=False, disable=None)

    def step(self, done, means=None):
        """One step more. means: loss and accuracy so far, a tensor; None where reading it would make the CPU wait."""
        self.bar.update()
        if self.bar.disable and means is not None and time.monotonic() - self.said > LINE_SECONDS and done < self.steps:
            self.said = time.monotonic()
            loss, accuracy = means.tolist()
            self.log(f"  epoch {self.epoch} step {done}/{self.steps}  train loss {loss:.4f} accuracy {accuracy:.2%}")

    def close(self):
        self.bar.close()


def summary(training, weights_sha256):
    """The content of run.json."""
    state, data, rows, parameters = training.state, training.data, training.state["rows"], training.parameters
    preset, overrides = preset_of(training.architecture, training.recipe, data.name)
    images = len(data.train_labels) * state["epoch"]
    return dict(
        name=training.folder.name, parameters=parameters, preset=preset, overrides=overrides,
        epochs=training.recipe.epochs, epochs_done=state["epoch"],
        test_accuracy=rows[-1]["test_accuracy"] if rows else None, test_loss=rows[-1]["test_loss"] if rows else None,
        tested_on=TESTED_ON[parameters["split"]],
        train_images=len(data.train_labels), test_images=len(data.test_labels), substitutes=data.substitutes,
        data_checksum=data.checksum, classes=list(data.classes), mean=list(training.mean), std=list(training.std),
        counts=training.architecture.count(), seconds=round(sum(row["seconds"] for row in rows), 3),
        images_per_second=round(images / state["train_seconds"], 2) if rows else None,
        **state["provenance"][-1], earlier=state["provenance"][:-1], weights_sha256=weights_sha256,
    )
