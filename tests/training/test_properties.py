"""Recipes: a wrong field is refused by name; valid ones drawn at random train and are found again."""

import shutil
from dataclasses import fields

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from random_images import images
from small import fit

from hcnn import Architecture, load
from hcnn.data.datasets import split_dataset
from hcnn.training import run_folder as runs
from hcnn.training.recipe import SCHEDULES, Recipe, lr_at, size_at

SMALL = dict(K=4, J=4, image_size=(4, 4), spatial_support=1, first_support=1, attribute_support=(1, 3), num_classes=3,
             subsampled=())
DATA = images(40, 12, size=4, classes=3)


# ---- refused

# Never right for the fields below.
nan = float("nan")
NO_NUMBER = ("0.1", [0.5], {}, None, True, nan, float("inf"), 1j, 10**400)
NO_INTEGER = ("1", [1], {}, None, True, nan, 1.0, 1j)
NO_SHARE, NO_WORD, NO_SWITCH = (*NO_NUMBER, 1.0, -1e-3), ("", "x", ["sgd"], None, True, 1), ("true", [], None, 1, nan)
NO_COLOURS = ("red", True, 0.5, (0.5, 0.5), (0.5, 0.5, 1.5), (0.5, 0.5, nan), (0.5, 0.5, None))

WRONG_RECIPE = dict(
    epochs=(*NO_INTEGER, 0), batch_size=(*NO_INTEGER, -1), lr=(*NO_NUMBER, 0, -0.1), schedule=NO_WORD,
    milestones=(None, 1, "0.5", (0.5, 1.0), (0.0,), (0.5, 0.2), (0.5, 0.5), (nan,)),
    multipliers=(None, 0.5, (), (1.0,) * 9, (1.0,) * 5 + (-0.1,), (1.0,) * 5 + (nan,)),
    momentum=NO_SHARE, nesterov=NO_SWITCH, weight_decay=(*NO_NUMBER, -1e-9), shift=(*NO_INTEGER, -1), flip=NO_SWITCH,
    mean=(*NO_COLOURS, (-0.1, 0.5, 0.5)), std=(*NO_COLOURS, (0.0, 0.2, 0.2)), optimiser=NO_WORD,
    betas=(*NO_SHARE, (0.9,), (0.9, 1.0)), lr_rest=("0.1", True, nan, 0.0, 0.1), warm_up=NO_SHARE,
    label_smoothing=NO_SHARE, sizes=(None, "16", 16, 0.5, (16, 0), (16.0,), (True,)))


def test_one_wrong_field_of_a_recipe_is_refused_by_name():
    assert WRONG_RECIPE.keys() == {field.name for field in fields(Recipe)}
    for name, values in WRONG_RECIPE.items():
        pair = dict(mean=(0.5,) * 3, std=(0.2,) * 3) if name in ("mean", "std") else {}
        for value in values:
            with pytest.raises(ValueError, match=f"(?s)^{name} must be .*, got "):
                Recipe(**pair | {name: value})


@pytest.mark.parametrize("wrong, said", [
    (dict(nesterov=True, momentum=0), "nesterov must be false without momentum"),
    (dict(mean=(0.5,) * 3), "std must be"),
    (dict(optimiser="muon"), "lr_rest must be given with muon"), (dict(width=1), "unknown parameter 'width'; allowed"),
    (dict(preset="best"), "preset must be one of paper, released, short, got 'best'")])
def test_fields_that_do_not_fit_together_and_unknown_ones_are_refused(wrong, said):
    with pytest.raises(ValueError, match=said):
        Recipe.preset(**wrong)


# ---- drawn at random

shares, colours = st.floats(0.01, 0.99), st.tuples(*[st.floats(0.01, 1)] * 3)


@st.composite
def recipes(draw):
    """Valid fields of a Recipe, some of them given."""
    milestones = draw(st.lists(shares, max_size=4, unique=True).map(sorted))
    momentum, n = draw(st.sampled_from((0, 0.5, 0.9))), len(milestones) + 1
    found = dict(
        epochs=draw(st.integers(1, 2)), batch_size=draw(st.integers(1, 60)), lr=draw(st.floats(1e-5, 0.01)),
        shift=draw(st.integers(0, 9)), schedule=draw(st.sampled_from(SCHEDULES)), warm_up=draw(shares),
        milestones=draw(st.sampled_from((list, tuple)))(milestones), momentum=momentum,
        multipliers=draw(st.lists(st.floats(0, 2), min_size=n, max_size=n)),
        nesterov=momentum > 0 and draw(st.booleans()), weight_decay=draw(st.floats(0, 0.01)), flip=draw(st.booleans()),
        label_smoothing=draw(st.sampled_from((0, 0.2))), sizes=draw(st.lists(st.integers(2, 4), max_size=3)))
    found |= draw(st.sampled_from(({}, dict(optimiser="adamw"), dict(optimiser="muon", lr_rest=0.01))))
    return found | (dict(mean=draw(colours), std=draw(colours)) if draw(st.booleans()) else {})


@st.composite
def trainings(draw):
    """(Architecture, Recipe, options of train) that must work."""
    choices = dict(variant=("hcnn", "hcnn-plus"), padding_mode=("zeros", "periodic"), head=("classes", "linear"),
                   output_norm=(False, True), Q=(1, 2, 4))
    architecture = Architecture(**SMALL | {name: draw(st.sampled_from(values)) for name, values in choices.items()})
    split = draw(st.sampled_from(("test", "validation")))
    options = dict(seed=draw(st.integers(0, 2**63 - 1)), split=split,
                   precision=draw(st.sampled_from(("fast", "strict"))),
                   train_size=draw(st.none() | st.integers(1, 40 if split == "test" else 36)))
    return architecture, Recipe(**draw(recipes())), options


def test_valid_trainings_end_in_a_folder_that_says_what_was_done(request, tmp_path):
    def claim(training):
        architecture, recipe, options = training
        assert Recipe(**recipe.as_dict()) == recipe == recipe.replace()
        top = recipe.lr * (max(recipe.multipliers) if recipe.schedule == "step" else 1)
        assert all(0 <= lr_at(recipe, progress / 20) <= top * (1 + 1e-12) for progress in range(21))
        folder = fit(tmp_path, architecture, recipe, DATA, **options)
        run, expected = runs.read_run(folder), split_dataset(DATA, options["split"], options["train_size"])
        parameters = run["parameters"]
        assert folder.name == run["name"] == runs.run_name(parameters) and run["epochs_done"] == recipe.epochs
        assert Architecture(**parameters["architecture"]) == architecture and Recipe(**parameters["recipe"]) == recipe
        assert run["train_images"] == len(expected.train_labels) and run["test_images"] == len(expected.test_labels)
        assert run["tested_on"] == ("test images" if options["split"] == "test" else "held-out training images")
        network = load(folder)
        assert sum(p.numel() for p in network.parameters()) == run["counts"]["trained"]
        assert len(network.predict(DATA.test_images[:2])) == 2 and network.size == size_at(recipe, recipe.epochs - 1)
        shutil.rmtree(folder)

    examples = 150 if request.config.getoption("--full") else 15
    settings(max_examples=examples)(given(trainings())(claim))()
