"""Two-dimensional toy distributions, scaled to about two standard deviations of the noise."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from fmjax._checks import require_at_least, require_numbers, require_one_of
from fmjax._memory import require_host_memory
from fmjax._progress import Progress, Silent
from fmjax._specs import CondSpec, class_spec
from fmjax.data.dataset import SPLITS, Dataset, Split

_Sample: TypeAlias = tuple[np.ndarray, np.ndarray]
"""Points `[num_examples, 2]` and labels `[num_examples]`."""

EIGHT_GAUSSIANS_RADIUS = 2.0
EIGHT_GAUSSIANS_STD = 0.15


def eight_gaussians(generator: np.random.Generator, num_examples: int) -> _Sample:
    """Sample eight equally likely Gaussians of standard deviation 0.15 on a circle of radius 2."""
    label = generator.integers(8, size=num_examples)
    noise = generator.standard_normal((num_examples, 2))
    return EIGHT_GAUSSIANS_RADIUS * _on_circle(label * (np.pi / 4)) + (
        EIGHT_GAUSSIANS_STD * noise
    ), label


def moons(generator: np.random.Generator, num_examples: int) -> _Sample:
    """Sample two interleaved half circles of radius 1.2, with Gaussian noise of std 0.1."""
    label = generator.integers(2, size=num_examples)
    upper = _on_circle(np.pi * generator.random(num_examples))
    lower = np.array([1.0, 0.5]) - upper
    curve = np.where(label[:, None] == 0, upper, lower) - np.array([0.5, 0.25])
    return 1.2 * curve + 0.1 * generator.standard_normal((num_examples, 2)), label


def checkerboard(generator: np.random.Generator, num_examples: int) -> _Sample:
    """Sample uniformly from eight squares of a checkerboard on [-2, 2]^2, labeled by square."""
    label = generator.integers(8, size=num_examples)
    row = label // 2
    column = 2 * (label % 2) + row % 2
    corner = np.stack([column, row], axis=1) - 2.0
    return corner + generator.random((num_examples, 2)), label


def pinwheel(generator: np.random.Generator, num_examples: int) -> _Sample:
    """Sample a pinwheel of five arms with radius 1.2 +- 0.36, twisted by distance from the center.

    Reference: M. Johnson et al. 2016, arXiv:1603.06277, section 7.1.
    """
    label = generator.integers(5, size=num_examples)
    arm = np.array([0.36, 0.06]) * generator.standard_normal((num_examples, 2))
    arm += np.array([1.2, 0.0])
    angle = label * (2 * np.pi / 5) + 0.25 * np.exp(1.5 * np.clip(arm[:, 0], None, 1.8))
    along, across = _on_circle(angle), _on_circle(angle + np.pi / 2)
    return arm[:, :1] * along + arm[:, 1:] * across, label


def spirals(generator: np.random.Generator, num_examples: int) -> _Sample:
    """Sample two spirals of one and a half turns and radius 2, with Gaussian noise of std 0.06."""
    label = generator.integers(2, size=num_examples)
    # The square root spreads examples evenly along the arm, whose length grows like angle^2.
    angle = 3 * np.pi * np.sqrt(generator.random(num_examples))
    curve = (2 * angle / (3 * np.pi))[:, None] * _on_circle(angle + np.pi * label)
    return curve + 0.06 * generator.standard_normal((num_examples, 2)), label


def _on_circle(angle: np.ndarray) -> np.ndarray:
    return np.stack([np.cos(angle), np.sin(angle)], axis=1)


# Name -> (sampling function, number of labeled components).
_TOYS: dict[str, tuple[Callable[[np.random.Generator, int], _Sample], int]] = {
    "moons": (moons, 2),
    "eight_gaussians": (eight_gaussians, 8),
    "checkerboard": (checkerboard, 8),
    "pinwheel": (pinwheel, 5),
    "spirals": (spirals, 2),
}


@dataclass(frozen=True)
class ToyData:
    """A finite sample of a toy distribution, event shape `[2]`.

    Attributes:
        name: "moons", "eight_gaussians", "checkerboard", "pinwheel" or "spirals".
        num_examples: Number of examples in each split.
        seed: Seed of the sample; the train and test splits are independent.
        conditional: Whether the mixture component of each example is its class label.
    """

    name: str = "moons"
    num_examples: int = 65_536
    seed: int = 0
    conditional: bool = False

    def __post_init__(self) -> None:
        require_numbers(self, "data.")
        require_one_of("data.name", self.name, _TOYS)
        require_at_least("data.num_examples", self.num_examples, 1)
        require_at_least("data.seed", self.seed, 0)

    def shape(self) -> tuple[tuple[int, ...], CondSpec]:
        """Return the shape of one data point and the number of classes (None: unconditional)."""
        num_components = _TOYS[self.name][1]
        return (2,), class_spec(num_components) if self.conditional else None

    def load(self, split: Split, *, progress: Progress = Silent()) -> Dataset:
        """Sample the examples of one split."""
        # Estimated bytes of the float64 random numbers and points.
        require_host_memory("data.num_examples", 48.0 * self.num_examples, "examples")
        sample, num_components = _TOYS[self.name]
        generator = np.random.default_rng([self.seed, SPLITS.index(split)])
        points, labels = sample(generator, self.num_examples)
        points = points.astype(np.float32)
        if not self.conditional:
            return Dataset(x=points)
        return Dataset(x=points, labels=labels.astype(np.uint8), num_classes=num_components)
