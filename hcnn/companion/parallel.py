"""Several commands at a time: a process each, GPUs and CPU threads shared out, and the end of one no end of the
others.
"""

import os
import signal
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from queue import SimpleQueue

import joblib
import torch

from hcnn.training.stopping import Stop

POLL_SECONDS = 0.2
STOPPED = 75  # exit status (EX_TEMPFAIL) of a command that stopped before it was done; started again it goes on


def run_all(commands, workers=None, log=print):
    """Run {name: list of arguments}, `workers` at a time; return {name: what went wrong, None where nothing did}.

    Every line of a command is passed to `log` as `[name] line`. Each worker has a GPU of its own while there are
    enough (CUDA_VISIBLE_DEVICES), and OMP_NUM_THREADS or else cores / workers CPU threads. workers: default one a
    GPU, without any one a core. SIGINT or SIGTERM is handed on to the running commands as one SIGTERM, on which
    trainings leave a checkpoint, and nothing more is started; another SIGINT a second later kills them. Raises
    ValueError where workers is no positive integer.
    """
    if workers is not None and not (isinstance(workers, int) and workers > 0):
        raise ValueError(f"workers must be a positive integer, got {workers!r}")
    gpus, cores = _gpus(), joblib.cpu_count()
    workers = min(workers or len(gpus) or cores, max(1, len(commands)))
    shared = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS") or str(max(1, cores // workers)),
              "PYTHONUNBUFFERED": "1"}
    places = SimpleQueue()
    for i in range(workers):
        places.put(shared | ({"CUDA_VISIBLE_DEVICES": gpus[i % len(gpus)]} if gpus else {}))
    one_line, running, told = threading.Lock(), {}, set()

    def say(line):
        with one_line:
            log(line)

    with _signals(running) as stop, ThreadPoolExecutor(workers) as pool:
        futures = {name: pool.submit(_run, name, arguments, places, running, stop, say)
                   for name, arguments in commands.items()}
        while wait(futures.values(), POLL_SECONDS).not_done:
            if stop.reason():
                for name, process in list(running.items()):
                    if name not in told:  # a second signal would end a training without its checkpoint
                        told.add(name)
                        process.terminate()
    return {name: future.result() for name, future in futures.items()}


@contextmanager
def _signals(running):
    """A Stop that SIGINT and SIGTERM set; `timeout` and others send theirs twice, so only a later SIGINT kills what
    runs.
    """
    stop, kept, first = Stop(), {}, []

    def handle(number, frame):
        stop.signal = signal.Signals(number).name
        first.append(time.monotonic())
        if number == signal.SIGINT and time.monotonic() > first[0] + 1:
            for process in list(running.values()):
                process.kill()

    for number in (signal.SIGTERM, signal.SIGINT):
        kept[number] = signal.signal(number, handle)
    try:
        yield stop
    finally:
        for number, before in kept.items():
            signal.signal(number, before)


def _run(name, arguments, places, running, stop, say):
    """Run one command when there is a place for it; what went wrong in a line, else None."""
    if stop.reason():
        return "not started"
    place, last = places.get(), ""
    try:
        # a process group of its own: Ctrl-C reaches it through the executor alone, once
        with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8",
                              errors="replace", env=os.environ | place, start_new_session=True) as process:
            running[name] = process
            for line in process.stdout:
                say(f"[{name}] {line.rstrip()}")
                last = line.strip() or last
    except OSError as error:
        return f"could not be started: {error}"
    finally:
        running.pop(name, None)
        places.put(place)
    status = process.returncode
    if status < 0:
        return f"ended by {signal.Signals(-status).name}"
    return {0: None, STOPPED: "stopped before it was done"}.get(status, f"exit status {status}: {last}")


def _gpus():
    """The names of the GPUs that this process may use."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return named.split(",")[:torch.cuda.device_count()] if named else [str(i) for i in range(torch.cuda.device_count())]


def report(outcomes, log=print):
    """Say which commands of `run_all` are not complete, and why; the exit status, 0 where all are."""
    failed = {name: problem for name, problem in outcomes.items() if problem}
    for name, problem in failed.items():
        log(f"NOT COMPLETE  {name}: {problem}")
    log(f"{len(outcomes) - len(failed)} of {len(outcomes)} are complete"
        + ("; the same command continues" if failed else ""))
    return 1 if failed else 0
