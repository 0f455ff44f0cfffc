"""The notebook runner: what it refuses, what it leaves behind, and the form every notebook must have."""

import ast
import base64
import errno
import importlib.util
import io
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import nbformat.v4 as v4
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))

spec = importlib.util.spec_from_file_location("execute", ROOT / "notebooks" / "execute.py")
execute = importlib.util.module_from_spec(spec)
spec.loader.exec_module(execute)

PARAMETERS = """variant = "hcnn"
K = 8
Q: int | None = None
J = 12
lr = 0.25
epochs = 1
train_size = None
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
    for name, cells in (("03_train_cifar10", CELLS), ("05_results", CELLS[2:3])):
        notebook = v4.new_notebook(metadata={"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}, cells=[
            v4.new_code_cell(source, metadata={"tags": tags} if tags else {}) for source, tags in cells])
        nbformat.write(notebook, tmp_path / "notebooks" / f"{name}.ipynb")
    monkeypatch.setattr(execute, "ROOT", tmp_path)
    monkeypatch.setattr(execute, "NOTEBOOKS", tmp_path / "notebooks")
    monkeypatch.setattr(execute, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(execute, "digits_stand_in", lambda name: False)
    shutil.copy(ROOT / "notebooks" / "execute.py", tmp_path / "notebooks")  # for the cells of a sweep, which are processes
    monkeypatch.setenv("HCNN_RESULTS", str(tmp_path / "results"))
    return tmp_path


def outputs(folder):
    """Names of everything below results/."""
    return sorted(path.name for path in (folder / "results").rglob("*") if path.is_file())


@pytest.mark.parametrize("arguments, message", [
    ("-p Kay 8", "unknown parameter 'Kay' of 03_train_cifar10; it has variant, K, Q, J, lr, epochs, train_size, sizes"),
    ("-p K 10", "K must be a positive multiple of 4, got 10"),
    ("-p K 8.0", "K must be of type int in 03_train_cifar10 (default 8), got 8.0"),
    ("-p K true", "K must be of type int in 03_train_cifar10 (default 8), got True"),
    ("-p K none", "K must be of type int in 03_train_cifar10 (default 8), got None"),
    ("-p K (8,16)", "K must be of type int in 03_train_cifar10 (default 8), got [8, 16]"),
    ("-p Q 0", "Q must be an integer of at least 1, got 0"),
    ("-p Q many", "Q must be of type int | None in 03_train_cifar10 (default None), got 'many'"),
    ("-p variant x", "variant must be one of hcnn, hcnn-plus, got 'x'"),
    ("-p sizes [1,x]", "sizes must be of type list in 03_train_cifar10 (default [1, 2]), got '[1,x]'"),
    ("-p sizes [1,0.5]", "sizes must be of type list in 03_train_cifar10 (default [1, 2]), got [1, 0.5]"),
    ("-p J 3", "J must be an integer of at least 4, got 3"),
    ("-p epochs 0", "epochs must be an integer of at least 1, got 0"),
    ("-p lr -1", "lr must be a positive number, got -1.0"),
    ("--sweep K=8,10", "K must be a positive multiple of 4, got 10"),
    ("--sweep K", "sweep must be given as NAME=VALUE,VALUE (K=8,16), got 'K'"),
])
def test_refused_in_one_line_before_anything_runs(folder, capsys, monkeypatch, arguments, message):
    monkeypatch.setattr(execute.papermill, "execute_notebook", lambda *args, **kwargs: pytest.fail("a kernel was started"))
    assert execute.main(["03", *arguments.split()]) == 2
    assert capsys.readouterr().err == f"error: {message}\n"
    assert outputs(folder) == []


def test_unknown_notebook_is_refused_with_the_known_ones(folder, capsys):
    assert execute.main(["08"]) == 2
    assert capsys.readouterr().err == "error: notebook must be one of 03_train_cifar10, 05_results, got '08'\n"


def test_unknown_data_set_is_refused(folder, capsys):
    assert execute.main(["--all", "--dataset", "cifar11"]) == 2
    assert capsys.readouterr().err == "error: dataset must be of cifar10, cifar100, digits, got 'cifar11'\n"
    assert outputs(folder) == []


def test_network_of_a_notebook_that_trains_nothing_is_checked_too(folder, capsys):
    (folder / "notebooks" / "03_train_cifar10.ipynb").rename(folder / "notebooks" / "02_parameters.ipynb")
    assert execute.main(["02", "-p", "K", "10"]) == 2
    assert capsys.readouterr().err == "error: K must be a positive multiple of 4, got 10\n"


def test_notebook_without_parameters_takes_none(folder, capsys):
    assert execute.main(["05", "-p", "K", "8"]) == 2
    assert "unknown parameter 'K' of 05_results; it has none" in capsys.readouterr().err


def test_executed_copy_has_the_parameters_and_no_path_of_the_machine(folder, capsys):
    assert execute.main(["03", "-p", "K", "4", "-p", "sizes", "(3,)", "-p", "variant", "hcnn-plus"]) == 0
    assert outputs(folder) == ["03_train_cifar10-hcnn-plus-K4-sizes_3_.ipynb"]
    path = folder / "results" / "notebooks" / outputs(folder)[0]
    text = path.read_text()
    assert str(folder) not in text and "papermill" not in text
    notebook = nbformat.read(path, as_version=4)
    injected = [cell.source for cell in notebook.cells if "injected-parameters" in cell.metadata.get("tags", [])]
    assert "K = 4" in injected[0] and "sizes = [3]" in injected[0] and 'variant = "hcnn-plus"' in injected[0]
    assert [cell.outputs[0].text for cell in notebook.cells if cell.source.startswith(execute.CHECKED)] == ["4\n"]
    assert re.search(r"^03_train_cifar10 K=4 .*: \d+ s$", capsys.readouterr().out, re.M)


def test_pictures_of_an_executed_copy_have_few_colours_and_bytes(folder):
    assert execute.main(["03"]) == 0
    notebook = nbformat.read(folder / "results" / "notebooks" / outputs(folder)[0], as_version=4)
    png = base64.b64decode(notebook.cells[-1].outputs[-1].data["image/png"])
    assert Image.open(io.BytesIO(png)).mode == "P" and len(png) < 10_000


def test_failed_run_leaves_no_output_and_names_the_failed_copy(folder, capsys):
    assert execute.main(["03", "-p", "K", "12"]) == 1
    error = capsys.readouterr().err
    assert "03_train_cifar10 K=12 failed: AssertionError: twelve fails" in error
    assert outputs(folder) == []
    assert Path(re.search(r"the failed copy is (.*\.ipynb)", error)[1]).is_file()


def test_failed_run_leaves_the_earlier_output_as_it_was(folder):
    earlier = folder / "results" / "notebooks" / "03_train_cifar10-hcnn-K12.ipynb"
    earlier.parent.mkdir(parents=True)
    earlier.write_text("earlier")
    assert execute.main(["03", "-p", "K", "12"]) == 1
    assert earlier.read_text() == "earlier" and outputs(folder) == [earlier.name]


def test_a_disk_that_is_full_when_a_copy_is_written_leaves_the_earlier_one(folder, capsys, monkeypatch):
    earlier = folder / "results" / "notebooks" / "05_results.ipynb"
    earlier.parent.mkdir(parents=True)
    earlier.write_text("earlier")

    def full(*paths):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(execute.os, "replace", full)
    assert execute.main(["05"]) == 1
    assert re.search("^error: .*could not write .*05_results.ipynb.*No space left on device.*Make room", capsys.readouterr().err)
    assert earlier.read_text() == "earlier" and outputs(folder) == [earlier.name]
    notebook = (folder / "notebooks" / "05_results.ipynb").read_text()
    assert execute.main(["--refresh", "05"]) == 1
    assert (folder / "notebooks" / "05_results.ipynb").read_text() == notebook


def test_results_that_are_a_file_are_refused_before_anything_runs(folder, capsys, monkeypatch):
    (folder / "results").touch()
    monkeypatch.setattr(execute.papermill, "execute_notebook", lambda *args, **kwargs: pytest.fail("a kernel was started"))
    assert execute.main(["05"]) == 1
    assert capsys.readouterr().err.startswith("error: ")


def test_folders_named_relative_to_the_caller_are_the_same_in_the_kernel(folder, monkeypatch):
    notebook = folder / "notebooks" / "05_results.ipynb"
    notebook.write_text(notebook.read_text().replace("'in', os.getcwd()", "os.environ['HCNN_RESULTS'], os.environ['HCNN_DATA']"))
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HCNN_RESULTS", "elsewhere")
    monkeypatch.setenv("HCNN_DATA", "images")
    monkeypatch.setattr(execute, "ROOT", folder / "nowhere")  # paths stay in the copy
    assert execute.main(["05"]) == 0
    (cell,) = nbformat.read(folder / "results" / "notebooks" / "05_results.ipynb", as_version=4).cells
    assert cell.outputs[0].text == f"{folder / 'elsewhere'} {folder / 'images'}\n"


def test_a_killed_runner_leaves_no_copy_and_its_kernel_ends(folder):
    notebook, pid = folder / "notebooks" / "05_results.ipynb", folder / "notebooks" / "pid"
    wait = "import time; open('pid', 'w').write(str(os.getpid())); time.sleep(120)"
    notebook.write_text(notebook.read_text().replace("print('in', os.getcwd())", wait))
    shutil.copy(ROOT / "notebooks" / "execute.py", folder / "notebooks")
    runner = subprocess.Popen([sys.executable, folder / "notebooks" / "execute.py", "05"], env=os.environ | {
        "HCNN_RESULTS": str(folder / "results"), "PYTHONPATH": str(ROOT)}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        until(lambda: pid.exists() and pid.read_text())
        runner.kill()
        runner.wait()
        kernel = int(pid.read_text())
        until(lambda: not Path(f"/proc/{kernel}").exists() or "zombie" in Path(f"/proc/{kernel}/status").read_text())
        assert outputs(folder) == []
    finally:
        runner.kill()


def until(holds):
    """Wait a minute for a condition."""
    end = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.2)


def test_failed_cell_of_a_sweep_is_named_and_does_not_stop_the_others(folder, capsys):
    assert execute.main(["--sweep", "K=12,4", "epochs=3", "--workers", "2"]) == 1
    assert [name.replace("-digits", "") for name in outputs(folder)] == ["03_train_cifar10-hcnn-K4-epochs3.ipynb"]
    said = capsys.readouterr().out
    assert "2 cells: K=12; K=4" in said and re.search(r"^\[K=4\] 03_train_cifar10 K=4 epochs=3: \d+ s$", said, re.M)
    assert "NOT COMPLETE  K=12: 03_train_cifar10 K=12 epochs=3 failed: AssertionError: twelve fails" in said
    assert "1 of 2 are complete; the same command continues" in said


def test_cells_of_a_sweep_are_every_combination_named_by_what_differs_without_a_limit_of_time(monkeypatch):
    monkeypatch.setattr(execute, "digits_stand_in", lambda name: False)
    cells = execute.swept([], "small", {"split": "validation"}, ["K=4,8", "Q=2", "dataset=cifar10,cifar100", "seed=0"])
    assert list(cells) == ["K=4 dataset=cifar10", "K=4 dataset=cifar100", "K=8 dataset=cifar10", "K=8 dataset=cifar100"]
    path, parameters, name = cells["K=8 dataset=cifar100"]
    assert (path.stem, name) == ("04_train_cifar100", "04_train_cifar100-hcnn-K8-Q2-seed0-splitvalidation")
    assert parameters == execute.SMALL | dict(K=8, Q=2, seed=0, split="validation", dataset="cifar100", max_seconds=None)


def test_output_says_when_digits_stand_in(folder, monkeypatch):
    monkeypatch.setattr(execute, "digits_stand_in", lambda name: name == "cifar10")
    assert execute.main(["03", "-p", "K", "4"]) == 0
    assert outputs(folder) == ["03_train_cifar10-hcnn-digits-K4.ipynb"]


def test_copies_of_different_data_sets_have_different_names(monkeypatch):
    monkeypatch.setattr(execute, "digits_stand_in", lambda name: False)
    for notebook, names in (
            ("03_train_cifar10", {"cifar10": "03_train_cifar10-hcnn", "digits": "03_train_cifar10-hcnn-digits"}),
            ("06_interpretation", {"cifar10": "06_interpretation-hcnn", "cifar100": "06_interpretation-hcnn-datasetcifar100"})):
        for dataset, name in names.items():
            assert execute.planned(ROOT / "notebooks" / f"{notebook}.ipynb", "smoke", {"dataset": dataset})[2] == name


def test_small_profile_takes_all_digits_where_they_stand_in(folder, monkeypatch):
    monkeypatch.setattr(execute, "check", lambda path, parameters: None)
    path = execute.find("03")
    assert execute.planned(path, "small", {})[1]["train_size"] == 4000
    assert execute.planned(path, "small", {"dataset": "digits"})[1]["train_size"] is None
    monkeypatch.setattr(execute, "digits_stand_in", lambda name: True)
    _, parameters, name = execute.planned(path, "small", {})
    assert parameters["train_size"] is None and "dataset" not in parameters and name == "03_train_cifar10-hcnn-digits"


def test_all_runs_both_variants_and_ends_with_the_summary(folder, capsys):
    tables = folder / "results" / "tables"
    tables.mkdir(parents=True)
    (tables / "summary.csv").write_text("quantity,paper,here,computed_on\nerror,8.77%,not run,CPU\n")
    assert execute.main(["--all"]) == 0
    assert outputs(folder)[:3] == ["03_train_cifar10-hcnn-plus.ipynb", "03_train_cifar10-hcnn.ipynb", "05_results.ipynb"]
    assert [line.split() for line in capsys.readouterr().out.splitlines()[-3:-1]] == [
        ["quantity", "paper", "here", "computed_on"], ["error", "8.77%", "not", "run", "CPU"]]


def test_profiles_name_existing_parameters_of_valid_networks():
    present = {path.stem: path for path in NOTEBOOKS}
    for profile, notebooks in execute.PROFILES.items():
        for name in notebooks.keys() & present.keys():
            for variant in ("hcnn", "hcnn-plus"):
                execute.planned(present[name], profile, {"variant": variant} if "variant" in execute.defaults(present[name]) else {})


def test_refresh_keeps_outputs_of_checked_cells_only(folder):
    path = folder / "notebooks" / "03_train_cifar10.ipynb"
    assert execute.main(["--refresh", "03"]) == 0
    cells = nbformat.read(path, as_version=4).cells
    assert [cell.execution_count for cell in cells] == [None, 2, None, None, None]
    assert [cell.outputs for cell in cells if not cell.source.startswith(execute.CHECKED)] == [[], [], [], []]
    assert cells[1].outputs[0].text == "8\n"


def test_refresh_leaves_a_notebook_that_fails_as_it_is(folder, capsys):
    path = folder / "notebooks" / "03_train_cifar10.ipynb"
    path.write_text(path.read_text().replace("K = 8", "K = 12"))
    before = path.read_text()
    assert execute.main(["--refresh", "03"]) == 1
    assert path.read_text() == before and "twelve fails" in capsys.readouterr().err


# The notebooks themselves


def code(path):
    """The code cells of a notebook."""
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]


def nodes(cell):
    """Every node of a cell's syntax tree; lines for IPython (`%matplotlib inline`) left out."""
    return ast.walk(ast.parse(re.sub(r"^[%!].*", "", cell.source, flags=re.M)))


each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


@each_notebook
def test_notebook_is_stripped_except_at_least_three_checked_cells(path):
    checked = [cell for cell in code(path) if cell.source.startswith(execute.CHECKED)]
    assert len(checked) >= 3
    assert all(cell.outputs and cell.execution_count for cell in checked), "run `python notebooks/execute.py --refresh`"
    others = [cell for cell in code(path) if cell not in checked]
    assert not any(cell.outputs or cell.execution_count for cell in others), "run `python notebooks/execute.py --refresh`"


@each_notebook
def test_notebook_names_the_kernel_python3_and_no_path_of_a_machine(path):
    assert nbformat.read(path, as_version=4).metadata.kernelspec.name == "python3"
    text = path.read_text(encoding="utf-8")
    assert str(ROOT) not in text and not re.search(r"/(home|Users|root|tmp)/", text)


@each_notebook
def test_notebook_is_short_and_defines_no_class(path):
    sources = [cell.source for cell in code(path)]
    assert sum(bool(line.strip()) for source in sources for line in source.splitlines()) < 150
    assert max(len(source.splitlines()) for source in sources) <= 25
    assert not any(isinstance(node, ast.ClassDef) for cell in code(path) for node in nodes(cell))


@each_notebook
def test_notebook_uses_every_parameter(path):
    tagged = [cell for cell in code(path) if "parameters" in cell.metadata.get("tags", [])]
    assert len(tagged) == 1
    read = {node.id for cell in code(path) if cell not in tagged for node in nodes(cell) if isinstance(node, ast.Name)}
    assert set(execute.defaults(path)) <= read
