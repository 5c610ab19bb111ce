"""torchdiffeq's dopri5 on the PyTorch network."""

import numpy as np
import torch
import torchdiffeq
from _torch_dit import TorchDiT


class TorchSolve:
    """Solves one batch, counting its evaluations."""

    def __init__(self, net: TorchDiT, x0: np.ndarray, labels: np.ndarray):
        self.net, self.x0 = net, torch.from_numpy(x0.copy())
        self.labels, self.calls = torch.from_numpy(labels.copy()).long(), 0

    def field(self, t: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """The velocity of all samples at one time."""
        self.calls += 1
        return self.net(t.expand(len(x)), x, self.labels)

    def __call__(self, tolerance: float) -> np.ndarray:
        """Solve, and give the end."""
        self.calls = 0
        ends = torch.tensor([0.0, 1.0])
        with torch.inference_mode():
            path = torchdiffeq.odeint(
                self.field, self.x0, ends, rtol=tolerance, atol=tolerance, method="dopri5"
            )
        return np.asarray(path[-1])
