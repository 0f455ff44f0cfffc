"""Which input a tap of a convolution reads, for attributes and space alike: subsampling, boundary, padding."""

from dataclasses import dataclass
from functools import cache
from typing import ClassVar

from hcnn.settings import Settings, integer, one_of

PADDING_MODES = ("zeros", "periodic")
PADDINGS = ("symmetric", "same")


@dataclass(frozen=True)
class Geometry(Settings):
    """Output o < ceil(n / stride) of an axis of n inputs reads input ``stride * o + t - before`` through tap t.

    Outside the axis are zeros (padding_mode `zeros`), or it begins again (`periodic`). padding `symmetric`: before is
    half the support, as in the paper; `same`: TensorFlow's, which is one less in front where an uneven number is
    added.

    Raises ValueError naming the parameter, its value and the allowed values.
    """

    stride: int = 1
    padding_mode: str = "zeros"
    padding: str = "symmetric"

    RULES: ClassVar = dict(stride=integer(1), padding_mode=one_of(PADDING_MODES), padding=one_of(PADDINGS))

    def _check(self):
        if self.padding_mode == "periodic":
            self._require("padding", self.padding == "symmetric", "symmetric where padding_mode is periodic")

    def outputs(self, n):
        """Number of outputs along an axis of n."""
        return -(-n // self.stride)

    def before(self, n, support):
        """Samples added before the first one."""
        if self.padding == "symmetric":
            return support // 2
        return max((self.outputs(n) - 1) * self.stride + support - n, 0) // 2

    def after(self, n, support):
        """Samples added behind the last one, with which a convolution without padding has its `outputs`."""
        if self.padding == "symmetric":
            return support // 2
        return max((self.outputs(n) - 1) * self.stride + support - n - self.before(n, support), 0)

    @cache  # noqa: B019  frozen, and there are a few hundred of them
    def reads(self, n, support):
        """The one enumeration: for every output the input that each tap reads, -1 where a tap falls outside."""
        def read(o, t):
            i = self.stride * o + t - self.before(n, support)
            return i % n if self.padding_mode == "periodic" else i if 0 <= i < n else -1

        return tuple(tuple(read(o, t) for t in range(support)) for o in range(self.outputs(n)))

    def live(self, n, support):
        """Number of taps that reach the axis from some output; periodic ones that always meet count once."""
        return len({column for column in zip(*self.reads(n, support)) if any(i >= 0 for i in column)})

    def pairs(self, n, support):
        """Number of (output, input) pairs in which the output reads the input."""
        return sum(len(set(row) - {-1}) for row in self.reads(n, support))
