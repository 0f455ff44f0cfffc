"""Parameters drawn at random: valid ones build, train and are found again, invalid ones are refused by name before any work.

200 cases, with --full 2,000, beside the architectures of test_architecture.py.
"""

import dataclasses
import re
import shutil

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hcnn import Architecture, load
from hcnn.data.datasets import split_dataset
from hcnn.training import run_folder as runs
from hcnn.training.loop import train
from hcnn.training.recipe import SCHEDULES, Recipe, lr_at

TINY = dict(K=4, J=4, image_size=(4, 4), spatial_support=1, first_support=1, attribute_support=(1, 3), num_classes=3, subsampled=())
SHARES = (60, 60, 40, 25, 15)  # of the cases: recipes valid, invalid, architectures invalid, trainings invalid, valid
assert sum(SHARES) == 200


@pytest.fixture(scope="module")
def data(random_dataset):
    """40 + 12 random images of 4 x 4 in three classes."""
    return random_dataset(40, 12, size=4, classes=3, seed=2)


def for_all(request, share, strategy, claim):
    """Assert a claim for so many examples of a strategy, ten times as many with --full."""
    examples = SHARES[share] * (10 if request.config.getoption("--full") else 1)
    settings(max_examples=examples)(given(strategy)(claim))()


# ---- what is drawn

shares = st.floats(0.01, 0.99)
colours = st.tuples(*[st.floats(0.01, 1)] * 3)


@st.composite
def recipes(draw):
    """Valid fields of a Recipe, some of them given."""
    milestones = draw(st.lists(shares, max_size=4, unique=True).map(sorted))
    momentum = draw(st.sampled_from((0, 0.5, 0.9)))
    fields = dict(
        epochs=draw(st.integers(1, 2)), batch_size=draw(st.integers(1, 60)), lr=draw(st.floats(1e-5, 0.5)), shift=draw(st.integers(0, 9)),
        schedule=draw(st.sampled_from(SCHEDULES)), milestones=draw(st.sampled_from((list, tuple)))(milestones), momentum=momentum,
        multipliers=draw(st.lists(st.floats(0, 2), min_size=len(milestones) + 1, max_size=len(milestones) + 1)),
        nesterov=momentum > 0 and draw(st.booleans()), weight_decay=draw(st.floats(0, 0.01)), flip=draw(st.booleans()))
    if draw(st.booleans()):
        fields |= dict(mean=draw(colours), std=draw(colours))
    return fields


# Never right for the fields below it is drawn for; texts, lists, nothing, numbers that are none.
strange = st.one_of(st.text(), st.lists(st.integers(), max_size=1), st.just({}),
                    st.sampled_from((float("nan"), float("inf"), -float("inf"), 1j)))
no_integer = st.one_of(strange, st.none(), st.booleans(), st.floats())
no_number = st.one_of(strange, st.none(), st.booleans(), st.just(10**400))
no_word = st.one_of(strange, st.none(), st.booleans(), st.integers())
no_switch = st.one_of(strange, st.none(), st.integers())
no_colours = st.one_of(st.text(min_size=1), st.booleans(), st.floats(), st.lists(st.floats(0.1, 1), max_size=2),
                       st.just((0.5, 0.5, float("nan"))))
below_1 = no_integer | st.integers(max_value=0)

WRONG_RECIPE = {
    "epochs": below_1, "batch_size": below_1, "lr": no_number | st.floats(max_value=0),
    "schedule": no_word, "milestones": st.none() | st.integers() | st.just("0.5") | st.lists(st.floats(min_value=1), min_size=1)
    | st.lists(shares, min_size=2, unique=True).map(lambda v: sorted(v)[::-1]),
    "multipliers": st.none() | st.floats() | st.just(()) | st.just([1.0] * 9)
    | st.lists(st.floats(max_value=-0.1), min_size=6, max_size=6),
    "momentum": no_number | st.floats(min_value=1) | st.floats(max_value=-1e-3), "nesterov": no_switch,
    "weight_decay": no_number | st.floats(max_value=-1e-9), "shift": no_integer | st.integers(max_value=-1), "flip": no_switch,
    "mean": no_colours, "std": no_colours | st.just((0.0, 0.2, 0.2)),
}
even = st.integers(0, 20).map(lambda n: 2 * n)
no_pair = st.one_of(strange, st.none(), st.integers(), st.just((3,)), st.just((3, 3, 3)))
WRONG_ARCHITECTURE = {
    "variant": no_word, "K": no_integer | st.integers(max_value=3) | st.integers(1).filter(lambda n: n % 4), "Q": below_1,
    "J": no_integer | st.integers(max_value=3), "attribute_support": no_pair | st.tuples(even, st.just(3)) | st.tuples(st.just(3), even),
    "num_classes": no_integer | st.integers(max_value=1), "image_size": no_pair | st.tuples(st.just(8), st.integers(max_value=0)),
    "in_channels": below_1, "padding_mode": no_word, "spatial_support": no_integer | even, "first_support": no_integer | even,
    "subsampled": st.none() | st.integers() | st.text(min_size=1) | st.just((5, 5)) | st.just((9, 5)) | st.tuples(st.integers(min_value=12))
    | st.tuples(st.integers(max_value=0)), "factorised": no_switch, "padding": no_word, "statistics": no_word, "output_norm": no_switch,
    "head": no_word, "reduction": no_word, "last_elu": no_switch, "initialisation": no_word,
    "norm_eps": strange | st.none() | st.floats(min_value=1), "norm_momentum": strange | st.none() | st.floats(max_value=0),
}
WRONG_TRAINING = {
    "seed": no_integer | st.integers(max_value=-1) | st.integers(min_value=2**63), "precision": no_word, "split": no_word,
    "train_size": strange | st.booleans() | st.integers(max_value=0) | st.integers(min_value=41), "device": strange | st.none(),
    "max_seconds": st.text() | st.just([]) | st.just(float("nan")) | st.floats(max_value=0),
}


def one_wrong(fields):
    """(name, value) of one field with a value that it must refuse."""
    return st.one_of([st.tuples(st.just(name), values) for name, values in fields.items()])


# ---- what must hold


def test_valid_recipes_come_back_from_their_dictionary_and_give_rates_within_their_bounds(request):
    def claim(fields):
        recipe = Recipe(**fields)
        assert Recipe(**recipe.as_dict()) == recipe == recipe.replace() == Recipe.preset(**fields)
        runs.canonical(recipe.as_dict())  # fit for JSON
        top = recipe.lr * (1 if recipe.schedule == "cosine" else max(recipe.multipliers))
        assert all(0 <= lr_at(recipe, progress / 20) <= top * (1 + 1e-12) for progress in range(21))

    for_all(request, 0, recipes(), claim)


def test_one_wrong_field_of_a_recipe_is_refused_by_name(request):
    def claim(wrong):
        name, value = wrong
        pair = dict(mean=(0.5,) * 3, std=(0.2,) * 3) if name in ("mean", "std") else {}
        with pytest.raises(ValueError) as error:
            Recipe(**pair | {name: value})
        assert re.match(f"{name} must be .*, got ", str(error.value), re.S), str(error.value)

    for_all(request, 1, one_wrong(WRONG_RECIPE), claim)


def test_one_wrong_field_of_an_architecture_is_refused_by_name(request):
    def claim(wrong):
        name, value = wrong
        with pytest.raises(ValueError) as error:
            Architecture(**{name: value})
        assert re.match(f"{name} must be .*, got ", str(error.value), re.S), str(error.value)

    for_all(request, 2, one_wrong(WRONG_ARCHITECTURE), claim)


def test_one_wrong_parameter_of_a_training_is_refused_by_name_and_nothing_is_written(request, data, tmp_path):
    def claim(wrong):
        name, value = wrong
        with pytest.raises(ValueError, match=f"^{name} must be"):
            train(Architecture(**TINY), Recipe(epochs=1), data, out=tmp_path / "runs", log=lambda line: None, **{name: value})
        assert not (tmp_path / "runs").exists()

    for_all(request, 3, one_wrong(WRONG_TRAINING), claim)


@st.composite
def trainings(draw):
    """(Architecture, Recipe, options of train) that must work."""
    variant, padding_mode = draw(st.sampled_from(("hcnn", "hcnn-plus"))), draw(st.sampled_from(("zeros", "periodic")))
    architecture = Architecture(**TINY | dict(variant=variant, padding_mode=padding_mode, Q=draw(st.integers(1, 4)),
                                              head=draw(st.sampled_from(("classes", "linear"))), output_norm=draw(st.booleans())))
    split = draw(st.sampled_from(("test", "validation")))
    options = dict(seed=draw(st.integers(0, 2**63 - 1)), split=split, precision=draw(st.sampled_from(("fast", "strict"))),
                   train_size=draw(st.none() | st.integers(1, 40 if split == "test" else 36)))
    return architecture, Recipe(**draw(recipes()) | dict(lr=draw(st.floats(1e-5, 0.01)))), options


def test_valid_trainings_end_in_a_folder_that_says_what_was_done(request, data, tmp_path):
    def claim(training):
        architecture, recipe, options = training
        folder = train(architecture, recipe, data, out=tmp_path, device="cpu", log=lambda line: None, **options)
        run, expected = runs.read_run(folder), split_dataset(data, options["split"], options["train_size"])
        assert folder.name == run["name"] == runs.run_name(run["parameters"]) and run["epochs_done"] == recipe.epochs
        assert Architecture(**run["parameters"]["architecture"]) == architecture and Recipe(**run["parameters"]["recipe"]) == recipe
        assert (run["train_images"], run["test_images"]) == (len(expected.train_labels), len(expected.test_labels))
        network = load(folder)
        assert run["counts"] == architecture.count() and sum(p.numel() for p in network.parameters()) == run["counts"]["trained"]
        assert len(network.predict(data.test_images[:2])) == 2
        shutil.rmtree(folder)

    for_all(request, 4, trainings(), claim)


def test_one_field_more_or_less_is_refused_by_its_own_name():
    for cls in (Recipe, Architecture):
        with pytest.raises(ValueError, match=f"unknown parameter 'width'; allowed are {dataclasses.fields(cls)[0].name}"):
            cls.preset(width=1)
