"""What `fmjax invert` measures, and what it shows."""

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
    """Images to noise and back, between two images, and edited.

    Attributes:
        num_images: Test images whose way to noise and back is measured, two of each class in turn.
        classes: Of images that are given, one each.
        fixed_solvers: Names of ODE solvers that go there and back by each of `num_steps` steps.
        num_steps: Their steps, in each direction.
        adaptive_solvers: Names of those that go by each of `tolerances`.
        tolerances: Their rtol = atol.
        num_shown: Rows of the edited images; half as many pairs are interpolated.
        num_between: Images from one end of a pair to the other, both included.
        strengths: Of the edits: the shares of the way back to noise.
        target_class: What the edits ask for; None for each image's own class.
        guidance: Classifier-free guidance scale of the edits; 1 is none. Nothing else is guided.
        solver: What solves for the pictures, by adaptive steps.
        tolerance: Its rtol = atol.
        seed: Of the noise of the edits.
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
