"""python -m hcnn train | headline | ablations | evaluate | interpret | data | speed | gpu-check | verify: the work without Jupyter; see `--help`."""

import argparse
import json
import os
import sys
import time
from dataclasses import fields

import torch
import torch.distributed as dist

from hcnn.architecture import CONVENTIONS, VARIANTS, Architecture
from hcnn.companion.baselines.systems import SYSTEMS, Baseline
from hcnn.companion.headline import queue
from hcnn.companion.parallel import report, run_all
from hcnn.companion.speed.gpu_check import add_command, run_gpu_check
from hcnn.data.datasets import DATASETS, fetch_dataset, load_dataset, split_dataset
from hcnn.device import PRECISIONS, choose_device
from hcnn.training.evaluation import evaluate
from hcnn.training.loop import train
from hcnn.training.recipe import SCHEDULES, Recipe
from hcnn.training.run_folder import read_run
from hcnn.training.trained import load, teacher_name

ARCHITECTURE = ("variant", "K", "Q", "J", "padding_mode", "attribute_support")
RECIPE = ("epochs", "batch_size", "lr", "schedule")


class Parser(argparse.ArgumentParser):
    def error(self, message):
        raise ValueError(message)


def parser():
    top = Parser(prog="python -m hcnn", description=__doc__, allow_abbrev=False)
    commands = top.add_subparsers(dest="command", required=True, parser_class=Parser)

    p = commands.add_parser("train", help="train a network into a run folder, or continue", allow_abbrev=False)
    _training(p, (*VARIANTS, *SYSTEMS), "or a compared network; default: hcnn (released: hcnn-plus)")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--split", default="test", choices=("test", "validation"), help="validation: test on held-out training images")

    p = commands.add_parser("headline", help="the full trainings of the paper's tables, one after the other, each where it stopped",
                            allow_abbrev=False)
    p.add_argument("--datasets", nargs="+", default=["cifar10", "cifar100"], choices=DATASETS)
    p.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=(*VARIANTS, *SYSTEMS))
    p.add_argument("--seeds", type=int, nargs="+", default=[0])
    p.add_argument("--further", action="store_true", help="then periodic boundaries, `released`, seeds 1 to 4, other Q, w itself, larger K")
    p.add_argument("--max-seconds", type=float, default=float("inf"), help="for all of them; the same command continues")
    p.add_argument("--out", help="folder of the runs (default: results/runs)")
    _machine(p)

    p = commands.add_parser("ablations", help="train a network and every departure from it in one field, on held-out training images",
                            allow_abbrev=False)
    _training(p, VARIANTS, "default: hcnn (released: hcnn-plus)")
    p.add_argument("--seeds", type=int, nargs="+", default=[0])
    p.add_argument("--workers", type=int, help="trainings at a time (default: one a GPU, or one a core)")

    p = commands.add_parser("evaluate", help="recompute the stored accuracy of a run from its weights", allow_abbrev=False)
    p.add_argument("run", help="a run folder, or a short name such as cifar10-hcnn")
    p.add_argument("--images", type=int, metavar="N", help="the first N test images only")
    _machine(p)

    p = commands.add_parser("interpret", help="what translated attributes are nearest to, section 5.3: interpretation.npz of a run, which "
                            "notebook 06 shows", allow_abbrev=False)
    p.add_argument("run", help="a run folder, or a short name such as cifar10-hcnn")
    p.add_argument("--database", type=int, metavar="N", help="training images that are searched (default: all)")
    p.add_argument("--queries", type=int, metavar="N", help="test images (default: all)")
    p.add_argument("--altered", type=int, metavar="N", default=500, help="test images whose properties are changed (default: 500)")
    _machine(p)

    p = commands.add_parser("data", help="download and verify data sets", allow_abbrev=False)
    p.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(DATASETS)} (default: all)")
    p.add_argument("--dataset-root", help="folder of the data sets (default: data)")

    p = commands.add_parser("speed", help="measure training steps beside the literal implementation", allow_abbrev=False)
    p.add_argument("--again", action="store_true", help="measure what results/tables/speed.csv already has as well")
    p.add_argument("--max-seconds", type=float, help="no case begins after so long; the same command continues")
    p.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:<number>")
    p.add_argument("--threads", type=int, help="CPU threads (default: all cores)")

    add_command(commands)
    p = commands.add_parser("verify", help="recompute tables, README and accuracies from the stored runs", allow_abbrev=False)
    p.add_argument("--accuracy", default="sample", choices=("sample", "full"), help="of stored networks: on 500 test images, or on all")
    _machine(p)
    return top


def _training(p, variants, which):
    p.add_argument("--dataset", default="cifar10", choices=DATASETS)
    p.add_argument("--preset", choices=tuple(CONVENTIONS), help="of architecture and recipe; default: paper, or as published elsewhere")
    p.add_argument("--variant", choices=tuple(variants), help=which)
    p.add_argument("--K", type=int, help="values of an attribute, a multiple of 4")
    p.add_argument("--Q", type=int, help="separable filters, equation (8)")
    p.add_argument("--J", type=int, help="depth")
    p.add_argument("--padding-mode", choices=("zeros", "periodic"))
    p.add_argument("--attribute-support", type=int, nargs=2, metavar=("S1", "S2"))
    p.add_argument("--epochs", type=int)
    p.add_argument("--batch-size", type=int)
    p.add_argument("--lr", type=float)
    p.add_argument("--schedule", choices=SCHEDULES)
    p.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="another field of Architecture or Recipe")
    p.add_argument("--train-size", type=int, help="training images used (default: all)")
    p.add_argument("--precision", default="fast", choices=PRECISIONS)
    p.add_argument("--max-seconds", type=float, help="stop cleanly after so long; the same command continues")
    p.add_argument("--out", help="folder of the runs (default: results/runs)")
    _machine(p)


def _machine(p):
    p.add_argument("--dataset-root", help="folder of the data sets (default: data)")
    p.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:<number>")
    p.add_argument("--threads", type=int, help="CPU threads")


def settings(options):
    """The Architecture and the Recipe that the options of `train` ask for."""
    kind = Baseline if options.variant in SYSTEMS else Architecture
    names = {cls: {f.name for f in fields(cls)} for cls in (kind, Recipe)}
    given = {name: getattr(options, name) for name in ARCHITECTURE + RECIPE if getattr(options, name) is not None}
    for item in options.set:
        name, equals, text = item.partition("=")
        if not equals or not any(name in allowed for allowed in names.values()):
            raise ValueError(f"--set must be NAME=VALUE with a field of {kind.__name__} or Recipe, got {item!r}; fields are "
                             + ", ".join(sorted(names[kind] | names[Recipe])))
        if name in given:
            raise ValueError(f"{name} is given twice")
        try:
            given[name] = json.loads(text)
        except json.JSONDecodeError:
            given[name] = text  # a bare word is a string
    given.setdefault("variant", "hcnn-plus" if options.preset == "released" else "hcnn")
    recipe = {name: value for name, value in given.items() if name in names[Recipe]}
    network = {name: value for name, value in given.items() if name not in recipe}
    if kind is Architecture:
        preset = options.preset or "paper"
        return Architecture.preset(options.dataset, preset=preset, **network), Recipe.preset(preset, **recipe)
    if options.preset:
        raise ValueError(f"preset must not be given with {options.variant}, which was published once, got {options.preset!r}")
    if options.variant == "wrn-student":
        network.setdefault("teacher", teacher_name(options.dataset, options.seed, options.split, options.precision))
    return Baseline.preset(options.dataset, **network), Recipe.preset(options.variant, **recipe)


def run_train(options):
    _train(options)


def _train(options):
    """Train as the options of `train` say, in one process of several under torchrun; the run's folder."""
    architecture, recipe = settings(options)
    device = choose_device(options.device)
    distributed = int(os.environ.get("WORLD_SIZE", 1)) > 1
    if distributed:
        if device.type == "cuda":
            torch.cuda.set_device(device)
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        dataset = None
        if not distributed or dist.get_rank() == 0:  # one process downloads
            dataset = load_dataset(options.dataset, options.dataset_root)
        if distributed:
            dist.barrier()
            dataset = dataset or load_dataset(options.dataset, options.dataset_root, download=False)
        return train(architecture, recipe, dataset, seed=options.seed, out=options.out, device=device, precision=options.precision,
                     split=options.split, train_size=options.train_size, max_seconds=options.max_seconds, log=_say)
    finally:
        if distributed:
            dist.destroy_process_group()


def run_headline(options):
    """Train what is missing until the time is over or a signal comes; what fails is said and does not keep the others from starting."""
    end, status = time.monotonic() + options.max_seconds, 0
    for arguments in queue(options.datasets, options.variants, options.seeds, options.further):
        if time.monotonic() >= end:
            _say("the time is over; the same command goes on from here")
            return status
        limit = [] if end == float("inf") else ["--max-seconds", str(end - time.monotonic())]
        command = ["train", *arguments, *limit, *_passed_on(options, "out", "dataset_root", "device")]
        try:
            run = read_run(_train(parser().parse_args(command)))
        except (ValueError, OSError, FloatingPointError, MemoryError) as error:
            print(f"error: {' '.join(arguments)}: {error}", file=sys.stderr)
            status = 1
            continue
        if run["epochs_done"] < run["epochs"] and time.monotonic() < end:
            return 130  # a signal
    return status


def _passed_on(options, *names):
    given = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    return [text for name, value in given.items() for text in (f"--{name.replace('_', '-')}", str(value))]


def run_ablations(options):
    from hcnn.companion.results.ablations import commands  # pandas takes a second to import

    arguments = _passed_on(options, "train_size", "max_seconds", "out", "dataset_root", "device", "threads")
    plan = commands(*settings(options), options.precision, options.dataset, options.seeds, arguments)
    return report(run_all(plan, options.workers, _say), _say)


def run_evaluate(options):
    network = load(options.run)
    run, device = network.run, choose_device(options.device)
    parameters = run["parameters"]
    data = split_dataset(_dataset_of(run, options.dataset_root), parameters["split"], parameters["train_size"])
    n = len(data.test_labels) if options.images is None else options.images
    if not 1 <= n <= len(data.test_labels):
        raise ValueError(f"--images must be between 1 and {len(data.test_labels)}, got {n}")
    images, labels = data.test_images[:n].to(device), data.test_labels[:n].to(device)
    loss, accuracy = evaluate(network.to(device), images, labels, network.mean, network.std)
    stored = run["test_accuracy"]
    _say(f"{run['name']}  {n:,} of {len(data.test_labels):,} {run['tested_on']}, epoch {run['epochs_done']} of {run['epochs']}")
    _say(f"accuracy  stored {stored:.4%}  here {accuracy:.4%}  difference {accuracy - stored:+.4%}   loss here {loss:.4f}")


def _dataset_of(run, root):
    """The Dataset that a run was made with."""
    name = run["parameters"]["dataset"]
    dataset = load_dataset(name, root)
    if dataset.checksum != run["data_checksum"]:
        raise ValueError(f"{name} has checksum {dataset.checksum[:12]}, the run was made with {run['data_checksum'][:12]}")
    return dataset


def run_interpret(options):
    from hcnn.companion.interpretation.measure import (  # pandas takes a second to import
        FILE,
        interpret,
        load_interpretation,
        save_interpretation,
        settings,
    )

    network = load(options.run)
    data = _dataset_of(network.run, options.dataset_root)
    asked = settings(network, data, database=options.database, queries=options.queries, altered=options.altered)
    where = f"{network.folder.name}/{FILE}"
    if load_interpretation(network.folder, asked, larger=True) is not None:
        _say(f"{where} holds as much already")
        return
    save_interpretation(network.folder, interpret(network, data, asked, device=options.device, log=_say))
    _say(f"{where}: {asked['database']:,} training images, {asked['queries']:,} test images, {asked['altered']} altered")


def run_data(options):
    for name in options.names:
        if name not in DATASETS:
            raise ValueError(f"data set must be one of {', '.join(DATASETS)}, got {name!r}")
    for name in options.names or DATASETS:
        dataset = fetch_dataset(name, options.dataset_root)
        _say(f"{name}: {len(dataset.train_labels):,} training and {len(dataset.test_labels):,} test images, "
             f"{len(dataset.classes)} classes, checksum {dataset.checksum[:12]} verified")


def run_speed(options):
    from hcnn.companion.speed.table import cases, measure_all  # pandas takes a second to import

    measure_all(cases(choose_device(options.device).type, torch.get_num_threads()), again=options.again,
                max_seconds=options.max_seconds, log=_say)


def run_verify(options):
    from hcnn.companion.results.verify import verify  # pandas takes a second to import, and no other command needs it

    findings = verify(accuracy=options.accuracy, dataset_root=options.dataset_root, device=options.device, log=_say)
    for finding in findings:
        print(f"DIFFERENT  {finding}", file=sys.stderr)
    return 1 if findings else 0


def _say(line):
    print(line, flush=True)


def main(arguments=None):
    """Run a command; the exit code is 2 for wrong parameters, 1 for what went wrong later or differs, with a line on stderr."""
    try:
        options = parser().parse_args(arguments)
        threads = getattr(options, "threads", None)
        if threads is not None:
            if threads < 1:
                raise ValueError(f"threads must be at least 1, got {threads}")
            torch.set_num_threads(threads)
        run = dict(train=run_train, headline=run_headline, ablations=run_ablations, evaluate=run_evaluate,
                   interpret=run_interpret, data=run_data, speed=run_speed, verify=run_verify,
                   **{"gpu-check": run_gpu_check})[options.command]
        return run(options) or 0
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (OSError, FloatingPointError, MemoryError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
