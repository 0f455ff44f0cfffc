"""What speed.csv says: cases, arithmetic, parity of the paths, rows that follow from each other."""

import json
from dataclasses import replace

import pandas as pd
import pytest
import torch

from hcnn import operators as ops
from hcnn import reference
from hcnn.companion.commands import main
from hcnn.companion.speed import cases as speed
from hcnn.companion.speed import table as speed_table
from hcnn.companion.speed import timing
from hcnn.companion.speed.cases import Case

TINY = Case(K=4, Q=2, batch=2, size=4, rounds=2)


@pytest.mark.parametrize("what, variant", [("layer", "hcnn"), ("layer", "hcnn-plus"), ("network", "hcnn"), ("network", "hcnn-plus")])
def test_every_path_equals_the_equations_within_rounding(what, variant):
    case = replace(TINY, what=what, variant=variant, K=8 if what == "layer" else 4)
    for path, precision in speed.available(case):
        if path == "looped":
            continue  # wrong on some processors: the next test
        error, allowed = speed.parity(case, path, precision)
        assert error <= allowed < 1, (path, precision)


def test_looped_convolution_is_equation_4():
    x, w = torch.randn(2, 4, 8, 5, 5, dtype=torch.float64), torch.randn(3, 3, 5, 3, 3, dtype=torch.float64)
    assert torch.allclose(speed.looped(x, w), reference.attribute_layer(x, w), atol=1e-12)


def test_a_path_that_computes_something_else_is_not_timed(monkeypatch):
    right = speed.looped
    monkeypatch.setattr(speed, "looped", lambda x, w: right(x, w) * 1.001)
    found = timing.measure(TINY)
    assert "looped fp32" not in found["seconds"] and "folded fp32" in found["seconds"]
    assert found["lines"][-1].startswith("hcnn looped fp32 is wrong and not timed: error 1.0e-03")
    monkeypatch.setattr(speed, "looped", lambda x, w: right(x, w) * float("nan"))
    assert "looped fp32" not in timing.measure(TINY)["seconds"]


def test_a_step_is_made_without_a_forward_pass(monkeypatch):
    """Outside of autocast it would run paths that nobody asked for: on a GPU their kernels take most of a minute to compile."""
    monkeypatch.setattr(speed.HCNN, "forward", lambda self, x: pytest.fail("a forward pass"))
    for path, precision in (("literal", "fp32"), ("tiled", "bf16")):
        speed.step_of(replace(TINY, what="network", variant="hcnn-plus"), path, precision)


def winograd(x, kernel, points=(0, 1, -1, 2, -2, 0.5, -0.5)):
    """The convolution of x (n, c, 8, 8) with 3 x 3 kernels by Cook and Toom's rule: one tile of 6 x 6 outputs."""
    def powers(count):
        at = torch.tensor(points, dtype=torch.float64)[:, None] ** torch.arange(count)
        return torch.cat([at, (torch.arange(count) == count - 1).double()[None]]).to(x.dtype)

    into, filters, out = torch.linalg.inv(powers(8).double()).to(x.dtype), powers(3), powers(6)
    products = torch.einsum("nchw,kchw->nkhw", into.T @ x @ into, filters @ kernel @ filters.T)
    return out.T @ products @ out


def test_float32_on_a_gpu_may_be_winograd_s():
    """Three products in line, one forward and two backward, stay within what parity allows there."""
    x, kernel = torch.randn(8, 128, 8, 8), torch.randn(16, 128, 3, 3) / 34
    right = torch.nn.functional.conv2d(x.double(), kernel.double())
    assert torch.allclose(winograd(x.double(), kernel.double()), right, atol=1e-10)
    error = ((winograd(x, kernel) - right).norm() / right.norm()).item()
    assert speed.allowed(TINY, "fp32") < 3 * error < speed.allowed(replace(TINY, device="cuda"), "fp32") < 1e-3


def test_multiplications_of_the_paper_s_network():
    """Useful ones from hcnn.cost; the dense products are those of the matrices: taps x attributes read x written."""
    layer, plus = Case(), Case(variant="hcnn-plus")
    reads = (ops.tap_reads((8, 16), (7, 11)) >= 0).sum().item()  # pairs of positions, for each filter
    inside = 94 * 94  # positions and taps of 3 along 32 pixels with zeros
    assert speed.multiplications(layer) == (16 * reads * inside, 128 * 512 * 9 * 1024)
    assert speed.multiplications(plus) == (32 * (128 * inside + 16 * reads * 1024), 32 * (128 * 9 + 128 * 512) * 1024)
    assert [round(n / 1e9, 1) for n in speed.multiplications(replace(plus, what="network"))] == [2.8, 7.0]
    assert [round(n / 1e9, 1) for n in speed.multiplications(replace(layer, what="network"))] == [0.7, 1.9]


@pytest.mark.parametrize("changes, message", [
    (dict(what="nets"), "what must be layer or network, got 'nets'"), (dict(K=10), "K must be a positive multiple of 4, got 10"),
    (dict(processes=2, batch=3), "multiples of processes = 2, got 3"), (dict(variant="x"), "variant must be one of")])
def test_impossible_cases_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        Case(**changes)


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """A stored table of two tiny cases, one in two processes."""
    path = tmp_path_factory.mktemp("tables") / "speed.csv"
    some = [TINY, replace(TINY, variant="hcnn-plus", processes=2, threads=2)]
    said = []
    speed_table.measure_all(some, path, log=said.append)
    speed_table.measure_all(some, path, log=said.append)
    assert [line.endswith("known") for line in said if " of 2: " in line] == [False, False, True, True]
    first = speed_table.measure_all(some[:1], path, log=said.append)  # of all that is stored, the rows of what was asked
    assert set(first.variant) == {"hcnn"} and len(first) < len(speed_table.load(path))
    return path


def test_measured_rows_pass_and_say_how_they_were_measured(measured):
    table = speed_table.load(measured)
    assert speed_table.check(measured) == []
    assert set(table.path) >= {"literal", "folded", "unfused", "tiled"} and (table.rounds == 2).all()
    literal = table[(table.path == "literal") & (table.precision == "fp32")]
    assert (literal.ratio == 1).all() and set(table.processes) == {1, 2}
    assert (table.matrix_gflops > 0).all() and (table.peak_mb.dropna() >= 0).all()


@pytest.mark.parametrize("column", list(speed_table.DERIVED) + ["seconds", "literal_seconds", "batch"])
def test_a_number_changed_by_hand_is_found(measured, tmp_path, column):
    table = speed_table.load(measured)
    assert list(table) == speed_table.KEY + speed_table.MEASURED + list(speed_table.DERIVED)
    table[column] = table[column].astype(float)
    table.loc[1, column] *= 1.1
    table.to_csv(tmp_path / "speed.csv", index=False)
    assert any("row 2" in finding for finding in speed_table.check(tmp_path / "speed.csv"))


def test_rows_that_cannot_be_are_found(measured, tmp_path):
    path, table = tmp_path / "speed.csv", speed_table.load(measured)
    for changed, said in ((table.assign(seconds=-1.0), "not positive"), (pd.concat([table, table[:1]]), "two rows"),
                          (table.drop(columns="ratio"), "columns"), (table.assign(path="x"), "path must be one of")):
        changed.to_csv(path, index=False)
        assert any(said in finding for finding in speed_table.check(path))


def test_merging_replaces_rows_of_the_same_case_and_machine_only(measured, tmp_path):
    path, table = tmp_path / "speed.csv", speed_table.load(measured)
    speed_table.merge(table, path)
    speed_table.merge(table[:1].assign(seconds=7.0), path)
    speed_table.merge(table[:1].assign(processor="another"), path)
    found = speed_table.load(path)
    assert len(found) == len(table) + 1 and (found.seconds == 7).sum() == 1 and not path.with_suffix(".tmp").exists()


def test_readme_rows_are_those_of_the_paper_s_sizes(measured):
    table = speed_table.load(measured)
    assert speed_table.readme_rows(table) == {speed_table.README: []}
    big = table[table.variant == "hcnn"].assign(K=16, Q=32, size=32, peak_mb=100.0, seconds=2.0, literal_seconds=8.0, ratio=4.0)
    ((rows),) = speed_table.readme_rows(big).values()
    assert len(rows) == sum((big.path == "windowed") & (big.precision == "fp32") | (big.path == "folded") & (big.precision == "bf16"))
    assert {row[0]: row[2:] for row in rows}["layer, HCNN, batch 2, fp32"] == ("8000 ms", "2000 ms", "4.0", "1.00")


def test_all_cases_fit_the_machine_and_none_is_measured_twice():
    for device, threads in (("cpu", 1), ("cpu", 2), ("cuda", 8)):
        some = speed_table.cases(device, threads)
        assert len(some) == len(set(some)) and {case.device for case in some} == {device}
        assert {case.K for case in some} >= {4, 8, 16, 24, 32} and {case.Q for case in some} >= {9, 16, 32, 64}


def test_command_line_measures_the_cases_of_this_machine(monkeypatch):
    asked = []
    monkeypatch.setattr(speed_table, "measure_all", lambda some, again, max_seconds, log: asked.append((some, again, max_seconds)))
    assert main(["speed", "--device", "cpu", "--threads", "1", "--again", "--max-seconds", "500"]) == 0
    assert asked == [(speed_table.cases("cpu", 1), True, 500)]


def test_no_case_begins_after_the_time_limit_and_none_that_is_stored_is_lost(measured):
    some, said = [TINY, replace(TINY, batch=4)], []
    found = speed_table.measure_all(some, measured, max_seconds=1e-9, log=said.append)
    assert said[0].endswith("known") and said[1].startswith("stopped after 1e-09 s before 2 of 2") and len(said) == 2
    assert len(found) and set(found.batch) == {TINY.batch}


def test_a_case_that_cannot_be_measured_leaves_the_others_their_rows(tmp_path, monkeypatch):
    """One fails, in another the literal path is wrong, so that there is no ratio; the third is measured."""
    some, said = [TINY, replace(TINY, batch=3), replace(TINY, batch=4)], []
    answer = timing.measure(TINY)

    def children(case):
        if case.batch == 2:
            raise RuntimeError("out of memory")
        path, wrong = "literal fp32", case.batch == 3
        return [answer | dict(lines=[f"{path} is wrong"] * wrong, seconds={key: t for key, t in answer["seconds"].items() if key != path or not wrong})]

    monkeypatch.setattr(timing, "_children", children)
    found = speed_table.measure_all(some, tmp_path / "speed.csv", log=said.append)
    assert [line.rpartition(": ")[2] for line in said[:3]] == ["out of memory", "literal fp32 is wrong", "the literal path is wrong"]
    assert set(found.batch) == {4}


def test_a_measurement_that_fails_is_an_error():
    with pytest.raises(RuntimeError, match="failed"):
        timing._children(replace(TINY, device="nowhere"))


def test_main_prints_one_line_of_json_after_ready(monkeypatch, capsys):
    monkeypatch.setattr(timing, "measure", lambda case, ready: ready() or {"case": case.K})
    monkeypatch.setattr("sys.stdin", open("/dev/null"))
    timing.main(json.dumps({"K": 8}))
    assert capsys.readouterr().out.split("\n")[:2] == ["ready", '{"case": 8}']
