"""What pyproject.toml cannot say: a wheel holds the trained networks that `hcnn.load` knows by a short name."""

import json
import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

RUNS = Path(__file__).parent / "results" / "runs"
CARD = """# {name}

* Network: {system}, K = {K}, Q = {Q}, {filters:,} filter weights, {trained:,} trained numbers; zeros at boundaries.
* Data: {dataset}, {train_images:,} training images; images of {height} x {width} pixels, values 0..255.
* Recipe: preset {preset}, {epochs_done} of {epochs} epochs, on {device}, {seconds:,.0f} s; more in run.json.
* Accuracy: {accuracy:.2%} of {test_images:,} test images after the last epoch that is done, one seed (0).
* Limits: it knows these {classes} classes of small photographs and nothing else, names one of them for any image, and
  was checked on no other data. For research on the architecture, not for decisions about people.
* Licence: MIT. Weights: sha256 of their tensors {checksum}.

`hcnn.load("{short}").predict(images)` gives class names.
"""


def named(runs=RUNS):
    """{short name: run folder} of the networks with zeros and seed 0 that were trained on the most images, as `load`
    chooses them.
    """
    found = {}
    for file in sorted(runs.glob("*-hcnn*-zeros-s0-*/weights.safetensors")):
        run = json.loads((file.parent / "run.json").read_text(encoding="utf-8"))
        seen, short = run["train_images"] * run["epochs_done"], file.parent.name.partition("-zeros-s0-")[0]
        found[short] = max(found.get(short, (0, None)), (seen, file.parent))
    return {short: folder for short, (_, folder) in found.items()}


def card(short, run):
    """The model card of a run.json."""
    network = run["parameters"]["architecture"]
    height, width = network["image_size"]
    return CARD.format(
        **{key: run[key] for key in ("name", "train_images", "test_images", "preset", "epochs", "epochs_done", "device",
                                     "seconds")},
        system="HCNN" if network["variant"] == "hcnn" else "HCNN(+)", K=network["K"], Q=network["Q"], short=short,
        filters=run["counts"]["filters"], trained=run["counts"]["trained"], dataset=run["parameters"]["dataset"],
        height=height, width=width, accuracy=run["test_accuracy"], classes=len(run["classes"]),
        checksum=run["weights_sha256"])


class BuildWithWeights(build_py):
    """Also copies the run folders of the named networks, each with a card, to hcnn/weights."""

    def run(self):
        super().run()
        if self.editable_mode:
            return  # `load` reads results/runs
        for short, folder in named().items():
            to = Path(self.build_lib) / "hcnn" / "weights" / folder.name
            to.mkdir(parents=True, exist_ok=True)
            for file in ("run.json", "metrics.csv", "weights.safetensors"):
                shutil.copy(folder / file, to)
            run = json.loads((folder / "run.json").read_text(encoding="utf-8"))
            (to / "CARD.md").write_text(card(short, run), encoding="utf-8")


setup(cmdclass={"build_py": BuildWithWeights})
