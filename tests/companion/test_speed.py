"""The layers are faster than the literal implementation, and smaller, on the machine that runs this."""

import pytest

from hcnn.companion.speed import timing
from hcnn.companion.speed.cases import Case, chosen

GOALS = {"hcnn": 6, "hcnn-plus": 1.5}  # times the speed of the literal implementation, float32


@pytest.mark.full
@pytest.mark.parametrize("variant", GOALS)
def test_layer_is_faster_than_the_literal_implementation_in_a_quarter_of_its_memory(variant, capsys):
    """Forward and backward of one full-resolution layer, K = 16, Q = 32, batch 8, 2 threads."""
    rows = {(row["path"], row["precision"]): row for row in timing.run(Case(variant=variant, threads=2))}
    literal, fast = rows["literal", "fp32"], rows[chosen("cpu", variant, "fp32"), "fp32"]
    with capsys.disabled():
        print(f"\n{variant}: {1e3 * literal['seconds']:.0f} ms, here {1e3 * fast['seconds']:.0f} ms, "
              f"memory {literal['peak_mb']:.0f} MB, here {fast['peak_mb']:.0f} MB")
    assert literal["seconds"] / fast["seconds"] >= GOALS[variant]
    assert literal["peak_mb"] is None or fast["peak_mb"] <= literal["peak_mb"] / 4
