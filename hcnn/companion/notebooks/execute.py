"""Execute the notebooks with other parameters, or all of them in turn, through papermill.

    python notebooks/execute.py 03_train_cifar10 --profile small -p variant hcnn -p K 8
    python notebooks/execute.py --profile small --workers 2 --sweep K=8,16 Q=9,16,32 seed=0,1 variant=hcnn,hcnn-plus
    python notebooks/execute.py --all --profile small
    python notebooks/execute.py --refresh 01_architecture

An executed copy goes to results/notebooks/, under its name only when every cell has succeeded. `--refresh` instead
runs notebooks with their own defaults and writes them back stripped, except the cells marked `# NBVAL_CHECK_OUTPUT`.
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
import signal
import sys
import tempfile
import textwrap
import time
import warnings
from base64 import b64decode, b64encode
from dataclasses import fields
from pathlib import Path

import nbformat
import pandas as pd
import papermill
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError
from papermill.exceptions import PapermillExecutionError
from traitlets.config import Config

from hcnn.architecture import Architecture
from hcnn.companion.parallel import report, run_all
from hcnn.data.datasets import DATASETS, available, load_dataset
from hcnn.paths import NOTEBOOKS, RESULTS, ROOT
from hcnn.training.recipe import Recipe
from hcnn.training.run_folder import write_bytes

CHECKED = "# NBVAL_CHECK_OUTPUT"
PATIENT = Config(KernelManager={"shutdown_wait_time": 120})  # seconds for an interrupted training to write its checkpoint
QUIET = ["--log-level=ERROR"]  # of the kernel, whose warnings are no part of a notebook

# What each profile changes in the training notebooks: the same code at other sizes.
# lr: the best of 0.01, 0.02, 0.05, 0.2 on held-out CIFAR-10 images (K=8, Q=9, 16 x 16 pixels, 10,000 presentations, one seed).
# seed: that of the stored runs of these sizes is 0, and a finished run is loaded instead of trained.
SMALL = dict(K=4, Q=9, epochs=4, train_size=4000, schedule="cosine", lr=0.02, seed=1, max_seconds=240, out="results")
PAPER = dict(K=16, Q=32, epochs=None, train_size=None, out="results")
PROFILES = {
    "smoke": {},  # the notebooks' own defaults; their runs are not kept
    "small": {  # two minutes a training on two CPU cores
        "03_train_cifar10": SMALL, "04_train_cifar100": SMALL,
        "06_interpretation": dict(database=5000, queries=1000, altered=50, out="results"),
        "07_speed": dict(measure="layers"),
    },
    "paper": {
        "03_train_cifar10": PAPER, "04_train_cifar100": PAPER,
        "06_interpretation": dict(database=None, queries=None, altered=500, out="results"),
        "07_speed": dict(measure="all", compare_epochs=10, out="results"),
    },
}
DIGITS = {"small": dict(epochs=10, train_size=None, lr=0.05)}  # changed further where digits are trained on: they are 1,500
TRAINED_ON = {"03_train_cifar10": "cifar10", "04_train_cifar100": "cifar100"}
NO_CHANGE = ("variant", "out", "max_seconds")  # named otherwise in an executed copy, or no part of what is trained
NETWORK = {"variant": "variant", "preset": "preset", "K": "K", "Q": "Q", "J": "J", "boundary": "padding_mode"}  # parameter: field


def find(name):
    """Path of a notebook named in full, by its first characters (`03`) or as a file."""
    paths = sorted(NOTEBOOKS.glob("*.ipynb"))
    stem = Path(name).stem
    found = [path for path in paths if path.stem == stem] or [path for path in paths if path.stem.startswith(stem)]
    if len(found) != 1:
        raise ValueError(f"notebook must be one of {', '.join(path.stem for path in paths)}, got {name!r}")
    return found[0]


def defaults(path):
    """The parameters of a notebook, from its cell tagged `parameters`: {name: (default, annotation or None)}."""
    cells = [c for c in nbformat.read(path, as_version=4).cells if "parameters" in c.metadata.get("tags", [])]
    found = {}
    for node in ast.parse(cells[0].source).body if cells else []:
        if isinstance(node, ast.Assign):
            found[node.targets[0].id] = (ast.literal_eval(node.value), None)
        elif isinstance(node, ast.AnnAssign):
            found[node.target.id] = (ast.literal_eval(node.value), ast.unparse(node.annotation))
    return found


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
    """Whether a value has the type of a parameter's default, or one that its annotation (`int | None`) names."""
    kinds = {name.strip() for name in annotation.split("|")} if annotation else set()
    if default is not None:
        kinds.add(type(default).__name__)
    if value is None:
        return default is None or "None" in kinds
    if not kinds - {"None"}:  # a default of None alone says nothing about the type
        return True
    if isinstance(value, list) and isinstance(default, list) and default:
        return all(fits(item, default[0], None) for item in value)
    kind = type(value).__name__
    return kind in kinds or kind == "int" and "float" in kinds


def check(path, parameters):
    """Refuse parameters that the notebook does not have, of another type, or that no network has. ValueError."""
    known = defaults(path)
    for name, value in parameters.items():
        if name not in known:
            raise ValueError(f"unknown parameter {name!r} of {path.stem}; it has {', '.join(known) or 'none'}")
        default, annotation = known[name]
        if not fits(value, default, annotation):
            kind = annotation or type(default).__name__
            raise ValueError(f"{name} must be of type {kind} in {path.stem} (default {default!r}), got {value!r}")
    values = {name: default for name, (default, _) in known.items()} | parameters
    set_to = {name: value for name, value in values.items() if value is not None and not isinstance(value, list)}
    network = {NETWORK[name]: value for name, value in set_to.items() if name in NETWORK}
    if path.stem not in TRAINED_ON:
        network["subsampled"] = ()  # a notebook that trains nothing chooses these to fit its J
    Architecture.preset(set_to.get("dataset", TRAINED_ON.get(path.stem, "cifar10")), **network)
    recipe = {field.name for field in fields(Recipe)} | {"preset"}
    Recipe.preset(**{name: value for name, value in set_to.items() if name in recipe})


@functools.cache
def digits_stand_in(dataset):
    """Whether CIFAR is neither present nor downloadable; `load_dataset` then says so in a line."""
    return not available(dataset) and load_dataset(dataset, fallback=True).substitutes is not None


def planned(path, profile, given):
    """One execution, checked: (path, parameters, name of the executed copy, which tells it from the profile's own)."""
    usual = PROFILES[profile].get(path.stem, {})
    check(path, usual | given)
    dataset = given.get("dataset", TRAINED_ON.get(path.stem))
    on_digits = path.stem in TRAINED_ON and (dataset == "digits" or digits_stand_in(dataset))
    usual = usual | (DIGITS.get(profile, {}) if on_digits else {})
    before = {name: default for name, (default, _) in defaults(path).items()} | usual
    own = NO_CHANGE + (("dataset",) if on_digits else ())
    changed = {key: value for key, value in sorted(given.items()) if key not in own and value != before[key]}
    tag = "".join(f"-{key}{re.sub('[^A-Za-z0-9.+-]+', '_', str(value))}" for key, value in changed.items())
    if len(tag) > 60:
        tag = "-" + hashlib.sha256(json.dumps(changed).encode()).hexdigest()[:8]
    variant = f"-{(before | given)['variant']}" if "variant" in before else ""
    return path, usual | given, path.stem + variant + ("-digits" if on_digits else "") + tag


def everything(profile, datasets):
    """The whole reproduction in order: every notebook, the training ones once for each variant."""
    if not set(datasets) <= set(DATASETS):
        raise ValueError(f"dataset must be of {', '.join(DATASETS)}, got {','.join(datasets)!r}")
    plan = []
    for path in sorted(NOTEBOOKS.glob("*.ipynb")):
        dataset = TRAINED_ON.get(path.stem)
        if dataset is None:
            plan.append(planned(path, profile, {"dataset": datasets[0]} if "dataset" in defaults(path) else {}))
        elif dataset in datasets or "digits" in datasets:
            given = {} if dataset in datasets else {"dataset": "digits"}
            plan += [planned(path, profile, given | {"variant": variant}) for variant in ("hcnn", "hcnn-plus")]
    return plan


def swept(names, profile, given, grid):
    """Every combination of the values in `K=8,16 Q=9,32`: {what tells the cell from the others: its execution}.

    The notebook is named, or the one that trains on the cell's data set. No cell has the profile's limit of time.
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
        usual = "04" if (given | cell).get("dataset") == "cifar100" else "03"
        for path in map(find, names or [usual]):
            unlimited = {"max_seconds": None} if "max_seconds" in PROFILES[profile].get(path.stem, {}) else {}
            parts = ([path.stem] if len(names) > 1 else []) + [f"{name}={cell[name]}" for name in several]
            cells[" ".join(parts) or path.stem] = planned(path, profile, unlimited | given | cell)
    return cells


def sweep(cells, profile, workers):
    """Execute the cells side by side, a process each; the exit status, 0 where all are complete."""
    def command(path, parameters, _):
        given = {key: value for key, value in parameters.items() if PROFILES[profile].get(path.stem, {}).get(key, ...) != value}
        typed = [text for key, value in given.items() for text in ("-p", key, str(value))]
        return [sys.executable, str(NOTEBOOKS / "execute.py"), path.stem, "--profile", profile, *typed]

    print(f"{len(cells)} cells: {'; '.join(cells)}", flush=True)
    status = report(run_all({name: command(*cell) for name, cell in cells.items()}, workers, say), say)
    say("`make figures` puts their runs into the tables")
    return status


def say(line):
    """Print a line at once."""
    print(line, flush=True)


def kept(notebook):
    """What a kept copy holds: no paths of this machine, nor papermill's notes, which hold some; pictures in few bytes."""
    from hcnn.companion.figures.common import compact  # matplotlib takes seconds to import

    def shorten(text):
        return text.replace(f"{ROOT}{os.sep}", "").replace(f"{Path.home()}{os.sep}", "~/")

    notebook.metadata.pop("papermill")
    for cell in notebook.cells:
        cell.metadata.pop("papermill", None)
        cell.metadata.pop("execution", None)
        for output in cell.get("outputs", []):
            if "text" in output:
                output["text"] = shorten(output["text"])
            for kind, content in output.get("data", {}).items():
                if isinstance(content, str) and kind.startswith("text/"):
                    output["data"][kind] = shorten(content)
                if kind == "image/png":
                    output["data"][kind] = b64encode(compact(b64decode(content))).decode()
    return notebook


def execute(path, parameters, name):
    """Run one notebook; its copy in results/notebooks/ appears only where every cell has succeeded. RuntimeError."""
    output = RESULTS / "notebooks" / f"{name}.ipynb"
    output.parent.mkdir(parents=True, exist_ok=True)  # before hours of work
    working = Path(tempfile.mkdtemp(prefix="hcnn-")) / f"{name}.ipynb"
    shown = " ".join([path.stem, *(f"{key}={value}" for key, value in parameters.items())])
    print(f"{shown} ...", flush=True)
    started = time.perf_counter()
    try:
        notebook = papermill.execute_notebook(
            path, working, parameters, kernel_name="python3", cwd=NOTEBOOKS, progress_bar=False, extra_arguments=QUIET,
            stdout_file=sys.stdout if path.stem in TRAINED_ON else None,  # a line an epoch
            config=PATIENT,
        )
    except (PapermillExecutionError, DeadKernelError) as error:
        reason = f"{error.ename}: {error.evalue}" if isinstance(error, PapermillExecutionError) else str(error)
        raise RuntimeError(f"{shown} failed: {reason}\n  the failed copy is {working}") from error
    write_bytes(output, (nbformat.writes(kept(notebook)) + "\n").encode())
    shutil.rmtree(working.parent)
    print(f"{shown}: {time.perf_counter() - started:.0f} s", flush=True)


def strip(notebook):
    """Remove outputs and execution counts, except of checked cells, and everything that differs from run to run."""
    for cell in notebook.cells:
        if cell.cell_type != "code":
            continue
        cell.metadata = nbformat.from_dict({k: v for k, v in cell.metadata.items() if k in ("tags", "jupyter")})
        if cell.source.lstrip().startswith(CHECKED):
            printed = "".join(output.text for output in cell.outputs if output.get("name") == "stdout")  # in however many pieces it came
            others = [output for output in cell.outputs if output.output_type != "stream"]
            cell.outputs = [nbformat.v4.new_output("stream", name="stdout", text=printed)] * bool(printed) + others
        else:
            cell.outputs, cell.execution_count = [], None
    notebook.metadata = nbformat.from_dict({
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    })
    return notebook


def refresh(path):
    """Run a notebook with its own defaults and write it back stripped, with fresh outputs in its checked cells."""
    before = path.read_text(encoding="utf-8")
    notebook = nbformat.reads(before, as_version=4)
    started = time.perf_counter()
    client = NotebookClient(notebook, timeout=None, kernel_name="python3", extra_arguments=QUIET,
                            resources={"metadata": {"path": str(path.parent)}})
    try:
        client.execute()
    except CellExecutionError as error:
        raise RuntimeError(f"{path.stem} failed and was left as it is:\n{error}") from error
    if path.read_text(encoding="utf-8") != before:
        raise RuntimeError(f"{path.stem} was changed while it ran and was left as it is; run --refresh again")
    write_bytes(path, (nbformat.writes(strip(notebook)) + "\n").encode())
    checked = sum(cell.source.lstrip().startswith(CHECKED) for cell in notebook.cells)
    print(f"{path.stem}: {checked} checked cells, {time.perf_counter() - started:.0f} s", flush=True)


def summary():
    """The table that notebook 05 wrote: paper, here, and what it was computed on."""
    table = pd.read_csv(RESULTS / "tables" / "summary.csv", keep_default_na=False)
    table["computed_on"] = [textwrap.shorten(text, 100, placeholder=" ...") for text in table["computed_on"]]
    columns = ["quantity", "paper", "here", "computed_on"]
    widths = [max(map(len, [name, *table[name]])) for name in columns]
    print()
    for row in [columns, *table[columns].values.tolist()]:
        print("  ".join(text.ljust(width) for text, width in zip(row, widths)).rstrip())
    print("Accuracies in parentheses are not comparable with the paper: results/tables/other_runs.csv says why.")


def plan(options):
    """The executions that the command line asks for, all checked before the first one starts."""
    if options.all:
        return everything(options.profile, options.dataset.split(","))
    given = {name: parse(value) for name, value in options.parameter}
    if options.sweep:
        return swept(options.names, options.profile, given, options.sweep)
    return [planned(find(name), options.profile, given) for name in options.names]


def main(arguments=None):
    """Command line; returns the exit code: 0, 1 where a notebook failed, 2 where the request was refused."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="notebooks, in full or by number: 03_train_cifar10 or 03")
    parser.add_argument("--profile", choices=PROFILES, default="smoke", help="sizes of the trainings (default: smoke)")
    parser.add_argument("-p", "--parameter", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"),
                        help="one parameter, a scalar or a list such as '[1, 2]'")
    action = parser.add_mutually_exclusive_group()
    action.add_argument("--all", action="store_true", help="every notebook in turn, both variants of each training")
    action.add_argument("--sweep", nargs="+", metavar="NAME=VALUES", help="a grid of executions side by side")
    action.add_argument("--refresh", action="store_true", help="renew the outputs of the checked cells in notebooks/")
    parser.add_argument("--dataset", default="cifar10,cifar100", help="with --all: data sets, or digits")
    parser.add_argument("--workers", type=int, help="cells of a sweep at a time (default: one a GPU, or one a core)")
    options = parser.parse_args(arguments)
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    logging.getLogger("papermill").setLevel(logging.ERROR)
    for name in ("HCNN_RESULTS", "HCNN_DATA"):
        if folder := os.environ.get(name):
            os.environ[name] = str(Path(folder).expanduser().absolute())  # the kernels start in notebooks/
    try:
        if options.refresh:
            for name in options.names or [path.stem for path in sorted(NOTEBOOKS.glob("*.ipynb"))]:
                refresh(find(name))
            return 0
        steps = plan(options)
        if options.sweep:
            return sweep(steps, options.profile, options.workers)
        for step in steps:
            execute(*step)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (RuntimeError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:  # papermill has ended the kernel, and a training in it has left its checkpoint
        return 130
    if options.all:
        summary()
    return 0
