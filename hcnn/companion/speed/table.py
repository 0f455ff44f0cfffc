"""results/tables/speed.csv: which cases are measured, how rows are added and checked, and what the README shows of them."""

import time
from math import isclose
from pathlib import Path

import pandas as pd

from hcnn.architecture import VARIANTS
from hcnn.companion.speed.cases import Case, chosen
from hcnn.companion.speed.timing import run
from hcnn.paths import RESULTS
from hcnn.training.run_folder import write_bytes

FILE = RESULTS / "tables" / "speed.csv"
MACHINE = ["device", "processor", "threads", "processes", "torch"]
SIZES = ["what", "variant", "K", "Q", "batch", "size"]
KEY = MACHINE + SIZES + ["path", "precision"]
MEASURED = ["rounds", "seconds", "spread", "peak_mb", "literal_seconds", "useful_gflop", "dense_gflop", "matrix_gflops"]
DERIVED = {  # how columns follow from others
    "images_per_second": lambda t: t.batch / t.seconds,
    "ratio": lambda t: t.literal_seconds / t.seconds,
    "useful_share": lambda t: t.useful_gflop / t.seconds / t.matrix_gflops,
    "dense_share": lambda t: t.dense_gflop / t.seconds / t.matrix_gflops,
}
PATHS = {
    "literal": "written with PyTorch's convolutions", "looped": "a loop of 3-D convolutions", "folded": "folded",
    "windowed": "folded, no zeros", "unfused": "unfused", "tiled": "fused, in tiles", "fused": "fused, in Triton",
    "graph": "as a CUDA graph",
}


def cases(device="cpu", threads=2):
    """What `python -m hcnn speed` measures: layer and network of the paper, then one size at a time. A few minutes on two cores."""
    batch, rounds = (50, 20) if device == "cuda" else (8, 3)
    own = dict(device=device, threads=threads)
    found = [Case(what, variant, batch=batch, rounds=rounds if what == "layer" else max(2, rounds // 2), **own)
             for what in ("layer", "network") for variant in VARIANTS]
    small = dict(size=32 if device == "cuda" else 8, rounds=rounds, **own)
    for variant in VARIANTS:
        found += [Case("layer", variant, K=K, batch=batch, **small) for K in (4, 8, 16, 24, 32)]
        found += [Case("layer", variant, Q=Q, batch=batch, **small) for Q in (9, 16, 64)]
        found += [Case("layer", variant, batch=n, **small) for n in ((10, 100, 200) if device == "cuda" else (2, 32))]
        if device == "cpu" and threads > 1:
            found.append(Case("layer", variant, batch=batch, processes=threads, **small))
    return list(dict.fromkeys(found))


def measure_all(some, path=FILE, again=False, max_seconds=None, log=print):
    """Measure cases one after the other and keep the rows of each as soon as it is done; those that have rows are left out.

    again: measure them anew. No case begins after `max_seconds`. Returns the rows of these cases on this machine.
    """
    begin = time.monotonic()
    for number, case in enumerate(some, 1):
        name = f"{number} of {len(some)}: {case.what} {VARIANTS[case.variant]} K={case.K} Q={case.Q} batch {case.batch} size {case.size}"
        name += f", {case.device}, {case.threads} threads" + (f", {case.processes} processes" if case.processes > 1 else "")
        if not again and _mine(case, load(path)).any():
            log(f"{name}: known")
            continue
        if max_seconds is not None and time.monotonic() - begin >= max_seconds:
            log(f"stopped after {max_seconds:g} s before {name}; the same command continues")
            break
        try:
            made = table(run(case, log))
        except (RuntimeError, OSError, ValueError) as error:  # a case that fails leaves the others their turn
            log(f"{name}: not measured: {error}")
            continue
        if made.empty:
            log(f"{name}: not measured: the literal path is wrong")
            continue
        merge(made, path)
        log(f"{name}: " + ", ".join(f"{r.path} {r.precision} {r.seconds:.3g} s ({r.ratio:.1f})" for r in made.itertuples()))
    stored = load(path)
    return pd.concat([stored[_mine(case, stored)] for case in some]) if some else stored.head(0)


def table(rows):
    """Rows of `timing.run` with what follows from them, rounded to the digits that are kept."""
    found = pd.DataFrame(rows, columns=KEY + MEASURED)
    for name in ("seconds", "spread", "peak_mb", "literal_seconds", "useful_gflop", "dense_gflop", "matrix_gflops"):
        found[name] = [float(f"{value:.5g}") for value in found[name].astype(float)]
    for name, rule in DERIVED.items():
        found[name] = [float(f"{value:.4g}") for value in rule(found)]
    return found


def load(path=FILE):
    """The stored table, empty where there is none."""
    return pd.read_csv(path) if Path(path).exists() else table([])


def merge(rows, path=FILE):
    """Put rows into the stored table, in the place of those of the same case, path and machine; written whole."""
    before = load(path)
    kept = before[~before.set_index(KEY).index.isin(rows.set_index(KEY).index)]
    both = (pd.concat([kept, rows]) if len(kept) else rows).sort_values(KEY, kind="stable")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, both.to_csv(index=False).encode())


def _mine(case, stored):
    """Which rows of the stored table are of a case, measured on this processor with this torch."""
    import torch

    from hcnn.device import device_name

    here = dict(processor=device_name(torch.device(case.device)), torch=torch.__version__)
    want = here | {name: getattr(case, name) for name in KEY if hasattr(case, name)}
    return (stored[list(want)] == pd.Series(want)).all(axis=1)


# ---- what can be checked without measuring


def check(path=FILE):
    """Findings on the stored table: columns, one row a key, positive numbers, and columns that do not follow from others.

    The table is no result of trainings: times cannot be computed again from what is stored, but all that follows from them can.
    """
    path = Path(path)
    if not path.exists():
        return []
    name, stored = f"tables/{path.name}", load(path)
    if list(stored) != KEY + MEASURED + list(DERIVED):
        return [f"{name}: columns {', '.join(stored)}; they must be {', '.join(KEY + MEASURED + list(DERIVED))}"]
    findings = [f"{name}: two rows of {', '.join(map(str, key))}" for key in stored[stored.duplicated(KEY)][KEY].values.tolist()]
    positive = [column for column in MEASURED if column not in ("spread", "peak_mb")]
    for i, row in enumerate(stored.itertuples(), 1):
        if not all(getattr(row, column) > 0 for column in positive) or row.spread < 0 or row.peak_mb < 0:
            findings.append(f"{name}: row {i} has a number that is not positive")
            continue
        for column, rule in DERIVED.items():
            if not isclose(getattr(row, column), rule(row), rel_tol=1e-3):
                findings.append(f"{name}: row {i}, {column}: {getattr(row, column)}, the other columns give {rule(row):.4g}")
        if row.path == "literal" and row.precision == "fp32" and row.seconds != row.literal_seconds:
            findings.append(f"{name}: row {i}: the literal path takes {row.seconds} s and {row.literal_seconds} s")
        if row.path not in PATHS:
            findings.append(f"{name}: row {i}: path must be one of {', '.join(PATHS)}, got {row.path!r}")
    return findings


README = ("", "device", "PyTorch's convolutions, fp32", "here", "ratio", "memory, share of the former's")


def readme_rows(stored):
    """{columns: rows} of the README's table of speed: a full layer and the whole network, K = 16, Q = 32, 32 x 32 pixels."""
    shown = []
    full = stored[(stored.K == 16) & (stored.Q == 32) & (stored["size"] == 32) & (stored.processes == 1)]
    for (device, processor, threads, torch, what, variant, batch), group in full.groupby(
            ["device", "processor", "threads", "torch", "what", "variant", "batch"], sort=False):
        literal = group[(group.path == "literal") & (group.precision == "fp32")].iloc[0]
        taken = [path == chosen(device, variant, precision) for path, precision in zip(group.path, group.precision)]
        for row in group[taken].itertuples():
            where = f"{processor}, {threads} threads" if device == "cpu" else processor
            shown.append((f"{what}, {VARIANTS[variant]}, batch {batch}, {row.precision}", where, f"{1000 * row.literal_seconds:.0f} ms",
                          f"{1000 * row.seconds:.0f} ms", f"{row.ratio:.1f}", f"{row.peak_mb / literal.peak_mb:.2f}"))
    return {README: shown}
