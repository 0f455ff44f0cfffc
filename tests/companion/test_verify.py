"""`make verify`: right results pass, and every number that is changed by hand is found and named."""

import shutil

import nbformat
import nbformat.v4 as v4
import pandas as pd
import pytest
import torch

from hcnn import Architecture, paths
from hcnn.companion.commands import main
from hcnn.companion.results.runs import Run, load_run, load_runs
from hcnn.companion.results.verify import check_accuracy, check_notebooks, check_run, verify
from hcnn.companion.results.write import TABLES, write_results, write_tables
from hcnn.data.datasets import load_dataset
from hcnn.training import run_folder
from hcnn.training.loop import train
from hcnn.training.recipe import Recipe

TINY = Architecture.preset("digits", K=4, Q=2, J=4, subsampled=(1, 2))


def quiet(line):
    pass


@pytest.fixture(scope="module")
def right(tmp_path_factory):
    """A repository's results/ and README of two trainings on digits, the second of which has stored no weights."""
    folder, data = tmp_path_factory.mktemp("repository") / "results", load_dataset("digits")
    for seed in (0, 1):
        last = train(TINY, Recipe(epochs=2, lr=0.05), data, seed=seed, train_size=150, out=folder / "runs",
                     device="cpu", log=quiet)
    (last / run_folder.WEIGHTS).unlink()
    (folder.parent / "README.md").write_text("# Title\n\n<!-- results -->\nwhatever\n<!-- /results -->\n\nAfter.\n")
    write_results(folder, quiet)
    return folder


@pytest.fixture
def repository(right, tmp_path):
    """A copy of results/ with the README beside it, to be changed."""
    shutil.copytree(right.parent, tmp_path / "repository")
    return tmp_path / "repository" / "results"


def findings(folder, **options):
    return verify(folder, log=quiet, device="cpu", **options)


def with_weights(folder):
    """The run whose weights are stored."""
    (path,) = (folder / "runs").glob(f"*/{run_folder.WEIGHTS}")
    return path.parent


def edit(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def resign(folder, change):
    """Change the content of run.json and make its checksum right again."""
    run = run_folder.read_run(folder)
    change(run)
    run_folder.write_run(folder, run)


@pytest.mark.parametrize("accuracy", ["sample", "full"])
def test_results_as_they_were_computed_pass(right, accuracy):
    said = []
    assert verify(right, accuracy=accuracy, device="cpu", log=said.append) == []
    assert said[-1] == "2 runs: no differences"
    assert sum("accuracy on 297 of 297 test images" in line for line in said) == 1
    assert sum("no stored weights" in line for line in said) == 1


def test_results_that_are_no_folder_are_refused(tmp_path):
    with pytest.raises(ValueError, match="the results must be a folder, got .*results; set HCNN_RESULTS"):
        verify(tmp_path / "results")


def test_writing_again_changes_nothing_and_leaves_the_rest_of_the_readme_alone(repository):
    before = {path: path.read_bytes() for path in repository.parent.rglob("*") if path.is_file()}
    write_results(repository, quiet)
    assert before == {path: path.read_bytes() for path in repository.parent.rglob("*") if path.is_file()}
    text = (repository.parent / "README.md").read_text()
    assert text.startswith("# Title\n\n<!-- results -->\nTables 1") and text.endswith("<!-- /results -->\n\nAfter.\n")
    assert "| CIFAR-10 | Hierarchical CNN | 97,650 | 91.23 | not trained yet |" in text and "whatever" not in text


def test_a_table_or_a_line_too_many_or_too_few_is_found(repository):
    (repository / "tables" / "strange.csv").write_text("a,b\n1,2\n")
    (repository / "tables" / "choices.csv").unlink()
    edit(repository.parent / "README.md", "| 97,650 |", "| 97,651 |")
    path = repository / "tables" / "table1.csv"
    path.write_text("\n".join(path.read_text().splitlines()[:-1]) + "\n")
    assert [finding.partition(",")[0] for finding in findings(repository)] == [
        "tables/choices.csv", "tables/strange.csv", "tables/table1.csv", "README.md"]


def test_a_run_that_is_lost_changes_what_the_tables_must_say(repository):
    shutil.rmtree(with_weights(repository))
    assert [finding.partition(",")[0] for finding in findings(repository)] == ["tables/other_runs.csv"]


def test_an_executed_notebook_whose_cells_have_changed_since_is_found(tmp_path):
    own, copies = tmp_path / "notebooks", tmp_path / "results"
    own.mkdir()
    copies.mkdir()
    parameters = v4.new_code_cell("K = 4", metadata={"tags": ["parameters"]})
    given = v4.new_code_cell("K = 8", metadata={"tags": ["injected-parameters"]})
    cells = [v4.new_markdown_cell("# Title"), parameters, v4.new_code_cell("print(K)")]
    ran = v4.new_code_cell("print(K)", outputs=[v4.new_output("stream", text="8")])
    nbformat.write(v4.new_notebook(cells=cells), own / "03_train.ipynb")
    nbformat.write(v4.new_notebook(cells=[*cells[:2], given, ran]), copies / "03_train-K8.ipynb")
    assert check_notebooks(copies, own) == []
    nbformat.write(v4.new_notebook(cells=cells[:2]), own / "03_train.ipynb")
    assert check_notebooks(copies, own) == [
        "notebooks/03_train-K8.ipynb: its cells are no longer those of 03_train.ipynb; execute it again"]


@pytest.mark.parametrize("change, said", [
    (lambda run: run["counts"].update(filters=7), "run.json has counts"),
    (lambda run: run.update(train_images=1500), "run.json has train_images 1500, it must be 150"),
    (lambda run: run.update(test_images=10_000), "run.json has test_images 10000, it must be 297"),
    (lambda run: run.update(data_checksum="0" * 64), "run.json has data_checksum"),
    (lambda run: run.update(preset="released"), "run.json has preset 'released', it must be 'paper'"),
    (lambda run: run.update(overrides={}), "run.json has overrides {}, it must be"),
    (lambda run: run.update(test_accuracy=0.99), "metrics.csv ends with another accuracy than run.json says"),
    (lambda run: run.update(test_loss=0.1), "run.json has test_loss 0.1, metrics.csv gives"),
    (lambda run: run.update(seconds=1e6), "run.json has seconds 1000000.0, metrics.csv gives"),
    (lambda run: run.update(weights_sha256="0" * 64), "weights.safetensors has sha256"),
    (lambda run: run["parameters"].update(seed=7), "its parameters belong to a folder called"),
])
def test_a_forged_run_json_with_a_right_checksum_is_found(repository, change, said):
    folder = with_weights(repository)
    resign(folder, change)
    assert said in check_run(load_run(folder))[0]


@pytest.mark.parametrize("column, value, said", [
    ("epoch", 3, "must have the epochs 1 to 2"), ("lr", 0.01, "another lr than the recipe in epoch 1"),
    ("test_accuracy", 0.123, "a test accuracy that is no share of 297 images in epoch 1"),
    ("train_accuracy", 1.5, "outside 0 to 1 in epoch 1"),
    ("train_loss", float("nan"), "a number that is not finite in epoch 1"),
    ("seconds", 100.0, "run.json has seconds"),
])
def test_every_changed_number_of_metrics_that_says_something_is_found(repository, column, value, said):
    folder = with_weights(repository)
    rows = load_run(folder).metrics.to_dict("records")
    rows[0][column] = value
    run_folder.write_metrics(folder, rows)
    (found,) = check_run(load_run(folder))
    assert said in found


def test_other_weights_do_not_reach_the_stored_accuracy_even_with_right_checksums(repository):
    folder = with_weights(repository)
    weights = run_folder.read_weights(folder, run_folder.read_run(folder))
    weights["operators.2.g"] = -weights["operators.2.g"]
    digest = run_folder.write_weights(folder, weights)
    resign(folder, lambda run: run.update(weights_sha256=digest))
    (finding,) = check_accuracy(load_run(folder), device="cpu", log=quiet)
    assert "accuracy on 297 of 297 test images" in finding and "more than rounding explains" in finding


@pytest.mark.parametrize("less, found", [(0, 1), (1, 0)])
def test_one_image_more_is_too_many_for_a_finished_run_alone(repository, less, found):  # others: lower precision
    run = load_run(with_weights(repository))
    info = run.info | dict(test_accuracy=run.info["test_accuracy"] + 1 / 297, epochs_done=run.epochs - less)
    assert len(check_accuracy(Run(run.folder, info, run.metrics), "full", device="cpu", log=quiet)) == found


def test_tables_with_a_users_own_runs_go_to_results_local(repository, monkeypatch):
    for name, folder in (("RESULTS", repository), ("RUNS", repository / "runs"), ("LOCAL", repository / "local")):
        monkeypatch.setattr(paths, name, folder)
    train(TINY, Recipe(epochs=1, lr=0.05), load_dataset("digits"), train_size=60, out=paths.LOCAL / "runs",
          device="cpu", log=quiet)
    evaluated = paths.LOCAL / "evaluated.csv"
    assert main(["evaluate", "--device", "cpu", "--images", "9"]) == 0 and not evaluated.exists(), "of all images only"
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    assert main(["evaluate", "--device", "cpu"]) == 0
    stored = run_folder.read_run(with_weights(repository))
    found = pd.read_csv(evaluated, index_col="run").accuracy
    assert found.to_dict() == {stored["name"]: pytest.approx(stored["test_accuracy"])}, "shares of 149 and 148 images"
    assert main(["tables", "--local"]) == 0
    listed = (paths.LOCAL / "tables" / "other_runs.csv").read_text()
    assert listed.count("\n") == 4 and "local/digits-hcnn-zeros-s0-" in listed
    assert main(["verify", "--device", "cpu"]) == 0


def test_where_no_network_is_stored_evaluate_says_so_and_makes_no_folder(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(paths, "RUNS", tmp_path / "nowhere" / "runs")
    monkeypatch.setattr(paths, "LOCAL", tmp_path / "nowhere" / "local")
    assert main(["evaluate"]) == 0
    assert capsys.readouterr().out == f"no trained network is stored in {paths.RUNS}\n" and not list(tmp_path.iterdir())


def test_the_command_fails_where_something_differs_until_the_tables_are_written_again(repository, capsys, monkeypatch):
    monkeypatch.setattr(paths, "RESULTS", repository)
    edit(repository / "tables" / "table1.csv", "97650", "97651")
    assert main(["verify", "--device", "cpu"]) == 1
    assert "DIFFERENT  tables/table1.csv, line 2: " in capsys.readouterr().err
    assert main(["tables"]) == 0
    assert main(["verify", "--device", "cpu"]) == 0
    write_tables(repository / "again", load_runs(repository / "runs"))
    assert {path.name for path in (repository / "again").iterdir()} == {f"{name}.csv" for name in TABLES}
