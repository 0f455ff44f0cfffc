"""What a CUDA graph forbids, found without a GPU: waits of the host, copies from it, tensors of two devices."""

import pytest
import torch
from random_images import images
from small import fit
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hcnn import HCNN, Architecture, Recipe
from hcnn.network import MultiscaleHCNN
from hcnn.operators import choice
from hcnn.training import graphed

TINY = dict(K=4, Q=2, J=5, subsampled=(3,), image_size=(8, 8))
WAITS = {"_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal", "_unique2", "unique_consecutive",
         "bincount"}


class Capturable(TorchDispatchMode):
    """Refuses what may not be captured; counts what is computed."""

    count = 0

    def __torch_dispatch__(self, operator, types, arguments=(), options=None):
        name, tensors = operator._schema.name.removeprefix("aten::"), self.tensors((arguments, options))
        if name in WAITS or name == "index" and any(t.dtype == torch.bool for t in self.tensors(arguments[1])):
            raise RuntimeError(f"{name}: the host waits for the device")
        out = operator(*arguments, **(options or {}))
        devices = {t.device for t in (*tensors, *self.tensors(out)) if t.dim() or t.device.type != "cpu"}
        if name == "lift_fresh" or len(devices) > 1:
            raise RuntimeError(f"{name}: a copy between host and device, or a number made on the host")
        self.count += 1
        return out

    @staticmethod
    def tensors(tree):
        return [t for t in tree_leaves(tree) if isinstance(t, torch.Tensor)]


@pytest.mark.parametrize("work", [
    lambda x: x.sum().item(), lambda x: x[x > 0], lambda x: x * torch.tensor([1.0, 2.0]), lambda x: x.to("meta"),
    lambda x: bool((x > 0).all())])
def test_what_spoils_a_capture_is_refused(work):
    with Capturable(), pytest.raises(RuntimeError, match="waits|copy"):
        work(torch.ones(2))


NETWORKS = {
    "HCNN": lambda: HCNN(Architecture(**TINY)), "HCNN(+)": lambda: HCNN(Architecture(variant="hcnn-plus", **TINY)),
    "periodic": lambda: HCNN(Architecture(padding_mode="periodic", **TINY)),
    "output_norm": lambda: HCNN(Architecture(output_norm=True, **TINY)),
    "released": lambda: HCNN(Architecture.preset("cifar10", "hcnn-plus", preset="released", **TINY)),
    "multiscale": lambda: MultiscaleHCNN(K=4, J=4)}


@pytest.mark.parametrize("name", NETWORKS)
def test_forward_passes_of_a_gpu_stay_on_it(name, monkeypatch):
    """On tensors that say cuda and hold no numbers."""
    monkeypatch.setattr(choice, "why_not", lambda *arguments: "a test")
    network = NETWORKS[name]()
    with FakeTensorMode(allow_non_fake_inputs=True) as fake:
        for module in network.modules():
            for own in (module._parameters, module._buffers):
                own.update({key: t if t is None else as_cuda(fake, t) for key, t in own.items()})
        x = torch.empty(2, 3, 8, 8, device="cuda")
        with Capturable() as counted:
            scores = network(x)
    assert scores.device.type == "cuda" and scores.shape == (2, 10) and counted.count > 50


def as_cuda(fake, t):
    made = torch.empty(t.shape, dtype=t.dtype, device="cuda")
    return torch.nn.Parameter(made) if isinstance(t, torch.nn.Parameter) else made


@pytest.mark.parametrize("variant", ["hcnn", "hcnn-plus"])
def test_a_whole_step_may_be_captured(variant, fake_gpu, tmp_path, monkeypatch):
    """Augmentation, forward and backward pass, optimiser, sums of the epoch, without kernels of Triton."""
    counted = Capturable()

    def captured(work, stream):
        def replay():
            with counted:
                work()
        return replay

    monkeypatch.setattr(graphed, "_captured", captured)
    monkeypatch.setattr(graphed, "why_not", lambda *arguments: None)
    monkeypatch.setattr(choice, "choose", lambda layer, x: "convolution")
    fit(tmp_path, Architecture.preset("digits", variant, **TINY), Recipe(epochs=1, batch_size=8), images(48, 10),
        precision="fast")
    assert counted.count > 300
