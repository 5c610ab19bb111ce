"""Config of a study: several trainings, each sampled in several ways, with the same metrics."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from fmjax._checks import require, require_at_least, require_between, require_numbers
from fmjax.config.experiment import Config
from fmjax.config.sampling import Sampling

MAX_SEEDS = 1_000


@dataclass(frozen=True)
class StudyConfig:
    """Trainings, samplings and metrics of `fmjax study`.

    Attributes:
        name: Name of the study, and of its folder under runs/.
        runs: Configs of the trainings, on the same data, whose names identify them in the table. A
            run that reflows another one names it as its teacher.
        samplings: Settings with which each run is sampled, unless `samplings_by_run` replaces them.
        num_samples: Number of samples for each row of the table; precision and recall take as many
            real examples.
        num_trajectories: Number of trajectories of each run whose straightness is measured.
        samplings_by_run: Maps the name of a run to the settings that replace `samplings` for it.
        num_seeds: Number of trainings of each run, with consecutive seeds; the table then has means
            and spreads.
    """

    name: str
    runs: tuple[Config, ...]
    samplings: tuple[Sampling, ...]
    num_samples: int = 2_000
    num_trajectories: int = 256
    samplings_by_run: Mapping[str, tuple[Sampling, ...]] = field(default_factory=dict)
    num_seeds: int = 1

    def __post_init__(self) -> None:
        require_numbers(self)
        require_at_least("num_samples", self.num_samples, 4)
        require_at_least("num_trajectories", self.num_trajectories, 1)
        require_between("num_seeds", self.num_seeds, 1, MAX_SEEDS)
        for name in ("runs", "samplings"):
            require(bool(getattr(self, name)), name, "hold at least one", ())
        trainings = self.all_trainings
        names = [training.name for training in trainings]
        require(len(set(names)) == len(names), "runs", "have distinct names", names)
        for index, training in enumerate(trainings):
            later = training.reflow is not None and training.reflow.teacher in names[index:]
            require(not later, "runs", "list teachers before their students", training.name)
        same_data = all(run.data == self.runs[0].data for run in self.runs)
        require(same_data, "runs", "have the same data", [run.data for run in self.runs])
        models = [run.name for run in self.runs]
        unknown = sorted(set(self.samplings_by_run) - set(models))
        require(not unknown, "samplings_by_run", f"have keys among {', '.join(models)}", unknown)

    def samplings_of(self, run: Config) -> tuple[Sampling, ...]:
        """Return the sampling configs of one run of the study: its own, or those of the study."""
        return self.samplings_by_run.get(run.name, self.samplings)

    @property
    def all_trainings(self) -> tuple[Config, ...]:
        """The trainings of all runs with all seeds, teachers before their students."""
        return tuple(training for run in self.runs for training in self.trainings(run))

    def trainings(self, run: Config) -> tuple[Config, ...]:
        """Return the run with each seed; students have the teacher of the same seed."""
        return (run, *(self._with_seed(run, offset) for offset in range(1, self.num_seeds)))

    def _with_seed(self, run: Config, offset: int) -> Config:
        """Return the run with its seed plus `offset`, under another name."""
        reflow = run.reflow
        if reflow is not None:
            teacher, pairs = reflow.teacher, reflow.pairs
            if teacher in {other.name for other in self.runs}:
                teacher += f"_seed{offset}"
            elif pairs is None:  # Next to the pairs of the first seed.
                pairs = f"{teacher}/pairs"
            sampling = replace(reflow.sampling, seed=reflow.sampling.seed + offset)
            pairs = None if pairs is None else f"{pairs}_seed{offset}"
            reflow = replace(reflow, teacher=teacher, pairs=pairs, sampling=sampling)
        training = replace(run.training, seed=run.training.seed + offset)
        return replace(run, name=f"{run.name}_seed{offset}", training=training, reflow=reflow)
