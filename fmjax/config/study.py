"""A study: several trainings, each sampled in several ways, under one measure."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from fmjax._checks import require, require_at_least, require_between, require_numbers
from fmjax.config.experiment import Config
from fmjax.config.sampling import SamplingConfig

MAX_SEEDS = 1_000


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
        num_seeds: Trainings of each run, by its own seed and the next ones; the table has their
            means, and how far they spread.
    """

    name: str
    runs: tuple[Config, ...]
    samplings: tuple[SamplingConfig, ...]
    num_samples: int = 2_000
    num_paths: int = 256
    own_samplings: Mapping[str, tuple[SamplingConfig, ...]] = field(default_factory=dict)
    num_seeds: int = 1

    def __post_init__(self) -> None:
        require_numbers(self)
        require_at_least("num_samples", self.num_samples, 4)
        require_at_least("num_paths", self.num_paths, 1)
        require_between("num_seeds", self.num_seeds, 1, MAX_SEEDS)
        for name in ("runs", "samplings"):
            require(bool(getattr(self, name)), name, "hold at least one", ())
        trainings = self.all_trainings
        names = [training.name for training in trainings]
        require(len(set(names)) == len(names), "runs", "have names of their own", names)
        for place, training in enumerate(trainings):
            later = training.reflow is not None and training.reflow.teacher in names[place:]
            rule = "have teachers before those that they teach"
            require(not later, "runs", rule, training.name)
        same = all(run.data == self.runs[0].data for run in self.runs)
        require(same, "runs", "have the same data", [run.data for run in self.runs])
        models = [run.name for run in self.runs]
        unknown = sorted(set(self.own_samplings) - set(models))
        require(not unknown, "own_samplings", f"name some of {', '.join(models)}", unknown)

    def ways(self, run: Config) -> tuple[SamplingConfig, ...]:
        """How a run is sampled."""
        return self.own_samplings.get(run.name, self.samplings)

    @property
    def all_trainings(self) -> tuple[Config, ...]:
        """The trainings of all runs, teachers before their students."""
        return tuple(training for run in self.runs for training in self.trainings(run))

    def trainings(self, run: Config) -> tuple[Config, ...]:
        """The run with its own seed, then with the next ones; students have teachers alike."""
        return (run, *(self._seeded(run, nth) for nth in range(1, self.num_seeds)))

    def _seeded(self, run: Config, nth: int) -> Config:
        reflow = run.reflow
        if reflow is not None:
            teacher, pairs = reflow.teacher, reflow.pairs
            if teacher in {other.name for other in self.runs}:
                teacher += f"_seed{nth}"
            elif pairs is None:  # Beside those of the first seed.
                pairs = f"{teacher}/pairs"
            sampling = replace(reflow.sampling, seed=reflow.sampling.seed + nth)
            pairs = None if pairs is None else f"{pairs}_seed{nth}"
            reflow = replace(reflow, teacher=teacher, pairs=pairs, sampling=sampling)
        training = replace(run.training, seed=run.training.seed + nth)
        return replace(run, name=f"{run.name}_seed{nth}", training=training, reflow=reflow)
