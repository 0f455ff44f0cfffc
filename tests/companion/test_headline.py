"""The queue of the full trainings: what it asks for, and what ends it."""

import pytest

from hcnn.companion import commands as cli
from hcnn.companion.headline import queue

HEADLINE = [("cifar10", "hcnn"), ("cifar10", "hcnn-plus"), ("cifar100", "hcnn"), ("cifar100", "hcnn-plus")]


def asked(options):
    return cli.settings(cli.parser().parse_args(["train", *options]))


def test_the_tables_come_first_and_are_the_papers_own_settings():
    trainings = queue(["cifar10", "cifar100"], ["hcnn", "hcnn-plus"], [0, 1], further=True)
    assert [(o[1], o[3], o[5]) for o in trainings[:8]] == [(*pair, seed) for seed in "01" for pair in HEADLINE]
    for options in trainings[:8]:
        architecture, recipe = asked(options)
        assert (architecture.K, architecture.Q, architecture.padding_mode, recipe.epochs, recipe.lr) == (16, 32, "zeros", 240, 0.25)


def test_what_follows_is_valid_and_nothing_is_asked_twice():
    trainings = queue(["cifar10", "cifar100"], ["hcnn", "hcnn-plus"], [0, 1], further=True)
    found = [(*asked(options), *options[:6]) for options in trainings]
    assert len(set(map(str, found))) == len(found)
    assert {a.padding_mode for a, *_ in found} == {"zeros", "periodic"} and {a.Q for a, *_ in found} == {9, 16, 32, 64}
    assert queue(["cifar10"], ["hcnn"], [0]) == trainings[:1]
    assert {options[3] for options in queue(["cifar10"], ["hcnn"], [0], further=True)} == {"hcnn"}


@pytest.fixture
def calls(monkeypatch):
    """Trainings that end at once: the list of their options; `calls.end` says how each variant ends."""
    class Calls(list):
        end = {}

    calls = Calls()

    def train(options):
        calls.append((options.dataset, options.variant, options.max_seconds))
        end = calls.end.get(options.variant, 240)
        if isinstance(end, Exception):
            raise end
        return end

    monkeypatch.setattr(cli, "_train", train)
    monkeypatch.setattr(cli, "read_run", lambda done: dict(epochs=240, epochs_done=done))
    return calls


def test_a_failed_training_does_not_stop_the_others(calls, capsys):
    calls.end = {"hcnn": FloatingPointError("the loss is not finite")}
    assert cli.main(["headline", "--max-seconds", "100"]) == 1
    assert [call[:2] for call in calls] == HEADLINE and all(99 < seconds <= 100 for *_, seconds in calls)
    assert capsys.readouterr().err.count("the loss is not finite") == 2


def test_a_signal_ends_the_queue(calls):
    calls.end = {"hcnn-plus": 7}  # epochs done, with time left
    assert cli.main(["headline"]) == 130
    assert calls == [("cifar10", "hcnn", None), ("cifar10", "hcnn-plus", None)]


def test_nothing_starts_when_the_time_is_over(calls, capsys):
    assert cli.main(["headline", "--max-seconds", "0"]) == 0
    assert calls == [] and "goes on from here" in capsys.readouterr().out
