"""What is executed: jobs, each a notebook and the parameters it is given, for each profile.

`--all` executes the jobs of a profile in their order; a notebook that is named takes the parameters of its first job.
"""

from hcnn.architecture import VARIANTS
from hcnn.companion.experiments import QUICK
from hcnn.data.datasets import DATASETS

TRAINING = {"cifar10": "03_train_cifar10", "cifar100": "04_train_cifar100"}
ALONE = ("05_results", "07_speed")  # the one gathers what others make, the other measures time
COUNTED = [("01_architecture", {}), ("02_parameters", {})]
SEARCHED = {"small": dict(database=5000, queries=1000, altered=50),
            "paper": dict(database=None, queries=None, altered=500)}


def _trainings(several):
    """Jobs of the notebooks that train, each that of its data set."""
    whole = [dict(dataset="cifar10", train_size=None) | given for given in several]
    return [(TRAINING[given["dataset"]], given) for given in whole]


def _interpretations(profile):
    """Jobs of notebook 06: networks with zeros and with periodic boundaries, and one with 100 classes."""
    networks = [dict(dataset="cifar10"), dict(dataset="cifar10", padding_mode="periodic"), dict(dataset="cifar100")]
    return [("06_interpretation", network | SEARCHED[profile]) for network in networks]


PAPER = [dict(dataset=dataset, variant=variant, K=16, Q=32, epochs=None)
         for dataset in TRAINING for variant in VARIANTS]
PROFILES = {
    "smoke": [],  # the notebooks' own defaults; their runs are not kept
    # without a GPU: what is stored, drawn in minutes, then networks trained from nothing in as many
    "small": [*COUNTED, *_interpretations("small"), ("07_speed", {}), *_trainings(QUICK), ("05_results", {})],
    "paper": [*COUNTED, *_trainings(PAPER), *_interpretations("paper"), ("07_speed", dict(measure="all")),
              ("05_results", {})],
}
OUT = {"smoke": "", "small": "local", "paper": "results"}  # where a profile keeps what it makes
DIGITS = dict(small=dict(epochs=20))  # where digits are trained on: they are 1,500


def jobs(profile, datasets):
    """The jobs of a profile on these data sets; digits take the place of CIFAR where they are asked for alone."""
    if not set(datasets) <= set(DATASETS):
        raise ValueError(f"dataset must be of {', '.join(DATASETS)}, got {','.join(datasets)!r}")
    chosen = []
    for notebook, given in PROFILES[profile]:
        dataset = given.get("dataset")
        if dataset is None or dataset in datasets:
            chosen.append((notebook, given))
        elif datasets == ["digits"] and (dataset == "cifar10" or notebook in TRAINING.values()):
            chosen.append((notebook, given | dict(dataset="digits")))
    return chosen


def usual(profile, notebook):
    """The parameters that a profile gives to a notebook that is named."""
    return dict(reversed(PROFILES[profile])).get(notebook, {})
