"""Config of `fmjax plan`: devices, price and search."""

import typing
from dataclasses import dataclass
from typing import Literal

from fmjax._checks import require_at_least, require_numbers, require_one_of

Work = Literal["training", "sampling"]


@dataclass(frozen=True)
class PlanConfig:
    """Which program is compiled, for which devices, and how a fitting layout is searched.

    Attributes:
        topology: Devices to compile for: TPU chips ("v5e:16x16", "v5p:4x4x4", "v6e:8x8",
            "v4:4x4x4"), GPUs ("h100:8", "a100:16") or virtual CPU devices ("cpu:8").
        work: Program to compile: a training step, or the sampling of one batch.
        num_slices: Number of TPU slices of this topology.
        price: Price of one chip in dollars per hour; None prints no costs.
        search: If the program does not fit into memory, search for the nearest mesh layout,
            rematerialization policy or batch size that does.
        patience: Time limit of the search in seconds.
    """

    topology: str = "v5e:4x4"
    work: Work = "training"
    num_slices: int = 1
    price: float | None = None
    search: bool = True
    patience: float = 240.0

    @property
    def name(self) -> str:
        """The topology with the number of slices, such as `4 x v5e:16x16`."""
        return self.topology if self.num_slices == 1 else f"{self.num_slices} x {self.topology}"

    def __post_init__(self) -> None:
        require_numbers(self)
        require_one_of("work", self.work, typing.get_args(Work))
        require_at_least("num_slices", self.num_slices, 1)
        require_at_least("patience", self.patience, 0)
        if self.price is not None:
            require_at_least("price", self.price, 0)
