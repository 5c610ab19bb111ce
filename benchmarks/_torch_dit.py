"""The DiT of fmjax in idiomatic PyTorch, which the speed benchmarks compare with."""

import math
import os
from types import EllipsisType

# By default, PyTorch's threads wait in busy loops, which costs seconds per call if other processes
# use the cores. This must be set before torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fmjax._arrays import Params
from fmjax.networks import DiTConfig
from fmjax.networks.layers.patches import sincos_positions


class TorchBlock(nn.Module):
    """Attention and MLP, each after a normalization that is modulated by the condition."""

    def __init__(self, config: DiTConfig):
        super().__init__()
        width, hidden = config.width, int(config.width * config.mlp_ratio)
        self.num_heads = config.num_heads
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp_in, self.mlp_out = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.modulation = nn.Linear(width, 6 * width)
        self.norm = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)

    def forward(self, h: Tensor, c: Tensor) -> Tensor:
        """Apply the block to the tokens h, with the condition c."""
        batch, tokens, width = h.shape
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = (
            self.modulation(c).unsqueeze(1).chunk(6, dim=-1)
        )
        qkv = self.qkv(self.norm(h) * (1 + scale_a) + shift_a)
        qkv = qkv.reshape(batch, tokens, self.num_heads, 3, width // self.num_heads)
        q, k, v = qkv.permute(3, 0, 2, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
        h = h + gate_a * self.out(mixed.reshape(batch, tokens, width))
        hidden = F.gelu(self.mlp_in(self.norm(h) * (1 + scale_m) + shift_m), approximate="tanh")
        return h + gate_m * self.mlp_out(hidden)


class TorchDiT(nn.Module):
    """DiT with `forward(t, x, labels)`; images are `[batch, height, width, channel]`."""

    positions: Tensor
    frequencies: Tensor

    def __init__(self, config: DiTConfig, event_shape: tuple[int, int, int], num_classes: int):
        super().__init__()
        height, width, channels = event_shape
        self.size, self.image = config.patch_size, event_shape
        self.grid = (height // self.size, width // self.size)
        patch = self.size**2 * channels
        self.hidden = nn.Linear(256, config.width)
        self.embed_out = nn.Linear(config.width, config.width)
        self.labels = nn.Embedding(num_classes + 1, config.width)
        self.patches = nn.Linear(patch, config.width)
        self.blocks = nn.ModuleList(TorchBlock(config) for _ in range(config.num_layers))
        self.modulation = nn.Linear(config.width, 2 * config.width)
        self.norm = nn.LayerNorm(config.width, eps=1e-6, elementwise_affine=False)
        self.out = nn.Linear(config.width, patch)
        positions = sincos_positions(*self.grid, dim=config.width)
        self.register_buffer("positions", torch.from_numpy(np.array(positions)))
        frequencies = 30.0 * torch.exp(-math.log(300.0) * torch.arange(128) / 128)
        self.register_buffer("frequencies", frequencies)

    def forward(self, t: Tensor, x: Tensor, labels: Tensor) -> Tensor:
        """Return the velocity, shaped like x."""
        angles = t[:, None] * self.frequencies
        features = torch.cat([angles.cos(), angles.sin()], dim=-1)
        c = F.silu(self.embed_out(F.silu(self.hidden(features))) + self.labels(labels))
        (rows, columns), size, (height, width, channels) = self.grid, self.size, self.image
        x = x.reshape(-1, rows, size, columns, size, channels).permute(0, 1, 3, 2, 4, 5)
        h = self.patches(x.reshape(len(t), rows * columns, -1)) + self.positions
        for block in self.blocks:
            h = block(h, c)
        shift, scale = self.modulation(c).unsqueeze(1).chunk(2, dim=-1)
        x = self.out(self.norm(h) * (1 + scale) + shift)
        x = x.reshape(-1, rows, columns, size, size, channels).permute(0, 1, 3, 2, 4, 5)
        return x.reshape(-1, height, width, channels)


def copy_weights(params: Params, net: TorchDiT) -> None:
    """Copy the weights of the network of fmjax to the PyTorch network."""

    def copy(layer: nn.Linear, weights: Params, index: int | EllipsisType = ...) -> None:
        kernel, bias = np.asarray(weights["kernel"])[index], np.asarray(weights["bias"])[index]
        layer.weight.data.copy_(torch.from_numpy(kernel.T.copy()))
        layer.bias.data.copy_(torch.from_numpy(bias.copy()))

    embed = params["embed"]
    copy(net.hidden, embed["hidden"])
    copy(net.embed_out, embed["out"])
    table = np.array(embed["labels"]["embedding"])
    net.labels.weight.data.copy_(torch.from_numpy(table))
    copy(net.patches, params["patches"])
    copy(net.modulation, params["modulation"])
    copy(net.out, params["out"])
    for index, block in enumerate(net.blocks):
        assert isinstance(block, TorchBlock)
        copy(block.qkv, params["blocks"]["attention"]["to_heads"], index)
        copy(block.out, params["blocks"]["attention"]["out"], index)
        for name in ("mlp_in", "mlp_out", "modulation"):
            copy(getattr(block, name), params["blocks"][name], index)
