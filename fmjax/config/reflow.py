"""Training on the pairs that another flow makes: reflow and distillation."""

from dataclasses import dataclass

from fmjax._checks import require, require_at_least, require_between, require_numbers
from fmjax.config.sampling import SamplingConfig
from fmjax.config.solvers import ODE_SOLVERS


@dataclass(frozen=True)
class ReflowConfig:
    """The pairs of source and target that a trained flow makes, and the training starts from.

    Attributes:
        teacher: Its run folder.
        pairs: Folder of the pairs; None is `pairs` in the teacher's.
        num_pairs: How many.
        real_share: Share of them that go backwards, from real data to where the flow says that
            they come from (arXiv:2405.20320, section 4.3).
        sampling: How the others are drawn; its number of samples does not count.
        warm_start: Start from the teacher's averaged weights.
    """

    teacher: str
    pairs: str | None = None
    num_pairs: int = 20_000
    real_share: float = 0.0
    sampling: SamplingConfig = SamplingConfig()
    warm_start: bool = True

    def __post_init__(self) -> None:
        require_numbers(self, "reflow.")
        require_at_least("reflow.num_pairs", self.num_pairs, 1)
        require_between("reflow.real_share", self.real_share, 0.0, 1.0)
        back = self.real_share == 0.0 or self.sampling.solver in ODE_SOLVERS
        rule = "be of an ODE, which goes backwards too, where real_share is not 0"
        require(back, "reflow.sampling.solver", rule, self.sampling.solver)
