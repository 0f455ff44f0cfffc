"""What the tables say of fabricated run folders: which runs count, what is flagged, and that a broken folder breaks nothing."""

import importlib.util
import json
import statistics

import matplotlib.pyplot as plt
import pytest

from hcnn import paths
from hcnn.architecture import Architecture
from hcnn.companion.figures import common as figures
from hcnn.companion.results import tables as results
from hcnn.training import run_folder as runs
from hcnn.training.recipe import Recipe

ACCURACIES = {0: 0.9101, 1: 0.9137, 2: 0.9052}


CLAIMS = """claim,verdict,evidence,run_key
accuracy on CIFAR-10,,,cifar10/hcnn/accuracy
accuracy on CIFAR-100,,,cifar100/hcnn/accuracy
a count,explained,a test,
"""


@pytest.fixture
def claims(tmp_path_factory):
    """A claims.csv with one row for each table and one that no run answers."""
    path = tmp_path_factory.mktemp("notebooks") / "claims.csv"
    path.write_text(CLAIMS)
    return path


def fabricate(root, accuracy=0.9, dataset="cifar10", variant="hcnn", preset="paper", seed=0, split="test", train_size=None,
              substitutes=None, epochs_done=None, best=None, recipe=None, precision="fast", **architecture):
    """A run folder as `train` leaves it, without weights; best: an accuracy that an earlier epoch reached."""
    architecture = Architecture.preset(dataset, variant, preset, **architecture)
    recipe = Recipe.preset(preset, **(recipe or {}))
    parameters = dict(dataset=dataset, substitutes=substitutes, architecture=architecture.as_dict(), recipe=recipe.as_dict(), seed=seed,
                      split=split, train_size=train_size, precision=precision)
    done = recipe.epochs if epochs_done is None else epochs_done
    train, test = {"cifar10": (50_000, 10_000), "cifar100": (50_000, 10_000), "digits": (1_500, 297)}[dataset]
    if split == "validation":
        train, test = train - train // 10, train // 10
    folder = root / runs.run_name(parameters)
    folder.mkdir(parents=True)
    rows = [dict(epoch=i + 1, lr=0.1, train_loss=1.0, train_accuracy=0.5, test_loss=1.0, test_accuracy=accuracy, seconds=2.0)
            for i in range(done)]
    if best:
        rows[0]["test_accuracy"] = best
    runs.write_metrics(folder, rows)
    runs.write_run(folder, dict(
        name=folder.name, parameters=parameters, epochs=recipe.epochs, epochs_done=done, test_accuracy=accuracy if done else None,
        test_loss=1.0 if done else None, train_images=train_size or train, test_images=test, counts=architecture.count(),
        seconds=2.0 * done, device="a GPU", threads=1, images_per_second=100.0 if done else None, classes=[], mean=[0.5] * 3, std=[0.3] * 3,
        data_checksum="0" * 64, weights_sha256="0" * 64 if done else None))
    return folder


def row(table, **where):
    """The one row of a table as a dictionary."""
    for name, value in where.items():
        table = table[table[name] == value]
    assert len(table) == 1
    return table.iloc[0].to_dict()


def damage(folder, kind):
    """Break a run folder in one way."""
    run_json, metrics = folder / runs.RUN, folder / runs.METRICS
    info = json.loads(run_json.read_text())
    if kind == "truncated run.json":
        run_json.write_text(run_json.read_text()[:200])
    elif kind == "edited accuracy":
        run_json.write_text(run_json.read_text().replace('"test_accuracy": 0.9', '"test_accuracy": 0.99'))
    elif kind == "no run.json":
        run_json.unlink()
    elif kind == "no metrics":
        metrics.unlink()
    elif kind == "empty metrics":
        metrics.write_text("")
    elif kind == "short metrics":
        metrics.write_text("\n".join(metrics.read_text().splitlines()[:5]) + "\n")
    elif kind == "metrics of another run":
        runs.write_metrics(folder, [dict.fromkeys(runs.COLUMNS, 0.5)] * 240)
    elif kind == "unknown variant":
        info["parameters"]["architecture"]["variant"] = "x"
        runs.write_run(folder, info)
    elif kind == "missing entry":
        runs.write_run(folder, {key: value for key, value in info.items() if key != "test_images"})
    elif kind == "unknown data set":
        info["parameters"]["dataset"] = "svhn"
        runs.write_run(folder, info)


DAMAGES = ("truncated run.json", "edited accuracy", "no run.json", "no metrics", "empty metrics", "short metrics", "metrics of another run",
           "unknown variant", "missing entry", "unknown data set")


# Which runs count


def test_paper_rows_are_those_of_tables_1_and_2():
    assert [(model, parameters, accuracy) for model, _, parameters, accuracy in results.PAPER["cifar10"]] == [
        ("Hierarchical CNN", "0.098M", 91.23), ("Hierarchical CNN (+)", "0.34M", 92.30), ("All-CNN", "1.3M", 92.75),
        ("ResNet 20", "0.27M", 91.25), ("Network in Network", "0.98M", 91.20), ("WRN-student", "0.17M", 91.23), ("FitNet", "2.5M", 91.61)]
    assert [(model, parameters, accuracy) for model, _, parameters, accuracy in results.PAPER["cifar100"]] == [
        ("Hierarchical CNN", "0.25M", 62.01), ("Hierarchical CNN (+)", "0.89M", 63.19), ("All-CNN", "1.3M", 66.29),
        ("Network in Network", "0.98M", 64.32), ("FitNet", "2.5M", 64.96)]


def test_table_without_runs_says_not_run_and_still_counts_parameters(tmp_path):
    table = results.table("cifar10", results.load_runs(tmp_path))
    assert set(table[["accuracy, here", "deviation", "n", "seconds an epoch", "seconds", "device"]].to_numpy().ravel()) == {"not run"}
    counts = [97_650, 344_640, 1_368_480, 268_336, 965_568, 174_128, 2_544_712, 174_128, 561_200]
    assert list(table["parameters, here"]) == [*counts, "not run"]
    assert "HyperNetworks" in table.model.iloc[-1]
    assert list(results.table("cifar100", [])["parameters, here"])[:2] == [250_308, 887_424]


def test_table_gives_mean_standard_deviation_and_n_over_seeds(tmp_path):
    for seed, accuracy in ACCURACIES.items():
        fabricate(tmp_path, accuracy, seed=seed)
    fabricate(tmp_path, 0.925, variant="hcnn-plus")
    table = results.table("cifar10", results.load_runs(tmp_path))
    ours = row(table, model="Hierarchical CNN")
    percent = [100 * accuracy for accuracy in ACCURACIES.values()]
    assert ours["accuracy, here"] == f"{statistics.mean(percent):.2f}" == "90.97"
    assert ours["deviation"] == f"{statistics.stdev(percent):.2f}" == "0.43"
    assert (ours["n"], ours["seconds an epoch"], ours["seconds"], ours["device"]) == (3, "2.0", "480", "a GPU")
    plus = row(table, model="Hierarchical CNN (+)")
    assert (plus["accuracy, here"], plus["deviation"], plus["n"]) == ("92.50", "one seed", 1)
    assert row(table, model="FitNet")["accuracy, here"] == "not run"


def test_accuracy_is_that_of_the_last_epoch_not_of_the_best(tmp_path):
    fabricate(tmp_path, 0.90, best=0.95)
    assert row(results.table("cifar10", results.load_runs(tmp_path)), model="Hierarchical CNN")["accuracy, here"] == "90.00"


def test_run_on_cifar100_counts_in_table_2_alone(tmp_path):
    fabricate(tmp_path, 0.62, dataset="cifar100")
    loaded = results.load_runs(tmp_path)
    assert row(results.table("cifar100", loaded), model="Hierarchical CNN")["accuracy, here"] == "62.00"
    assert set(results.table("cifar10", loaded)["accuracy, here"]) == {"not run"}


@pytest.mark.parametrize("changes, reason", [
    (dict(epochs_done=239), "unfinished: 239 of 240 epochs"),
    (dict(epochs_done=0), "unfinished: 0 of 240 epochs"),
    (dict(split="validation"), "tested on 5,000 held-out training images"),
    (dict(train_size=2_000), "2,000 of 50,000 training images"),
    (dict(split="validation", train_size=2_000), "2,000 of 45,000 training images"),
    (dict(K=8), "K 8 instead of 16"),
    (dict(Q=9), "Q 9 instead of 32"),
    (dict(J=10), "J 10 instead of 12"),
    (dict(padding_mode="periodic"), "padding_mode periodic instead of zeros"),
    (dict(last_elu=False), "last_elu False instead of True"),
    (dict(recipe=dict(epochs=100)), "epochs 100 instead of 240"),
    (dict(recipe=dict(lr=0.05)), "lr 0.05 instead of 0.25"),
    (dict(recipe=dict(schedule="cosine")), "schedule cosine instead of step"),
    (dict(precision="strict"), "precision strict instead of fast"),
    (dict(variant="hcnn-plus", preset="released"), "preset released"),
    (dict(dataset="digits"), "digits"),
    (dict(dataset="digits", substitutes="cifar10"), "digits in place of CIFAR-10"),
])
def test_run_that_differs_from_the_paper_is_listed_with_the_reason_and_counts_nowhere(tmp_path, changes, reason):
    fabricate(tmp_path, **changes)
    loaded = results.load_runs(tmp_path)
    assert results.headline(loaded) == []
    for dataset in results.PAPER:
        assert set(results.table(dataset, loaded)["accuracy, here"]) == {"not run"}
    assert reason in row(results.other_runs(loaded))["differs from the paper in"].split("; ")


def test_headline_run_is_not_listed_among_the_others(tmp_path):
    fabricate(tmp_path)
    assert len(results.other_runs(results.load_runs(tmp_path))) == 0


def test_full_training_set_given_as_a_number_counts(tmp_path):
    fabricate(tmp_path, train_size=50_000)
    assert len(results.headline(results.load_runs(tmp_path))) == 1


def test_fewer_test_images_do_not_count(tmp_path):
    folder = fabricate(tmp_path)
    runs.write_run(folder, runs.read_run(folder) | dict(test_images=1_000))
    assert results.departures(results.load_run(folder)) == ["tested on 1,000 test images"]


def test_other_runs_tell_data_sizes_epochs_split_and_device(tmp_path):
    fabricate(tmp_path, 0.43, K=8, Q=16, train_size=2_000, recipe=dict(epochs=4), epochs_done=3)
    fabricate(tmp_path, 0.97, dataset="digits", substitutes="cifar100", attribute_support=(11, 11), recipe=dict(epochs=2), seed=3)
    table = results.other_runs(results.load_runs(tmp_path))
    small, digits = row(table, data="CIFAR-10"), row(table, data="digits in place of CIFAR-100")
    assert (small["K"], small["Q"], small["epochs"], small["training images"]) == (8, 16, "3 of 4", "2,000 of 50,000")
    assert (small["tested on"], small["accuracy"], small["device"], small["boundary"]) == ("10,000 test images", "43.00", "a GPU", "zeros")
    assert (digits["training images"], digits["tested on"], digits["seed"]) == ("1,500 of 1,500", "297 test images", 3)
    assert "attribute_support (11, 11) instead of (7, 11)" in digits["differs from the paper in"]


# Folders that cannot be read


@pytest.mark.parametrize("kind", DAMAGES)
def test_damaged_folder_gives_a_warning_and_a_line_and_breaks_no_table(tmp_path, claims, capsys, kind):
    fabricate(tmp_path, 0.91, seed=0)
    damaged = fabricate(tmp_path, 0.9, seed=1)
    damage(damaged, kind)
    loaded = results.load_runs(tmp_path)
    assert capsys.readouterr().out.startswith(f"WARNING: {damaged.name} is left out of every table: ")
    assert row(results.table("cifar10", loaded), model="Hierarchical CNN")["accuracy, here"] == "91.00"
    line = row(results.other_runs(loaded))
    assert (line["data"], line["run"]) == ("damaged", damaged.name)
    assert line["differs from the paper in"] and str(tmp_path) not in line["differs from the paper in"]
    assert set(results.learning_curves(loaded).seed) == {0}
    assert row(results.summary(loaded, claims), quantity="accuracy (%), CIFAR-10, Hierarchical CNN")["here"].startswith("91.00")


def test_run_folder_read_while_an_epoch_is_written_shows_the_epochs_of_run_json(tmp_path):
    folder = fabricate(tmp_path, epochs_done=3)
    text = (folder / runs.METRICS).read_text()
    (folder / runs.METRICS).write_text(text + "4" + text.splitlines()[-1][1:] + "\n")
    run = results.load_run(folder)
    assert run.problem is None and len(run.metrics) == 3 and not run.complete


def test_files_and_hidden_folders_beside_the_runs_are_no_runs(tmp_path, capsys):
    (tmp_path / ".cache").mkdir()
    (tmp_path / "README.md").write_text("")
    assert results.load_runs(tmp_path) == [] and results.load_runs(tmp_path / "none") == []
    assert capsys.readouterr().out == ""


# Learning curves


def test_learning_curves_share_a_line_between_seeds_and_name_the_split(tmp_path):
    for seed in (0, 1):
        fabricate(tmp_path, 0.5 + 0.1 * seed, seed=seed, K=8, recipe=dict(epochs=2))
    fabricate(tmp_path, 0.4, split="validation", K=8, recipe=dict(epochs=2))
    fabricate(tmp_path, 0.9, dataset="digits", substitutes="cifar10", recipe=dict(epochs=2))
    fabricate(tmp_path, 0.4, split="validation", K=8, recipe=dict(epochs=1))
    curves = results.learning_curves(results.load_runs(tmp_path))
    assert list(dict.fromkeys(curves.setting))[1:3] == ["45,000 images, 2 epochs", "45,000 images, 1 epoch"]  # the longest first
    assert set(curves.images) == {"training", "test", "held out"}
    last = curves[(curves.setting == "50,000 images, 2 epochs") & (curves.images == "test") & (curves.epoch == 2)]
    assert set(last.network) == {"HCNN K=8 Q=32"} and sorted(last.accuracy) == [50, 60]
    digits = curves[curves.dataset == "digits"]
    assert set(digits.data) == {"digits in place of CIFAR-10"} and digits.setting.str.contains("in place of CIFAR-10").all()


def test_learning_curves_are_drawn_one_panel_a_setting_with_the_substitution_in_the_title(tmp_path):
    for seed in (0, 1):
        fabricate(tmp_path, dataset="digits", substitutes="cifar10", seed=seed, recipe=dict(epochs=2))
    fabricate(tmp_path, dataset="digits", substitutes="cifar10", train_size=100, recipe=dict(epochs=2))
    curves = results.learning_curves(results.load_runs(tmp_path))
    fig = figures.learning_curves(curves, curves.data[0])
    assert fig._suptitle.get_text() == "digits in place of CIFAR-10"
    assert {ax.get_title() for ax in fig.axes[:2]} == {f"{n} images, 2 epochs, digits in place of CIFAR-10" for n in ("1,500", "100")}
    plt.close(fig)


# The ledger and the summary


@pytest.mark.parametrize("dataset, accuracy, verdicts", [
    ("cifar10", 0.9073, ["reproduced", "not run"]), ("cifar10", 0.9072, ["not reproduced", "not run"]),
    ("cifar10", 0.9173, ["reproduced", "not run"]), ("cifar10", 0.9174, ["not reproduced", "not run"]),
    ("cifar100", 0.6101, ["not run", "reproduced"]), ("cifar100", 0.6100, ["not run", "not reproduced"]),
])
def test_verdict_is_reproduced_within_half_a_point_or_one(tmp_path, claims, dataset, accuracy, verdicts):
    fabricate(tmp_path, accuracy, dataset=dataset)
    ledger = results.ledger(results.load_runs(tmp_path), claims)
    assert list(ledger.verdict) == [*verdicts, "explained"] and ledger.evidence[2] == "a test"
    answer = next(text for text, verdict in zip(ledger.evidence, verdicts) if verdict != "not run")
    assert f"{100 * accuracy:.2f}% here" in answer and "n = 1" in answer


@pytest.mark.parametrize("accuracy, verdict", [(0.9101, "reproduced"), (0.9095, "not reproduced"), (0.95, "reproduced")])
def test_claim_above_a_number_is_reproduced_above_it_alone(tmp_path, claims, accuracy, verdict):
    claims.write_text(CLAIMS.replace("cifar10/hcnn/accuracy", "cifar10/hcnn/accuracy>91"))
    fabricate(tmp_path, accuracy)
    assert results.ledger(results.load_runs(tmp_path), claims).verdict[0] == verdict


def test_every_run_key_of_the_ledger_is_known():
    ledger = results.ledger([])
    assert set(ledger.verdict[ledger.run_key != ""]) == {"not run"}


def test_claim_on_an_accuracy_is_not_run_without_a_headline_run(tmp_path, claims):
    claims.write_text(CLAIMS.replace("CIFAR-10,,", "CIFAR-10,reproduced,"))
    fabricate(tmp_path, 0.9123, K=8)
    assert list(results.ledger(results.load_runs(tmp_path), claims).verdict) == ["not run", "not run", "explained"]


def test_unknown_run_key_is_refused(claims):
    claims.write_text(CLAIMS.replace("cifar10/hcnn/", "cifar10/hcn/"))
    with pytest.raises(ValueError, match="run_key must be one of cifar10/hcnn/accuracy, .*, got 'cifar10/hcn/accuracy'"):
        results.ledger([], claims)


def test_summary_shows_counts_and_says_what_an_accuracy_was_computed_on(tmp_path, claims):
    fabricate(tmp_path, 0.93, variant="hcnn-plus")
    for seed, accuracy in ACCURACIES.items():
        fabricate(tmp_path, accuracy, dataset="cifar100", variant="hcnn-plus", seed=seed)
    fabricate(tmp_path, 0.43, K=8, Q=16, train_size=2_000, recipe=dict(epochs=4))
    fabricate(tmp_path, 0.97, dataset="digits", substitutes="cifar100", recipe=dict(epochs=2))
    table = results.summary(results.load_runs(tmp_path), claims)
    assert list(table) == ["quantity", "paper", "here", "computed_on"]
    assert row(table, quantity="filter weights, CIFAR-10, Hierarchical CNN")["here"] == "97,650"
    assert row(table, quantity="trainable numbers, the authors' code")["here"] == "360,522"
    assert row(table, quantity="accuracy (%), CIFAR-10, Hierarchical CNN (+)")["here"] == "93.00 (one seed)"
    assert row(table, quantity="accuracy (%), CIFAR-100, Hierarchical CNN (+)")["here"] == "90.97 (± 0.43, n = 3)"
    small = row(table, quantity="accuracy (%), CIFAR-10, Hierarchical CNN")
    assert (small["paper"], small["here"]) == ("91.23", "(43.00)")
    assert small["computed_on"].startswith("NOT COMPARABLE: 2,000 of 50,000 training images; K 8 instead of 16")
    substitute = row(table, quantity="accuracy (%), CIFAR-100, Hierarchical CNN")
    assert substitute["here"] == "(97.00)" and "NOT COMPARABLE: digits in place of CIFAR-100" in substitute["computed_on"]
    assert row(table, quantity="accuracy (%), CIFAR-10, FitNet")["here"] == "not run"
    assert not table.quantity.str.contains("digits").any()
    assert row(table, quantity="claims: not run")["here"] == "2 of 3"


def test_best_available_run_is_the_longest_trained_on_the_data_itself_never_the_most_accurate(tmp_path):
    fabricate(tmp_path, 0.99, dataset="digits", substitutes="cifar10")
    fabricate(tmp_path, 0.60, train_size=1_000, K=8)
    longest = fabricate(tmp_path, 0.50, train_size=2_000, K=8)
    fabricate(tmp_path, 0.80, split="validation", K=8)
    fabricate(tmp_path, epochs_done=0)
    loaded = results.load_runs(tmp_path)
    assert results.best_available("cifar10", "hcnn", loaded).folder == longest
    fabricate(tmp_path, variant="hcnn-plus", epochs_done=0)
    assert results.best_available("cifar10", "hcnn-plus", results.load_runs(tmp_path)) is None


def test_digits_asked_for_are_a_row_of_their_own_and_stand_in_for_nothing(tmp_path, claims):
    fabricate(tmp_path, 0.97, dataset="digits")
    table = results.summary(results.load_runs(tmp_path), claims)
    assert row(table, quantity="accuracy (%), digits, HCNN")["here"] == "97.00"
    assert row(table, quantity="accuracy (%), CIFAR-10, Hierarchical CNN")["here"] == "not run"


# One run, as notebooks 03 and 04 show it


def test_beside_paper_says_whether_a_run_is_comparable(tmp_path):
    full = results.beside_paper(results.load_run(fabricate(tmp_path, 0.91)), "cifar10")
    assert row(full, quantity="comparable")["here"] == "yes"
    assert row(full, quantity="accuracy, last epoch (%)")["here"] == "91.00"
    digits = results.load_run(fabricate(tmp_path, 0.97, dataset="digits", substitutes="cifar100", variant="hcnn-plus"))
    table = results.beside_paper(digits, "cifar100")
    assert row(table, quantity="data")["here"] == "digits in place of CIFAR-100"
    assert row(table, quantity="accuracy, last epoch (%)")["paper"] == "63.19"
    assert row(table, quantity="comparable")["here"].startswith("no: digits in place of CIFAR-100")
    begun = results.beside_paper(results.load_run(fabricate(tmp_path, epochs_done=0, seed=1)), "cifar10")
    assert row(begun, quantity="accuracy, last epoch (%)")["here"] == "not run"


def test_runs_folder_keeps_only_what_is_asked_to_be_kept(tmp_path):
    assert results.runs_folder("results") == paths.RUNS
    assert results.runs_folder(str(tmp_path)) == tmp_path
    temporary = results.runs_folder("")
    assert temporary.is_dir() and temporary != results.runs_folder("") and paths.RESULTS not in temporary.parents


@pytest.mark.parametrize("notebook", ["03_train_cifar10", "04_train_cifar100"])
@pytest.mark.parametrize("variant", ["hcnn", "hcnn-plus"])
def test_paper_profile_of_the_training_notebooks_makes_a_headline_run(tmp_path, notebook, variant):
    path = results.NOTEBOOKS / "execute.py"
    spec = importlib.util.spec_from_file_location("execute", path)
    execute = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(execute)
    values = {name: default for name, (default, _) in execute.defaults(results.NOTEBOOKS / f"{notebook}.ipynb").items()}
    values |= execute.PROFILES["paper"][notebook] | dict(variant=variant)
    assert values["out"] == "results"
    recipe = {name: values[name] for name in ("epochs", "batch_size", "lr", "schedule") if values[name] is not None}
    run = results.load_run(fabricate(tmp_path, dataset=values["dataset"], variant=variant, preset=values["preset"], seed=values["seed"],
                                     split=values["split"], train_size=values["train_size"], recipe=recipe, K=values["K"], Q=values["Q"],
                                     padding_mode=values["boundary"]))
    assert results.departures(run) == []
