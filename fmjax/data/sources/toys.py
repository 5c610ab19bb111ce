"""Two-dimensional toys, all about as wide as two standard deviations of the source."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from fmjax._checks import require_at_least, require_numbers, require_one_of
from fmjax._memory import require_host_memory
from fmjax._progress import Progress, Silent
from fmjax.data.dataset import SPLITS, Dataset, Split

_Draw: TypeAlias = tuple[np.ndarray, np.ndarray]

EIGHT_GAUSSIANS_RADIUS = 2.0
EIGHT_GAUSSIANS_STD = 0.15


def eight_gaussians(generator: np.random.Generator, num_examples: int) -> _Draw:
    """Equal Gaussians of standard deviation 0.15 at the eighths of a circle of radius 2."""
    label = generator.integers(8, size=num_examples)
    noise = generator.standard_normal((num_examples, 2))
    return EIGHT_GAUSSIANS_RADIUS * _on_circle(label * (np.pi / 4)) + (
        EIGHT_GAUSSIANS_STD * noise
    ), label


def moons(generator: np.random.Generator, num_examples: int) -> _Draw:
    """Two interleaved half circles of radius 1.2 with Gaussian noise of 0.1."""
    label = generator.integers(2, size=num_examples)
    upper = _on_circle(np.pi * generator.random(num_examples))
    lower = np.array([1.0, 0.5]) - upper
    curve = np.where(label[:, None] == 0, upper, lower) - np.array([0.5, 0.25])
    return 1.2 * curve + 0.1 * generator.standard_normal((num_examples, 2)), label


def checkerboard(generator: np.random.Generator, num_examples: int) -> _Draw:
    """Uniform on the eight unit squares of one colour in `[-2, 2]^2`; the label is the square."""
    label = generator.integers(8, size=num_examples)
    row = label // 2
    column = 2 * (label % 2) + row % 2
    corner = np.stack([column, row], axis=1) - 2.0
    return corner + generator.random((num_examples, 2)), label


def pinwheel(generator: np.random.Generator, num_examples: int) -> _Draw:
    """Five arms, radially 1.2 +- 0.36 wide, twisted by their own distance from the centre.

    Source: M. Johnson et al. 2016, arXiv:1603.06277, section 7.1.
    """
    label = generator.integers(5, size=num_examples)
    arm = np.array([0.36, 0.06]) * generator.standard_normal((num_examples, 2))
    arm += np.array([1.2, 0.0])
    angle = label * (2 * np.pi / 5) + 0.25 * np.exp(1.5 * np.clip(arm[:, 0], None, 1.8))
    along, across = _on_circle(angle), _on_circle(angle + np.pi / 2)
    return arm[:, :1] * along + arm[:, 1:] * across, label


def spirals(generator: np.random.Generator, num_examples: int) -> _Draw:
    """Two arms of one and a half turns, out to radius 2, with Gaussian noise of 0.06."""
    label = generator.integers(2, size=num_examples)
    # The square root spreads examples evenly along the arm, whose length grows like angle^2.
    angle = 3 * np.pi * np.sqrt(generator.random(num_examples))
    curve = (2 * angle / (3 * np.pi))[:, None] * _on_circle(angle + np.pi * label)
    return curve + 0.06 * generator.standard_normal((num_examples, 2)), label


def _on_circle(angle: np.ndarray) -> np.ndarray:
    return np.stack([np.cos(angle), np.sin(angle)], axis=1)


# Name -> (sampler, number of components that it labels).
_TOYS: dict[str, tuple[Callable[[np.random.Generator, int], _Draw], int]] = {
    "moons": (moons, 2),
    "eight_gaussians": (eight_gaussians, 8),
    "checkerboard": (checkerboard, 8),
    "pinwheel": (pinwheel, 5),
    "spirals": (spirals, 2),
}


@dataclass(frozen=True)
class ToyData:
    """A finite draw from one of the toys, event shape `[2]`.

    Attributes:
        name: moons, eight_gaussians, checkerboard, pinwheel or spirals.
        num_examples: How many examples each split holds.
        seed: Of the draw; train and test are independent draws.
        conditional: Whether the component that drew an example is its class.
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

    def shape(self) -> tuple[tuple[int, ...], int | None]:
        """The shape of one example and the number of classes, without drawing any."""
        return (2,), _TOYS[self.name][1] if self.conditional else None

    def load(self, split: Split, *, progress: Progress = Silent()) -> Dataset:
        """Draw the examples of one split."""
        # Random numbers and points, in float64.
        require_host_memory("data.num_examples", 48.0 * self.num_examples, "examples")
        draw, num_components = _TOYS[self.name]
        generator = np.random.default_rng([self.seed, SPLITS.index(split)])
        points, labels = draw(generator, self.num_examples)
        points = points.astype(np.float32)
        if not self.conditional:
            return Dataset(x=points)
        return Dataset(x=points, labels=labels.astype(np.uint8), num_classes=num_components)
