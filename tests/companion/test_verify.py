"""`make verify`: right results pass, and every number that is changed by hand is found and named."""

import shutil

import nbformat
import nbformat.v4 as v4
import pytest
from scipy.stats import binomtest

from hcnn import Architecture, paths
from hcnn.companion.commands import main
from hcnn.companion.results import tables as results
from hcnn.companion.results import verify
from hcnn.data.datasets import load_dataset
from hcnn.training import run_folder as runs
from hcnn.training.loop import train
from hcnn.training.recipe import Recipe

README = """# A title, 12.3%

<!-- results -->
In words: {accuracy:.2f}%.

{paper}
{trained}
| | here | ratio |
|---|---|---|
| a measured speed | 263 ms | 8.1 |
<!-- /results -->
"""


@pytest.fixture(scope="module")
def right(tmp_path_factory):
    """A repository's results/, tables and README of two trainings on digits, the second of which has stored no weights."""
    folder, data = tmp_path_factory.mktemp("repository") / "results", load_dataset("digits")
    architecture = Architecture.preset("digits", K=4, Q=2, J=4, subsampled=(1, 2))
    for seed in (0, 1):
        last = train(architecture, Recipe(epochs=2, lr=0.05), data, seed=seed, train_size=150, out=folder / "runs", device="cpu",
                     log=lambda line: None)
    (last / runs.WEIGHTS).unlink()
    stored = results.load_runs(folder / "runs")
    (folder / "tables").mkdir()
    for name, table in verify.TABLES.items():
        table(stored).to_csv(folder / "tables" / f"{name}.csv", index=False)
    paper, trained = (verify.markdown(*table) for table in verify.readme_tables(stored).items())
    (folder.parent / "README.md").write_text(README.format(accuracy=stored[0].accuracy, paper=paper, trained=trained))
    return folder


@pytest.fixture
def repository(right, tmp_path):
    """A copy of results/ with the README beside it, to be changed."""
    shutil.copytree(right.parent, tmp_path / "repository")
    return tmp_path / "repository" / "results"


def findings(folder, **options):
    return verify.verify(folder, log=lambda line: None, device="cpu", **options)


def run_folder(folder):
    """The run whose weights are stored."""
    (path,) = (folder / "runs").glob(f"*/{runs.WEIGHTS}")
    return path.parent


def edit(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def resign(folder, change):
    """Change the content of run.json and make its checksum right again."""
    run = runs.read_run(folder)
    change(run)
    runs.write_run(folder, run)


@pytest.mark.parametrize("accuracy", ["sample", "full"])
def test_results_as_they_were_computed_pass(right, accuracy):
    said = []
    assert verify.verify(right, accuracy=accuracy, device="cpu", log=said.append) == []
    assert said[-1] == f"2 runs, {len(verify.TABLES)} tables: no differences"
    assert sum("accuracy on 297 of 297 test images" in line for line in said) == sum("no stored weights" in line for line in said) == 1


def test_a_repository_without_results_passes_and_says_what_is_not_there(tmp_path):
    with pytest.raises(ValueError, match="the results must be a folder, got .*results; set HCNN_RESULTS"):
        verify.verify(tmp_path / "results")
    (tmp_path / "results").mkdir()
    said = []
    assert verify.verify(tmp_path / "results", log=said.append) == []
    assert "not in tables/: table1, table2, other_runs, ledger, summary" in said[0] and "no <!-- results --> in README.md" in said[1]


@pytest.mark.parametrize("name", [name for name in verify.TABLES if name not in verify.INTERPRETED])  # those: test_interpretation_results
def test_a_changed_cell_in_any_column_of_any_table_is_found(repository, name):
    if name == "sweep":  # has no row for a single size
        train(Architecture.preset("digits", K=4, Q=3, J=4, subsampled=(1, 2)), Recipe(epochs=2, lr=0.05), load_dataset("digits"),
              train_size=150, out=repository / "runs", device="cpu", log=lambda line: None)
    path, table = repository / name / f"{name}.csv", verify.TABLES[name](results.load_runs(repository / "runs"))
    path.parent.mkdir()

    def found(changed):
        changed.to_csv(path, index=False)
        return verify.check_tables(path.parent, {name: table}, lambda line: None)

    assert found(table) == []
    for row in {0, len(table) // 2, len(table) - 1}:
        for column in table:
            changed = table.astype(object)
            changed.loc[row, column] = f"{changed.loc[row, column]}1"
            (finding,) = found(changed)
            assert finding.startswith(f"tables/{name}.csv: row {row + 1}, {column}: ")
    assert "rows, the runs give" in found(table[:-1])[0] and "columns" in found(table.rename(columns={table.columns[0]: "x"}))[0]


def test_a_table_that_follows_from_nothing_is_found(repository):
    (repository / "tables" / "strange.csv").write_text("a,b\n1,2\n")
    assert findings(repository) == ["tables/strange.csv: nothing says how it follows from the runs; add it to TABLES of hcnn/verify.py"]


@pytest.mark.parametrize("old, new, said", [
    ("| 97,650 |", "| 97,651 |", "no run gives the row | CIFAR-10, HCNN | 97,651 | 91.23% | not run |"),
    ("| 92.30% | not run |", "| 92.30% | 92.2%, one seed |", "no run gives the row | CIFAR-10, HCNN(+) | 344,640 | 92.30% | 92.2%"),
    ("| digits, HCNN | 4, 2 |", "| digits, HCNN | 4, 3 |", "no run gives the row | digits, HCNN | 4, 3 | 150 | 2 |"),
    ("In words:", "In words: 91.2% or", "no run gives the 91.2% of: In words: 91.2% or"),
    ("| 263 ms |", "| 26.3% |", "percentages must stand in a table with the columns of readme_tables"),
])
def test_every_number_of_the_readme_that_no_run_gives_is_found(repository, old, new, said):
    edit(repository.parent / "README.md", old, new)
    (finding,) = findings(repository)
    assert finding.startswith("README.md: ") and said in finding


def test_headline_runs_stand_in_the_readme_with_deviation_and_number(right):
    (run,) = [run for run in results.load_runs(right / "runs") if run.seed == 0]
    paper = Architecture.preset("cifar10").as_dict(), Recipe().as_dict()
    parameters = run.info["parameters"] | dict(dataset="cifar10", architecture=paper[0], recipe=paper[1], train_size=None)
    info = run.info | dict(parameters=parameters, epochs_done=240, train_images=50_000, test_images=10_000, seconds=90.0, device="a GPU")
    runs_of_paper = [results.Run(run.folder, info | dict(test_accuracy=accuracy), run.metrics) for accuracy in (0.91, 0.92)]
    row = "CIFAR-10, HCNN", "97,650", "91.23%"
    for n, ours in ((1, "91.00%, one seed"), (2, "91.50% ± 0.71, n = 2")):
        paper, _ = verify.readme_tables(runs_of_paper[:n]).values()
        assert paper[0] == (*row, ours, "90", "a GPU")


def test_an_executed_notebook_whose_cells_have_changed_since_is_found(repository):
    own, copies = repository.parent / "notebooks", repository / "notebooks"
    own.mkdir()
    copies.mkdir()
    cells = [v4.new_markdown_cell("# Title"), v4.new_code_cell("K = 4", metadata={"tags": ["parameters"]}), v4.new_code_cell("print(K)")]
    given = v4.new_code_cell("K = 8", metadata={"tags": ["injected-parameters"]})
    nbformat.write(v4.new_notebook(cells=cells), own / "03_train.ipynb")
    nbformat.write(v4.new_notebook(cells=[*cells[:2], given, v4.new_code_cell("print(K)", outputs=[v4.new_output("stream", text="8")])]),
                   copies / "03_train-K8.ipynb")
    assert findings(repository) == []
    nbformat.write(v4.new_notebook(cells=cells[:2]), own / "03_train.ipynb")
    assert findings(repository) == ["notebooks/03_train-K8.ipynb: the cells are no longer those of 03_train.ipynb; execute it again"]


def test_a_run_that_is_lost_or_new_changes_what_tables_and_readme_must_say(repository):
    shutil.rmtree(run_folder(repository))
    assert {finding.partition(":")[0] for finding in findings(repository)} >= {"tables/other_runs.csv", "tables/summary.csv"}


def change_name(run):
    run["parameters"]["seed"] = 7


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
    (change_name, "its parameters belong to a folder called"),
])
def test_a_forged_run_json_with_a_right_checksum_is_found(repository, change, said):
    folder = run_folder(repository)
    resign(folder, change)
    found = [finding for finding in findings(repository) if finding.startswith(f"{folder.name}: ")]
    assert said in found[0]


@pytest.mark.parametrize("column, value, said", [
    ("epoch", 3, "must have the epochs 1 to 2"), ("lr", 0.01, "another lr than the recipe in epoch 1"),
    ("test_accuracy", 0.123, "a test accuracy that is no share of 297 images in epoch 1"),
    ("train_accuracy", 1.5, "outside 0 to 1 in epoch 1"), ("train_loss", float("nan"), "a number that is not finite in epoch 1"),
    ("seconds", 100.0, "run.json has seconds"),
])
def test_every_changed_number_of_metrics_that_says_something_is_found(repository, column, value, said):
    folder = run_folder(repository)
    rows = results.load_run(folder).metrics.to_dict("records")
    rows[0][column] = value
    runs.write_metrics(folder, rows)
    found = [finding for finding in findings(repository) if finding.startswith(f"{folder.name}: ")]
    assert len(found) == 1 and said in found[0]


def test_a_row_too_many_in_the_metrics_of_a_complete_run_is_found(repository):
    folder = run_folder(repository)
    path = folder / runs.METRICS
    path.write_text(path.read_text() + path.read_text().splitlines()[-1] + "\n")
    assert findings(repository) == [f"{folder.name}: metrics.csv must have the epochs 1 to 2, one a row"]


def test_edited_run_json_and_weights_are_found_by_their_checksums(repository):
    folder = run_folder(repository)
    weights = bytearray((folder / runs.WEIGHTS).read_bytes())
    weights[-1] ^= 1
    (folder / runs.WEIGHTS).write_bytes(weights)
    assert "weights.safetensors has sha256" in findings(repository)[0]
    edit(folder / runs.RUN, '"epochs_done": 2', '"epochs_done": 1')
    assert "run.json was changed after it was written" in findings(repository)[0]


def test_other_weights_do_not_reach_the_stored_accuracy_even_with_right_checksums(repository):
    folder = run_folder(repository)
    weights = runs.read_weights(folder, runs.read_run(folder))
    weights["operators.2.g"] = -weights["operators.2.g"]
    digest = runs.write_weights(folder, weights)
    resign(folder, lambda run: run.update(weights_sha256=digest))
    (finding,) = findings(repository)
    assert "accuracy on 297 of 297 test images" in finding and "more than rounding explains" in finding


@pytest.mark.parametrize("less, found", [(0, 1), (1, 0)])
def test_one_image_more_is_too_many_for_a_finished_run_but_not_for_one_tested_in_lower_precision(repository, less, found):
    run = results.load_run(run_folder(repository))
    info = run.info | dict(test_accuracy=run.info["test_accuracy"] + 1 / 297, epochs_done=run.epochs - less)
    claimed = results.Run(run.folder, info, run.metrics)
    assert len(verify.check_accuracy(claimed, "full", device="cpu", log=lambda line: None)) == found


def test_what_differs_in_a_run_a_table_and_the_readme_is_all_named(repository):
    resign(run_folder(repository), lambda run: run["counts"].update(filters=7))
    edit(repository / "tables" / "table1.csv", "97650", "97651")
    edit(repository.parent / "README.md", "| 97,650 |", "| 97,651 |")
    found = findings(repository)
    assert [finding.split(":")[0] for finding in found] == [run_folder(repository).name, "tables/table1.csv", "README.md"]


def test_a_sample_is_judged_by_the_exact_binomial_interval():
    for right, n in ((0, 500), (3, 500), (326, 500), (459, 500), (500, 500), (40, 60)):
        interval = binomtest(right, n).proportion_ci(1 - verify.DOUBT, "exact")
        for end, inwards in ((interval.low, 1e-6), (interval.high, -1e-6)):
            if 0 < end < 1:
                assert verify.is_plausible(right, n, end + inwards) and not verify.is_plausible(right, n, end - inwards)
    assert verify.is_plausible(500, 500, 1.0) and verify.is_plausible(0, 500, 0.0)


def test_the_command_fails_where_something_differs(repository, capsys, monkeypatch):
    monkeypatch.setattr(paths, "RESULTS", repository)
    assert main(["verify", "--device", "cpu"]) == 0
    edit(repository / "tables" / "table1.csv", "97650", "97651")
    assert main(["verify", "--device", "cpu"]) == 1
    assert "DIFFERENT  tables/table1.csv: row 1, parameters, here: '97651', the runs give '97650'" in capsys.readouterr().err
