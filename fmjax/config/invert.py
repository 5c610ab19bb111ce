"""Config of `fmjax invert`: inversion error, interpolation and edits."""

from dataclasses import dataclass

from fmjax._checks import (
    MAX_STEPS,
    require,
    require_at_least,
    require_between,
    require_numbers,
    require_one_of,
    require_positive,
)
from fmjax.config.solvers import ODE_SOLVERS, can_adapt


@dataclass(frozen=True)
class InvertConfig:
    """Map images to noise and back, interpolate between two images, and edit images.

    Attributes:
        num_images: Number of test images whose error after inversion to noise and back is
            measured, two of each class in turn.
        classes: Class label of each image file that is passed to the command.
        fixed_solvers: Names of fixed-step ODE solvers whose inversion error is measured, with each
            number of steps.
        num_steps: Numbers of steps of the fixed-step solvers, in each direction.
        adaptive_solvers: Names of adaptive ODE solvers whose inversion error is measured, with each
            of the tolerances.
        tolerances: Tolerances of the adaptive solvers, each used as both rtol and atol.
        num_shown: Number of images that are edited; half as many pairs are interpolated.
        num_between: Number of images of each interpolation, including both ends.
        strengths: Strengths of the edits, as fractions of the way from the data to noise.
        target_class: Class label that the edited images are conditioned on; None keeps the class
            of each image.
        guidance: Classifier-free guidance scale of the edits; 1 is no guidance. Nothing else is
            guided.
        solver: Name of the ODE solver for interpolations and edits, with adaptive steps.
        tolerance: Tolerance of this solver, used as both rtol and atol.
        seed: Seed of the noise of the edits.
    """

    num_images: int = 64
    classes: tuple[int, ...] = ()
    fixed_solvers: tuple[str, ...] = ("heun", "rk4")
    num_steps: tuple[int, ...] = (8, 16, 32)
    adaptive_solvers: tuple[str, ...] = ("tsit5", "dopri5")
    tolerances: tuple[float, ...] = (1e-3, 1e-5)
    num_shown: int = 10
    num_between: int = 9
    strengths: tuple[float, ...] = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
    target_class: int | None = None
    guidance: float = 1.0
    solver: str = "tsit5"
    tolerance: float = 1e-4
    seed: int = 0

    def __post_init__(self) -> None:
        require_numbers(self)
        for name, low in (("num_images", 1), ("num_shown", 1), ("num_between", 2)):
            require_at_least(name, getattr(self, name), low)
        for solver in self.fixed_solvers:
            require_one_of("fixed_solvers", solver, ODE_SOLVERS)
        for solver in self.adaptive_solvers:
            require_one_of("adaptive_solvers", solver, filter(can_adapt, ODE_SOLVERS))
        require_one_of("solver", self.solver, filter(can_adapt, ODE_SOLVERS))
        for steps in self.num_steps:
            require_between("num_steps", steps, 1, MAX_STEPS)
        for tolerance in (*self.tolerances, self.tolerance):
            require_positive("tolerance", tolerance)
        require(bool(self.strengths), "strengths", "hold at least one", self.strengths)
        for strength in self.strengths:
            require_between("strength", strength, 0.0, 1.0)
        require_at_least("guidance", self.guidance, 0.0)
