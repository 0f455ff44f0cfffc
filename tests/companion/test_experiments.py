"""The declared trainings and the commands that train them: what is asked for, and what ends a queue."""

import pytest

from hcnn.companion import commands
from hcnn.companion.experiments import (
    BASE,
    CHOICES,
    HERE,
    PAIRS,
    QUICK,
    ablations,
    command_line,
    comparisons,
    experiment,
    headline,
)

TABLES = [("cifar10", "hcnn"), ("cifar10", "hcnn-plus"), ("cifar100", "hcnn"), ("cifar100", "hcnn-plus")]


def test_the_tables_come_first_and_are_the_papers_own_settings():
    queue = headline(seeds=[0, 1], further=True)
    first = [(given["dataset"], given["variant"], given["seed"]) for given in queue[:8]]
    assert first == [(*pair, seed) for seed in (0, 1) for pair in TABLES]
    for given in queue[:8]:
        a, recipe = experiment(**given).architecture, experiment(**given).recipe
        assert (a.K, a.Q, a.padding_mode, recipe.epochs, recipe.lr) == (16, 32, "zeros", 240, 0.25)
    assert headline(["cifar10"], ["hcnn"]) == queue[:1]


def test_every_declared_training_is_valid_and_none_is_asked_for_twice():
    for queue in (headline(seeds=[0, 1], further=True), headline(preset="short"), QUICK):
        assert len({experiment(**given) for given in queue}) == len(queue)
    assert {given["variant"] for given in headline(variants=["hcnn"], further=True)} == {"hcnn"}
    assert headline(["cifar100"], preset="short") == [given for given in HERE if given.get("dataset") == "cifar100"]


def test_networks_compared_at_equal_budget_share_recipe_and_epochs():
    ours, *others = (experiment(**given) for given in HERE[:3])
    assert {other.recipe for other in others} == {ours.recipe}
    assert [other.architecture.name for other in others] == ["ResNet-20", "WRN-16-1"]


@pytest.mark.parametrize("given", [*HERE, *QUICK, BASE, *(changed for *_, changed in PAIRS),
                                   dict(variant="hcnn-plus", preset="released"),
                                   dict(variant="wrn-16-1", train_size=50, precision="strict")])
def test_the_command_line_asks_for_what_was_declared(given):
    options = commands.parser().parse_args(command_line(given | dict(out="somewhere", max_seconds=7))[3:])
    assert experiment(**commands.parameters(options)) == experiment(**given)
    assert (options.out, options.max_seconds) == ("somewhere", 7)


@pytest.mark.parametrize("base", [dict(variant="hcnn", K=4, Q=2),
                                  dict(variant="hcnn-plus", preset="released", K=4, Q=2)])
def test_ablations_change_one_answer_at_a_time_on_held_out_images(base):
    jobs = {name: experiment(**given) for name, given in ablations(base, [0, 3]).items()}
    usual = jobs["base seed=0"]
    assert len(set(jobs.values())) == len(jobs)
    assert {(job.split, job.seed) for job in jobs.values()} == {("validation", 0), ("validation", 3)}
    changed = [job.differences(usual) for job in jobs.values() if job.seed == 0][1:]
    assert all(len(fields) == 1 for fields in changed)
    if base["variant"] == "hcnn":
        assert {name for fields in changed for name in fields} == {name for _, name, _ in CHOICES}


def test_a_comparison_is_of_two_trainings_that_differ_in_one_field():
    for words, base, changed in comparisons():
        assert len(changed.differences(base)) == 1 and base.split == changed.split, words


@pytest.mark.parametrize("given, said", [
    (dict(preset="released", variant="hcnn"), "preset must be one of paper, short for hcnn, got 'released'"),
    (dict(variant="vgg"), "variant must be one of"), (dict(dataset="svhn"), "dataset must be one of"),
    (dict(k=8), "unknown parameter 'k' of hcnn; fields are J, K"), (dict(lr=-1), "lr must be"),
])
def test_what_nobody_can_train_is_refused_by_name(given, said):
    with pytest.raises(ValueError, match=said):
        experiment(**given)


@pytest.mark.parametrize("arguments, said", [
    (["train", "--K", "8", "--set", "K=4"], "K is given twice"),
    (["train", "--set", "K"], "--set must be NAME=VALUE, got 'K'"),
    (["train", "--set", "seed=1"], "seed is given twice"), (["train", "--threads", "0"], "threads must be an integer"),
    (["ablations", "--seeds", "-1"], "seed must be an integer of at least 0, got -1"),
    (["headline", "--workers", "0"], "workers must be a positive integer, got 0"),
    (["ablations", "--variant", "resnet-20"], "argument --variant: invalid choice: 'resnet-20'"),
    (["data", "mnist"], "data set must be one of"),
])
def test_wrong_options_are_refused_in_one_line(capsys, arguments, said):
    assert commands.main(arguments) == 2
    error = capsys.readouterr().err
    assert said in error and error.startswith("error: ") and error.count("\n") == 1


# The queue


@pytest.fixture
def calls(monkeypatch):
    """Trainings that end at once: the list of what was asked for; `calls.end` says how each variant ends."""
    class Calls(list):
        end = {}

    calls = Calls()

    def train(training, options, max_seconds=None):
        calls.append((training.dataset, training.architecture.variant, max_seconds))
        end = calls.end.get(training.architecture.variant, 240)
        if isinstance(end, Exception):
            raise end
        return dict(epochs=240, epochs_done=end)

    monkeypatch.setattr(commands, "_train", train)
    return calls


def test_a_failed_training_does_not_stop_the_others(calls, capsys):
    calls.end = {"hcnn": FloatingPointError("the loss is not finite")}
    assert commands.main(["headline", "--max-seconds", "100"]) == 1
    assert [call[:2] for call in calls] == TABLES and all(99 < seconds <= 100 for *_, seconds in calls)
    assert capsys.readouterr().err.count("the loss is not finite") == 2


def test_a_signal_ends_the_queue_and_nothing_starts_when_the_time_is_over(calls, capsys):
    calls.end = {"hcnn-plus": 7}  # epochs done, with time left
    assert commands.main(["headline"]) == 130
    assert calls == [("cifar10", "hcnn", None), ("cifar10", "hcnn-plus", None)]
    assert commands.main(["headline", "--max-seconds", "0"]) == 0
    assert len(calls) == 2 and "goes on from here" in capsys.readouterr().out


def test_trainings_side_by_side_are_jobs_of_their_own(monkeypatch):
    asked = {}

    def run_all(jobs, workers, log):
        asked.update(jobs, workers=workers)
        return dict.fromkeys(jobs)

    monkeypatch.setattr(commands, "run_all", run_all)
    assert commands.main(["headline", "--preset", "short", "--workers", "2", "--device", "cpu"]) == 0
    assert asked.pop("workers") == 2
    assert list(asked.values()) == [command_line(given | dict(device="cpu")) for given in HERE]
    asked.clear()
    assert commands.main(["ablations"]) == 0
    assert asked.pop("workers") is None
    assert asked["base seed=0"] == command_line(BASE | dict(split="validation", seed=0, device="auto"))
    assert commands.main(["ablations", "--variant", "hcnn-plus", "--K", "4"]) == 0
    base = experiment(**commands.parameters(commands.parser().parse_args(asked["base seed=0"][3:])))
    assert base == experiment(variant="hcnn-plus", K=4, split="validation")


def test_train_says_by_its_exit_status_that_it_stopped_before_the_end(calls):
    assert commands.main(["train"]) == 0
    calls.end = {"hcnn": 3}
    assert commands.main(["train"]) == commands.STOPPED == 75
