"""Batch normalisation of the filters of a layer, and the running statistics that evaluation uses."""

import torch
import torch.nn.functional as F
from torch import nn

from hcnn.device import world
from hcnn.operators import moments


@torch.no_grad()
def update_running(module, mean, var, n):
    """PyTorch's rule for batch normalisation in evaluation: running averages, the variance with n / (n - 1)."""
    module.running_mean.lerp_(mean.detach(), module.momentum)
    module.running_var.lerp_(var.detach() * (n / (n - 1).clamp(min=1)).to(var.dtype), module.momentum)


class AttributeNorm(nn.Module):
    """Batch normalisation of each filter v_j: one mean and deviation over batch, older attributes and space.

    (batch, ..., filters, height, width), learnable scale and shift; processes of torch.distributed share the
    statistics.
    """

    def __init__(self, filters, eps=1e-5, momentum=0.1):
        super().__init__()
        self.eps, self.momentum = eps, momentum
        self.scale, self.shift = nn.Parameter(torch.ones(filters)), nn.Parameter(torch.zeros(filters))
        self.register_buffer("running_mean", torch.zeros(filters))
        self.register_buffer("running_var", torch.ones(filters))

    def forward(self, x):
        if world() > 1:
            return self._shared(x)
        last = x.movedim(-3, -1).movedim((-3, -2), (1, 2))  # (batch, height, width, ..., filters)
        z = last.reshape(-1, len(self.scale)) if last.is_contiguous() else x.reshape(-1, *x.shape[-3:])
        z = F.batch_norm(z, self.running_mean, self.running_var, self.scale, self.shift, self.training, self.momentum,
                         self.eps)
        return z.view(last.shape).movedim((1, 2), (-3, -2)).movedim(-1, -3) if z.dim() == 2 else z.view(x.shape)

    def _shared(self, x):
        z = x.reshape(-1, *x.shape[-3:])  # every older attribute into the batch
        mean, var = self._moments(z) if self.training else (self.running_mean, self.running_var)
        gain = self.scale * torch.rsqrt(var + self.eps)
        offset = self.shift - gain * mean
        return torch.addcmul(offset.view(-1, 1, 1).to(x.dtype), x, gain.view(-1, 1, 1).to(x.dtype))

    def _moments(self, z):
        with torch.autocast(z.device.type, enabled=False):
            z = z.float() if z.dtype in (torch.bfloat16, torch.float16) else z
            count = z.new_full((1,), z.numel() // z.shape[1])
            total = moments.all_sum(torch.cat([z.sum((0, 2, 3)), count]))
            mean, n = total[:-1] / total[-1].detach(), total[-1].detach()
            var = moments.all_sum((z - mean.view(-1, 1, 1)).square().sum((0, 2, 3))) / n
            update_running(self, mean, var, n)
            return mean, var
