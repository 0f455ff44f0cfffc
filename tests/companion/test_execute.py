"""The notebook runner: what it refuses, what it leaves behind, and the form every notebook must have."""

import ast
import base64
import errno
import io
import logging
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import nbformat.v4 as v4
import papermill
import pytest
from PIL import Image

from hcnn.companion.experiments import QUICK
from hcnn.companion.notebooks import copies, execute, keeping, profiles
from hcnn.training import run_folder

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
PARAMETERS = """variant = "hcnn"
K = 8
Q: "Optional[int]" = None
J = 12
lr = 0.25
epochs = 1
train_size: "Optional[int]" = None
sizes = [1, 2]"""
CELLS = [
    (PARAMETERS, ["parameters"]),
    ("# NBVAL_CHECK_OUTPUT\nprint(K)", []),
    ("import os\nprint('in', os.getcwd())", []),
    ("assert K != 12, 'twelve fails'", []),
    ("import matplotlib.pyplot as plt\nplt.plot([1, K])\nplt.show()", []),
]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A repository with one notebook that trains nothing, in the place of 03, and one without parameters."""
    (tmp_path / "notebooks").mkdir()
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    for name, cells in (("03_train_cifar10", CELLS), ("05_results", CELLS[2:3])):
        notebook = v4.new_notebook(metadata=kernel, cells=[
            v4.new_code_cell(source, metadata={"tags": tags} if tags else {}) for source, tags in cells])
        nbformat.write(notebook, tmp_path / "notebooks" / f"{name}.ipynb")
    monkeypatch.setattr(copies, "ROOT", tmp_path)
    monkeypatch.setattr(execute, "NOTEBOOKS", tmp_path / "notebooks")
    monkeypatch.setattr(keeping.paths, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(keeping.paths, "LOCAL", tmp_path / "results" / "local")
    monkeypatch.setattr(execute, "digits_stand_in", lambda name: False)
    shutil.copy(ROOT / "notebooks" / "execute.py", tmp_path / "notebooks")  # for the cells of a sweep, processes
    monkeypatch.setenv("HCNN_RESULTS", str(tmp_path / "results"))
    return tmp_path


def outputs(folder):
    """Names of everything below results/."""
    return sorted(path.name for path in (folder / "results").rglob("*") if path.is_file())


def executed(folder):
    return folder / "results" / "local" / "notebooks"


@pytest.mark.parametrize("arguments, message", [
    ("03 -p Kay 8", "unknown parameter 'Kay' of 03_train_cifar10; it has variant, K, Q, J, lr, epochs, train_size, "),
    ("03 -p K 10", "K must be a positive multiple of 4, got 10"),
    ("03 -p K 8.0", "K must be of type int in 03_train_cifar10 (default 8), got 8.0"),
    ("03 -p K true", "K must be of type int in 03_train_cifar10 (default 8), got True"),
    ("03 -p K none", "K must be of type int in 03_train_cifar10 (default 8), got None"),
    ("03 -p K (8,16)", "K must be of type int in 03_train_cifar10 (default 8), got [8, 16]"),
    ("03 -p Q many", "Q must be of type Optional[int] in 03_train_cifar10 (default None), got 'many'"),
    ("03 -p sizes [1,0.5]", "sizes must be of type list in 03_train_cifar10 (default [1, 2]), got [1, 0.5]"),
    ("03 -p lr -1", "lr must be a positive number, got -1.0"),
    ("03 --sweep K=8,10", "K must be a positive multiple of 4, got 10"),
    ("03 --sweep K", "sweep must be given as NAME=VALUE,VALUE (K=8,16), got 'K'"),
    ("--all --dataset cifar11", "dataset must be of cifar10, cifar100, digits, got 'cifar11'"),
    ("08", "notebook must be one of 03_train_cifar10, 05_results, got '08'"),
    ("05 -p K 8", "unknown parameter 'K' of 05_results; it has none"),
    ("03 --json [1]", "--json must be parameters {name: value}, got [1]"),
    ("", "what is to be executed? Name notebooks, such as 03, or give --all, --sweep or --refresh"),
])
def test_refused_in_one_line_before_anything_runs(folder, capsys, monkeypatch, arguments, message):
    monkeypatch.setattr(papermill, "execute_notebook", lambda *args, **kwargs: pytest.fail("a kernel was started"))
    assert execute.main(arguments.split()) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {message}") and outputs(folder) == []


def test_network_of_a_notebook_that_trains_nothing_is_checked_too():
    path = ROOT / "notebooks" / "02_parameters.ipynb"
    execute.check(path, {"J": 6})  # whose subsampled depths the notebook chooses
    with pytest.raises(ValueError, match="K must be a positive multiple of 4, got 10"):
        execute.check(path, {"K": 10})


def test_executed_copy_has_the_parameters_no_path_of_the_machine_and_small_pictures(folder, capsys):
    assert execute.main(["03", "-p", "K", "4", "-p", "sizes", "(3,)", "-p", "variant", "hcnn-plus"]) == 0
    assert outputs(folder) == ["03_train_cifar10-hcnn-plus-K4-sizes_3_.ipynb"]
    path = executed(folder) / outputs(folder)[0]
    text = path.read_text()
    assert str(folder) not in text and "papermill" not in text
    cells = nbformat.read(path, as_version=4).cells
    (injected,) = [cell.source for cell in cells if "injected-parameters" in cell.metadata.get("tags", [])]
    assert "K = 4" in injected and "sizes = [3]" in injected and 'variant = "hcnn-plus"' in injected
    assert [cell.outputs[0].text for cell in cells if cell.source.startswith(copies.CHECKED)] == ["4\n"]
    png = base64.b64decode(cells[-1].outputs[-1].data["image/png"])
    assert Image.open(io.BytesIO(png)).mode == "P" and len(png) < 10_000
    assert re.search(r"^03_train_cifar10 K=4 .*: \d+ s$", capsys.readouterr().out, re.M)


def test_failed_run_leaves_the_earlier_output_and_names_the_failed_copy(folder, capsys):
    earlier = executed(folder) / "03_train_cifar10-hcnn-K12.ipynb"
    earlier.parent.mkdir(parents=True)
    earlier.write_text("earlier")
    assert execute.main(["03", "-p", "K", "12"]) == 1
    error = capsys.readouterr().err
    assert "03_train_cifar10 K=12 failed: AssertionError: twelve fails" in error
    assert Path(re.search(r"the failed copy is (.*\.ipynb)", error)[1]).is_file()
    assert earlier.read_text() == "earlier" and outputs(folder) == [earlier.name]


def test_a_disk_that_is_full_when_a_copy_is_written_is_said(folder, capsys, monkeypatch):
    def full(*paths):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(run_folder.os, "replace", full)
    assert execute.main(["05"]) == 1
    assert re.search("^error: .*could not write .*05_results.ipynb.*No space left", capsys.readouterr().err)
    assert outputs(folder) == []


def test_folders_named_relative_to_the_caller_are_the_same_in_the_kernel(folder, monkeypatch):
    notebook = folder / "notebooks" / "05_results.ipynb"
    read = "os.environ['HCNN_RESULTS'], os.environ['HCNN_DATA']"
    notebook.write_text(notebook.read_text().replace("'in', os.getcwd()", read))
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HCNN_RESULTS", "elsewhere")
    monkeypatch.setenv("HCNN_DATA", "images")
    monkeypatch.setattr(copies, "ROOT", folder / "nowhere")  # paths stay in the copy
    assert execute.main(["05"]) == 0
    (cell,) = nbformat.read(executed(folder) / "05_results.ipynb", as_version=4).cells
    assert cell.outputs[0].text == f"{folder / 'elsewhere'} {folder / 'images'}\n"


@pytest.mark.full
def test_a_killed_runner_leaves_no_copy_and_its_kernel_ends(folder):
    notebook, pid = folder / "notebooks" / "05_results.ipynb", folder / "pid"
    wait = f"import time; open('{pid}', 'w').write(str(os.getpid())); time.sleep(120)"
    notebook.write_text(notebook.read_text().replace("print('in', os.getcwd())", wait))
    code = ("import pathlib; from hcnn.companion.notebooks import execute; "
            f"execute.NOTEBOOKS = pathlib.Path({str(notebook.parent)!r})")
    environment = os.environ | {"HCNN_RESULTS": str(folder / "results"), "PYTHONPATH": str(ROOT)}
    runner = subprocess.Popen([sys.executable, "-c", f"{code}; execute.main(['05'])"], env=environment,
                              stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        until(lambda: pid.exists() and pid.read_text())
        runner.kill()
        runner.wait()
        kernel = Path(f"/proc/{pid.read_text()}")
        until(lambda: not kernel.exists() or "zombie" in (kernel / "status").read_text())
        assert outputs(folder) == []
    finally:
        runner.kill()


def until(holds):
    """Wait a minute for a condition."""
    end = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.2)


def test_cells_of_a_sweep_are_every_combination_named_by_what_differs(monkeypatch):
    monkeypatch.setattr(execute, "digits_stand_in", lambda name: False)
    grid = ["K=4,8", "Q=2", "dataset=cifar10,cifar100", "seed=0"]
    cells = execute.swept([], "small", {"split": "validation"}, grid)
    assert list(cells) == [f"K={K} dataset={name}" for K in (4, 8) for name in ("cifar10", "cifar100")]
    path, given = cells["K=8 dataset=cifar100"]
    assert path.stem == "04_train_cifar100"
    assert given == dict(K=8, Q=2, seed=0, split="validation", dataset="cifar100")


def test_a_sweep_hands_each_cell_its_parameters_as_they_are_and_says_which_failed(folder, capsys, monkeypatch):
    seen = {}

    def run_all(commands, workers, log):
        seen.update(commands)
        return dict.fromkeys(commands) | {"K=12": "twelve fails"}

    monkeypatch.setattr(execute, "run_all", run_all)
    assert execute.main(["--sweep", "K=12,4", "sizes=[3]", "--workers", "2", "--out", "local"]) == 1
    assert list(seen) == ["K=12", "K=4"] and seen["K=4"][-6:] == [
        "smoke", "--out", "local", "03_train_cifar10", "--json", '{"K": 4, "sizes": [3]}']
    said = capsys.readouterr().out
    assert "NOT COMPLETE  K=12: twelve fails" in said and "1 of 2 are complete; the same command continues" in said
    assert "`python -m hcnn tables --local` puts their runs into the tables" in said


def test_digits_stand_in_the_name_of_a_copy_and_are_all_trained_on(monkeypatch):
    monkeypatch.setattr(execute, "digits_stand_in", lambda name: name == "cifar10")
    path = ROOT / "notebooks" / "03_train_cifar10.ipynb"
    for given in ({}, {"dataset": "digits"}):
        _, parameters, copy = execute.planned(path, "small", given)
        assert copy.name == "03_train_cifar10-hcnn-digits.ipynb"
        assert parameters["train_size"] is None and parameters["epochs"] == 20


def test_the_small_profile_shows_what_is_stored_then_trains_in_minutes_and_keeps_all_in_results_local():
    steps = execute.everything("small", ["cifar10", "cifar100"])
    order = [path.stem[:2] for path, _, _ in steps]
    assert order == ["01", "02", "06", "06", "06", "07", *(["03", "03", "04"]), "05"] and len(QUICK) == 3
    assert all(copy.parent == keeping.paths.LOCAL / "notebooks" for *_, copy in steps)
    assert all(given["out"] == "local" for path, given, _ in steps if "out" in execute.defaults(path))
    assert len({copy for *_, copy in steps}) == len(steps), "no copy takes the place of another"
    trained = [given for path, given, _ in steps if path.stem in profiles.TRAINING.values()]
    assert all(given.items() >= asked.items() for given, asked in zip(trained, QUICK))
    steps = execute.everything("small", ["digits"])
    assert len({copy.stem for *_, copy in steps}) == len(steps)
    on_digits = [given for _, given, _ in steps]
    assert {given["dataset"] for given in on_digits if "dataset" in given} == {"digits"}
    assert {given["epochs"] for given in on_digits if "epochs" in given} == {20}


@pytest.mark.parametrize("profile", ["small", "paper"])
@pytest.mark.parametrize("failing", ["none", "01", "03"])
def test_all_runs_side_by_side_what_can_and_a_failure_ends_it(monkeypatch, profile, failing):
    ran, asked = [], {}

    def run_all(commands, workers, log):
        ran.append([name[:2] for name in commands])
        asked.update(commands)
        return {name: "failed" if name.startswith(failing) else None for name in commands}

    monkeypatch.setattr(execute, "execute", lambda path, given, copy: ran.append(path.stem[:2]))
    monkeypatch.setattr(execute, "run_all", run_all)
    assert execute.main(["--all", "--profile", profile]) == (failing != "none")
    order = {"small": [["01", "02", "06", "06", "06"], "07", ["03", "03", "04"], "05"],
             "paper": [["01", "02"], ["03", "03", "04", "04"], ["06", "06", "06"], "07", "05"]}[profile]
    last = next((i for i, group in enumerate(order) if failing in group), len(order))
    assert ran == order[:last + 1]
    copies_of = {step[2].stem: step[2] for step in execute.everything(profile, ["cifar10", "cifar100"])}
    for name, command in asked.items():
        options = execute.command_line().parse_args(command[2:])
        assert execute.planned(execute.find(options.names[0]), options.profile, options.json)[2] == copies_of[name]


def test_the_paper_s_profile_keeps_everything_in_results_and_trains_every_system_in_full():
    steps = execute.everything("paper", ["cifar10", "cifar100"])
    assert all(copy.parent == keeping.paths.RESULTS / "notebooks" for *_, copy in steps)
    trained = [given for path, given, _ in steps if path.stem in profiles.TRAINING.values()]
    sizes = [[given[name] for name in ("K", "Q", "epochs", "train_size")] for given in trained]
    assert sizes == [[16, 32, None, None]] * 4


def test_refresh_keeps_outputs_of_checked_cells_only_and_leaves_a_notebook_that_fails_as_it_is(folder, capsys):
    path = folder / "notebooks" / "03_train_cifar10.ipynb"
    assert execute.main(["--refresh", "03"]) == 0
    cells = nbformat.read(path, as_version=4).cells
    assert [cell.execution_count for cell in cells] == [None, 2, None, None, None]
    assert [len(cell.outputs) for cell in cells] == [0, 1, 0, 0, 0] and cells[1].outputs[0].text == "8\n"
    assert copies.strip_files([path]) == 0, "nothing of the run is left in the cells"
    path.write_text(path.read_text().replace("K = 8", "K = 12"))
    before = path.read_text()
    assert execute.main(["--refresh", "03"]) == 1
    assert path.read_text() == before and "twelve fails" in capsys.readouterr().err


# The notebooks themselves


def code(path):
    """The code cells of a notebook."""
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]


def nodes(cell):
    """Every node of a cell's syntax tree."""
    return list(ast.walk(ast.parse(cell.source)))


each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


@each_notebook
def test_notebook_is_stripped_except_at_least_three_checked_cells(path):
    checked = [cell for cell in code(path) if cell.source.startswith(copies.CHECKED)]
    others = [cell for cell in code(path) if cell not in checked]
    refresh = "run `python notebooks/execute.py --refresh`"
    assert len(checked) >= 3 and all(cell.outputs and cell.execution_count for cell in checked), refresh
    assert not any(cell.outputs or cell.execution_count for cell in others), refresh


@each_notebook
def test_notebook_names_the_kernel_python3_and_no_path_of_a_machine(path):
    assert nbformat.read(path, as_version=4).metadata.kernelspec.name == "python3"
    text = path.read_text(encoding="utf-8")
    assert str(ROOT) not in text and not re.search(r"/(home|Users|root|tmp)/", text)


@each_notebook
def test_notebook_is_short_no_line_is_cut_off_and_no_class_is_defined(path):
    lines = [cell.source.splitlines() for cell in code(path)]
    assert sum(bool(line.strip()) for cell in lines for line in cell) < 150
    assert max(map(len, lines)) <= 25 and max(len(line) for cell in lines for line in cell) <= 100
    assert not any(isinstance(node, ast.ClassDef) for cell in code(path) for node in nodes(cell))


@each_notebook
def test_papermill_knows_every_parameter_and_the_notebook_uses_each(path, caplog):
    (tagged,) = [cell for cell in code(path) if "parameters" in cell.metadata.get("tags", [])]
    with caplog.at_level(logging.WARNING):
        known = execute.defaults(path)
    assert not caplog.records
    set_there = {node.id for node in nodes(tagged) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    read = {node.id for cell in code(path) if cell is not tagged for node in nodes(cell) if isinstance(node, ast.Name)}
    assert set_there == set(known) <= read and "boundary" not in known
