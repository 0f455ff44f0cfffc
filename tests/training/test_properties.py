"""Parameters drawn at random: valid ones train and are found again, invalid ones are refused by name before any work.

100 cases, with --full 1,000.
"""

import re
import shutil
from dataclasses import fields

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small import fit, images

from hcnn import Architecture, load
from hcnn.data.datasets import split_dataset
from hcnn.training import run_folder as runs
from hcnn.training.recipe import SCHEDULES, Recipe, lr_at, size_at

SMALL = dict(K=4, J=4, image_size=(4, 4), spatial_support=1, first_support=1, attribute_support=(1, 3), num_classes=3,
             subsampled=())
DATA = images(40, 12, size=4, classes=3)


def for_all(request, examples, strategy, claim):
    """Assert a claim for so many examples of a strategy, ten times as many with --full."""
    many = 10 if request.config.getoption("--full") else 1
    settings(max_examples=examples * many)(given(strategy)(claim))()


# ---- what is drawn

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


# Never right for the fields below: texts, lists, nothing, numbers that are none.
strange = st.one_of(st.text(), st.lists(st.integers(), max_size=1), st.just({}),
                    st.sampled_from((float("nan"), float("inf"), -float("inf"), 1j)))
no_integer = st.one_of(strange, st.none(), st.booleans(), st.floats())
no_number = st.one_of(strange, st.none(), st.booleans(), st.just(10**400))
no_share = no_number | st.floats(min_value=1) | st.floats(max_value=-1e-3)
no_word = st.one_of(strange, st.none(), st.booleans(), st.integers())
no_switch = st.one_of(strange, st.none(), st.integers())
no_colours = st.one_of(st.text(min_size=1), st.booleans(), st.floats(), st.lists(st.floats(0.1, 1), max_size=2))
below_1 = no_integer | st.integers(max_value=0)

WRONG_RECIPE = {
    "epochs": below_1, "batch_size": below_1, "lr": no_number | st.floats(max_value=0), "schedule": no_word,
    "milestones": st.none() | st.integers() | st.just("0.5") | st.lists(st.floats(min_value=1), min_size=1)
    | st.lists(shares, min_size=2, unique=True).map(lambda v: sorted(v)[::-1]),
    "multipliers": st.none() | st.floats() | st.just(()) | st.just([1.0] * 9)
    | st.lists(st.floats(max_value=-0.1), min_size=6, max_size=6),
    "momentum": no_share, "nesterov": no_switch, "weight_decay": no_number | st.floats(max_value=-1e-9),
    "shift": no_integer | st.integers(max_value=-1), "flip": no_switch,
    "mean": no_colours, "std": no_colours | st.just((0.0, 0.2, 0.2)), "optimiser": no_word,
    "betas": no_share | st.just((0.9,)) | st.just((0.9, 1.0)), "lr_rest": st.text() | st.booleans() | st.floats(),
    "warm_up": no_share, "label_smoothing": no_share,
    "sizes": st.none() | st.text() | st.floats() | st.integers() | st.lists(st.integers(max_value=0), min_size=1),
}
WRONG_TRAINING = {
    "seed": no_integer | st.integers(max_value=-1) | st.integers(min_value=2**63), "precision": no_word,
    "split": no_word, "train_size": strange | st.booleans() | st.integers(max_value=0) | st.integers(min_value=41),
    "device": strange | st.none(),
    "max_seconds": st.text() | st.just([]) | st.just(float("nan")) | st.floats(max_value=0),
}


def one_wrong(wrong):
    """(name, value) of one field with a value that it must refuse."""
    return st.one_of([st.tuples(st.just(name), values) for name, values in wrong.items()])


# ---- what must hold


def test_one_wrong_field_of_a_recipe_is_refused_by_name(request):
    def claim(wrong):
        name, value = wrong
        pair = dict(mean=(0.5,) * 3, std=(0.2,) * 3) if name in ("mean", "std") else {}
        with pytest.raises(ValueError) as error:
            Recipe(**pair | {name: value})
        assert re.match(f"{name} must be .*, got ", str(error.value), re.S), str(error.value)

    assert WRONG_RECIPE.keys() == {field.name for field in fields(Recipe)}
    for_all(request, 60, one_wrong(WRONG_RECIPE), claim)


@pytest.mark.parametrize("wrong, said", [
    (dict(nesterov=True, momentum=0), "nesterov must be false without momentum"),
    (dict(mean=(0.5,) * 3), "std must be"),
    (dict(optimiser="muon"), "lr_rest must be given with muon"), (dict(width=1), "unknown parameter 'width'; allowed"),
    (dict(preset="best"), "preset must be one of paper, released, short, got 'best'")])
def test_fields_that_do_not_fit_together_and_unknown_ones_are_refused(wrong, said):
    with pytest.raises(ValueError, match=said):
        Recipe.preset(**wrong)


def test_one_wrong_parameter_of_a_training_is_refused_by_name_and_nothing_is_written(request, tmp_path):
    def claim(wrong):
        with pytest.raises(ValueError, match=f"^{wrong[0]} must be"):
            fit(tmp_path / "runs", Architecture(**SMALL), Recipe(epochs=1), DATA, **dict([wrong]))
        assert not (tmp_path / "runs").exists()

    for_all(request, 25, one_wrong(WRONG_TRAINING), claim)


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
        network = load(folder)
        assert sum(p.numel() for p in network.parameters()) == run["counts"]["trained"]
        assert len(network.predict(DATA.test_images[:2])) == 2 and network.size == size_at(recipe, recipe.epochs - 1)
        shutil.rmtree(folder)

    for_all(request, 15, trainings(), claim)
