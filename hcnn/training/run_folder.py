"""The run folder on disk: its name, files written whole or not at all, one writer at a time.

A folder holds run.json (what was asked and what came out), metrics.csv (a row an epoch), weights.safetensors and,
while the run is unfinished, checkpoint.safetensors, from which the other files are written again.
"""

import csv
import errno
import hashlib
import io
import json
import os

from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from hcnn.architecture import describe
from hcnn.training.recipe import Recipe

COLUMNS = ("epoch", "lr", "train_loss", "train_accuracy", "test_loss", "test_accuracy", "seconds")
USUAL = dict(substitutes=None, split="test", train_size=None, precision="fast")  # parameters that a name need not tell
CHECKPOINT, WEIGHTS, METRICS, RUN = "checkpoint.safetensors", "weights.safetensors", "metrics.csv", "run.json"


def canonical(parameters):
    """The one JSON text of a dictionary: keys sorted, no spaces, tuples as lists."""
    return json.dumps(parameters, sort_keys=True, separators=(",", ":"), allow_nan=False)


def sha256(content):
    """Hexadecimal sha256 of bytes or of a text."""
    return hashlib.sha256(content.encode() if isinstance(content, str) else content).hexdigest()


def essence(parameters):
    """What is unusual in the parameters of a run: equal for equal runs, whatever fields are added later."""
    architecture = describe(parameters["architecture"])
    others = {name: value for name, value in parameters.items() if USUAL.get(name, ...) != value}
    return others | dict(architecture=architecture.changed() | dict(variant=architecture.variant),
                         recipe=Recipe(**parameters["recipe"]).changed())


def run_name(parameters):
    """<data set>-<system>-<boundary>-s<seed>-<8 hex of the sha256 of what is unusual in the parameters, see `essence`>.

    A data set that stands in for another says so.
    """
    dataset, architecture = parameters["dataset"], parameters["architecture"]
    if parameters["substitutes"]:
        dataset = f"{dataset}-for-{parameters['substitutes']}"
    digest = sha256(canonical(essence(parameters)))[:8]
    return f"{dataset}-{architecture['variant']}-{architecture['padding_mode']}-s{parameters['seed']}-{digest}"


def write_bytes(path, content):
    """Write a file whole or not at all: a temporary file beside it, flushed to the disk, then renamed.

    Raises OSError naming the file and the reason; what stood at `path` before is then still there.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        if os.name == "posix":  # elsewhere a folder cannot be opened
            folder = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)  # the new name, too, survives a power failure
            finally:
                os.close(folder)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise OSError(error.errno, f"could not write {path} ({error.strerror}); the earlier file is untouched. "
                      "Make room or mend the disk, then start the same command again") from error


def lock(folder):
    """Hold a run folder for this process in a `with`; freed by the system when the process ends, however it ends.

    Raises BlockingIOError when another process holds it.
    """
    try:
        return FileLock(folder / ".lock").acquire(timeout=0)
    except Timeout as error:
        raise BlockingIOError(errno.EAGAIN,
                              f"{folder} is being written by another process; wait for it or stop it") from error


def write_run(folder, run):
    """Write run.json with a checksum of its own content."""
    run = {key: value for key, value in run.items() if key != "checksum"}
    run["checksum"] = sha256(canonical(run))
    write_bytes(folder / RUN, (json.dumps(run, indent=1, allow_nan=False) + "\n").encode())


def read_run(folder):
    """The content of run.json as a dictionary.

    Raises FileNotFoundError where there is none, ValueError where it is no JSON or was changed later.
    """
    path = folder / RUN
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist: {folder} is not a run folder")
    remedy = "restore it from git, or delete the folder and run again"
    if (folder / CHECKPOINT).exists():
        remedy = f"delete this file and run again: nothing is lost, {CHECKPOINT} holds all of it"
    try:
        run = json.loads(path.read_text(encoding="utf-8"))
        expected, found = run["checksum"], sha256(canonical({k: v for k, v in run.items() if k != "checksum"}))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is damaged ({error}); {remedy}") from error
    if expected != found:
        raise ValueError(f"{path} was changed after it was written (checksum {str(expected)[:12]}, content gives "
                         f"{found[:12]}); {remedy}")
    return run


def is_finished(folder, parameters):
    """Whether the folder holds the run of these parameters, complete.

    Raises ValueError where it holds another one, or an unfinished one without its checkpoint.
    """
    if not (folder / RUN).exists():
        return False
    run = read_run(folder)
    _check_same(folder, run["parameters"], parameters)
    if (folder / CHECKPOINT).exists():
        return False
    if 0 < run["epochs_done"] < run["epochs"]:
        raise ValueError(f"{folder} has {RUN} of an unfinished run, but no {CHECKPOINT} to continue from; "
                         "restore it, or delete the folder to start again")
    return run["epochs_done"] > 0


def _check_same(path, parameters, asked):
    """Raise ValueError unless a folder or file is of the run of the parameters that are asked for."""
    there, asked = essence(parameters), essence(asked)
    different = [key for key in sorted(there.keys() | asked.keys()) if there.get(key) != asked.get(key)]
    if different:
        raise ValueError(f"{path} holds another run (different: {', '.join(different)}); move it away or choose "
                         "another `out`")


def write_metrics(folder, rows):
    """Write metrics.csv whole: one row an epoch, numbers with all their digits."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_bytes(folder / METRICS, text.getvalue().encode())


def write_weights(folder, tensors):
    """Write weights.safetensors and return its sha256."""
    content = save_tensors(_plain(tensors))
    write_bytes(folder / WEIGHTS, content)
    return sha256(content)


def read_weights(folder, run):
    """The tensors of weights.safetensors, by name.

    Raises FileNotFoundError where there are none yet, ValueError where the file is not the one that run.json names.
    """
    path = folder / WEIGHTS
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist: no epoch of this run is finished, or its weights are not "
                                "stored. Train it with the parameters in run.json")
    content = path.read_bytes()
    if sha256(content) != run["weights_sha256"]:
        raise ValueError(f"{path} has sha256 {sha256(content)[:12]}, run.json says {str(run['weights_sha256'])[:12]}: "
                         "the file is damaged or of another run; restore it from git, or train again")
    try:
        return load_tensors(content)
    except SafetensorError as error:
        raise ValueError(f"{path} is no safetensors file ({error}); restore it from git, or train again") from error


def write_checkpoint(folder, parts, state):
    """Write {part: {name: tensor}} and a JSON-able state as one safetensors file, with a checksum of both."""
    tensors = _plain({f"{part}.{name}": t for part, named in parts.items() for name, t in named.items()})
    text = canonical(state)
    metadata = {"state": text, "sha256": _fingerprint(tensors, text)}
    write_bytes(folder / CHECKPOINT, save_tensors(tensors, metadata=metadata))


def read_checkpoint(folder, parameters):
    """The ({part: {name: tensor}}, state) of the checkpoint of the run of these parameters; None where none was begun.

    Raises ValueError where it is damaged or belongs to another run.
    """
    path = folder / CHECKPOINT
    if not path.exists():
        return None
    parts = dict(network={}, optimiser={})
    try:
        with safe_open(path, framework="pt") as file:
            text, expected = file.metadata()["state"], file.metadata()["sha256"]
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  it is no dictionary
        if _fingerprint(tensors, text) != expected:
            raise ValueError("its content does not have its checksum")
        state = json.loads(text)
        for name, tensor in tensors.items():
            part, _, name = name.partition(".")
            parts[part][name] = tensor
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({error}); restore it, or delete the folder to start again") from error
    _check_same(path, state["parameters"], parameters)
    return parts, state


def fill(network, tensors, path):
    """Give a network the tensors of a file; raises ValueError unless they have the names and shapes of its own."""
    try:
        network.load_state_dict(tensors)
    except RuntimeError as error:
        raise ValueError(f"{path} does not fit the architecture: {' '.join(str(error).split())}; restore it, or "
                         "delete the folder to start again") from error


def _fingerprint(tensors, text):
    return sha256(save_tensors(tensors) + text.encode())


def _plain(tensors):
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
