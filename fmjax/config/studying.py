"""A study: several trainings, each sampled in several ways, under one measure."""

from dataclasses import dataclass

from fmjax._checks import require, require_at_least
from fmjax.config.fields import Config
from fmjax.config.sampling import SamplingConfig


@dataclass(frozen=True)
class StudyConfig:
    """What `fmjax study` trains, samples and measures.

    Attributes:
        name: Of the study's folder.
        runs: The trainings, on the same data; each one's name stands for it in the table.
        samplings: Every run is sampled by each of these.
        num_samples: Samples of each, and real examples that precision and recall take.
    """

    name: str
    runs: tuple[Config, ...]
    samplings: tuple[SamplingConfig, ...]
    num_samples: int = 2_000

    def __post_init__(self) -> None:
        require_at_least("num_samples", self.num_samples, 4)
        for name in ("runs", "samplings"):
            require(bool(getattr(self, name)), name, "hold at least one", ())
        names = [run.name for run in self.runs]
        require(len(set(names)) == len(names), "runs", "have names of their own", names)
        same = all(run.data == self.runs[0].data for run in self.runs)
        require(same, "runs", "have the same data", [run.data for run in self.runs])
