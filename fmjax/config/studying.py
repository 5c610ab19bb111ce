"""A study: several trainings, each sampled in several ways, under one measure."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from fmjax._checks import require, require_at_least
from fmjax.config.fields import Config
from fmjax.config.sampling import SamplingConfig


@dataclass(frozen=True)
class StudyConfig:
    """What `fmjax study` trains, samples and measures.

    Attributes:
        name: Of the study's folder.
        runs: The trainings, on the same data; each one's name stands for it in the table. One
            that reflows another of them names it as its teacher.
        samplings: Every run is sampled by each of these, but for those in `own_samplings`.
        num_samples: Samples of each, and real examples that precision and recall take.
        num_paths: Paths of each run that are followed, for how straight they are.
        own_samplings: By the name of a run, what it is sampled by in their place.
    """

    name: str
    runs: tuple[Config, ...]
    samplings: tuple[SamplingConfig, ...]
    num_samples: int = 2_000
    num_paths: int = 256
    own_samplings: Mapping[str, tuple[SamplingConfig, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        require_at_least("num_samples", self.num_samples, 4)
        require_at_least("num_paths", self.num_paths, 1)
        for name in ("runs", "samplings"):
            require(bool(getattr(self, name)), name, "hold at least one", ())
        names = [run.name for run in self.runs]
        require(len(set(names)) == len(names), "runs", "have names of their own", names)
        same = all(run.data == self.runs[0].data for run in self.runs)
        require(same, "runs", "have the same data", [run.data for run in self.runs])
        unknown = sorted(set(self.own_samplings) - set(names))
        require(not unknown, "own_samplings", f"name some of {', '.join(names)}", unknown)
        for place, run in enumerate(self.runs):
            teacher = None if run.reflow is None else run.reflow.teacher
            later = teacher in names[place:]
            require(not later, "runs", "have teachers before those that they teach", run.name)

    def ways(self, run: Config) -> tuple[SamplingConfig, ...]:
        """How a run is sampled."""
        return self.own_samplings.get(run.name, self.samplings)
