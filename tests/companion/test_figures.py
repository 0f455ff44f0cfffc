"""Figures are drawn for any network and saved whole, the same bytes each time."""

import io

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from hcnn import Architecture
from hcnn.companion.figures import common as figures
from hcnn.companion.figures import counts, layers
from hcnn.companion.figures.architecture import draw
from hcnn.companion.notebooks.training import share_between


@pytest.fixture(autouse=True)
def close_figures():
    plt.switch_backend("agg")
    yield
    plt.close("all")


def written(fig):
    return [text.get_text() for ax in fig.axes for text in ax.texts]


@pytest.mark.parametrize("a", [
    Architecture.preset("cifar100", "hcnn-plus"), Architecture(K=4, J=4, image_size=(7, 9), subsampled=()),
    Architecture(in_channels=1), Architecture(K=20, J=14, num_classes=2)])
def test_architecture_figure_writes_every_size_of_the_network(a):
    texts = written(draw(a))
    assert [f"$x_{{{j}}}$" for j in range(a.J + 1)] == [text for text in texts if text.startswith("$x_{")]
    for j in range(1, a.J):
        attributes, (height, width) = a.shape(j)[:-2], a.shape(j)[-2:]
        assert " × ".join(map(str, attributes)) in texts and f"{height} × {width}" in texts
    assert any(f"{a.layers[1].full_filter:,} weights" in text for text in texts)


def test_compact_png_has_a_third_of_the_bytes_and_no_colour_that_differs_visibly():
    fig, ax = plt.subplots(figsize=(6, 4), dpi=150)
    for i, colour in enumerate(plt.get_cmap("viridis")(np.linspace(0, 1, 8))):
        ax.plot(np.sin(np.arange(200) / 20 + i), color=colour)
    png = io.BytesIO()
    fig.savefig(png, format="png")
    small = figures.compact(png.getvalue())
    before, after = (np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)
                     for data in (png.getvalue(), small))
    assert before.shape == after.shape and abs(before - after).max() < 32 and abs(before - after).mean() < 0.5
    assert len(small) < 0.4 * len(png.getvalue())


def test_two_saves_give_the_same_png_and_nothing_else(tmp_path):
    for folder in ("one", "two"):
        figures.save(layers.rank({1: 0.5, 2: 1e-16}, rank_limit=2), "rank", tmp_path / folder)
    (first,), (second,) = ((tmp_path / folder).iterdir() for folder in ("one", "two"))
    assert first.name == "rank.png" and first.read_bytes() == second.read_bytes()


def test_invariance_writes_0_for_what_is_exact_and_nothing_where_there_is_no_translation():
    frame = pd.DataFrame([[1e-15, 0.25], [np.nan, 1e-6]], index=[3, 4], columns=[1, 2])
    fig = layers.invariance({("periodic", "$v_j$"): frame, ("zeros", "$v_j$"): frame})
    assert [text for text in written(fig) if text] == ["0", "0.25", "1e-06"] * 2


def test_tap_tables_state_the_share_that_is_not_zero():
    fig = layers.tap_tables({"zeros": np.array([[0, 2], [2, 2]])}, (1, 2), taps=2)
    assert fig.axes[0].get_title().startswith("zeros: 25%")


def test_exact_zeros_stay_on_the_logarithmic_axis():
    fig = layers.covariance({"periodic": {"u": {4: 0.0, 5: 1e-15}}, "zeros": {"u": {4: 1.0, 5: 0.5}}})
    assert list(fig.axes[0].lines[0].get_ydata()) == [1e-17, 1e-15]


def curves(accuracies):
    """Learning curves on test images. accuracies: {(setting, network): one an epoch}."""
    return pd.DataFrame([
        dict(setting=setting, network=network, seed=0, images="test", epoch=epoch, accuracy=accuracy)
        for (setting, network), values in accuracies.items() for epoch, accuracy in enumerate(values, 1)])


def test_every_learning_curve_lies_inside_its_panel():
    """The panels share one axis: the settings must not be cut at the accuracies of the first."""
    fig = figures.learning_curves(curves({("few", "HCNN"): (10, 20), ("all", "HCNN"): (50, 90)}), "CIFAR-10")
    for ax, most in zip(fig.axes, (20, 90)):
        low, high = ax.get_ylim()
        assert low == 0 and high >= most
        assert max(max(line.get_ydata()) for line in ax.lines if len(line.get_ydata())) == most


def test_an_epoch_is_an_integer_and_a_panel_gives_no_colour_to_two_networks():
    several = {(f"setting {i}", f"network {i} {k}"): (10 + k,) for i in range(7) for k in range(2)}
    fig = figures.learning_curves(curves(several), "CIFAR-10")
    fig.canvas.draw()
    for ax in fig.axes[:7]:
        low, high = ax.get_xlim()
        assert [tick for tick in ax.get_xticks() if low <= tick <= high] == [1]
        assert len({line.get_color() for line in ax.lines if len(line.get_ydata())}) == 2


def test_accuracy_has_a_panel_a_data_set_open_marks_for_the_paper_and_a_bar_of_one_deviation():
    columns = ["data", "system", "ours", "source", "parameters", "accuracy", "deviation", "core_hours"]
    points = pd.DataFrame([("CIFAR-10", "HCNN", True, "paper", 1e5, 91.2, np.nan, np.nan),
                           ("CIFAR-10", "HCNN here", True, "here", 1e5, 90.0, 0.5, np.nan),
                           ("CIFAR-100", "All-CNN", False, "paper", 1e6, 66.3, np.nan, np.nan)], columns=columns)
    fig = counts.accuracy_against(points, "parameters", "parameters")
    assert [ax.get_title() for ax in fig.axes] == ["CIFAR-10", "CIFAR-100"]
    assert [text.get_text() for text in fig.axes[0].get_legend().get_texts()] == ["1  HCNN here", "2  HCNN"]
    here, paper = fig.axes[0].containers
    assert paper[0].get_markerfacecolor() == "none" != here[0].get_markerfacecolor()
    assert np.allclose(here[2][0].get_segments()[0][:, 1], [89.5, 90.5])
    assert counts.accuracy_against(points, "core_hours", "core-hours") is None


def test_every_number_of_a_crowded_figure_stands_nearest_to_its_own_mark():
    places = [(1.7e5, 91.23), (174128, 90.95), (268336, 92.15), (2.7e5, 91.25), (3.4e5, 92.3), (4.5e4, 73)]
    points = pd.DataFrame([("CIFAR-10", "HCNN", True, "here", *place, np.nan) for place in sorted(places)],
                          columns=["data", "system", "ours", "source", "parameters", "accuracy", "deviation"])
    fig = counts.accuracy_against(points, "parameters", "parameters")
    fig.canvas.draw()
    ax = fig.axes[0]
    marks = ax.transData.transform(points[["parameters", "accuracy"]])
    for number, text in enumerate(ax.texts, 1):
        box = text.get_window_extent()
        middle = (box.x0 + box.x1) / 2, (box.y0 + box.y1) / 2
        assert text.get_text() == str(number) and np.linalg.norm(marks - middle, axis=1).argmin() == number - 1


def test_the_share_of_the_variance_between_images():
    between, alike = torch.randn(50, 1, 1), torch.randn(1, 4, 3)
    assert share_between(between.expand(50, 4, 3)) == pytest.approx(1)
    assert share_between(alike.expand(50, 4, 3)) == pytest.approx(0)
    both = between.var(correction=0) / (between.var(correction=0) + alike.var(correction=0))
    assert share_between(between + alike) == pytest.approx(both.item())
