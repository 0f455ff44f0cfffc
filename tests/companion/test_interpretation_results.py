"""What `make verify` knows about interpretation.npz: right ones pass, changed ones are refused; and the tables."""

import itertools
import json
import re
import shutil

import numpy as np
import pandas as pd
import pytest
import torch

from hcnn import Architecture, load, paths
from hcnn.companion.commands import main
from hcnn.companion.interpretation import measure, storage
from hcnn.companion.interpretation import tables as interpreted
from hcnn.companion.interpretation.attributes import smooth
from hcnn.companion.interpretation.checks import check_interpretation
from hcnn.companion.results.ledger import ledger
from hcnn.companion.results.runs import load_run, load_runs
from hcnn.data.datasets import load_dataset
from hcnn.training import run_folder as runs
from hcnn.training.loop import train
from hcnn.training.recipe import Recipe


@pytest.fixture(scope="module")
def digits():
    return load_dataset("digits")


def interpreted_run(out, data, seed=0):
    """A run folder with an interpretation of ten queries and 40 database images."""
    architecture = Architecture.preset("digits", K=8, Q=2, J=5, subsampled=(1, 2), attribute_support=(3, 5))
    folder = train(architecture, Recipe(epochs=1, lr=0.05), data, train_size=60, device="cpu", seed=seed, out=out,
                   log=lambda line: None)
    measure.interpret_run(load(folder), data, images=[1, 5], database=40, queries=10, altered=3)
    return folder


@pytest.fixture(scope="module")
def right(tmp_path_factory, digits):
    return interpreted_run(tmp_path_factory.mktemp("runs"), digits)


@pytest.fixture
def run(right, tmp_path):
    """A copy of the run, to be changed."""
    return load_run(shutil.copytree(right, tmp_path / right.name))


def test_command_line_computes_what_notebook_06_asks_for_once(run, digits, monkeypatch, capsys):
    (run.folder / storage.FILE).unlink()
    command = ["interpret", str(run.folder), "--database", "40", "--queries", "10", "--altered", "2", "--device", "cpu"]
    assert main(command) == 0
    network = load(run.folder)
    found = storage.load_interpretation(run.folder, measure.ask(network, digits, [], 40, 10, 2, [3, 4]))
    assert found is not None and found["images"].tolist() == measure.images_to_show(digits, [3, 4])
    birds = [digits.classes[digits.train_labels[i]] for i in found["images"]]
    assert birds[:2] == [digits.classes[3]] * 2 and birds[2:] == [digits.classes[3], digits.classes[4]]
    monkeypatch.setattr(measure, "interpret", lambda *arguments, **options: pytest.fail("computed again"))
    assert main(command[:3] + ["30", *command[4:]]) == 0
    assert "holds as much already" in capsys.readouterr().out
    assert check_interpretation(run, digits) == []


def rewrite(run, **entries):
    """Other entries in interpretation.npz, with a right checksum."""
    found = storage.load_interpretation(run.folder)
    (run.folder / storage.FILE).unlink()
    storage.save_interpretation(run.folder, found | entries)


def changed(run, name, change):
    values = storage.load_interpretation(run.folder)[name].copy()
    change(values)
    rewrite(run, **{name: values})


def setting(**others):
    def change(run):
        asked = storage.used(storage.load_interpretation(run.folder))
        rewrite(run, settings=np.array(runs.canonical(asked | others)))

    return change


def test_a_right_interpretation_passes_with_and_without_data(run, digits):
    assert check_interpretation(run) == check_interpretation(run, digits) == []
    (run.folder / runs.WEIGHTS).unlink()
    assert check_interpretation(run, digits) == []
    (run.folder / storage.FILE).unlink()
    assert check_interpretation(run, digits) == []


def test_a_flipped_bit_is_found_by_the_checksum(run):
    path = run.folder / storage.FILE
    with np.load(path) as file:
        entries = {name: file[name] for name in file.files}
    entries["query_predictions"] = entries["query_predictions"] ^ 1
    np.savez_compressed(path, **entries)
    (finding,) = check_interpretation(run)
    assert finding == "interpretation.npz was changed after it was written; delete it and run notebook 06 again"


def test_a_result_of_an_earlier_version_is_named_with_its_remedy(run):
    found = storage.load_interpretation(run.folder)
    del found["exchanges"], found["exchanged"]
    (run.folder / storage.FILE).unlink()
    np.savez_compressed(run.folder / storage.FILE, **found, checksum="0" * 64)
    assert check_interpretation(run) == [
        "interpretation.npz is of an earlier version of this project; delete it and run notebook 06 again"]


def entry(name, position, value):
    """A number of interpretation.npz that is another one; value: a number, or a function of the array."""
    return lambda run: changed(run, name, lambda v: v.put(position, value(v) if callable(value) else value))


@pytest.mark.parametrize("change, said", [
    (setting(weights="0" * 64), "made with weights '000"), (setting(data="0" * 64), "made with data '000"),
    (setting(dataset="cifar10"), "made with dataset 'cifar10'"),
    (setting(depths=[3, 9]), "depths [3, 9] and translations [0, 1, 2, 3] are not those of K = 8, J = 5"),
    (setting(database=50), "made with database 50, it must be 40"),
    (setting(queries=9), "made with queries 9, it must be 10"),
    (setting(images=[1, 6]), "made with images [1, 6], it must be [1, 5]"),
    (lambda run: rewrite(run, arrays_4=np.zeros((2, 4, 8))), "its entries do not belong together"),
    (entry("index", 3, 40), "index must be below 40, got 40"),
    (entry("predictions", 0, 10), "predictions must be below 10, got 10"),
    (entry("distance", 5, np.inf), "distance has a number that is not finite"),
    (entry("distance", 5, -1), "distance has a negative number"),
    (entry("image_distance", 5, 9), "distances at j = 3 are not those of its arrays"),
    (entry("resampled", 5, np.nan), "resampled has a number that is not finite"),
])
def test_everything_that_contradicts_itself_is_found_without_data(run, change, said):
    change(run)
    (finding,) = check_interpretation(run)
    assert finding.startswith(f"interpretation.npz: {said}")


def test_an_image_that_is_its_own_nearest_one_is_found(run):
    own = np.flatnonzero(storage.load_interpretation(run.folder)["database"] == 1)[0]
    changed(run, "image_index", lambda v: v[0, 1].put(0, own))
    assert check_interpretation(run) == ["interpretation.npz: an image shown is its own nearest one"]


def test_an_image_that_is_not_the_nearest_one_is_found(run):
    found = storage.load_interpretation(run.folder)
    arrays, distance, index = (found[name].copy() for name in ("nearest_arrays_3", "image_distance", "image_index"))
    far = np.abs(distance[0, :, 0] - distance[0, 1, 0]).argmax()  # another array of the same image, claimed at tau = 1
    arrays[[1, far], 0] = arrays[[far, 1], 0]  # the right one is there, elsewhere, with its right distance
    index[0, 1, 0] = index[0, far, 0]
    own, *near = (smooth(torch.from_numpy(a).float()) for a in (found["arrays_3"][0], arrays[1, 0], arrays[far, 0]))
    for tau, array in zip((1, int(far)), near):
        distance[0, tau, 0] = (own.roll(tau, 0) - array).norm() / own.norm()
    rewrite(run, nearest_arrays_3=arrays, image_distance=distance, image_index=index)
    (finding,) = check_interpretation(run)
    assert "at j = 3 another of its arrays is nearer than the nearest one" in finding


def other_class(v):
    return (v[0] + 1) % 10


@pytest.mark.parametrize("change, said", [
    *((entry(name, 0, other_class), f"{name} are not those of digits")
      for name in ("labels", "query_labels", "image_labels", "database")),
    (entry("image_predictions", 0, other_class), "the predictions of the images shown are not those of the weights"),
    (entry("arrays_4", 0, lambda v: 1 + v.max()), "distances at j = 4 are not those of its arrays"),
    (lambda run: changed(run, "index", lambda v: v[1, 2].put(0, (v[1, 2, 0] + 7) % 40)),
     "distances of test images at j = 4 are not those of the weights"),
    (lambda run: changed(run, "distance", lambda v: v[0, 1].put(2, 2 * v[0, 1, 2])),
     "distances of test images at j = 3 are not those of the weights"),
])
def test_what_data_and_weights_do_not_give_is_found(run, digits, change, said):
    change(run)
    assert said in check_interpretation(run, digits)[0]


# ---- tables


def test_probabilities_of_the_table_are_shares_of_the_searches(run):
    found, table = storage.load_interpretation(run.folder), interpreted.same_class_table([run])
    for row in table[table.kind == "translated"].itertuples():
        d, t = found["depths"].tolist().index(row.depth), found["taus"].tolist().index(row.tau)
        assert row.probability == (found["labels"][found["index"][d, t]] == found["query_labels"]).mean()
    assert set(table.run) == {run.folder.name} and set(table.queries) == {10} and len(table) == 2 * (4 + 2 + 1)
    assert set(table.accuracy) == {round(run.accuracy, 2)}


def test_tables_without_interpretations_are_empty_and_damaged_ones_are_named(run, capsys):
    (run.folder / storage.FILE).write_bytes(b"no archive")
    lines = []
    assert interpreted.interpreted([run], lines.append) == [] and "interpretation.npz is damaged" in lines[0]
    assert "interpretation.npz is damaged" in check_interpretation(run)[0]
    assert all(make([run]).empty and len(make([run]).columns) > 3 for make in interpreted.TABLES.values())
    assert "interpretation.npz is damaged" in capsys.readouterr().out


def test_networks_that_differ_in_their_seed_alone_have_a_mean_and_a_deviation(run, digits, tmp_path):
    runs = [run, load_run(interpreted_run(tmp_path, digits, seed=1))]
    table, statistics = interpreted.by_network_table(runs), interpreted.progression_table(runs)
    rows = table[table.about.isin(statistics.about) & (table.statistic != "most explained")]
    for row in rows.itertuples():
        found = statistics[(statistics.about == row.about) & (statistics.statistic == row.statistic)]
        assert [row.mean, row.deviation] == pytest.approx([found.value.mean(), found.value.std()], abs=1e-5)
        assert (row.n, row.above, row.below) == (2, (found.low > 0).sum(), (found.high < 0).sum())
        assert [row.low, row.high] == pytest.approx([found.low.min(), found.high.max()], abs=1e-5)
    assert len(rows) == len(statistics) / 2
    same = interpreted.same_class_table(runs)
    same = same[(same.depth == 4) & (same.kind == "translated") & same.tau.isin([1, 3])]
    near = (same.close * same.if_close.fillna(0)).groupby(same.run).sum() / same.close.groupby(same.run).sum()
    at_4 = table[table.about == "j = 4"].set_index("statistic")
    assert at_4["mean"]["translated"] == pytest.approx(same.groupby("run").probability.mean().mean(), abs=1e-5)
    assert at_4["mean"]["translated, close"] == pytest.approx(near.mean(), abs=1e-5)
    assert table.above.isna().equals(table.low.isna()) and pd.isna(at_4.above["translated, close"])
    alone = interpreted.by_network_table(runs[:1]).set_index(["about", "statistic"])
    assert set(alone.n) == {1} and alone.deviation.isna().all()
    changes, common = interpreted.known_changes_table([run]), interpreted.in_common_table([run])
    assert alone["mean"]["known changes", "most explained"] == changes.explained.max()
    common = common.set_index(["half", "about"]).exchanged
    assert alone["mean"]["in common, deep colour", "exchanged"] == common["deep", "colour"]


def test_evidence_in_the_ledger_tells_every_interpreted_network_by_its_numbers():
    evidence = ledger(load_runs(paths.RUNS)).set_index("id").evidence
    said = evidence["deeper-same-class"].splitlines()[1:]
    table = pd.read_csv(paths.RESULTS / "tables" / "by_network.csv")
    assert len(said) == table.groupby(["training", "database", "queries"]).ngroups
    (large,) = (line for line in said if line.startswith("HCNN K=16 Q=32, zeros"))
    same = pd.read_csv(paths.RESULTS / "tables" / "same_class.csv").query("tau != 4")  # which has no exchange of rows
    same = same[same.run == "cifar10-hcnn-zeros-s0-49df8eaa"].groupby(["kind", "depth"]).probability.mean()
    for kind in ("translated", "exchanged"):
        assert f"{kind} {', '.join(f'{same[kind, j]:.3f}' for j in (3, 10, 11))}, " in large
    statistics = pd.read_csv(paths.RESULTS / "tables" / "progression.csv").set_index(["run", "statistic"])
    row = statistics.loc[("cifar10-hcnn-zeros-s0-49df8eaa", "translated - exchanged")]
    assert f"translated - exchanged, mean over depths, {row.value:.3f} ({row.low:.3f} to {row.high:.3f}); " in large


def test_all_tables_are_written_into_a_folder(run, tmp_path):
    interpreted.write_tables(tmp_path / "tables", [run])
    written = {path.stem: pd.read_csv(path) for path in (tmp_path / "tables").iterdir()}
    assert written.keys() == interpreted.TABLES.keys()
    assert all(len(written[name]) == len(make([run])) for name, make in interpreted.TABLES.items())
    assert not any(table.empty for table in written.values())


# ---- a larger result is not lost


def test_a_smaller_result_does_not_replace_a_larger_one_and_is_served_by_it(run, digits):
    network, stored = load(run.folder), storage.load_interpretation(run.folder)
    asked = storage.used(stored)
    small = measure.ask(network, digits, asked["images"], database=20, queries=5, altered=2)
    assert storage.load_interpretation(run.folder, small) is None
    assert storage.used(storage.load_interpretation(run.folder, small, larger=True)) == asked
    for other in (dict(database=41), dict(images=[0, 5]), dict(weights="0" * 64), dict(depths=[3]), dict(taus=[0, 1])):
        assert storage.load_interpretation(run.folder, small | other, larger=True) is None

    def written(**settings):
        return storage.save_interpretation(run.folder, stored | dict(settings=np.array(json.dumps(asked | settings))))

    before = (run.folder / storage.FILE).read_bytes()
    for smaller in (dict(database=39), dict(queries=9), dict(depths=[3]), dict(taus=[0, 1])):
        assert not written(**smaller)
    assert (run.folder / storage.FILE).read_bytes() == before
    for other in (dict(images=[0, 5]), dict(database=41), dict(weights="0" * 64, database=1)):
        assert written(**other)


def stored_results(run):
    """{(about, statistic): mean} of the networks that differ from a run in their seed alone, and its known changes."""
    folder = paths.RESULTS / "tables"
    networks, changes = (pd.read_csv(folder / f"{name}.csv") for name in ("by_network", "known_changes"))
    return networks[networks.training == run].set_index(["about", "statistic"])["mean"], changes[changes.run == run]


def test_what_the_readme_says_of_the_attributes_follows_from_the_tables():
    text = " ".join((paths.RESULTS.parent / "README.md").read_text().split())
    said = re.search(
        r"rises from ([\d.]+) at j = 3 to ([\d.]+) at j = 11, .*? as well, from ([\d.]+) to ([\d.]+), .*? to "
        r"([\d.]+): .* less than (\d+)% .*\(results/figures/same_class_(.*?)\.png\)", text)
    mean, changes = stored_results(said[7])
    keys = (("translated", 3), ("translated", 11), ("exchanged", 3), ("exchanged", 11), ("nearest", 11))
    assert [f"{mean[f'j = {j}', kind]:.2f}" for kind, j in keys] == [said[i] for i in range(1, 6)]
    assert 0 < 100 * changes.explained.max() < float(said[6])
    assert "brightness even inverted where rows move by two, but as much where they change places" in text
    common = storage.frame(storage.load_interpretation(paths.RUNS / said[7]), "carried")
    common = common[(common.depth == 3) & (common.property == "brightness") & common.tau.isin([2, 6])]
    assert len(common) == 4 and (common.high < 0).all(), "translated and exchanged, by two either way"
    said = re.search(
        r"Three networks with K = 8 .*?: (.*?) at j = 3, (.*?) at j = 10, (.*?) at j = 11, .*? places (.*?)\. ", text)
    mean, _ = stored_results("cifar10-hcnn-zeros-s0-120d881f")
    of = [f"{mean[f'j = {j}', kind]:.2f}" for kind in ("translated", "exchanged") for j in (3, 10, 11)]
    assert of == [said[1], said[2], said[3], *said[4].split(", ")]
    said = re.search(
        r"Periodic boundaries\*\*, which the paper has here .*?: (0\.\d+) at j = 10 against (0\.\d+) .*? places, "
        r"(0\.\d+) against (0\.\d+) at j = 11 .*? j = 11, (0\.\d+) and (0\.\d+)\)\. .*? at most (\d)% of any "
        r"change, .*? \((\w+) at j = (\d)\)", text)
    run = "cifar10-hcnn-periodic-s0-b0fdb487"
    mean, changes = stored_results(run)
    most, keys = changes.nlargest(1, "explained").iloc[0], itertools.product((10, 11), ("translated", "exchanged"))
    assert [f"{mean[f'j = {j}', kind]:.2f}" for j, kind in keys] == [said[i] for i in range(1, 5)]
    same = pd.read_csv(paths.RESULTS / "tables" / "same_class.csv")
    exact = same[(same.run == run) & (same.kind == "translated") & (same.tau == 2) & same.exact].set_index("depth")
    assert [f"{exact.probability[j]:.2f}" for j in (10, 11)] == [said[5], said[6]]
    assert (f"{100 * most.explained:.0f}", most.property, str(most.depth)) == (said[7], said[8], said[9])
