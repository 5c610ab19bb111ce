"""What `fmjax plan` is asked."""

import typing
from dataclasses import dataclass
from typing import Literal

from fmjax._checks import require_at_least, require_numbers, require_one_of

Work = Literal["training", "sampling"]


@dataclass(frozen=True)
class PlanConfig:
    """Compile what a config asks for, for accelerators that are not here, and see if it fits.

    Attributes:
        topology: TPU chips ("v5e:16x16", "v5p:4x4x4", "v6e:8x8", "v4:4x4x4"), GPUs ("h100:8",
            "a100:16") or fake devices of this machine ("cpu:8").
        work: A step of the training, or the sampling of one batch.
        num_slices: So many TPU slices of that shape.
        price: Dollars that a chip costs in an hour; None for no bill.
        search: If it does not fit, look for the nearest layout, rematerialisation or batch that
            does.
        patience: Seconds after which the search gives up.
    """

    topology: str = "v5e:4x4"
    work: Work = "training"
    num_slices: int = 1
    price: float | None = None
    search: bool = True
    patience: float = 240.0

    @property
    def name(self) -> str:
        """The topology, with its slices."""
        return self.topology if self.num_slices == 1 else f"{self.num_slices} x {self.topology}"

    def __post_init__(self) -> None:
        require_numbers(self)
        require_one_of("work", self.work, typing.get_args(Work))
        require_at_least("num_slices", self.num_slices, 1)
        require_at_least("patience", self.patience, 0)
        if self.price is not None:
            require_at_least("price", self.price, 0)
