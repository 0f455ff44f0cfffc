"""Several commands at a time: what they share, that the end of one is no end of the others, and that trainings
resume.
"""

import os
import signal
import subprocess
import sys
import time

import joblib
import pytest

from hcnn.companion import parallel
from hcnn.companion.experiments import command_line
from hcnn.companion.results.runs import load_runs


def python(code, *arguments):
    return [sys.executable, "-c", code, *map(str, arguments)]


def run(commands, **options):
    """(outcomes, lines that were printed)"""
    lines = []
    return parallel.run_all(commands, log=lines.append, **options), lines


def test_how_a_command_ended_is_told_by_its_exit_status_and_stops_nothing_else():
    outcomes, lines = run({
        "good": python("print('error: stopped (')"), "status": python("import sys; print('last words'); sys.exit(3)"),
        "killed": python("import os; os.kill(os.getpid(), 9)"), "absent": ["/no/such/program"],
        "time": python("import sys; sys.exit(75)"), "later": python("print('done')"),
    }, workers=2)
    assert outcomes.pop("absent").startswith("could not be started: ")
    assert outcomes == {"good": None, "status": "exit status 3: last words", "killed": "ended by SIGKILL",
                        "time": "stopped before it was done", "later": None}
    assert "[status] last words" in lines and lines.count("[later] done") == 1


def test_report_lists_what_is_not_complete_and_gives_the_exit_status():
    lines = []
    assert parallel.report({"a": None, "b": "ended by SIGKILL"}, lines.append) == 1
    assert lines == ["NOT COMPLETE  b: ended by SIGKILL", "1 of 2 are complete; the same command continues"]
    assert parallel.report({"a": None}, lines.append) == 0 and lines[-1] == "1 of 1 are complete"


def test_lines_of_two_commands_never_mix():
    code = "import sys\nfor i in range(300): print(sys.argv[1] * 60, i)"
    _, lines = run({name: python(code, name) for name in "ab"}, workers=2)
    assert sorted(lines) == sorted(f"[{name}] {name * 60} {i}" for name in "ab" for i in range(300))


def test_every_worker_has_a_gpu_of_its_own_and_its_share_of_the_threads(monkeypatch, tmp_path):
    monkeypatch.setattr(parallel, "_gpus", lambda: ["3", "GPU-5"])
    monkeypatch.setattr(joblib, "cpu_count", lambda: 12)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    code = """import os, sys, time
gpu = os.environ['CUDA_VISIBLE_DEVICES']
os.mkdir(file := os.path.join(sys.argv[1], gpu))  # fails where two have one GPU
time.sleep(0.3)
os.rmdir(file)
print(gpu, os.environ['OMP_NUM_THREADS'])"""
    outcomes, lines = run({str(i): python(code, tmp_path) for i in range(5)})
    assert set(outcomes.values()) == {None}
    assert {line.partition("] ")[2] for line in lines} == {"3 6", "GPU-5 6"}


def test_threads_that_the_user_set_are_kept_and_cores_are_shared_without_a_gpu(monkeypatch):
    code = "import os; print(os.environ['OMP_NUM_THREADS'], os.environ.get('CUDA_VISIBLE_DEVICES'))"
    monkeypatch.setattr(parallel, "_gpus", lambda: [])
    monkeypatch.setattr(joblib, "cpu_count", lambda: 8)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    for given, workers, threads in ((None, 3, 2), (None, None, 4), ("1", 2, 1)):
        monkeypatch.setenv("OMP_NUM_THREADS", given) if given else monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
        _, lines = run(dict.fromkeys("abc" if workers == 3 else "ab", python(code)), workers=workers)
        assert {line.partition("] ")[2] for line in lines} == {f"{threads} None"}


@pytest.mark.parametrize("workers", [0, 1.5])
def test_number_of_workers_is_checked(workers):
    with pytest.raises(ValueError, match="workers must be a positive integer, got"):
        parallel.run_all({"a": python("")}, workers=workers)


def test_trainings_side_by_side_are_there_and_a_refused_one_says_why(tmp_path):
    training = dict(dataset="digits", variant="hcnn", K=4, J=4, subsampled=[2, 3], epochs=1, train_size=150)
    outcomes, _ = run({f"Q={Q}": command_line(training | dict(Q=Q, device="cpu", out=str(tmp_path))) for Q in (2, 0)},
                      workers=2)
    assert outcomes.pop("Q=0").startswith("exit status 2: error: Q must be an integer of at least 1")
    assert outcomes == {"Q=2": None}
    assert [run.complete for run in load_runs(tmp_path, log=pytest.fail)] == [True]


# Signals


QUEUE = "import sys; from hcnn.companion.parallel import *\nsys.exit(report(run_all({commands!r}, workers=1)))"
TRAINING = """import signal, sys, time
asked = []
signal.signal(signal.SIGTERM, lambda *arguments: (asked.append(0), print('asked to stop', flush=True)))
print('ready', flush=True)
while len(asked) < {patience}: time.sleep(0.01)
time.sleep(0.5)  # the checkpoint
sys.exit(75 if len(asked) == 1 else 0)"""


@pytest.fixture
def queue():
    """A function: starts two stand-ins for a training, one after the other; how many signals end one -> the process."""
    def start(patience):
        commands = dict.fromkeys("ab", python(TRAINING.format(patience=patience)))
        process = subprocess.Popen(python(QUEUE.format(commands=commands)), stdout=subprocess.PIPE, text=True,
                                   start_new_session=True, bufsize=1, env=os.environ | {"PYTHONUNBUFFERED": "1"})
        assert process.stdout.readline() == "[a] ready\n"
        return process

    return start


def test_a_signal_is_handed_on_once_and_nothing_more_is_started(queue):
    process = queue(patience=1)
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGTERM)  # as `timeout` does
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 1 and "NOT COMPLETE  b: not started" in said
    assert "NOT COMPLETE  a: stopped before it was done" in said


def test_ctrl_c_is_handed_on_once_and_once_more_kills(queue):
    process = queue(patience=2)
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline() == "[a] asked to stop\n"
    time.sleep(1.2)
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=30)
    assert process.returncode == 1 and said.startswith("NOT COMPLETE  a: ended by SIGKILL")
