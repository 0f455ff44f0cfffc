"""The trainings that the paper's tables and claims ask for, in the order in which they matter, as arguments of `hcnn train`."""

# What follows the trainings of tables 1 and 2, first on CIFAR-10: (variant, seed, further arguments).
FURTHER = [
    *((variant, 0, ["--padding-mode", "periodic"]) for variant in ("hcnn", "hcnn-plus")),  # section 5.3
    ("hcnn-plus", 0, ["--preset", "released"]),  # the authors' code
    *((variant, seed, []) for seed in (1, 2, 3, 4) for variant in ("hcnn", "hcnn-plus")),
    *((variant, 0, ["--Q", str(Q)]) for Q in (9, 16) for variant in ("hcnn", "hcnn-plus")),  # "relative increase of 4.2% and then of 1.1%"
    # Does the factorisation precondition and regularise? w itself, and both with the normalisation without which w may not learn.
    *(("hcnn", 0, [text for change in changes for text in ("--set", change)])
      for changes in (["factorised=false"], ["factorised=false", "output_norm=true"], ["output_norm=true"])),
    ("hcnn", 0, ["--K", "24", "--Q", "64"]),  # "larger K and Q"
]
FURTHER_CIFAR100 = [training for training in FURTHER if training[1] > 0]


def queue(datasets, variants, seeds, further=False):
    """Arguments of `python -m hcnn train` for every training, seed by seed; with `further` the rest of the list after them."""
    found = [(dataset, variant, seed, []) for seed in seeds for dataset in datasets for variant in variants]
    for dataset, trainings in (("cifar10", FURTHER), ("cifar100", FURTHER_CIFAR100)):
        if further and dataset in datasets:
            found += [(dataset, *training) for training in trainings if training[0] in variants and (dataset, *training) not in found]
    return [["--dataset", dataset, "--variant", variant, "--seed", str(seed), *more] for dataset, variant, seed, more in found]
