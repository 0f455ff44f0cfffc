"""results/tables/speed.csv: which cases are measured, how rows are added and checked, what the README shows of them."""

import time
from math import isnan
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from hcnn.architecture import VARIANTS
from hcnn.companion.speed.cases import Case, available, chosen
from hcnn.companion.speed.timing import run
from hcnn.device import device_name
from hcnn.paths import RESULTS
from hcnn.training.run_folder import write_bytes

FILE = RESULTS / "tables" / "speed.csv"
MACHINE = ["device", "processor", "threads", "torch"]
KEY = [*MACHINE, "what", "variant", "K", "Q", "batch", "size", "path", "precision"]
MEASURED = ["rounds", "seconds", "spread", "peak_mb", "literal_seconds", "ratio_low", "ratio_high", "useful_gflop",
            "dense_gflop", "matrix_gflops", "matrix_spread"]
DERIVED = {  # how columns follow from others
    "images_per_second": lambda t: t.batch / t.seconds,
    "ratio": lambda t: t.literal_seconds / t.seconds,
    "useful_share": lambda t: t.useful_gflop / t.seconds / t.matrix_gflops,
    "dense_share": lambda t: t.dense_gflop / t.seconds / t.matrix_gflops,
}
# Where memory cannot be read, where the literal path is wrong, in rows from before intervals were kept:
MAY_LACK = ("peak_mb", "literal_seconds", "ratio", "ratio_low", "ratio_high", "matrix_spread")
MAY_BE_ZERO = ("spread", "peak_mb", "matrix_spread")
STEADY = 0.15  # the largest quartile range of seconds or yardstick, as a share of the median, that is stored
PATHS = {
    "literal": "written with PyTorch's convolutions", "folded": "folded", "fourier": "Fourier transform",
    "unfused": "unfused", "fused": "fused, in Triton", "graph": "as a CUDA graph",
}
README = ("", "device", "PyTorch, fp32", "here, fp32", "ratio, fp32 (95%)", "memory, fp32", "PyTorch, bf16",
          "here, bf16", "ratio, bf16")


def counted(threads):
    """The number of threads, in words."""
    return f"{threads} thread" if threads == 1 else f"{threads} threads"


def cases(device="cpu", threads=2):
    """What `python -m hcnn speed` measures: layer and network of the paper, then one size at a time. Minutes."""
    gpu = device == "cuda"
    batch, rounds = (50, 20) if gpu else (8, 7)
    own = dict(device=device, threads=threads, batch=batch)
    found = [Case("layer", variant, **own, rounds=rounds) for variant in VARIANTS]
    found += [Case("network", variant, **own, rounds=max(5, rounds // 2)) for variant in VARIANTS]
    small = own | dict(size=32 if gpu else 8, rounds=rounds)
    changes = [dict(K=K) for K in (4, 8, 16, 24, 32)] + [dict(Q=Q) for Q in (9, 16, 64)]
    changes += [dict(batch=n) for n in ((10, 100, 200) if gpu else (2, 32))]
    found += [Case("layer", variant, **small | change) for variant in VARIANTS for change in changes]
    return list(dict.fromkeys(found))


def measure_all(some, path=FILE, again=False, max_seconds=None, log=print):
    """Measure cases one after the other and keep the rows of each at once; those that lack no row are left
    out.

    again: measure them anew. No case begins after `max_seconds`; one that fails is said, and the others go on. Returns
    the rows of these cases on this machine.
    """
    begin, failed = time.monotonic(), []
    for number, case in enumerate(some, 1):
        name = f"{number} of {len(some)}: {case.name}"
        if not again and _mine(case, load(path)).sum() >= len(available(case)):
            log(f"{name}: known")
            continue
        if max_seconds is not None and time.monotonic() - begin >= max_seconds:
            log(f"stopped after {max_seconds:g} s before {name}; the same command continues")
            break
        try:
            made = with_derived(run(case, log))
        except RuntimeError as error:
            failed.append(name)
            log(f"{name}: FAILED: {error}")
            continue
        kept = steady(made)
        merge(kept, path)
        said = [f"{r.path} {r.precision} {r.seconds:.3g} s ({r.ratio:.1f})" for r in kept.itertuples()]
        if len(kept) < len(made):
            said.append(f"{len(made) - len(kept)} of {len(made)} rows spread by more than {STEADY:.0%}: not kept, "
                        "measure again when nothing else runs")
        log(f"{name}: {', '.join(said)}")
    if failed:
        log(f"{len(failed)} of {len(some)} failed: {'; '.join(failed)}")
    stored = load(path)
    return pd.concat([stored[_mine(case, stored)] for case in some]) if some else stored.head(0)


def with_derived(rows):
    """Rows of `timing.run` as a table, with what follows from them, rounded to the digits that are kept."""
    found = pd.DataFrame(rows, columns=KEY + MEASURED)
    for name in MEASURED[1:]:
        found[name] = [float(f"{value:.5g}") for value in found[name].astype(float)]
    for name, rule in DERIVED.items():
        found[name] = [float(f"{value:.4g}") for value in rule(found)]
    return found


def steady(rows):
    """Those rows of a case whose seconds, yardstick and literal path hold still."""
    still = _still(rows)
    return rows[still] if still[_literal(rows)].all() else rows.head(0)


def _still(rows):
    return (rows.spread <= STEADY * rows.seconds) & ~(rows.matrix_spread > STEADY)


def _literal(rows):
    return (rows.path == "literal") & (rows.precision == "fp32")


def load(path=FILE):
    """The stored table, empty where there is none."""
    return pd.read_csv(path) if Path(path).exists() else with_derived([])


def merge(rows, path=FILE):
    """Put rows into the stored table, in the place of those of the same case, path and machine; written whole."""
    before = load(path)
    kept = before[~before.set_index(KEY).index.isin(rows.set_index(KEY).index)]
    both = (pd.concat([kept, rows]) if len(kept) else rows).sort_values(KEY, kind="stable")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, both.to_csv(index=False).encode())


def _mine(case, stored):
    """Which rows of the stored table are of a case, measured on this processor with this torch."""
    here = dict(processor=device_name(torch.device(case.device)), torch=torch.__version__)
    want = here | {name: getattr(case, name) for name in KEY if hasattr(case, name)}
    return (stored[list(want)] == pd.Series(want)).all(axis=1)


def check(path=FILE):
    """Findings on the stored table: columns, one row a key, positive numbers, columns that do not follow from others.

    Times cannot be computed again from what is stored, but all that follows from them can.
    """
    path, columns = Path(path), KEY + MEASURED + list(DERIVED)
    if not path.exists():
        return []
    stored = load(path)
    if list(stored) != columns:
        return [f"tables/{path.name}: columns {', '.join(stored)}; they must be {', '.join(columns)}"]
    wrong = {
        "there are two rows of this case": stored.duplicated(KEY), f"spread: more than {STEADY:.0%}": ~_still(stored),
        f"path: must be one of {', '.join(PATHS)}": ~stored.path.isin(PATHS),
        "literal_seconds: other than seconds": _literal(stored) & (stored.seconds != stored.literal_seconds),
    }
    for name in MEASURED:
        positive = stored[name] >= 0 if name in MAY_BE_ZERO else stored[name] > 0
        wrong[f"{name}: is not positive"] = ~positive & ~(stored[name].isna() & (name in MAY_LACK))
    for name, rule in DERIVED.items():
        follows = np.isclose(stored[name], rule(stored), rtol=1e-3, atol=0, equal_nan=name in MAY_LACK)
        wrong[f"{name}: the other columns give another number"] = ~follows
    return [f"tables/{path.name}: row {i + 1}, {finding}"
            for finding, rows in wrong.items() for i in np.flatnonzero(rows)]


def full_size(stored):
    """The rows of the paper's layer and network: K = 16, Q = 32, 32 x 32 pixels, one process."""
    return stored[(stored.K == 16) & (stored.Q == 32) & (stored["size"] == 32)]


def _interval(row):
    """The ratio of the medians, and its 95% interval where it was kept."""
    interval = "" if isnan(row.ratio_low) else f" ({row.ratio_low:.1f} to {row.ratio_high:.1f})"
    return _number(row.ratio, ".1f") + interval


def readme_rows(stored):
    """The README's table of speed: the paper's layer and network by the paths that they choose, beside PyTorch's
    convolutions in the same number format. What was not measured stays empty.
    """
    shown, full = [], full_size(stored)
    same = ["what", "variant", "device", "processor", "threads", "torch", "batch"]
    for (what, variant, device, processor, threads, _, batch), rows in full.groupby(same):
        where = f"{processor}, {counted(threads)}" if device == "cpu" else processor
        line = [f"{what}, {VARIANTS[variant]}, batch {batch}", where]
        for precision in ("fp32", "bf16"):
            found = rows[rows.precision == precision].set_index("path")
            theirs, ours = (found.reindex([path]).iloc[0] for path in ("literal", chosen(device, variant, precision)))
            line += [_number(1000 * one.seconds, ".0f", " ms") for one in (theirs, ours)]
            if precision == "fp32":
                line += [_interval(ours), _number(ours.peak_mb / theirs.peak_mb, ".2f")]
            else:
                line.append(_number(theirs.seconds / ours.seconds, ".1f"))
        shown.append(line)
    return pd.DataFrame(shown, columns=README)


def _number(value, digits, unit=""):
    """A number as a text, empty where there is none."""
    return "" if isnan(value) else f"{value:{digits}}{unit}"
