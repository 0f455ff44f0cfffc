"""What the tables say of fabricated run folders: which runs a table takes, what is said of the others, what a broken
one does.
"""

import json
import shutil
import statistics

import pandas as pd
import pytest

from hcnn import paths
from hcnn.companion.experiments import BASE, CHOICES, HERE, QUICK, departures, experiment
from hcnn.companion.results import tables
from hcnn.companion.results.ledger import ledger, summary
from hcnn.companion.results.runs import IMAGES, best_available, learning_curves, load_run, load_runs
from hcnn.companion.results.write import readme_results
from hcnn.training import run_folder
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


def fabricate(root, accuracy=0.9, substitutes=None, epochs_done=None, first=None, info=(), **given):
    """A run folder as `train` leaves it, without weights; first: the accuracy of the first epoch."""
    training = experiment(**given)
    parameters = training.parameters | dict(substitutes=substitutes)
    done = training.recipe.epochs if epochs_done is None else epochs_done
    train, test = IMAGES[training.dataset]
    if training.split == "validation":
        train, test = train - train // 10, train // 10
    folder = root / run_folder.run_name(parameters)
    folder.mkdir(parents=True)
    rows = [dict(epoch=i + 1, lr=0.1, train_loss=1.0, train_accuracy=0.5, test_loss=1.0, test_accuracy=accuracy,
                 seconds=2.0)
            for i in range(done)]
    if first:
        rows[0]["test_accuracy"] = first
    run_folder.write_metrics(folder, rows)
    run_folder.write_run(folder, dict(
        name=folder.name, parameters=parameters, epochs=training.recipe.epochs, epochs_done=done,
        test_accuracy=accuracy if done else None, test_loss=1.0 if done else None,
        train_images=training.train_size or train, test_images=test, counts=training.architecture.count(),
        seconds=2.0 * done, device="a processor", threads=2, dtype="float32", earlier=[],
        images_per_second=100.0 if done else None, classes=[], mean=[0.5] * 3, std=[0.3] * 3, data_checksum="0" * 64,
        weights_sha256="0" * 64 if done else None) | dict(info))
    return folder


def row(table, **where):
    """The one row of a table where the columns have these values, as a dictionary."""
    for name, value in where.items():
        table = table[table[name] == value]
    assert len(table) == 1, table
    return table.iloc[0].to_dict()


# Tables 1 and 2


def test_without_runs_every_row_says_not_trained_yet_and_no_number_of_another_training(claims):
    table = tables.paper_table("cifar10", [])
    assert set(table["accuracy, here"]) == {"not trained yet"} and set(table.n) == {0}
    counts = [97_650, 344_640, 1_368_480, 268_336, 965_568, 174_128, 2_544_712, 561_200]
    assert list(table["parameters, here"]) == [*counts, ""] and "HyperNetworks" in table.model.iloc[-1]
    assert set(tables.trained_here([]).accuracy) == set(tables.gain_of_Q([]).here) == {"not trained yet"}
    assert set(tables.choices([])["difference (points)"]) == {"not trained yet"} and tables.other_runs([]).empty
    accuracies = summary([], claims)
    accuracies = accuracies[accuracies.quantity.str.startswith("accuracy")]
    assert set(accuracies.stored) == {"not trained yet"} and set(accuracies["just now"]) == {""}


def test_table_gives_mean_standard_deviation_and_n_of_the_last_epoch_over_seeds(tmp_path):
    for seed, accuracy in ACCURACIES.items():
        fabricate(tmp_path, accuracy, seed=seed, first=0.95)
    fabricate(tmp_path, 0.925, variant="hcnn-plus")
    table = tables.paper_table("cifar10", load_runs(tmp_path))
    ours, percent = row(table, model="Hierarchical CNN"), [100 * accuracy for accuracy in ACCURACIES.values()]
    assert ours["accuracy, here"] == f"{statistics.mean(percent):.2f}" == "90.97"
    assert ours["deviation"] == f"{statistics.stdev(percent):.2f}" == "0.43"
    assert (ours["n"], ours["seconds an epoch"], ours["seconds"], ours["device"]) == (3, "2.0", "480", "a processor")
    plus = row(table, model="Hierarchical CNN (+)")
    assert (plus["accuracy, here"], plus["deviation"], plus["n"]) == ("92.50", "one seed", 1)
    assert set(tables.paper_table("cifar100", load_runs(tmp_path)).n) == {0}


@pytest.mark.parametrize("changes, reason", [
    (dict(epochs_done=239), "unfinished: 239 of 240 epochs"),
    (dict(split="validation"), "tested on 5,000 held-out training images"),
    (dict(split="validation", train_size=2_000), "2,000 of 45,000 training images"),
    (dict(K=8), "K 8 instead of 16"),
    (dict(padding_mode="periodic", J=10), "J 10 instead of 12"),
    (dict(lr=0.05), "lr 0.05 instead of 0.25"),
    (dict(precision="strict"), "precision strict instead of fast"),
    (dict(variant="hcnn-plus", preset="released"), "preset released"),
    (dict(dataset="digits", substitutes="cifar10"), "digits in place of CIFAR-10"),
    (dict(info=dict(test_images=1_000)), "tested on 1,000 test images"),
])
def test_run_that_differs_from_the_paper_is_listed_with_the_reason_and_counts_nowhere(tmp_path, changes, reason):
    fabricate(tmp_path, **changes)
    runs = load_runs(tmp_path)
    for table in (*(tables.paper_table(dataset, runs) for dataset in tables.PAPER), tables.trained_here(runs)):
        assert set(table.n) == {0}
    assert reason in row(tables.other_runs(runs))["differs in"].split("; ")


def test_a_run_that_counts_is_not_listed_among_the_others(tmp_path):
    for given in (dict(), dict(variant="resnet-20"), HERE[1], QUICK[0], departures(BASE)[0][1], dict(Q=9)):
        fabricate(tmp_path, **given)
    assert tables.other_runs(load_runs(tmp_path)).empty


# What was trained here


def test_trained_here_has_a_row_for_each_declared_training_with_its_cost(tmp_path):
    for seed, accuracy in ((0, 0.81), (1, 0.83)):
        begun = dict(earlier=[dict(dtype="bfloat16", threads=1)], first_epoch=21) if seed else {}
        folder = fabricate(tmp_path, accuracy, info=begun, **HERE[0] | dict(seed=seed))
    metrics = pd.read_csv(folder / run_folder.METRICS)
    metrics.loc[:19, "seconds"] = 4.0  # the second one began with one thread
    metrics.loc[[3, 30], "seconds"] = 900.0  # paused, or beside other work
    run_folder.write_metrics(folder, metrics.to_dict("records"))
    fabricate(tmp_path, 0.9, variant="resnet-20", preset="short", epochs=40,
              info=dict(device="a GPU", device_type="cuda"))
    runs = load_runs(tmp_path)
    table = tables.trained_here(runs)
    ours = row(table, system="HCNN", K=8, Q=16, padding_mode="zeros", data="CIFAR-10")
    assert (ours["accuracy"], ours["deviation"], ours["n"]) == ("82.00", "1.41", 2)
    hours = 2 * 2 * ours["epochs"] / 3600  # two threads, two seconds an epoch; for the second, at first one and four
    assert [run.core_hours for run in runs if run.variant == "hcnn"] == [pytest.approx(hours)] * 2
    assert (ours["core-hours"], ours["processor"], ours["recipe"]) == (f"{hours:.1f}", "a processor", "short")
    assert ours["multiply-adds"] == 53_946_048  # of a full-size image, whatever sizes were trained on
    assert (ours["parameters"], ours["effective"]) == (52_290, 44_964)
    assert ours["number format"] == "bfloat16 / float32"
    other = row(table, system="ResNet-20")
    assert other["parameters"] == other["effective"] == 268_336
    assert (other["accuracy"], other["core-hours"], other["epochs"]) == ("90.00", "", ours["epochs"])
    assert row(table, K=12)["accuracy"] == "not trained yet"


def test_a_users_own_run_has_a_row_of_its_own_and_stands_as_just_now(tmp_path, claims, monkeypatch):
    monkeypatch.setattr(paths, "RUNS", tmp_path / "runs")
    monkeypatch.setattr(paths, "LOCAL", tmp_path / "local")
    stored = fabricate(paths.RUNS, 0.81, **HERE[0])
    fabricate(paths.LOCAL / "runs", 0.82, **HERE[0])
    fabricate(paths.LOCAL / "runs", 0.6, **QUICK[0])
    fabricate(paths.LOCAL / "runs", 0.9, dataset="digits", substitutes="cifar10", epochs=20)
    runs = load_runs()
    table = tables.trained_here(runs).head(2)
    assert list(table.accuracy) == ["81.00", "82.00"] and list(table["from"]) == ["results", "results/local"]
    table = summary(runs, claims)
    label = f"accuracy (%), CIFAR-10, {experiment(**HERE[0]).label}, 40 epochs"
    ours = row(table, quantity=label)
    assert (ours["stored"], ours["just now"]) == ("81.00, one seed", "82.00, one seed")
    quick = row(table, quantity=f"accuracy (%), CIFAR-10, {experiment(**QUICK[0]).label}, 2 epochs")
    assert (quick["stored"], quick["just now"]) == ("not trained yet", "60.00, one seed")
    assert row(table[table.quantity.str.contains("digits in place of CIFAR-10")])["just now"] == "90.00"
    again = row(summary(runs[:1], claims, {stored.name: 81.01}), quantity=label)
    assert (again["stored"], again["just now"]) == ("81.00, one seed", "81.01, one seed")
    shutil.rmtree(paths.LOCAL)
    fabricate(paths.RUNS, 0.83, seed=1, **HERE[0])
    again = row(summary(load_runs(), claims, {stored.name: 81.01}), quantity=label)["stored"]
    assert again == "82.00 ± 1.41, n = 2; of these again 81.00, one seed"


def test_what_notebook_05_keeps_in_results_is_of_no_run_of_a_user(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "RUNS", tmp_path / "runs")
    monkeypatch.setattr(paths, "LOCAL", tmp_path / "local")
    fabricate(paths.RUNS)
    fabricate(paths.LOCAL / "runs", **QUICK[0])
    cells = json.loads((paths.NOTEBOOKS / "05_results.ipynb").read_text(encoding="utf-8"))["cells"]
    parameters, first = ("".join(cell["source"]) for cell in cells[1:3])
    for out, n in (("results", 1), ("local", 2), ("", 2)):
        exec(f"{parameters}\nout = {out!r}\n{first}", found := {})
        assert len(found["runs"]) == n


# Choices, and the claim on Q


def test_choices_pair_runs_that_differ_in_one_declared_answer_seed_by_seed(tmp_path):
    for seed, (base, elu) in enumerate(((0.30, 0.31), (0.32, 0.36), (0.40, None))):
        fabricate(tmp_path, base, **BASE | dict(seed=seed))
        if elu:
            fabricate(tmp_path, elu, **BASE | dict(seed=seed, last_elu=False))
    fabricate(tmp_path, 0.5, **BASE | dict(seed=2, last_elu=False, K=4))
    table = tables.choices(load_runs(tmp_path))
    ours = row(table, **{"changed to": "last_elu False"})
    assert (ours["accuracy, base"], ours["accuracy, changed"], ours["n"]) == ("31.00", "33.50", 2)
    assert (ours["difference (points)"], ours["deviation"]) == ("+2.50", f"{statistics.stdev([1, 4]):.2f}")
    assert ours["tested on"] == "held-out training images" and table.n.sum() == 2
    assert ours["number format"] == "float32"


def test_the_first_answer_to_every_choice_is_that_of_the_base():
    base, values = experiment(**BASE), Recipe().as_dict() | dict(precision="fast")
    for _, field, answers in CHOICES:
        found = base.architecture.as_dict().get(field, values.get(field))
        assert found == json.loads(json.dumps(answers[0])) and len(set(answers)) == len(answers) > 1


def test_readings_of_the_gain_are_consistent_with_what_they_imply():
    for gain, before in tables.READINGS.values():
        assert gain(before(4.2, 91.23), 91.23) == pytest.approx(4.2)
    points, relative, error = (gain for gain, _ in tables.READINGS.values())
    assert (points(80, 84), relative(80, 84), error(80, 84)) == pytest.approx((4, 5, 20))
    shown = tables.gain_of_Q([])
    shown = shown[shown.network == "HCNN K=16 Q=32"]
    assert [(ours.Q, ours["read as"], ours["accuracy implied"]) for _, ours in shown.iterrows()] == [
        ("9 to 16", "points", "85.93"), ("16 to 32", "points", "90.13"),
        ("9 to 16", "% of the accuracy", "86.60"), ("16 to 32", "% of the accuracy", "90.24"),
        ("9 to 16", "% of the error", "90.74"), ("16 to 32", "% of the error", "91.13")]


def test_gain_of_Q_takes_runs_that_differ_in_Q_alone_seed_by_seed(tmp_path):
    for seed, accuracies in enumerate(({9: 0.86, 16: 0.90, 32: 0.91}, {9: 0.87, 16: 0.90}, {32: 0.92})):
        for Q, accuracy in accuracies.items():
            fabricate(tmp_path, accuracy, Q=Q, seed=seed)
    for changes in (dict(Q=9, K=8), dict(Q=16, padding_mode="periodic"), dict(Q=16, lr=0.1),
                    dict(Q=16, epochs_done=239)):
        fabricate(tmp_path, 0.5, seed=2, **changes)
    table = tables.gain_of_Q(load_runs(tmp_path))
    table = table[table.network == "HCNN K=16 Q=32"]
    points, error = (row(table, Q="9 to 16", **{"read as": reading}) for reading in ("points", "% of the error"))
    assert (points["here"], points["deviation"], points["n"]) == ("+3.50", f"{statistics.stdev([4, 3]):.2f}", 2)
    assert error["here"] == f"{statistics.mean([100 * 4 / 14, 100 * 3 / 13]):+.2f}"
    last = row(table, Q="16 to 32", **{"read as": "points"})
    assert (last["here"], last["deviation"], last["n"]) == ("+1.00", "one seed", 1)


# Folders that cannot be read


def change(what):
    """A change of run.json with a right checksum."""
    def damage(folder):
        info = run_folder.read_run(folder)
        what(info)
        run_folder.write_run(folder, info)

    return damage


def cut(name, length):
    return lambda folder: (folder / name).write_text((folder / name).read_text()[:length])


@pytest.mark.parametrize("damage", [
    cut("run.json", 200), lambda folder: (folder / "run.json").unlink(), cut("metrics.csv", 0), cut("metrics.csv", 300),
    lambda folder: (folder / "metrics.csv").unlink(),
    lambda folder: run_folder.write_metrics(folder, [dict.fromkeys(run_folder.COLUMNS, 0.5)] * 240),
    change(lambda run: run["parameters"]["architecture"].update(variant="x")),
    change(lambda run: run["parameters"].update(dataset="svhn")), change(lambda run: run.update(test_images="1")),
])
def test_damaged_folder_gives_a_warning_and_a_line_and_breaks_no_table(tmp_path, claims, capsys, damage):
    fabricate(tmp_path, 0.91, seed=0)
    damaged = fabricate(tmp_path, 0.9, seed=1)
    damage(damaged)
    runs = load_runs(tmp_path)
    assert capsys.readouterr().out.startswith(f"WARNING: {damaged.name} is left out of every table: ")
    assert row(tables.paper_table("cifar10", runs), model="Hierarchical CNN")["accuracy, here"] == "91.00"
    line = row(tables.other_runs(runs))
    assert (line["data"], line["run"]) == ("damaged", damaged.name)
    assert line["differs in"] and str(tmp_path) not in line["differs in"]
    assert set(learning_curves(runs).seed) == {0}
    assert row(summary(runs, claims), quantity="accuracy (%), CIFAR-10, Hierarchical CNN")["stored"].startswith("91.00")


def test_run_folder_read_while_an_epoch_is_written_shows_the_epochs_of_run_json(tmp_path):
    folder = fabricate(tmp_path, epochs_done=3)
    text = (folder / run_folder.METRICS).read_text()
    (folder / run_folder.METRICS).write_text(text + "4" + text.splitlines()[-1][1:] + "\n")
    run = load_run(folder)
    assert run.problem is None and len(run.metrics) == 3 and not run.complete


# Learning curves, the nearest run, the ledger


def test_learning_curves_share_a_line_between_seeds_and_name_the_split(tmp_path):
    for seed in (0, 1):
        fabricate(tmp_path, 0.5 + 0.1 * seed, seed=seed, K=8, epochs=2)
    fabricate(tmp_path, 0.4, split="validation", K=8, epochs=2)
    fabricate(tmp_path, 0.9, dataset="digits", substitutes="cifar10", epochs=2)
    curves = learning_curves(load_runs(tmp_path))
    settings = list(dict.fromkeys(curves.setting))
    assert settings[:2] == ["50,000 images, 2 epochs", "45,000 images, 2 epochs"]  # the longest first
    assert set(curves.images) == {"training", "test", "held out"}
    last = curves[(curves.setting == "50,000 images, 2 epochs") & (curves.images == "test") & (curves.epoch == 2)]
    assert set(last.network) == {"HCNN K=8 Q=32"} and sorted(last.accuracy) == [50, 60]
    assert set(curves[curves.dataset == "digits"].data) == {"digits in place of CIFAR-10"}


def test_best_available_run_is_the_longest_trained_on_the_data_itself_never_the_most_accurate(tmp_path):
    fabricate(tmp_path, 0.99, dataset="digits", substitutes="cifar10")
    fabricate(tmp_path, 0.60, train_size=1_000, K=8)
    long = fabricate(tmp_path, 0.50, train_size=2_000, K=8)
    assert best_available("cifar10", "hcnn", load_runs(tmp_path)).folder == long
    assert best_available("cifar10", "hcnn-plus", load_runs(tmp_path)) is None


@pytest.mark.parametrize("dataset, key, accuracy, verdict", [
    ("cifar10", "cifar10/hcnn/accuracy", 0.9073, "reproduced"),
    ("cifar10", "cifar10/hcnn/accuracy", 0.9072, "not reproduced"),
    ("cifar10", "cifar10/hcnn/accuracy", 0.9174, "not reproduced"),
    ("cifar100", "cifar100/hcnn/accuracy", 0.6101, "reproduced"),
    ("cifar100", "cifar100/hcnn/accuracy", 0.6100, "not reproduced"),
    ("cifar10", "cifar10/hcnn/accuracy>91", 0.95, "reproduced"),
    ("cifar10", "cifar10/hcnn/accuracy>91", 0.9095, "not reproduced"),
    ("cifar100", "cifar10/hcnn/accuracy", 0.9, "not run"),
])
def test_verdict_is_reproduced_near_the_paper_or_above_a_claim(tmp_path, claims, dataset, key, accuracy, verdict):
    claims.write_text(CLAIMS.replace("cifar10/hcnn/accuracy", key))
    fabricate(tmp_path, accuracy, dataset=dataset)
    found = ledger(load_runs(tmp_path), claims)
    answer = found[found.run_key == key].iloc[0]
    assert answer.verdict == verdict and (verdict == "not run" or f"{100 * accuracy:.2f}% here" in answer.evidence)
    assert list(found.verdict)[2] == "explained" and found.evidence[2] == "a test"


def test_boundaries_are_told_by_any_pair_and_decided_by_that_of_the_papers_recipe(tmp_path, claims):
    claims.write_text(CLAIMS.replace("cifar10/hcnn/accuracy", "boundary"))

    def said():
        return tuple(ledger(load_runs(tmp_path), claims).loc[0, ["verdict", "evidence"]])

    for given, accuracy in ((HERE[0], 0.86), (HERE[3], 0.79)):
        fabricate(tmp_path, accuracy, **given)
    told = "HCNN K=8 Q=16, short: -7.00 points with periodic boundaries, n = 1"
    assert said()[0] == "not run" and said()[1].startswith(f"{told}; the paper's recipe is not run: ")
    for given, accuracy in (({}, 0.9), (dict(padding_mode="periodic"), 0.896)):
        fabricate(tmp_path, accuracy, **given)
    near = "HCNN K=16 Q=32: -0.40 points with periodic boundaries, n = 1"
    assert said() == ("reproduced", f"{near}; {told}")
    for given, accuracy in (({}, 0.9), (dict(padding_mode="periodic"), 0.7)):
        fabricate(tmp_path, accuracy, output_norm=True, **given)
    assert said()[0] == "not reproduced"


def test_every_run_key_of_the_ledger_is_known_and_others_are_refused(claims):
    found = ledger([])
    assert set(found.verdict[found.run_key != ""]) == {"not run"}
    assert list(found.evidence).count("no network is interpreted") >= 7
    assert not found.evidence.str.contains(" | ", regex=False).any()
    claims.write_text(CLAIMS.replace("cifar10/hcnn/", "cifar10/hcn/"))
    with pytest.raises(ValueError, match="run_key must be one of cifar10/hcnn/.*, got 'cifar10/hcn/accuracy'"):
        ledger([], claims)


def test_a_training_that_is_not_complete_is_said_beside_the_table_not_in_it(tmp_path):
    for seed, done, accuracy in ((0, 203, 0.88), (1, 5, 0.5)):
        fabricate(tmp_path, accuracy, epochs_done=done, seed=seed)
    training = experiment()
    assert tables.paper_table("cifar10", load_runs(tmp_path))["accuracy, here"][0] == tables.NOT_TRAINED
    said = "88.00% after 203 of 240 epochs, 406 s, a processor"
    assert tables.under_way(training, load_runs(tmp_path)) == said
    assert said in readme_results(load_runs(tmp_path), tmp_path)
    fabricate(tmp_path, seed=2)
    assert tables.under_way(training, load_runs(tmp_path)) == ""
