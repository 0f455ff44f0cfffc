"""What speed.csv says: cases, arithmetic, parity of the paths, rows that follow from each other."""

import shutil
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch

from hcnn import operators as ops
from hcnn.architecture import VARIANTS
from hcnn.companion.commands import main
from hcnn.companion.speed import cases as speed
from hcnn.companion.speed import table as speed_table
from hcnn.companion.speed import timing
from hcnn.companion.speed.cases import Case

TINY = Case(K=4, Q=2, batch=2, size=4, rounds=2)


@pytest.mark.parametrize("what", ["layer", "network"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_path_equals_the_equations_within_rounding(what, variant):
    case = replace(TINY, what=what, variant=variant)
    for path, precision in speed.available(case):
        error, allowed = speed.parity(case, path, precision)
        assert error <= allowed < 1, (path, precision)


def test_multiplications_of_the_paper_s_network():
    """Useful ones from hcnn.counts; the dense products are those of the matrices: taps x attributes read x written."""
    layer, plus = Case(), Case(variant="hcnn-plus")
    reads = (ops.tap_reads((8, 16), (7, 11)) >= 0).sum().item()  # pairs of positions, for each filter
    inside = 94 * 94  # positions and taps of 3 along 32 pixels with zeros
    assert speed.multiplications(layer) == (16 * reads * inside, 128 * 512 * 9 * 1024)
    assert speed.multiplications(plus) == (32 * (128 * inside + 16 * reads * 1024), 32 * (128 * 9 + 128 * 512) * 1024)
    assert [round(n / 1e9, 1) for n in speed.multiplications(replace(plus, what="network"))] == [2.8, 7.0]
    assert [round(n / 1e9, 1) for n in speed.multiplications(replace(layer, what="network"))] == [0.7, 1.9]


@pytest.mark.parametrize("changes, message", [
    (dict(what="nets"), "what must be layer or network, got 'nets'"),
    (dict(K=10), "K must be a positive multiple of 4, got 10"),
    (dict(variant="x"), "variant must be one of")])
def test_impossible_cases_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        Case(**changes)


def test_all_cases_fit_the_machine_and_none_is_measured_twice():
    for device, threads in (("cpu", 1), ("cpu", 2), ("cuda", 8)):
        some = speed_table.cases(device, threads)
        assert len(some) == len(set(some)) and {case.device for case in some} == {device}
        assert {case.K for case in some} >= {4, 8, 16, 24, 32} and {case.Q for case in some} >= {9, 16, 32, 64}


@contextmanager
def quickly():
    """Cases are measured in this process, few steps, against a small yardstick."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(timing.MATRIX, "cpu", 32)
        patch.setattr(timing, "BLOCK", 1e-6)
        patch.setattr(timing, "YARDSTICK", 1e-6)
        patch.setattr(speed_table, "STEADY", 1e9)  # steps so short never hold still
        patch.setattr(timing, "_answer", timing.measure)
        yield
    torch.set_num_threads(threads)


@pytest.fixture
def here():
    with quickly():
        yield


@pytest.mark.parametrize("wrong", ["folded", "literal"])
def test_a_path_that_computes_something_else_is_not_timed_and_the_others_are(here, monkeypatch, wrong):
    right = timing.parity
    monkeypatch.setattr(timing, "parity", lambda case, path, precision: (
        (1e-3, 1e-6) if (path, precision) == (wrong, "fp32") else right(case, path, precision)))
    said = []
    table = speed_table.with_derived(timing.run(TINY, said.append))
    assert said == [f"hcnn {wrong} fp32 is wrong and not timed: error 1.0e-03, rounding explains 1.0e-06"]
    assert (wrong, "fp32") not in set(zip(table.path, table.precision)) and "fourier" in set(table.path)
    assert table.ratio.isna().all() == (wrong == "literal"), "nothing is held against a literal path that is wrong"


def test_a_case_that_fails_is_said_and_the_others_are_measured(here, monkeypatch, tmp_path):
    def answer(case):
        if case.K == 8:
            raise RuntimeError("the measurement failed")
        return timing.measure(case)

    monkeypatch.setattr(timing, "_answer", answer)
    said = []
    found = speed_table.measure_all([replace(TINY, K=8), TINY], tmp_path / "speed.csv", log=said.append)
    assert said[0].endswith("FAILED: the measurement failed")
    assert said[-1].startswith("1 of 2 failed: 1 of 2: layer HCNN")
    assert set(found.K) == {4}
    assert speed_table.check(tmp_path / "speed.csv") == []


@pytest.mark.full
def test_a_process_of_its_own_measures_everything():
    answer = timing._answer(replace(TINY, rounds=1))
    assert answer["seconds"].keys() >= {("literal", "fp32"), ("fourier", "fp32")}
    assert min(rate for rate, _ in answer["yardstick"].values()) > 0 and min(answer["memory"].values()) >= 0


def test_a_process_that_fails_says_why():
    with pytest.raises(RuntimeError, match="the measurement of Case.*nowhere.* failed: .* device"):
        timing._answer(replace(TINY, device="nowhere"))


@pytest.fixture(scope="module")
def two_cases(tmp_path_factory):
    """A stored table of two tiny cases."""
    path, said = tmp_path_factory.mktemp("tables") / "speed.csv", []
    some = [TINY, replace(TINY, variant="hcnn-plus")]
    with quickly():
        speed_table.measure_all(some, path, log=said.append)
        speed_table.measure_all(some, path, log=said.append)
    assert [line.endswith("known") for line in said] == [False, False, True, True]
    return path


@pytest.fixture
def measured(two_cases, tmp_path, monkeypatch):
    """A copy of it, to be changed."""
    monkeypatch.setattr(speed_table, "STEADY", 1e9)
    return Path(shutil.copy(two_cases, tmp_path))


def test_measured_rows_pass_and_a_number_changed_by_hand_is_found(measured):
    table = speed_table.load(measured)
    assert speed_table.check(measured) == [] and (table.rounds == 2).all()
    assert set(table.path) == {"literal", "folded", "fourier", "unfused"}
    for column in [*speed_table.DERIVED, "seconds", "literal_seconds", "batch"]:
        changed = table.astype({column: float})
        changed.loc[1, column] *= 1.1
        changed.to_csv(measured, index=False)
        assert any("row 2, " in finding for finding in speed_table.check(measured)), column
    for changed, said in ((table.assign(seconds=-1.0), "not positive"), (pd.concat([table, table[:1]]), "two rows of"),
                          (table.drop(columns="ratio"), "columns"), (table.assign(path="x"), "path: must be one of")):
        changed.to_csv(measured, index=False)
        assert any(said in finding for finding in speed_table.check(measured))


def test_merging_replaces_rows_of_the_same_case_and_machine_only(measured):
    table = speed_table.load(measured)
    speed_table.merge(table[:1].assign(seconds=7.0), measured)
    speed_table.merge(table[:1].assign(processor="another"), measured)
    found = speed_table.load(measured)
    assert len(found) == len(table) + 1 and (found.seconds == 7).sum() == 1


def test_what_does_not_hold_still_is_not_kept(here, monkeypatch, tmp_path):
    table, path = speed_table.with_derived(timing.run(TINY)), tmp_path / "speed.csv"
    table = table.assign(spread=0.1 * table.seconds, matrix_spread=0.1)
    monkeypatch.setattr(speed_table, "STEADY", 0.15)
    assert len(speed_table.steady(table)) == len(table) == len(speed.available(TINY))
    for where, left in ((1, len(table) - 1), (table.index[table.path == "literal"][0], 0)):
        assert len(speed_table.steady(table.assign(spread=table.spread.where(table.index != where, 1.0)))) == left
    assert len(speed_table.steady(table.assign(matrix_spread=0.2))) == 0
    monkeypatch.setattr(speed_table, "run", lambda case, log: table.assign(matrix_spread=0.2).to_dict("records"))
    said = []
    assert len(speed_table.measure_all([TINY], path, log=said.append)) == 0
    assert f"{len(table)} of {len(table)} rows spread" in said[0]
    monkeypatch.setattr(speed_table, "run", lambda case, log: table.to_dict("records"))
    table[1:].to_csv(path, index=False)
    assert len(speed_table.measure_all([TINY], path, log=said.append)) == len(table), "a row that lacks is made"
    table.assign(matrix_spread=0.2).to_csv(path, index=False)
    assert all("more than 15%" in finding for finding in speed_table.check(path)) and speed_table.check(path)


def test_no_case_begins_after_the_time_limit_and_none_that_is_stored_is_lost(measured):
    some, said = [TINY, replace(TINY, batch=4)], []
    found = speed_table.measure_all(some, measured, max_seconds=1e-9, log=said.append)
    assert said[0].endswith("known") and said[1].startswith("stopped after 1e-09 s before 2 of 2") and len(said) == 2
    assert len(found) and set(found.batch) == {TINY.batch}, "of all that is stored the rows of what was asked"


def test_readme_rows_are_those_of_the_paper_s_sizes(measured):
    table = speed_table.load(measured)
    assert speed_table.readme_rows(table).empty
    big = table[table.variant == "hcnn"].assign(K=16, Q=32, size=32, peak_mb=100.0, seconds=2.0, literal_seconds=8.0,
                                                ratio=4.0, ratio_low=3.5, ratio_high=4.4)
    big.loc[big.path == "literal", "seconds"] = 8.0
    (row,) = speed_table.readme_rows(big).values
    assert row[0] == "layer, HCNN, batch 2"
    assert tuple(row[2:6]) == ("8000 ms", "2000 ms", "4.0 (3.5 to 4.4)", "1.00")
    in_bf16 = big[big.precision == "fp32"].assign(precision="bf16")
    in_bf16.loc[big.path == "literal", "seconds"] = 3.0
    (row,) = speed_table.readme_rows(pd.concat([big[big.precision == "fp32"], in_bf16])).values
    assert tuple(row[6:]) == ("3000 ms", "2000 ms", "1.5"), "against PyTorch in the same number format"
    (row,) = speed_table.readme_rows(big[big.precision == "fp32"]).values
    assert tuple(row[6:]) == ("", "", "")


def test_the_stored_table_is_read_and_does_not_contradict_itself():
    assert len(speed_table.load()) > 100 and speed_table.check() == []


def test_command_line_measures_the_cases_of_this_machine(monkeypatch):
    asked = []
    monkeypatch.setattr(speed_table, "measure_all", lambda some, again, max_seconds, log: asked.append(
        (some, again, max_seconds)))
    assert main(["speed", "--device", "cpu", "--threads", "1", "--again", "--max-seconds", "500"]) == 0
    assert asked == [(speed_table.cases("cpu", 1), True, 500)]
