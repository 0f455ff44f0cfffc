"""python -m hcnn train | headline | ablations | evaluate | interpret | data | speed | gpu-check | tables | verify."""

import argparse
import json
import os
import sys
import time
from functools import partial
from operator import mul

import joblib
import torch
import torch.distributed as dist

from hcnn import paths
from hcnn.architecture import VARIANTS
from hcnn.companion.baselines.systems import SYSTEMS
from hcnn.companion.experiments import BASE, ablations, command_line, experiment, headline
from hcnn.companion.parallel import STOPPED, report, run_all
from hcnn.companion.speed.gpu_check import run_gpu_check
from hcnn.data.datasets import DATASETS, available, fetch_dataset, load_dataset, split_dataset
from hcnn.device import PRECISIONS, choose_device
from hcnn.settings import integer, one_of
from hcnn.training.evaluation import evaluate
from hcnn.training.loop import train
from hcnn.training.recipe import SCHEDULES
from hcnn.training.run_folder import WEIGHTS, read_run
from hcnn.training.trained import load

OPTIONS = {  # what argparse is told of each
    "dataset": dict(default="cifar10", choices=DATASETS),
    "preset": dict(help="of architecture and recipe: paper, released or short; default: as published"),
    "variant": dict(choices=(*VARIANTS, *SYSTEMS), help="or a compared network; default: hcnn (released: hcnn-plus)"),
    "K": dict(type=int, help="values of an attribute, a multiple of 4"),
    "Q": dict(type=int, help="separable filters, equation (8)"),
    "J": dict(type=int, help="depth"),
    "padding_mode": dict(choices=("zeros", "periodic")),
    "attribute_support": dict(type=int, nargs=2, metavar=("S1", "S2")),
    "epochs": dict(type=int), "batch_size": dict(type=int), "lr": dict(type=float), "schedule": dict(choices=SCHEDULES),
    "set": dict(action="append", default=[], metavar="NAME=VALUE", help="another field of Architecture or Recipe"),
    "train_size": dict(type=int, help="training images used (default: all)"),
    "precision": dict(default="fast", choices=PRECISIONS),
    "seed": dict(type=int, default=0),
    "seeds": dict(type=int, nargs="+"),
    "split": dict(default="test", choices=("test", "validation"), help="validation: test on held-out training images"),
    "workers": dict(type=int, help="trainings at a time"),
    "max_seconds": dict(type=float, help="stop cleanly after so long; the same command continues"),
    "out": dict(help="folder of the runs (default: results/runs)"),
    "dataset_root": dict(help="folder of the data sets (default: data)"),
    "device": dict(default="auto", help="auto, cpu, cuda, cuda:<number> or mps"),
    "threads": dict(type=int, help="CPU threads"),
    "datasets": dict(nargs="+", choices=DATASETS, help="default: cifar10 cifar100"),
    "variants": dict(nargs="+", choices=(*VARIANTS, *SYSTEMS), help="default: hcnn hcnn-plus"),
    "further": dict(action="store_true", help="then periodic boundaries, `released`, more seeds, other Q and K"),
    "images": dict(type=int, metavar="N", help="the first N test images only"),
    "database": dict(type=int, metavar="N", help="training images that are searched (default: all)"),
    "queries": dict(type=int, metavar="N", help="test images (default: all)"),
    "altered": dict(type=int, metavar="N", default=500, help="test images whose properties are changed (default: 500)"),
    "again": dict(action="store_true", help="measure what results/tables/speed.csv already has as well"),
    "local": dict(action="store_true", help="into results/local, with the runs there; the README stays"),
    "accuracy": dict(default="sample", choices=("sample", "full"), help="of stored networks: 500 test images, or all"),
}
FIELDS = ("variant", "K", "Q", "J", "padding_mode", "attribute_support", "epochs", "batch_size", "lr", "schedule")
TRAINING = ("dataset", "preset", "seed", "split", "train_size", "precision")
MACHINE = ("dataset_root", "device", "threads")
_say = partial(print, flush=True)


class Parser(argparse.ArgumentParser):
    def error(self, message):
        raise ValueError(message)


def parser():
    top = Parser(prog="python -m hcnn", description=__doc__, allow_abbrev=False)
    commands = top.add_subparsers(dest="command", required=True, parser_class=Parser)
    positional = dict(help="a run folder, or a short name such as cifar10-hcnn")

    def command(run, words, *names, **changes):
        p = commands.add_parser(run.__name__.removeprefix("run_").replace("_", "-"), help=words, allow_abbrev=False)
        p.set_defaults(run=run)
        for name in names:
            p.add_argument(f"--{name.replace('_', '-')}", **OPTIONS[name] | changes.get(name, {}))
        return p

    command(run_train, f"train a network into a run folder, or continue; exit status {STOPPED} where it stopped early",
            *FIELDS, *TRAINING, "set", "max_seconds", "out", *MACHINE)
    command(run_headline, "the trainings of the paper's tables, or of the short recipe, each where it stopped",
            "preset", "datasets", "variants", "seeds", "further", "workers", "max_seconds", "out", *MACHINE,
            preset=dict(choices=("paper", "short"), default="paper", help="short: the table `Trained here, on a CPU`"))
    command(run_ablations, "train a network and every departure from it in one field, on held-out training images",
            *FIELDS, "dataset", "preset", "train_size", "precision", "set", "seeds", "workers", "max_seconds", "out",
            *MACHINE, variant=dict(choices=tuple(VARIANTS)), seeds=dict(default=[0]))
    p = command(run_evaluate, "recompute the stored accuracy of a run from its weights", "images", *MACHINE)
    p.add_argument("name", metavar="run", nargs="?", **positional | dict(help="default: all in results/runs"))
    p = command(run_interpret, "interpretation.npz of a run, section 5.3, which notebook 06 shows",
                "database", "queries", "altered", *MACHINE)
    p.add_argument("name", metavar="run", **positional)
    p = command(run_data, "download and verify data sets", "dataset_root")
    p.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(DATASETS)} (default: all)")
    command(run_speed, "measure training steps beside the literal implementation",
            "again", "max_seconds", "device", "threads")
    command(run_gpu_check, "does this GPU train as it should? At most four minutes", "out", "device",
            out=dict(help="folder of what it measures (default: a temporary one)"))
    command(run_tables, "write tables and the README's results from the stored runs", "local")
    command(run_verify, "write tables and README again and compare, evaluate the stored networks", "accuracy", *MACHINE)
    return top


def _given(options, names):
    """The options that were given, {name: value}."""
    return {name: value for name in names if (value := getattr(options, name, None)) is not None}


def parameters(options):
    """The options of `train` as a dictionary of parameters, for `experiment`."""
    given = _given(options, FIELDS)
    for item in options.set:
        name, equals, text = item.partition("=")
        if not equals:
            raise ValueError(f"--set must be NAME=VALUE, got {item!r}")
        if name in given or name in TRAINING:
            raise ValueError(f"{name} is given twice")
        try:
            given[name] = json.loads(text)
        except json.JSONDecodeError:
            given[name] = text  # a bare word is a string
    return given | _given(options, TRAINING)


def run_train(options):
    run = _train(experiment(**parameters(options)), options, options.max_seconds)
    return 0 if run["epochs_done"] == run["epochs"] else STOPPED


def _train(training, options, max_seconds=None):
    """Train an Experiment, in one process of several under torchrun; what run.json says."""
    begin, device = time.monotonic(), choose_device(options.device)
    distributed = int(os.environ.get("WORLD_SIZE", 1)) > 1
    if distributed:
        if device.type == "cuda":
            torch.cuda.set_device(device)
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        dataset = None
        if not distributed or dist.get_rank() == 0:  # one process downloads
            dataset = load_dataset(training.dataset, options.dataset_root)
        if distributed:
            dist.barrier()
            dataset = dataset or load_dataset(training.dataset, options.dataset_root, download=False)
        if max_seconds is not None and max_seconds > 0:  # what loading has left of them
            max_seconds = max(1e-3, max_seconds - (time.monotonic() - begin))
        return read_run(train(
            training.architecture, training.recipe, dataset, seed=training.seed, out=options.out, device=device,
            precision=training.precision, split=training.split, train_size=training.train_size, max_seconds=max_seconds,
            log=_say))
    finally:
        if distributed:
            dist.destroy_process_group()


def run_headline(options):
    """Train what is missing until the time is over or a signal comes; a failure does not keep others from starting."""
    queue = headline(options.datasets, options.variants, options.seeds, options.preset, options.further)
    trainings = [experiment(**given) for given in queue]
    names = [f"{training.dataset} {training.label} seed={training.seed}" for training in trainings]
    if options.workers is not None:
        return _side_by_side(dict(zip(names, queue)), options)
    end, status = time.monotonic() + (float("inf") if options.max_seconds is None else options.max_seconds), 0
    for name, training in zip(names, trainings):
        left = end - time.monotonic()
        if left <= 0:
            _say("the time is over; the same command goes on from here")
            return status
        try:
            run = _train(training, options, None if options.max_seconds is None else left)
        except (ValueError, OSError, FloatingPointError, MemoryError) as error:
            print(f"error: {name}: {error}", file=sys.stderr)
            status = 1
            continue
        if run["epochs_done"] < run["epochs"] and time.monotonic() < end:
            return 130  # a signal
    return status


def _side_by_side(jobs, options):
    """Train {name: parameters}, so many at a time; the exit status. max_seconds is for each of them."""
    machine = _given(options, ("max_seconds", "out", *MACHINE))
    lines = {name: command_line(given | machine) for name, given in jobs.items()}
    return report(run_all(lines, options.workers, _say), _say)


def run_ablations(options):
    """Without any option on the network or its training the base is the declared one."""
    given = parameters(options)
    asked_for = given != parameters(parser().parse_args(["ablations"]))
    return _side_by_side(ablations(given if asked_for else BASE, options.seeds), options)


def run_evaluate(options):
    if options.name:
        _evaluate(load(options.name), options)
        return
    from hcnn.companion.results.ledger import write_evaluated  # pandas takes a second to import

    networks, found = [load(file.parent) for file in sorted(paths.RUNS.glob(f"*/{WEIGHTS}"))], {}
    for trained in networks:
        name, dataset = trained.run["name"], trained.run["parameters"]["dataset"]
        if available(dataset, options.dataset_root):
            found[name] = _evaluate(trained, options)
        else:
            _say(f"{name}: {dataset} is not present")
    if not networks:
        _say(f"no trained network is stored in {paths.RUNS}")
    if found and options.images is None:
        write_evaluated(found)


def _evaluate(trained, options):
    """Say the accuracy of a TrainedNetwork beside the stored one; return it. On a CPU each thread is a process."""
    run, device = trained.run, choose_device(options.device)
    workers = torch.get_num_threads() if device.type == "cpu" else 1
    asked, stored = run["parameters"], run["test_accuracy"]
    data = split_dataset(_dataset_of(run, options.dataset_root), asked["split"], asked["train_size"])
    total = len(data.test_labels)
    n = total if options.images is None else options.images
    if not 1 <= n <= total:
        raise ValueError(f"--images must be between 1 and {total}, got {n}")
    shares = list(zip(*(part.to(device).chunk(workers) for part in (data.test_images[:n], data.test_labels[:n]))))
    on = partial(evaluate, trained.to(device), mean=trained.mean, std=trained.std, size=trained.size)
    with joblib.parallel_config("loky", inner_max_num_threads=1):  # a single worker is this process
        found = joblib.Parallel(workers)(joblib.delayed(on)(*share) for share in shares)
    weights = [len(labels) / n for _, labels in shares]
    loss, accuracy = (sum(map(mul, weights, values)) for values in zip(*found))
    _say(f"{run['name']}  {n:,} of {total:,} {run['tested_on']}, epoch {run['epochs_done']} of {run['epochs']}\n"
         f"accuracy  stored {stored:.4%}  here {accuracy:.4%}  difference {accuracy - stored:+z.4%}  loss {loss:.4f}")
    return accuracy


def _dataset_of(run, root):
    """The Dataset that a run was made with."""
    name = run["parameters"]["dataset"]
    dataset = load_dataset(name, root)
    if dataset.checksum != run["data_checksum"]:
        raise ValueError(f"{name} has checksum {dataset.checksum[:12]}, "
                         f"the run was made with {run['data_checksum'][:12]}")
    return dataset


def run_interpret(options):
    from hcnn.companion.interpretation.measure import interpret_run  # pandas takes a second to import

    trained = load(options.name)
    interpret_run(trained, _dataset_of(trained.run, options.dataset_root), device=options.device, log=_say,
                  database=options.database, queries=options.queries, altered=options.altered)


def run_data(options):
    for name in options.names:
        one_of(DATASETS).check("data set", name)
    for name in options.names or DATASETS:
        dataset = fetch_dataset(name, options.dataset_root)
        _say(f"{name}: {len(dataset.train_labels):,} training and {len(dataset.test_labels):,} test images, "
             f"{len(dataset.classes)} classes, checksum {dataset.checksum[:12]} verified")


def run_speed(options):
    from hcnn.companion.speed.table import cases, measure_all  # pandas takes a second to import

    device = "cuda" if choose_device(options.device).type == "cuda" else "cpu"  # on a Mac: its processor
    measure_all(cases(device, torch.get_num_threads()), again=options.again, max_seconds=options.max_seconds, log=_say)


def run_tables(options):
    from hcnn.companion.results.write import write_local, write_results  # pandas takes a second to import

    (write_local if options.local else write_results)(log=_say)


def run_verify(options):
    from hcnn.companion.results.verify import verify  # pandas takes a second to import

    findings = verify(accuracy=options.accuracy, dataset_root=options.dataset_root, device=options.device, log=_say)
    for finding in findings:
        print(f"DIFFERENT  {finding}", file=sys.stderr)
    return 1 if findings else 0


def main(arguments=None):
    """Run a command; the exit code is 2 for wrong parameters, 1 for what went wrong later or differs, with a line."""
    try:
        options = parser().parse_args(arguments)
        if (threads := getattr(options, "threads", None)) is not None:
            integer(1).check("threads", threads)
            torch.set_num_threads(threads)
        return options.run(options) or 0
    except (ValueError, OSError, FloatingPointError, MemoryError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, ValueError) else 1
