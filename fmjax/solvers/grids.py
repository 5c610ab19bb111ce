"""Settings of the steps of a solve: a number of steps on a time grid."""

from dataclasses import dataclass
from typing import Protocol, TypeAlias, runtime_checkable

import jax

from fmjax._checks import MAX_STEPS, require, require_between, require_numbers, require_positive
from fmjax.paths import (
    AnyDensity,
    Density,
    LogitNormal,
    Schedule,
    Shifted,
    Tabulated,
    times,
    times_of_linear,
)
from fmjax.solvers.steps import FixedSteps

DensityConfig: TypeAlias = AnyDensity | Shifted | Density
"""Any density of times, also a `Shifted` one."""


@runtime_checkable
class TimeGrid(Protocol):
    """A way to choose the times of a number of steps.

    Laws: the times increase strictly from 0 to 1; there is one more than there are steps.
    """

    def times(
        self, num_steps: int, schedule: Schedule | None, calibrated: Tabulated | None = None
    ) -> jax.Array:
        """Return the times, `[num_steps + 1]`.

        Args:
            num_steps: Number of steps.
            schedule: Schedule of the path that is sampled; None for a process that is not an
                `AffinePath`.
            calibrated: Density of times that is measured on a trained run, if it is known.
        """
        ...


@dataclass(frozen=True)
class UniformGrid:
    """Steps of equal length."""

    def times(
        self, num_steps: int, schedule: Schedule | None, calibrated: Tabulated | None = None
    ) -> jax.Array:
        """Return times at equal distances, `[num_steps + 1]`."""
        return times.uniform_grid(num_steps)


@dataclass(frozen=True)
class ShiftedGrid:
    """Shifted times, as in Stable Diffusion 3.

    Attributes:
        shift: Shift of the times; values above 1 make the steps near the noise shorter.
    """

    shift: float = 3.0

    def __post_init__(self) -> None:
        require_numbers(self)
        require_positive("shift", self.shift)

    def times(
        self, num_steps: int, schedule: Schedule | None, calibrated: Tabulated | None = None
    ) -> jax.Array:
        """Return the shifted times, `[num_steps + 1]`."""
        return times.shifted_grid(num_steps, self.shift)


@dataclass(frozen=True)
class EdmGrid:
    """The noise levels of EDM (arXiv:2206.00364, equation 5), as times of the path."""

    def times(
        self, num_steps: int, schedule: Schedule | None, calibrated: Tabulated | None = None
    ) -> jax.Array:
        """Return the times with the noise levels of EDM, `[num_steps + 1]`.

        Raises:
            ValueError: If `schedule` is None.
        """
        require(schedule is not None, "grid", "not be edm without an AffinePath", "edm")
        assert schedule is not None
        return times_of_linear(schedule, times.edm_grid(num_steps))


@dataclass(frozen=True)
class QuantileGrid:
    """Times at equal quantiles of a density.

    Attributes:
        density: The density; where it is high, steps are short.
    """

    density: DensityConfig = LogitNormal()

    def times(
        self, num_steps: int, schedule: Schedule | None, calibrated: Tabulated | None = None
    ) -> jax.Array:
        """Return the quantiles, `[num_steps + 1]`."""
        return times.quantile_grid(num_steps, self.density)


@dataclass(frozen=True)
class CalibratedGrid:
    """Times at equal quantiles of a density that is measured on trajectories of the run."""

    def times(
        self, num_steps: int, schedule: Schedule | None, calibrated: Tabulated | None = None
    ) -> jax.Array:
        """Return the quantiles, `[num_steps + 1]`.

        Raises:
            ValueError: If `calibrated` is None.
        """
        rule = "not be calibrated without a trained run"
        require(calibrated is not None, "grid", rule, "calibrated")
        assert calibrated is not None
        return times.quantile_grid(num_steps, calibrated)


AnyGrid: TypeAlias = UniformGrid | ShiftedGrid | EdmGrid | QuantileGrid | CalibratedGrid | TimeGrid


@dataclass(frozen=True)
class GridSteps:
    """A number of steps on a time grid, as a setting: `make` returns the `FixedSteps`.

    Attributes:
        num_steps: Number of steps.
        grid: Where the steps begin and end.
    """

    num_steps: int
    grid: AnyGrid = UniformGrid()

    def __post_init__(self) -> None:
        require_numbers(self)
        require_between("num_steps", self.num_steps, 1, MAX_STEPS)

    def make(self, schedule: Schedule | None, calibrated: Tabulated | None = None) -> FixedSteps:
        """Return the steps on a path.

        Args:
            schedule: Schedule of the path, on which the EDM grid depends; None for a process that
                is not an `AffinePath`.
            calibrated: Density of the calibrated grid.

        Raises:
            ValueError: If the grid needs an argument that is None.
        """
        return FixedSteps(self.grid.times(self.num_steps, schedule, calibrated))
