"""Section 5.3: arrays, the search against brute force, probabilities, known changes, storage."""

import re
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import pearsonr, spearmanr

from hcnn import HCNN, Architecture
from hcnn.companion.baselines.systems import Baseline
from hcnn.companion.figures import interpretation as drawing
from hcnn.companion.interpretation import measure, properties, storage
from hcnn.companion.interpretation.attributes import (
    attribute_arrays,
    bootstrap,
    exchanged,
    nearest,
    permutation,
    sequences,
    smooth,
    translate,
)
from hcnn.companion.interpretation.carried import COLOUR, appearance, carried, correlations, told_apart
from hcnn.companion.interpretation.probability import by_depth, progression, same_class_probability
from hcnn.companion.notebooks import interpretation as cells
from hcnn.data.datasets import load_dataset
from hcnn.network import build
from hcnn.training.recipe import Recipe
from hcnn.training.trained import TrainedNetwork

TINY = dict(K=8, Q=2, J=6, attribute_support=(3, 5), subsampled=(1, 2, 3), num_classes=10)
EXACT = {(3, 2), (4, 2), (5, 1), (5, 2), (5, 3)}  # (depth, tau) of the translations that later layers cannot see


def network(**changes):
    """A random network as `hcnn.load` returns them."""
    net = HCNN(Architecture(**(TINY | changes)), torch.Generator().manual_seed(0))
    with torch.no_grad():
        net(torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1)))
    run = dict(name="tiny", weights_sha256="0" * 64, classes=list("0123456789"), mean=(0.4, 0.5, 0.6),
               std=(0.2, 0.25, 0.3), epochs_done=1, parameters=dict(recipe=Recipe().as_dict()))
    return TrainedNetwork(net, run, None)


@pytest.fixture(scope="module")
def digits():
    data = load_dataset("digits")
    return replace(data, train_images=data.train_images[:60], train_labels=data.train_labels[:60],
                   test_images=data.test_images[:20], test_labels=data.test_labels[:20])


@pytest.fixture(scope="module")
def asked(digits):
    """Settings, of two images to show."""
    return measure.ask(network(), digits, images=[0, 3], database=40, queries=10, altered=3)


@pytest.fixture(scope="module")
def found(digits, asked):
    return measure.interpret(network(), digits, asked)


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("padding_mode", ["zeros", "periodic"])
def test_arrays_are_equation_9_at_the_central_position(digits, padding_mode):
    net, images = network(padding_mode=padding_mode), digits.train_images[:7]
    arrays, predictions = attribute_arrays(net, images, [3, 4, 5], batch_size=3)
    with torch.no_grad():
        x = net.network.activations(net.prepare(images), [3, 4, 5, 6])
    for j in (3, 4, 5):
        height, width = x[j].shape[-2:]
        assert torch.allclose(arrays[j], x[j][..., height // 2, width // 2].sum(1), atol=1e-5)
        assert arrays[j].shape == (7, 4, 8 if j < 5 else 10)
    assert torch.equal(predictions, x[6].argmax(1))


def test_what_has_no_array_or_cannot_be_computed_is_refused(digits):
    for depths in ([2], [6], []):
        with pytest.raises(ValueError, match="depths must be between 3 and J - 1 = 5"):
            attribute_arrays(network(), digits.train_images[:2], depths)
    with pytest.raises(ValueError, match="evaluation mode"):
        attribute_arrays(network().train(), digits.train_images[:2], [3])
    with pytest.raises(ValueError, match="must be HCNN or HCNN.*got ResNet-20"):
        measure.ask(SimpleNamespace(architecture=build(Baseline.preset("digits", "resnet-20")).architecture), digits)
    with pytest.raises(ValueError, match="rows must be at least 4"):
        measure.ask(network(K=4), digits, [0])
    with pytest.raises(ValueError, match="images must be indices of training images, 0 to 59, got \\[60\\]"):
        measure.ask(network(), digits, [60])
    for name in ("database", "queries", "altered"):
        with pytest.raises(ValueError, match=f"{name} must be none or an integer of at least 1, got 0"):
            measure.ask(network(), digits, **{name: 0})


def test_translation_and_smoothing_along_the_rows_against_the_definition():
    x = random(3, 4, 8)
    for tau in range(6):
        moved = torch.stack([x[:, (v - tau) % 4] for v in range(4)], 1)  # xbar(v_{j-1} - tau, v_j)
        assert torch.equal(translate(x, tau), moved)
        assert torch.allclose(translate(smooth(x), tau), smooth(moved))
    assert torch.allclose(smooth(x)[:, 3], (x[:, 3] + x[:, 0]) / 2)


@pytest.mark.parametrize("rows", [4, 8, 12])
def test_permutation_moves_every_row_and_is_no_rotation_or_reflection(rows):
    order = permutation(rows).tolist()
    assert sorted(order) == list(range(rows)) and all(i != p for i, p in enumerate(order))
    for sign in (1, -1):
        assert all(order != [(sign * i + shift) % rows for i in range(rows)] for shift in range(rows))
    assert torch.equal(permutation(rows), permutation(rows))


@pytest.mark.parametrize("rows, without", [(4, {2}), (6, {2, 3, 4}), (8, {4}), (12, {4, 6, 8})])
def test_exchanged_rows_move_as_far_as_translated_ones_in_pairs_and_overlap_with_where_they_were_as_much(rows, without):
    one = torch.eye(rows)[None]  # row v is the unit vector v: products of smoothed arrays are their overlap
    assert exchanged(rows, 0) is None
    for tau in range(1, rows):
        order = exchanged(rows, tau)
        assert (order is None) == (tau in without)
        if order is not None:
            assert torch.equal(order[order], torch.arange(rows)), "pairs"
            assert set(((order - torch.arange(rows)) % rows).tolist()) == {tau, rows - tau}
            assert not torch.equal(order, exchanged(rows, rows - tau)), "the other pairs"
            overlaps = [(smooth(one) * smooth(x)).sum() for x in (one[:, order], translate(one, tau))]
            assert overlaps[0] == pytest.approx(overlaps[1])


@pytest.mark.parametrize("chunk", [1, 100, 2**20])
def test_search_equals_brute_force(chunk):
    queries, database = random(23, 12) + 1000, random(50, 12, seed=1) + 1000  # a common offset costs no accuracy
    index, distance, ties = nearest(queries, database, chunk=chunk)
    brute = (queries.double()[:, None] - database.double()[None]).norm(dim=2)
    assert torch.equal(index, brute.argmin(1)) and not ties.any()
    assert torch.allclose(distance.double(), brute.min(1).values, rtol=1e-6)


def test_image_itself_is_excluded_and_others_are_not():
    database = random(10, 6)
    assert torch.equal(nearest(database, database)[0], torch.arange(10))
    exclude = torch.tensor([0, -1, *range(2, 10)])
    brute = torch.cdist(database, database).fill_diagonal_(torch.inf).argmin(1)
    brute[1] = 1
    assert torch.equal(nearest(database, database, exclude)[0], brute)


def test_ties_go_to_the_lowest_index_and_are_counted():
    database = random(9, 6)
    database[7] = database[5] = database[2]
    index, distance, ties = nearest(database[[7, 3]], database)
    assert index.tolist() == [2, 3] and ties.tolist() == [2, 0] and not distance.any()
    index, _, ties = nearest(database[[7]], database, torch.tensor([2]))
    assert index.tolist() == [5] and ties.tolist() == [1]


def test_planted_image_is_found_for_every_translation():
    database, queries = random(40, 4, 8), random(3, 4, 8, seed=1)
    for q in range(3):
        for tau in range(4):
            database[10 * q + tau] = translate(queries[q], tau)
    index, distance, _ = sequences(queries, database, [0, 1, 2, 3])
    assert index.tolist() == [[tau, 10 + tau, 20 + tau] for tau in range(4)]
    assert distance.max() < 1e-6
    own = sequences(queries, database, [0, 1], exclude=torch.tensor([0, 11, -1]))[0]
    assert own[0, 0] != 0 and own[1, 1] != 11 and own[0, 2] == 20, "an excluded image is excluded for every translation"


# ---- probabilities


def planted(label, m=500, depths=(3, 4, 5), taus=(0, 1, 2, 3)):
    """A result of `interpret` with ten classes in which x^tau has the class label(class of x, depth)."""
    own = np.arange(m) % 10
    index = np.stack([np.stack([label(own, j) for _ in taus]) for j in depths])
    return dict(depths=np.array(depths), taus=np.array(taus), labels=np.arange(10), predictions=np.arange(10),
                query_labels=own, query_predictions=own, index=index, distance=np.ones(index.shape),
                exchanged=index[:, [1, 3]], exchanges=np.array([1, 3]))


def sometimes(share, generator):
    """Labels for `planted`: the class of x with this probability at depth j, else the next one."""
    return lambda own, j: np.where(generator.random(len(own)) < share(j), own, (own + 1) % 10)


def test_probability_of_a_planted_database_is_one_and_of_a_random_one_chance():
    a, draw = Architecture(**TINY), np.random.default_rng(0)
    certain = same_class_probability(planted(lambda own, j: own), a)
    sure, chance = certain[certain.kind != "chance"], certain[certain.kind == "chance"]
    assert (sure[["probability", "said"]] == 1).all(axis=None) and np.allclose(chance.probability, 0.1)
    assert np.allclose(sure.low, 500 / (500 + 1.959964**2)), "Wilson's interval, also where all keep their class"
    moved = certain[certain.kind == "translated"]
    assert {(r.depth, r.tau) for r in moved.itertuples() if r.exact} == EXACT
    chance = same_class_probability(planted(lambda own, j: draw.integers(0, 10, len(own))), a)
    assert chance.probability.sub(0.1).abs().max() < 0.05
    assert np.allclose(sure.images, 10) and np.array_equal(sure.tau, 3 * [0, 1, 2, 3, 1, 3])
    chance = chance[chance.kind != "chance"]
    inside = (chance.low <= 0.1) & (chance.high >= 0.1)
    assert inside.mean() > 0.8, "an interval of 95% holds the truth nearly always"


def test_progression_tells_a_rise_with_depth_from_a_constant():
    draw = np.random.default_rng(0)
    rise = progression(planted(sometimes(lambda j: 0.2 * (j - 2), draw))).set_index("statistic")
    assert rise.loc["rank correlation with depth", "low"] > 0.99 and rise.loc["deepest - shallowest", "low"] > 0.3
    assert rise.loc["deepest - shallowest, without the last", "low"] > 0.1
    leap = progression(planted(sometimes(lambda j: 0.8 if j == 5 else 0.1, draw), m=2000)).set_index("statistic")
    assert leap.loc["deepest - shallowest", "low"] > 0.6 > leap.loc["deepest - shallowest, without the last", "high"]
    assert leap.loc["translated - exchanged", "low"] <= 0 <= leap.loc["translated - exchanged", "high"]
    assert leap.loc["exchanged: deepest - shallowest", "low"] > 0.6
    flat = progression(planted(sometimes(lambda j: 0.5, draw))).set_index("statistic")
    assert flat.loc["deepest - shallowest", "low"] < 0.05 and abs(flat.loc["translated - nearest", "value"]) < 0.05


def test_probabilities_at_a_depth_are_means_over_the_translations_that_have_a_control():
    found = planted(sometimes(lambda j: 0.3 * (j - 2), np.random.default_rng(0)))
    same = found["labels"][found["index"]] == found["query_labels"]
    table = by_depth(found).set_index(["depth", "statistic"])
    for d, depth in enumerate(found["depths"]):
        assert table.value[depth, "translated"] == pytest.approx(same[d, [1, 3]].mean())
        assert table.value[depth, "nearest"] == pytest.approx(same[d, 0].mean())
        row = table.loc[(depth, "translated - exchanged")]
        assert row.value == 0 and row.low == 0 == row.high, "paired: the same images are found"
        row = table.loc[(depth, "translated")]
        assert row.low < 0.3 * (depth - 2) < row.high and row.high - row.low < 0.1


def test_rank_correlation_with_depth_counts_equal_probabilities_as_equal():
    m = 60
    found = planted(sometimes(lambda j: 0.3, np.random.default_rng(0)), m, depths=range(3, 12), taus=range(8))
    kept = (found["labels"][found["index"]] == found["query_labels"])[:, [1, 3]].sum(1)
    resamples = np.rint(bootstrap(m, 1000)[1:] * m).astype(int)
    exact = [spearmanr(found["depths"], kept @ resample).statistic for resample in resamples]
    row = progression(found).set_index("statistic").loc["rank correlation with depth"]
    assert (row.low, row.high) == pytest.approx(tuple(np.quantile(exact, (0.025, 0.975))), abs=1e-12)


# ---- known changes


def best_translation(before, after):
    """Of arrays that count alike: tau, share explained."""
    tau, explained = properties.best_translation(before, after, torch.ones(1, len(before)).double())
    return tau.item(), explained.item()


def test_best_translation_recovers_a_planted_one_and_what_it_leaves():
    x = random(5, 8, 16)
    for tau in (-3, 1, 2):
        assert best_translation(x, translate(x, tau)) == (tau, pytest.approx(1))
    assert best_translation(x, x) == (0, 0)
    tau, explained = best_translation(x, translate(x, 2) + 0.5 * random(5, 8, 16, seed=1))
    assert tau == 2 and 0.7 < explained < 0.95
    wave = torch.cos(2 * torch.pi * (torch.arange(8.0) - torch.tensor([[0], [0.5]])) / 8)[..., None]
    wave = wave.expand(-1, -1, 2).unsqueeze(1).transpose(1, 3).flatten(1, 2)[..., None]  # two images of it
    assert best_translation(*wave.view(2, 2, 8, 1)) == (0.5, pytest.approx(1, abs=1e-5)), "half a sample"


def test_nothing_is_explained_of_changes_without_a_common_translation():
    n = 400
    of_noise = [best_translation(random(20, 4, 8, seed=i), random(20, 4, 8, seed=n + i))[1] for i in range(n)]
    assert abs(np.mean(of_noise)) < 3 * np.std(of_noise) / np.sqrt(n) + 0.005, "no gain by the choice itself"
    x = random(20, 4, 8)
    ways = torch.cat([translate(x[:10], 1), translate(x[10:], 3)]).view(2, 10, 4, 8).transpose(0, 1).flatten(0, 1)
    both = x.view(2, 10, 4, 8).transpose(0, 1).flatten(0, 1)  # every second image the other way
    assert best_translation(both, ways)[1] < -0.5, "worse than none"


def test_amounts_change_the_images_and_hue_no_grey_ones(digits):
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    for change, amounts in properties.changes((0.5, 0.5, 0.5)).values():
        for amount in amounts:
            changed = change(images, amount)
            assert changed.dtype == torch.uint8 and changed.shape == images.shape and not torch.equal(changed, images)
    right = properties.changes((0, 0, 0))["shift"][0](images, 3)
    assert torch.equal(right[..., 3:], images[..., :-3]) and not right[..., :3].any()
    shifts, resampled = properties.property_shifts(network(), digits.test_images[:4], [3, 5])
    hue = shifts[shifts.property == "hue"]
    assert not hue.moved.any() and not hue.explained.any() and not hue.tau.any()
    assert (shifts[shifts.property == "brightness"].moved > 0).all() and (shifts.explained <= 1).all()
    names = shifts.property.unique().tolist()
    assert resampled.shape == (2, properties.RESAMPLES, len(names), 2) and not resampled[:, :, names.index("hue")].any()


def test_monotonicity_is_the_rank_correlation_with_the_amount():
    courses = dict(up=lambda a: a, down=lambda a: -(a**3), even=lambda a: a * a, none=lambda a: 0)
    rows = [dict(depth=3, property=name, amount=a, moved=1, explained=0.5, control=0, tau=course(a))
            for name, course in courses.items() for a in (-2.0, -1.0, 1.0, 2.0)]
    found = {f"shifts_{name}": column.to_numpy() for name, column in pd.DataFrame(rows).items()}
    resampled = np.linspace(0, 1, 201)[None, :, None, None] * np.ones((2, 1, len(courses), 1))
    table = properties.monotonicity(found | dict(resampled=resampled))
    assert table.monotone.tolist() == pytest.approx([1, -1, 0, 0])
    assert np.allclose(table[["low", "high"]], (0.025, 0.975))


def test_colour_and_geometry_are_told_apart_where_they_differ_only():
    depths, names = (3, 4, 5, 6), ("hue", "brightness", "shift", "blur")
    explained = np.array([[0.5 if (name in properties.COLOUR) == (j < 5) else 0.1 for j in depths] for name in names])
    noise = np.random.default_rng(0).normal(0, 0.01, (2, 200, len(names), len(depths)))
    resampled = noise + np.stack([explained, 0 * explained])[:, None]
    table = pd.DataFrame([dict(depth=j, property=name, amount=a, control=0.0, explained=explained[i, d])
                          for i, name in enumerate(names) for a in (-1.0, 1.0) for d, j in enumerate(depths)])

    def shares(table, resampled):
        columns = {f"shifts_{name}": table[name].to_numpy() for name in table}
        return properties.colour_or_geometry(columns | dict(resampled=resampled)).set_index("statistic")

    found = shares(table, resampled)
    assert found.value["colour - geometry, shallow"] == pytest.approx(0.4)
    assert found.value["colour - geometry, deep"] == pytest.approx(-0.4)
    assert found.low["colour - geometry, shallow"] > 0.38 and found.high["colour - geometry, deep"] < -0.38
    assert found.value["translated - permuted"] == pytest.approx(0.3) and found.low["translated - permuted"] > 0.28
    assert len(shares(table[table.depth == 3], noise[..., :1])) == 4, "one depth has no deep half"


@pytest.mark.parametrize("padding_mode", ["periodic", "zeros"])
def test_scores_ignore_exactly_the_exact_translations_with_periodic_boundaries(digits, padding_mode):
    net = network(padding_mode=padding_mode).double()
    change = properties.score_changes(net, digits.test_images[:5], [3, 4, 5], [1, 2, 3], batch_size=2)
    assert {(row.depth, row.tau) for row in change.itertuples() if row.exact} == EXACT
    last = change.depth == 5  # averaged at once, whatever the boundary
    assert (change.change[last] < 1e-6).all() and (change.kept[last] == 1).all()
    others = change[~last]
    assert (others.change[~others.exact] > 1e-3).all()
    assert (others.change[others.exact] < 1e-6).all() == (padding_mode == "periodic")


# ---- what x and x^tau have in common


def test_appearance_is_what_it_says():
    images = torch.full((4, 3, 32, 32), 100, dtype=torch.uint8)
    images[1, 0, 12:20, 12:20] += 60  # a red centre
    images[2, :, :, :16] += 20  # brighter on the left
    images[3, :, 8:24, 8:24] += 40  # and in the middle
    table = appearance(images)
    assert not table.iloc[0].drop("brightness").any() and table.brightness[0] == 100
    assert table.iloc[1][list(COLOUR)].tolist() == [120, 60, -30] and table["left - right"][2] == 20
    assert table["centre - surround"][3] == pytest.approx(40) and abs(table["vertical - horizontal"][3]) < 1e-9
    assert table["vertical - horizontal"][2] == pytest.approx(20 / 31)


def test_correlations_are_those_of_scipy_and_what_is_planted_is_found_for_its_translation_alone():
    draw = np.random.default_rng(0)
    x, y, weights = draw.normal(size=(50, 3)), draw.normal(size=(50, 3)), draw.integers(0, 3, (2, 50))
    for row, w in zip(correlations(weights, x, y), weights):
        assert np.allclose(row, [pearsonr(np.repeat(x[:, k], w), np.repeat(y[:, k], w))[0] for k in range(3)])
    assert correlations(np.ones((1, 5)), np.ones((5, 1)), np.arange(5)[:, None]) == 0
    names = [*COLOUR, "left - right"]
    database = pd.DataFrame(draw.normal(size=(500, 4)), columns=names)
    found = planted(lambda own, j: own, m=400)
    found["index"] = draw.integers(0, 500, found["index"].shape)
    found["exchanged"] = draw.integers(0, 500, found["exchanged"].shape)
    queries = pd.DataFrame(draw.normal(size=(400, 4)), columns=names)
    queries["brightness"] = -database.brightness.to_numpy()[found["index"][0, 1]]  # at j = 3 and tau = 1 inverted
    table = carried(found, queries, database)
    hit = (table.depth == 3) & (table.kind == "translated") & (table.tau == 1) & (table.property == "brightness")
    assert table[hit].correlation.item() == pytest.approx(-1) and (table[~hit].correlation.abs() < 0.25).all()
    inside = (table[~hit].low <= 0) & (table[~hit].high >= 0)
    assert inside.mean() > 0.88
    halves = told_apart(dict(found, **{f"carried_{name}": column.to_numpy() for name, column in table.items()}))
    shares = halves.set_index(["half", "about"]).told_apart
    assert 1 / 12 <= shares["shallow", "colour"] <= 3 / 12 and shares["deep", "patterns"] <= 1 / 2
    assert halves.iloc[0][["property", "depth", "tau"]].tolist() == ["brightness", 3, 1]


# ---- the whole result


def test_result_is_consistent_and_survives_storage(digits, asked, found, tmp_path):
    assert asked["taus"] == [0, 1, 2, 3], "a circle of four rows has no other translations"
    assert found["index"].shape == found["distance"].shape == (3, 4, 10) and found["image_index"].shape == (3, 4, 2)
    arrays, said = attribute_arrays(network(), digits.train_images, [5])
    base = found["database"]
    for t in range(4):
        for f, i in enumerate((0, 3)):
            own = base[found["image_index"][2, t, f]]
            assert own != i, "an image of the database is excluded for its own x^tau"
            distance = (smooth(translate(arrays[5][i], t)) - smooth(arrays[5][own])).norm().item()
            size = smooth(arrays[5][i]).norm().item()
            assert found["image_distance"][2, t, f] == pytest.approx(distance / size, rel=1e-3)
            assert np.allclose(found["nearest_arrays_5"][t, f], arrays[5][own], rtol=1e-3, atol=1e-6)
    assert np.array_equal(found["predictions"], said[base])
    assert np.array_equal(found["labels"], digits.train_labels[base])

    assert storage.load_interpretation(tmp_path) is None
    storage.save_interpretation(tmp_path, found)
    stored = storage.load_interpretation(tmp_path, asked)
    assert stored.keys() == found.keys() and all(np.array_equal(stored[name], found[name]) for name in found)
    assert storage.frame(stored, "shifts").equals(storage.frame(found, "shifts"))
    assert storage.load_interpretation(tmp_path, asked | dict(weights="1" * 64)) is None, "of other weights"
    assert [path.name for path in tmp_path.iterdir()] == [storage.FILE]

    (tmp_path / storage.FILE).write_bytes((tmp_path / storage.FILE).read_bytes()[:500])
    with pytest.raises(ValueError, match=r"interpretation.npz is damaged .*; delete it"):
        storage.load_interpretation(tmp_path)


def test_figures_write_class_and_prediction_under_every_image(digits, found):
    fig = drawing.with_arrays(found, 5, [0, 1], digits, "title")
    assert len(fig.axes) == 2 * 2 * 4  # two images, each a row of images above a row of arrays, columns x, 1, 2, 3
    label, said = found["image_labels"][0], found["image_predictions"][0]
    assert fig.axes[0].get_xlabel() == f"{label}\n" + (f"said: {said}" if said != label else "")
    fig = drawing.rows_by_depth(found, [0, 1, 0], digits, "title")
    assert len(fig.axes) == 3 * 4 and [fig.axes[4 * d].get_ylabel() for d in range(3)] == ["j = 3", "j = 4", "j = 5"]
    assert len(drawing.one_search(found, 4, 1, 3, digits).axes) == 5
    legend = drawing.probabilities(same_class_probability(found, network().architecture), "").axes[0].get_legend()
    assert [text.get_text() for text in legend.get_texts()] == [
        "translated, $\\tau$ = 1, 3", "translated, $\\tau$ = 2", *(name for name, *_ in drawing.CONTROLS.values())]
    assert len(drawing.known_changes(properties.monotonicity(found), "title").axes) == 4
    panels = drawing.common(found, "title").axes
    assert [ax.get_title() for ax in panels][:2] == ["brightness", "red - blue"] and len(panels) == 8


def test_runs_stand_side_by_side_with_what_they_are():
    table = same_class_probability(planted(lambda own, j: own), Architecture(**TINY))
    head = {"network": "HCNN K=8", "accuracy": 65.22, "database": 40, "queries": 500, "trained on": "digits"}
    fig = drawing.probabilities_by_run(
        pd.concat([table.assign(run=name, seed=seed, **head) for seed, name in enumerate("abcd")]))
    panels = [ax for ax in fig.axes if ax.get_title()]
    assert all(ax.get_ylim()[1] > table.high.max() for ax in panels), "one scale, and nothing above it"
    titled = panels[2].get_title()
    assert len(panels) == 4 and titled.startswith("HCNN K=8, seed 2: 65.22%") and "n = 500" in titled


def test_a_look_at_one_search_shows_a_picture_without_widgets(monkeypatch, capsys):
    drawn, made = [], []
    monkeypatch.setattr(cells.drawing, "one_search", lambda *choice: drawn.append(choice[1:4]))
    monkeypatch.setattr(cells.plt, "show", lambda: None)
    shown = SimpleNamespace(found=dict(taus=np.array([0, 1]), images=[7, 8]), depths=[3, 5], data=None)
    monkeypatch.setitem(sys.modules, "ipywidgets", None)  # as where it is not installed
    cells.explore(shown)
    assert drawn == [(5, 0, 1)] and "ipywidgets is not installed" in capsys.readouterr().out
    interact = SimpleNamespace(interact=lambda look, **choices: made.append(choices))
    monkeypatch.setitem(sys.modules, "ipywidgets", interact)
    cells.explore(shown)
    assert made == [dict(image=[0, 1], depth=[3, 5], tau=[0, 1])]


def test_verdicts_are_in_words_and_follow_from_the_numbers(found):
    rising = found | planted(lambda own, j: own if j == 5 else (own + 1) % 10, m=100)
    said = cells.verdict_on_classes(rising, same_class_probability(rising, Architecture(**TINY)))
    assert "(a mean over $\\tau$ = 1, 3) rises at the last depth alone, from 0.000 at j = 3 to 1.000 at j = 5." in said
    assert "exchanged as far away it rises at the last depth alone." in said
    assert "keeps the class as often, within the interval, as such a one (difference 0.000," in said
    assert said.endswith("100% of the translated arrays have a sufficiently near image; of these 100% keep the class.")
    draw = np.random.default_rng(0)
    steady = found | planted(sometimes(lambda j: 0.2 * (j - 2), draw))
    said = cells.verdict_on_classes(steady, same_class_probability(steady, Architecture(**TINY)))
    assert " rises with depth, from" in said and "exchanged as far away it rises with depth." in said
    alone = steady | dict(exchanges=steady["exchanges"][:0], exchanged=steady["exchanged"][:, :0])
    said = cells.verdict_on_classes(alone, same_class_probability(alone, Architecture(**TINY)))
    assert "(a mean over $\\tau$ = 1, 2, 3) rises with depth, from" in said and "exchanged" not in said
    said = cells.verdict_on_changes(found)
    assert re.search(r"of changes of colour and -?[.\d]+% \(.*? to .*?\) of changes of geometry; in the deep", said)
    assert said.endswith("too little to call a translation such a change (3 images, one network).")
    said = cells.verdict_on_appearance(found)
    assert re.search(r"colour in the shallow half of the depths: \d+% of 12, most of all .* -?[01]\.\d\d \(", said)
