"""The speed that the README states, measured against the literal implementation in the same process."""

from statistics import median
from time import perf_counter

import pytest
import torch

from hcnn import AttributeConv, reference


def seconds(step, repeats=5):
    step()  # warm-up
    times = []
    for _ in range(repeats):
        begin = perf_counter()
        step()
        times.append(perf_counter() - begin)
    return median(times)


@pytest.mark.full
@pytest.mark.parametrize("elu, least", [(False, 3.5), (True, 1.0)])
def test_layer_is_faster_than_the_literal_implementation(elu, least, capsys):
    """Forward and backward of one full-resolution layer, K = 16, Q = 32, batch 8, float32."""
    torch.manual_seed(0)
    layer = AttributeConv((8, 16), 16, Q=32, elu=elu)
    x = torch.randn(8, 8, 16, 32, 32, requires_grad=True)
    direction = torch.randn(8, 4, 8, 16, 32, 32)
    literal = seconds(lambda: reference.literal_attribute_conv(
        x, layer.h, layer.g, layer.scale, layer.shift, layer.bias, elu=elu).backward(direction), 3)
    fast = seconds(lambda: layer(x).backward(direction))
    with capsys.disabled():
        print(f"\n{'HCNN(+)' if elu else 'HCNN'} layer, {torch.get_num_threads()} threads: literal {literal * 1e3:.0f} ms, "
              f"fast {fast * 1e3:.0f} ms, ratio {literal / fast:.1f}")
    assert literal / fast >= least
