"""Execute the notebooks with other parameters, or all of them in turn, through papermill.

    python notebooks/execute.py 03_train_cifar10 --profile small -p variant hcnn -p K 8
    python notebooks/execute.py --profile small --workers 2 --sweep K=8,16 Q=9,16,32 seed=0,1 variant=hcnn,hcnn-plus
    python notebooks/execute.py --all --profile small
    python notebooks/execute.py --refresh 01_architecture

An executed copy goes to results/notebooks/ (profile paper, or --out results), else to results/local/notebooks/, under
its name only when every cell has succeeded. `--refresh` instead runs notebooks with their own defaults and writes them
back stripped, except the cells marked `# NBVAL_CHECK_OUTPUT`.
"""

import argparse
import ast
import functools
import hashlib
import itertools
import json
import logging
import os
import re
import shutil
import sys
import tempfile
import time
import warnings
from dataclasses import fields
from pathlib import Path

import papermill
from nbclient.exceptions import DeadKernelError
from papermill.exceptions import PapermillExecutionError
from traitlets.config import Config

from hcnn.architecture import Architecture
from hcnn.companion.experiments import experiment
from hcnn.companion.notebooks.copies import kept, strip, write
from hcnn.companion.notebooks.keeping import place
from hcnn.companion.notebooks.profiles import ALONE, DIGITS, OUT, PROFILES, TRAINING, jobs, usual
from hcnn.companion.parallel import report, run_all
from hcnn.data.datasets import available, load_dataset
from hcnn.paths import NOTEBOOKS
from hcnn.training.recipe import Recipe

QUIET = ["--log-level=ERROR"]  # of the kernel, whose warnings are no part of a notebook
PATIENT = Config(KernelManager={"shutdown_wait_time": 120})  # seconds for a training to write its checkpoint
UNNAMED = ("variant", "out", "max_seconds")  # in the name of a copy: said otherwise, or not trained
FIELDS = {field.name for part in (Architecture, Recipe) for field in fields(part)} | {"dataset", "variant", "preset"}


def every():
    """Paths of all notebooks, in order."""
    return sorted(NOTEBOOKS.glob("*.ipynb"))


def find(name):
    """Path of a notebook named in full, by its first characters (`03`) or as a file."""
    found = [path for path in every() if path.stem.startswith(Path(name).stem)]
    if len(found) != 1:
        raise ValueError(f"notebook must be one of {', '.join(path.stem for path in every())}, got {name!r}")
    return found[0]


def defaults(path):
    """The parameters of a notebook as papermill reads them: {name: (default, annotation or None)}."""
    found = papermill.inspect_notebook(str(path))
    kinds = {name: p["inferred_type_name"] for name, p in found.items()}
    return {name: (ast.literal_eval(p["default"]), None if kinds[name] == "None" else kinds[name])
            for name, p in found.items()}


def parse(text):
    """A value typed on the command line: a Python or JSON scalar or list, else the text itself. Tuples become lists."""
    words = {"true": True, "false": False, "null": None, "none": None}
    if text.lower() in words:
        return words[text.lower()]
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
    return list(value) if isinstance(value, tuple) else value


def fits(value, default, annotation):
    """Whether a value has the type of a parameter's default, or the one in its annotation `Optional[int]`."""
    if value is None:
        return default is None or annotation is not None
    if isinstance(value, list) and isinstance(default, list) and default:
        return all(fits(item, default[0], None) for item in value)
    kind = annotation.removeprefix("Optional[").rstrip("]") if annotation else type(default).__name__
    return type(value).__name__ == kind or (type(value) is int and kind == "float")


def check(path, parameters):
    """Refuse parameters that the notebook does not have, of another type, or that no training has. ValueError."""
    known = defaults(path)
    for name, value in parameters.items():
        if name not in known:
            raise ValueError(f"unknown parameter {name!r} of {path.stem}; it has {', '.join(known) or 'none'}")
        default, annotation = known[name]
        if not fits(value, default, annotation):
            raise ValueError(f"{name} must be of type {annotation or type(default).__name__} in {path.stem} "
                             f"(default {default!r}), got {value!r}")
    values = {name: default for name, (default, _) in known.items()} | parameters
    given = {name: value for name, value in values.items() if value is not None and name in FIELDS}
    if path.stem not in TRAINING.values():
        given["subsampled"] = []  # a notebook that trains nothing chooses these to fit its J
    experiment(**given)


@functools.cache
def digits_stand_in(dataset):
    """Whether CIFAR is neither present nor downloadable; `load_dataset` then says so in a line."""
    return not available(dataset) and load_dataset(dataset, fallback=True).substitutes is not None


def trains_on_digits(path, dataset):
    return path.stem in TRAINING.values() and (dataset == "digits" or digits_stand_in(dataset))


def planned(path, profile, given, out=None):
    """One execution, checked: (path, parameters, the executed copy, whose name tells it from the profile's own)."""
    known = {name: default for name, (default, _) in defaults(path).items()}
    out = OUT[profile] if out is None else out
    own = usual(profile, path.stem) | (dict(out=out) if "out" in known else {})
    dataset = given.get("dataset", known.get("dataset"))
    on_digits = trains_on_digits(path, dataset)
    own |= DIGITS.get(profile, {}) if on_digits else {}
    check(path, own | given)
    before = known | own
    unnamed = (*UNNAMED, "dataset") if on_digits else UNNAMED
    changed = {key: value for key, value in sorted(given.items()) if key not in unnamed and value != before[key]}
    tag = "".join(f"-{key}{re.sub('[^A-Za-z0-9.+-]+', '_', str(value))}" for key, value in changed.items())
    if len(tag) > 60:
        tag = "-" + hashlib.sha256(json.dumps(changed).encode()).hexdigest()[:8]
    variant = f"-{(before | given)['variant']}" if "variant" in known else ""
    copy = place(out or "local") / "notebooks" / f"{path.stem}{variant}{'-digits' if on_digits else ''}{tag}.ipynb"
    return path, own | given, copy


def everything(profile, datasets, out=None):
    """The jobs of a profile in order; that of a notebook which the profile does not name are its defaults."""
    steps = []
    for stem, given in jobs(profile, datasets) or [(path.stem, {}) for path in every()]:
        path, changes = find(stem), DIGITS.get(profile)
        if changes and trains_on_digits(path, given.get("dataset")):
            given = given | changes
        steps.append(planned(path, profile, given, out))
    return steps


def swept(names, profile, given, grid):
    """Every combination of the values in `K=8,16 Q=9,32`: {what tells one from the others: (notebook, parameters)}.

    The notebook is named, or the one that trains on the cell's data set.
    """
    axes = []
    for item in grid:
        name, _, values = item.partition("=")
        if not values:
            raise ValueError(f"sweep must be given as NAME=VALUE,VALUE (K=8,16), got {item!r}")
        axes.append([(name, parse(value)) for value in values.split(",")])
    several = [axis[0][0] for axis in axes if len(axis) > 1]
    cells = {}
    for cell in map(dict, itertools.product(*axes)):
        stem = TRAINING.get((given | cell).get("dataset"), TRAINING["cifar10"])
        for path in map(find, names or [stem]):
            planned(path, profile, given | cell)
            parts = ([path.stem] if len(names) > 1 else []) + [f"{name}={cell[name]}" for name in several]
            cells[" ".join(parts) or path.stem] = path, given | cell
    return cells


def side_by_side(cells, profile, workers=None, out=None):
    """Execute cells {name: (notebook, parameters)} in a process each; the exit status, 0 where all are complete."""
    runner = [sys.executable, str(NOTEBOOKS / "execute.py"), "--profile", profile]
    runner += [] if out is None else ["--out", out]
    commands = {name: [*runner, path.stem, "--json", json.dumps(given)] for name, (path, given) in cells.items()}
    say(f"side by side: {'; '.join(cells)}")
    return report(run_all(commands, workers, say), say)


def in_turn(steps, profile, workers=None, out=None):
    """Execute what was `planned`, trainings that follow each other side by side, and so what neither trains, nor
    measures time, nor gathers results; the exit status.
    """
    kinds = dict.fromkeys(TRAINING.values(), "trains") | {name: name for name in ALONE}
    for _, some in itertools.groupby(steps, lambda step: kinds.get(step[0].stem)):
        if len(some := list(some)) == 1:
            execute(*some[0])
        elif status := side_by_side({copy.stem: step for *step, copy in some}, profile, workers, out):
            return status
    return 0


say = functools.partial(print, flush=True)


def computed(path, parameters=None, working=None):
    """One notebook, run; the file `working` is its copy as far as it has come. RuntimeError where a cell fails."""
    shown = " ".join([path.stem, *(f"{key}={value}" for key, value in (parameters or {}).items())])
    say(f"{shown} ...")
    started = time.perf_counter()
    try:
        notebook = papermill.execute_notebook(
            path, working, parameters, kernel_name="python3", cwd=NOTEBOOKS, progress_bar=False, extra_arguments=QUIET,
            stdout_file=sys.stdout if path.stem in TRAINING.values() else None,  # a line an epoch
            config=PATIENT)
    except (PapermillExecutionError, DeadKernelError) as error:
        reason = f"{error.ename}: {error.evalue}" if isinstance(error, PapermillExecutionError) else str(error)
        raise RuntimeError(f"{shown} failed: {reason}" + f"\n  the failed copy is {working}" * bool(working)) from error
    say(f"{shown}: {time.perf_counter() - started:.0f} s")
    return notebook


def execute(path, parameters, copy):
    """Run one notebook; its copy appears only where every cell has succeeded."""
    copy.parent.mkdir(parents=True, exist_ok=True)  # before hours of work
    working = Path(tempfile.mkdtemp(prefix="hcnn-")) / copy.name
    write(copy, kept(computed(path, parameters, working)))
    shutil.rmtree(working.parent)


def refresh(path):
    """Run a notebook with its own defaults and write it back stripped, with fresh outputs in its checked cells."""
    before = path.read_text(encoding="utf-8")
    notebook = strip(computed(path))
    if path.read_text(encoding="utf-8") != before:
        raise RuntimeError(f"{path.stem} was changed while it ran and was left as it is; run --refresh again")
    write(path, notebook)


def command_line():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="notebooks, in full or by number: 03_train_cifar10 or 03")
    parser.add_argument("--profile", choices=PROFILES, default="smoke", help="sizes of the trainings (default: smoke)")
    parser.add_argument("-p", "--parameter", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"),
                        help="one parameter, a scalar or a list such as '[1, 2]'")
    parser.add_argument("--json", type=json.loads, default={}, metavar="{...}", help="parameters, all at once")
    parser.add_argument("--out", help="results, local or a folder (default: results for paper, else local)")
    action = parser.add_mutually_exclusive_group()
    action.add_argument("--all", action="store_true", help="every notebook of the profile, several at a time")
    action.add_argument("--sweep", nargs="+", metavar="NAME=VALUES", help="a grid of executions side by side")
    action.add_argument("--refresh", action="store_true", help="renew the outputs of the checked cells in notebooks/")
    parser.add_argument("--dataset", default="cifar10,cifar100", help="with --all: data sets, or digits")
    parser.add_argument("--workers", type=int, help="notebooks at a time (default: one a GPU, or one a core)")
    return parser


def run(options):
    """What the command line asks for, all checked before the first one starts; the exit status."""
    if options.refresh:
        for path in map(find, options.names) if options.names else every():
            refresh(path)
        return 0
    if not isinstance(options.json, dict):
        raise ValueError(f"--json must be parameters {{name: value}}, got {options.json}")
    given = {name: parse(value) for name, value in options.parameter} | options.json
    if options.sweep:
        cells = swept(options.names, options.profile, given, options.sweep)
        status = side_by_side(cells, options.profile, options.workers, options.out)
        out = OUT[options.profile] if options.out is None else options.out
        if then := {"results": "make figures", "local": "python -m hcnn tables --local"}.get(out):
            say(f"`{then}` puts their runs into the tables")
        return status
    if options.all:
        steps = everything(options.profile, options.dataset.split(","), options.out)
        return in_turn(steps, options.profile, options.workers, options.out)
    if not options.names:
        raise ValueError("what is to be executed? Name notebooks, such as 03, or give --all, --sweep or --refresh")
    for step in [planned(find(name), options.profile, given, options.out) for name in options.names]:
        execute(*step)
    return 0


def main(arguments=None):
    """Command line; returns the exit code: 0, 1 where a notebook failed, 2 where the request was refused."""
    options = command_line().parse_args(arguments)
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    logging.getLogger("papermill").setLevel(logging.ERROR)
    for name in ("HCNN_RESULTS", "HCNN_DATA"):
        if folder := os.environ.get(name):
            os.environ[name] = str(Path(folder).expanduser().absolute())  # the kernels start in notebooks/
    try:
        return run(options)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (RuntimeError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:  # papermill has ended the kernel, and a training in it has left its checkpoint
        return 130
