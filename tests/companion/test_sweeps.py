"""Sweeps over K and Q and ablations: which runs are compared, what the tables say of them, and what nobody has run."""

import json
import statistics

import matplotlib.pyplot as plt
import pytest

from hcnn.architecture import Architecture
from hcnn.companion.commands import main, parser, settings
from hcnn.companion.figures import sizes as sweep_figures
from hcnn.companion.results import ablations, verify
from hcnn.companion.results import sizes as sweeps
from hcnn.companion.results import tables as results
from hcnn.counts import multiply_adds
from hcnn.training import run_folder as runs
from hcnn.training.recipe import Recipe

SHORT = dict(epochs=2, lr=0.02, schedule="cosine")


def fabricate(root, accuracy=0.3, variant="hcnn", preset="paper", seed=0, split="validation", train_size=4000, epochs_done=None,
              recipe=SHORT, device="a GPU", threads=1, precision="fast", seconds=10.0, **architecture):
    """A run folder as `train` leaves it, without weights."""
    architecture, recipe = Architecture.preset("cifar10", variant, preset, **architecture), Recipe.preset(preset, **recipe)
    parameters = dict(dataset="cifar10", substitutes=None, architecture=architecture.as_dict(), recipe=recipe.as_dict(), seed=seed,
                      split=split, train_size=train_size, precision=precision)
    done = recipe.epochs if epochs_done is None else epochs_done
    train, test = {"test": (50_000, 10_000), "validation": (45_000, 5_000)}[split]
    folder = root / runs.run_name(parameters)
    folder.mkdir(parents=True)
    runs.write_metrics(folder, [dict(dict.fromkeys(runs.COLUMNS, 0.5), epoch=i + 1, test_accuracy=accuracy) for i in range(done)])
    runs.write_run(folder, dict(
        name=folder.name, parameters=parameters, epochs=recipe.epochs, epochs_done=done, test_accuracy=accuracy if done else None,
        test_loss=0.5 if done else None, classes=[], mean=[], std=[], data_checksum="", weights_sha256="" if done else None,
        train_images=train_size or train, test_images=test, counts=architecture.count(), seconds=seconds * done, device=device,
        threads=threads, dtype="bfloat16", images_per_second=100.0 if done else None))


def stored(root):
    return results.load_runs(root)


def one(table, **where):
    """The one row of a table where the columns have these values, as a dictionary."""
    for name, value in where.items():
        table = table[table[name] == value]
    assert len(table) == 1, table
    return table.iloc[0].to_dict()


# Cost


def brute_force_multiply_adds(a):
    """Every multiplication of h, then g, and of w, counted one by one along each axis with explicit indices."""
    def reads(n, support, stride):
        found = 0
        for o in range(0, n, stride):
            inside = {(o + t - support // 2) % n if a.padding_mode == "periodic" else o + t - support // 2 for t in range(support)}
            found += sum(0 <= i < n for i in inside)
        return found

    h_g = w = 0
    for layer in a.layers:
        height, width = layer.size
        if layer.j == 1:
            attributes = 3
        else:
            attributes = 1
            for n, s in zip(layer.grid, layer.support):
                attributes *= reads(n, s, 2)
        whole = attributes * layer.filters * reads(height, 3, layer.stride) * reads(width, 3, layer.stride)
        w += whole
        if layer.Q:
            maps = 1
            for n in layer.grid:
                maps *= n
            h_g += layer.Q * maps * reads(height, 3, 1) * reads(width, 3, 1)
            h_g += layer.Q * attributes * layer.filters * len(range(0, height, layer.stride)) * len(range(0, width, layer.stride))
        else:
            h_g += whole
    return {"h_g": h_g, "w": w}


@pytest.mark.parametrize("padding_mode", ["zeros", "periodic"])
def test_multiply_adds_are_those_counted_one_by_one(padding_mode):
    a = Architecture.preset(K=8, Q=5, J=6, image_size=(9, 8), subsampled=(4,), padding_mode=padding_mode)
    assert multiply_adds(a) == brute_force_multiply_adds(a)
    plus = multiply_adds(a.replace(variant="hcnn-plus"))
    assert plus == {"h_g": multiply_adds(a)["h_g"], "w": None}
    direct = multiply_adds(a.replace(factorised=False))
    assert direct["h_g"] == direct["w"] == multiply_adds(a)["w"]


def test_the_papers_network_needs_2_point_8_billion_multiply_adds_in_the_order_h_then_g():
    assert f"{multiply_adds(Architecture())['h_g'] / 1e9:.1f}" == "2.8"


# Sizes


def test_sweep_gives_mean_deviation_and_n_of_each_size_with_its_counts_and_cost(tmp_path):
    for seed, accuracy in enumerate((0.30, 0.34, 0.35)):
        fabricate(tmp_path, accuracy, K=8, Q=9, seed=seed, seconds=10 + seed)
    fabricate(tmp_path, 0.31, K=8, Q=16)
    table = sweeps.table(stored(tmp_path))
    row, a = one(table, Q=9), Architecture(K=8, Q=9)
    percent = [30, 34, 35]
    assert (row["accuracy"], row["deviation"], row["n"]) == (f"{statistics.mean(percent):.2f}", f"{statistics.stdev(percent):.2f}", 3)
    assert (row["parameters"], row["effective"], row["trained"]) == tuple(a.count()[key] for key in ("filters", "effective", "trained"))
    assert row["multiply-adds (millions)"] == f"{multiply_adds(a)['w'] / 1e6:.1f}" and row["seconds an epoch"] == "11.0"
    assert one(table, Q=16)["deviation"] == "one seed" and one(table, Q=16)["computed on"] == "a GPU, 1 thread, bfloat16"
    assert row["setting"] == "4,000 training images, 2 epochs, lr 0.02, schedule cosine; tested on 5,000 held-out training images"


def test_effective_parameters_fall_below_nominal_ones_where_Q_limits_the_rank(tmp_path):
    for Q in (2, 9):
        fabricate(tmp_path, K=4, Q=Q)
    table = sweeps.table(stored(tmp_path))
    assert one(table, Q=2)["effective"] < one(table, Q=9)["effective"] <= one(table, Q=9)["parameters"] == one(table, Q=2)["parameters"]


@pytest.mark.parametrize("change", [
    dict(train_size=2000), dict(split="test"), dict(recipe=SHORT | dict(lr=0.05)), dict(recipe=SHORT | dict(epochs=3)),
    dict(variant="hcnn-plus"), dict(padding_mode="periodic"), dict(last_elu=False), dict(precision="strict"), dict(epochs_done=1)])
def test_runs_that_differ_in_more_than_K_and_Q_are_not_compared(tmp_path, change):
    fabricate(tmp_path, K=8, Q=9)
    fabricate(tmp_path, **(dict(K=8, Q=16) | change))
    assert sweeps.table(stored(tmp_path)).empty
    fabricate(tmp_path, K=8, Q=2)
    assert list(sweeps.table(stored(tmp_path))["Q"]) == [2, 9]


def test_two_settings_are_told_apart_in_words(tmp_path):
    for change in ({}, dict(recipe=SHORT | dict(lr=0.05)), dict(padding_mode="periodic"), dict(precision="strict"), dict(train_size=2000)):
        for Q in (2, 9):
            fabricate(tmp_path, K=4, Q=Q, **change)
    settings = list(dict.fromkeys(sweeps.table(stored(tmp_path))["setting"]))
    assert len(settings) == 5
    for words in ("lr 0.05", "padding_mode periodic", "strict", "2,000 training images"):
        assert sum(words in text for text in settings) == 1


def test_seconds_of_different_machines_are_not_averaged(tmp_path):
    fabricate(tmp_path, K=4, Q=2, threads=1)
    fabricate(tmp_path, K=4, Q=2, seed=1, threads=2)
    fabricate(tmp_path, K=4, Q=9)
    table = sweeps.table(stored(tmp_path))
    assert one(table, Q=2)["seconds an epoch"] == one(table, Q=2)["images/s"] == "mixed" and one(table, Q=2)["n"] == 2
    assert one(table, Q=9)["seconds an epoch"] == "10.0"


# The claim on Q


def test_readings_of_the_gain_are_consistent_with_what_they_imply():
    for gain, before in sweeps.READINGS.values():
        assert gain(before(4.2, 91.23), 91.23) == pytest.approx(4.2)
    points, relative, error = (gain for gain, _ in sweeps.READINGS.values())
    assert (points(80, 84), relative(80, 84), error(80, 84)) == pytest.approx((4, 5, 20))


def test_gain_of_Q_without_runs_says_not_run_and_what_each_reading_implies():
    table = sweeps.gain_of_Q([])
    assert set(table.here) == set(table.deviation) == {"not run"} and set(table.n) == {0}
    shown = table[table.system == "HCNN"]
    assert [(row.Q, row["read as"], row.paper, row["accuracy implied"]) for _, row in shown.iterrows()] == [
        ("9 to 16", "points", "4.2", "85.93"), ("16 to 32", "points", "1.1", "90.13"),
        ("9 to 16", "% of the accuracy", "4.2", "86.60"), ("16 to 32", "% of the accuracy", "1.1", "90.24"),
        ("9 to 16", "% of the error", "4.2", "90.74"), ("16 to 32", "% of the error", "1.1", "91.13")]


def test_gain_of_Q_takes_runs_that_differ_from_the_papers_in_Q_alone_seed_by_seed(tmp_path):
    for seed, accuracies in enumerate(({9: 0.86, 16: 0.90, 32: 0.91}, {9: 0.87, 16: 0.90}, {32: 0.92})):
        for Q, accuracy in accuracies.items():
            fabricate(tmp_path, accuracy, Q=Q, seed=seed, split="test", train_size=None, recipe={})
    for Q in (9, 16):
        fabricate(tmp_path, 0.5, Q=Q, seed=2, split="test", train_size=None, recipe={}, K=8)
    fabricate(tmp_path, 0.5, Q=16, seed=0, split="test", train_size=None, recipe={}, padding_mode="periodic")
    fabricate(tmp_path, 0.5, Q=16, seed=2, split="test", train_size=None, recipe=dict(lr=0.1))
    fabricate(tmp_path, 0.5, Q=16, seed=3, split="test", train_size=None, recipe={}, epochs_done=239)
    table = sweeps.gain_of_Q(stored(tmp_path))
    assert set(table[table.system == "HCNN(+)"].here) == {"not run"}
    table = table[table.system == "HCNN"]
    points, error = (one(table, Q="9 to 16", **{"read as": reading}) for reading in ("points", "% of the error"))
    assert (points["here"], points["deviation"], points["n"]) == ("+3.50", f"{statistics.stdev([4, 3]):.2f}", 2)
    assert error["here"] == f"{statistics.mean([100 * 4 / 14, 100 * 3 / 13]):+.2f}"
    last = one(table, Q="16 to 32", **{"read as": "points"})
    assert (last["here"], last["deviation"], last["n"]) == ("+1.00", "one seed", 1)


# Ablations


def departures(root):
    return ablations.table(stored(root))


def test_ablation_pairs_a_run_with_the_base_from_which_it_differs_in_one_field_seed_by_seed(tmp_path):
    for seed, (base, sums, elu) in enumerate(((0.30, 0.28, 0.31), (0.32, 0.31, 0.36), (0.40, None, 0.39))):
        fabricate(tmp_path, base, K=4, Q=9, seed=seed)
        fabricate(tmp_path, elu, K=4, Q=9, seed=seed, last_elu=False)
        if sums:
            fabricate(tmp_path, sums, K=4, Q=9, seed=seed, reduction="sum")
    table = departures(tmp_path)
    row = one(table, field="reduction")
    assert (row["base has"], row["changed to"], row["base"]) == ("mean", "sum", "HCNN K=4 Q=9, lr 0.02, schedule cosine")
    assert (row["accuracy, base"], row["accuracy, changed"], row["n"]) == ("31.00", "29.50", 2)
    assert (row["difference (points)"], row["deviation"]) == ("-1.50", f"{statistics.stdev([-2, -1]):.2f}")
    row = one(table, field="last_elu")
    assert (row["difference (points)"], row["deviation"], row["n"]) == ("+1.33", f"{statistics.stdev([1, 4, -1]):.2f}", 3)
    assert row["tested on"] == "5,000 held-out training images"


@pytest.mark.parametrize("change", [
    dict(seed=1), dict(train_size=2000), dict(K=8), dict(Q=2), dict(recipe=SHORT | dict(epochs=3)), dict(last_elu=False),
    dict(split="test"), dict(variant="hcnn-plus"), dict(recipe=SHORT | dict(lr=0.05))])
def test_ablation_does_not_pair_what_differs_in_another_thing_as_well(tmp_path, change):
    fabricate(tmp_path, K=4, Q=9)
    fabricate(tmp_path, **(dict(K=4, Q=9, reduction="sum") | change))
    table = departures(tmp_path)
    assert table[table.field == "reduction"].n.sum() == 0


def test_ablation_leaves_out_changes_of_two_fields_beside_changes_of_one_and_runs_on_test_images(tmp_path):
    for change in ({}, dict(last_elu=False), dict(output_norm=True), dict(recipe=SHORT | dict(shift=4))):
        fabricate(tmp_path, K=4, Q=9, **change)
    fabricate(tmp_path, K=4, Q=9, reduction="sum", padding_mode="periodic")
    for change in ({}, dict(reduction="sum")):
        fabricate(tmp_path, K=4, Q=9, split="test", **change)
    table = departures(tmp_path)
    assert set(table[table.n > 0].field) == {"last_elu", "output_norm", "shift"} and len(set(table.base)) == 1
    assert set(table["tested on"]) == {"5,000 held-out training images"}


def test_pairs_compare_one_field_wherever_nothing_else_differs(tmp_path):
    for change in ({}, dict(last_elu=False), dict(reduction="sum"), dict(factorised=False)):
        fabricate(tmp_path, 0.2, K=4, Q=9, **change)
    for seed, (factorised, direct) in enumerate(((0.30, 0.26), (0.32, 0.24))):
        fabricate(tmp_path, factorised, K=4, Q=9, seed=seed, output_norm=True)
        fabricate(tmp_path, direct, K=4, Q=9, seed=seed, output_norm=True, factorised=False)
    fabricate(tmp_path, K=4, Q=9, factorised=False, recipe=SHORT | dict(lr=0.05))  # without its partner
    loaded = stored(tmp_path)
    table = ablations.pairs(loaded, "factorised")
    assert list(table.n) == [1, 2] and set(table["changed to"]) == {"False"}
    row = one(table, n=2)
    assert (row["base"], row["accuracy, base"], row["accuracy, changed"]) == (
        "HCNN K=4 Q=9, output_norm True, lr 0.02, schedule cosine", "31.00", "25.00")
    assert (row["difference (points)"], row["deviation"]) == ("-6.00", f"{statistics.stdev([-4, -8]):.2f}")
    assert {(run.K, run.overrides["lr"]) for run in ablations.in_no_table(loaded)} == {(4, 0.05)}
    assert set(ablations.pairs([], "factorised")["difference (points)"]) == {"not run"}


def test_fast_and_strict_runs_of_one_seed_are_a_pair_and_one_line_each(tmp_path):
    for seed, (fast, strict) in enumerate(((0.30, 0.31), (0.34, 0.32))):
        fabricate(tmp_path, fast, K=4, Q=9, seed=seed)
        fabricate(tmp_path, strict, K=4, Q=9, seed=seed, precision="strict")
    loaded = stored(tmp_path)
    found = one(ablations.pairs(loaded, "precision"))
    assert (found["accuracy, base"], found["accuracy, changed"], found["changed to"], found["n"]) == ("32.00", "31.50", "strict", 2)
    assert (found["difference (points)"], found["deviation"]) == ("-0.50", f"{statistics.stdev([1, -2]):.2f}")
    assert {run.label for run in loaded} == {found["base"], found["base"] + ", strict"}  # or else their curves would be averaged


def test_runs_in_the_tables_of_sizes_and_choices_are_not_listed_again_but_all_others_are(tmp_path):
    shown = [dict(), dict(Q=2), dict(reduction="sum"), dict(reduction="sum", seed=1, epochs_done=1)]
    others = [dict(reduction="sum", last_elu=False, padding="same"), dict(split="test"), dict(split="test", Q=2),
              dict(K=8, recipe=SHORT | dict(epochs=3))]
    for change in shown + others:
        fabricate(tmp_path, **(dict(K=4, Q=9) | change))
    loaded = stored(tmp_path)
    left = ablations.in_no_table(loaded)
    assert len(left) == len(others) and {run.split for run in loaded if run not in left} == {"validation"}
    assert len(results.other_runs(left)) == len(others)


def test_ablation_says_of_what_could_not_be_trained_where_it_stopped_and_of_the_rest_not_run(tmp_path):
    fabricate(tmp_path, K=4, Q=9)
    fabricate(tmp_path, K=4, Q=9, reduction="sum", epochs_done=0)
    fabricate(tmp_path, K=4, Q=9, last_elu=False, epochs_done=1)
    table = departures(tmp_path)
    assert one(table, field="last_elu")["accuracy, changed"] == "stopped after 1 of 2 epochs" and one(table, field="last_elu")["n"] == 0
    row = one(table, field="reduction")
    assert row["accuracy, changed"] == "stopped after 0 of 2 epochs" and (row["difference (points)"], row["n"]) == ("not run", 0)
    assert set(table[table.field != "reduction"]["difference (points)"]) == {"not run"}


def test_ablation_says_not_run_once_of_the_base_with_the_most_departures(tmp_path):
    for change in ({}, dict(last_elu=False), dict(reduction="sum")):
        fabricate(tmp_path, K=4, Q=9, **change)
    for precision in ("fast", "strict"):
        fabricate(tmp_path, K=8, Q=9, precision=precision)
    table = departures(tmp_path)
    bases = {base: rows for base, rows in table.groupby("base")}
    assert {base[:8]: len(rows) for base, rows in bases.items()} == {"HCNN K=4": len(ablations.table([])), "HCNN K=8": 1}
    assert one(table, field="precision", n=1)["base"].startswith("HCNN K=8")


def test_ablations_without_runs_are_a_row_for_every_choice_not_run():
    table = ablations.table([])
    assert list(dict.fromkeys(table.field)) == ablations.FIELDS and set(table["difference (points)"]) == {"not run"}
    assert one(table, field="padding_mode")["changed to"] == "periodic"


def test_the_first_answer_to_every_choice_is_that_of_the_preset_paper():
    values = Architecture().as_dict() | Recipe().as_dict() | dict(precision="fast")
    for _, field, answers in ablations.CHOICES:
        assert values[field] == json.loads(json.dumps(answers[0])) and len(set(answers)) == len(answers) > 1


@pytest.mark.parametrize("variant, preset", [("hcnn", "paper"), ("hcnn-plus", "paper"), ("hcnn-plus", "released")])
def test_commands_train_what_the_table_pairs(variant, preset):
    architecture = Architecture.preset("cifar10", variant, preset, K=4, Q=2)
    recipe = Recipe.preset(preset, epochs=1)
    plan = ablations.commands(architecture, recipe, "fast", "cifar10", [0, 3], ["--train-size", "50"])
    asked = []
    for command in plan.values():
        assert command[1:4] == ["-m", "hcnn", "train"] and command[-2:] == ["--train-size", "50"]
        options = parser().parse_args(command[3:])
        assert options.split == "validation" and options.train_size == 50
        asked.append((options.seed, *settings(options), options.precision))
    base = architecture.as_dict() | recipe.as_dict() | dict(precision="fast")
    assert asked[0] == (0, architecture, recipe, "fast") and len(asked) == len({repr(item) for item in asked})
    for seed, *changed in asked[1:len(asked) // 2]:
        assert seed == 0
        values = changed[0].as_dict() | changed[1].as_dict() | dict(precision=changed[2])
        (field,) = [name for name in base if values[name] != base[name]]
        assert field in ablations.FIELDS
    assert [item[0] for item in asked] == [0] * (len(asked) // 2) + [3] * (len(asked) // 2)
    if variant == "hcnn":
        assert {name.partition("=")[0] for name in plan} == {"base seed", *ablations.FIELDS}


def test_ablations_of_a_compared_network_are_refused(capsys):
    assert main(["ablations", "--variant", "resnet-20"]) == 2
    assert "argument --variant: invalid choice: 'resnet-20'" in capsys.readouterr().err


# Figures and stored tables


def test_figures_are_drawn_from_the_tables(tmp_path):
    for seed in (0, 1):
        for K in (4, 8):
            for Q in (2, 9):
                fabricate(tmp_path, 0.3 + seed / 50 + K / 100, K=K, Q=Q, seed=seed)
    fabricate(tmp_path, 0.2, K=4, Q=9, reduction="sum")
    found = sweeps.sized_runs(stored(tmp_path))
    fig = sweep_figures.sizes(found, "title")
    accuracy = fig.axes[0]
    assert [list(line.get_xdata()) for line in accuracy.lines if len(line.get_xdata())][:2] == [[2, 9], [2, 9]]
    assert list(accuracy.lines[0].get_ydata()) == pytest.approx([35, 35]) and fig.axes[1].get_yscale() == "log"
    fig = sweep_figures.differences(departures(tmp_path), "title")
    assert [label.get_text() for label in fig.axes[0].get_yticklabels()] == ["reduction: mean → sum"]
    plt.close("all")


def test_tables_of_the_repository_have_their_rules():
    assert [verify.TABLES[name] for name in ("sweep", "gain_of_Q", "ablations")] == [sweeps.table, sweeps.gain_of_Q, ablations.table]
    for name, field in (("factorisation", "factorised"), ("precision", "precision")):
        assert list(verify.TABLES[name]([]).field) == [field]
