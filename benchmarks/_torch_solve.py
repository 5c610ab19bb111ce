"""Sampling of the PyTorch network by the dopri5 of torchdiffeq."""

import numpy as np
import torch
import torchdiffeq
from _torch_dit import TorchDiT


class TorchSolve:
    """Solves one batch and counts the network evaluations in `calls`."""

    def __init__(self, net: TorchDiT, x0: np.ndarray, labels: np.ndarray):
        self.net, self.x0 = net, torch.from_numpy(x0.copy())
        self.labels, self.calls = torch.from_numpy(labels.copy()).long(), 0

    def field(self, t: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """Return the velocity of all samples at one time."""
        self.calls += 1
        return self.net(t.expand(len(x)), x, self.labels)

    def __call__(self, tolerance: float) -> np.ndarray:
        """Solve with this tolerance and return the samples at t = 1."""
        self.calls = 0
        ends = torch.tensor([0.0, 1.0])
        with torch.inference_mode():
            trajectory = torchdiffeq.odeint(
                self.field, self.x0, ends, rtol=tolerance, atol=tolerance, method="dopri5"
            )
        return np.asarray(trajectory[-1])
