"""Config of sampling: sampler, guidance, number of samples and seed; and their short names."""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypedDict, Unpack, cast

from jaxtyping import PyTree

from fmjax._checks import require, require_at_least, require_numbers
from fmjax.config.solvers import make_sampler, sampler_options
from fmjax.paths import LogitNormal, Tabulated
from fmjax.solvers import (
    AnySampler,
    ClassifierFree,
    DensityConfig,
    ErrorControl,
    Guidance,
    Model,
    OdeSampler,
    check_sampler,
)

AnyGuidance = ClassifierFree | Guidance | None


@dataclass(frozen=True)
class SamplingOptions:
    """Settings of a `Sampling` by short names, which are the options of commands.

    None stands for a setting that the sampler does not have.

    Attributes:
        num_samples: Number of samples.
        solver: Name of a solver in lower case. For the ODE: tsit5, dopri5, euler, heun, ...; for
            the SDE: euler_maruyama, stochastic_heun, shark, ...; for diffusion models: ddim,
            ancestral, dpm_solver_pp_2m, unipc; for flow maps: flow_map. A solver without
            `num_steps` adapts its steps, if it can.
        num_steps: Number of fixed steps; None adapts the steps to the tolerances.
        grid: Time grid of fixed steps: uniform; shifted (see `shift`); edm; quantiles (of
            `grid_density`); or calibrated, which is measured on trajectories of the run.
        shift: Shift of the shifted grid; values above 1 make the steps near the noise shorter.
        grid_density: Density whose quantiles are the times of the quantiles grid.
        rtol: Relative tolerance of adaptive steps.
        atol: Absolute tolerance of adaptive steps, in data units.
        control: Error that sets the step size: that of the worst sample of the batch, of each
            sample separately, or the rms over the batch. With an SDE or with slots, each sample
            always has separate steps.
        slots: Number of samples solved at a time on each device, for adaptive steps of an ODE: a
            finished sample is replaced by the next one of the batch. None solves the entire batch
            at once.
        rate: Diffusion rate of SDE solvers: sigma (a power of the path's sigma(t)), constant,
            increasing, decreasing or increasing_decreasing (`fmjax.solvers.diffusion_rates`).
        rate_scale: Factor of the diffusion rate.
        rate_power: Exponent of the sigma(t) for the rate sigma; SiT uses 1/2.
        last_step: Minimum length of the last step of an SDE, which adds no noise.
        clip: Bound on the predicted data of diffusion samplers; None does not clip.
        guidance: Classifier-free guidance scale; 1 is no guidance.
        guidance_interval: First and last time with guidance.
        batch_size: Number of samples solved at a time.
        seed: Seed of the noise.
        prompts: Prompts to sample, equally many of each, for models of captions. Without
            any, captions of the training data are used.
    """

    num_samples: int = 64
    solver: str = "tsit5"
    num_steps: int | None = None
    grid: str | None = None
    shift: float | None = None
    grid_density: DensityConfig | None = None
    rtol: float | None = None
    atol: float | None = None
    control: ErrorControl | None = None
    slots: int | None = None
    rate: str | None = None
    rate_scale: float | None = None
    rate_power: float | None = None
    last_step: float | None = None
    clip: float | None = None
    guidance: float | None = None
    guidance_interval: tuple[float, float] | None = None
    batch_size: int = 256
    seed: int = 0
    prompts: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        require_numbers(self)


class SamplingNames(TypedDict, total=False):
    """Short names of settings, as in `SamplingOptions`; None leaves a setting as it is."""

    num_samples: int | None
    solver: str | None
    num_steps: int | None
    grid: str | None
    shift: float | None
    grid_density: DensityConfig | None
    rtol: float | None
    atol: float | None
    control: ErrorControl | None
    slots: int | None
    rate: str | None
    rate_scale: float | None
    rate_power: float | None
    last_step: float | None
    clip: float | None
    guidance: float | None
    guidance_interval: tuple[float, float] | None
    batch_size: int | None
    seed: int | None
    prompts: tuple[str, ...] | None


@dataclass(frozen=True)
class Sampling:
    """How samples are drawn: sampler, guidance, number and seed.

    `Sampling.of(solver="heun", num_steps=16, guidance=1.5)` makes one from short names.

    Attributes:
        sampler: `OdeSampler`, `SdeSampler`, `DiffusionSampler`, `FlowMapSampler`, or a frozen
            dataclass with the methods of `Sampler`.
        guidance: `ClassifierFree`, or a frozen dataclass with the method of `Guidance`; None is no
            guidance.
        num_samples: Number of samples.
        batch_size: Number of samples solved at a time.
        seed: Seed of the noise.
        prompts: Prompts to sample, equally many of each, for models of captions. Without
            any, captions of the training data are used.
    """

    sampler: AnySampler = OdeSampler()
    guidance: AnyGuidance = None
    num_samples: int = 64
    batch_size: int = 256
    seed: int = 0
    prompts: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        require_numbers(self)
        _require_methods("sampler", self.sampler, ("steps", "__call__"), "Sampler")
        if self.guidance is not None:
            _require_methods("guidance", self.guidance, ("__call__",), "Guidance")
        require_at_least("num_samples", self.num_samples, 1)
        rule = f"be at least {len(self.prompts)}, the number of prompts"
        require(self.num_samples >= len(self.prompts), "num_samples", rule, self.num_samples)
        require_at_least("batch_size", self.batch_size, 1)

    @classmethod
    def of(cls, **names: Unpack[SamplingNames]) -> "Sampling":
        """Make a sampling from short names, such as `solver="heun", num_steps=16, guidance=1.5`.

        Args:
            names: Settings as in `SamplingOptions`. A solver without `num_steps` adapts its steps.

        Raises:
            ValueError: If a name has a wrong value, or the sampler does not have the setting.
        """
        return cls().with_names(**names)

    def with_names(self, **names: Unpack[SamplingNames]) -> "Sampling":
        """Replace settings by short names; those that are None stay as they are.

        A `solver` makes a sampler for it. This keeps the number of steps, the grid and tolerances
        where they apply, but a solver that estimates its error adapts its steps unless
        `num_steps` is given too.

        Args:
            names: Settings as in `SamplingOptions`.

        Raises:
            ValueError: If a name has a wrong value, or the sampler does not have the setting.
        """
        given = {name: value for name, value in names.items() if value is not None}
        return with_options(self, given)

    @property
    def options(self) -> SamplingOptions:
        """The settings by short names; None for those that the sampler does not have."""
        scale, interval = guidance_settings(self.guidance)
        known = self.guidance is None or isinstance(self.guidance, ClassifierFree)
        return SamplingOptions(
            **sampler_options(self.sampler),
            guidance=scale if known else None,
            guidance_interval=interval if known else None,
            num_samples=self.num_samples,
            batch_size=self.batch_size,
            seed=self.seed,
            prompts=self.prompts,
        )

    @property
    def is_named(self) -> bool:
        """Whether short names describe the sampler and the guidance completely."""
        options = self.options
        fields = (field.name for field in dataclasses.fields(options))
        given = {name: getattr(options, name) for name in fields}
        try:
            given = {name: value for name, value in given.items() if value is not None}
            return with_options(Sampling(), given) == self
        except ValueError:  # A class of a user.
            return False

    def guided(self, model: Model) -> Model:
        """Return the model with the guidance.

        Raises:
            ValueError: If the model does not support the guidance.
        """
        return model if self.guidance is None else self.guidance(model)

    def check(self, model: Model) -> None:
        """Raise a `ValueError` if the model does not support the guidance or the sampler."""
        check_sampler(self.sampler, self.guided(model))

    def steps(self, model: Model, calibrated: Tabulated | None = None) -> PyTree:
        """Return the steps of the sampler for a model.

        Args:
            model: The model, without guidance.
            calibrated: Density whose quantiles are the times of the calibrated grid.

        Raises:
            ValueError: If the grid is calibrated and `calibrated` is None.
        """
        return self.sampler.steps(self.guided(model), calibrated)


def _require_methods(name: str, value: object, methods: tuple[str, ...], protocol: str) -> None:
    """Raise unless a value is an object, not a class, that has the methods of a protocol."""
    require(not isinstance(value, type), name, f"be an object of {protocol}, not a class", value)
    for method in methods:
        rule = f"have a method {method}, like every {protocol}"
        has_method = callable(getattr(value, method, None))
        require(has_method, name, rule, f"class {type(value).__name__}")


def guidance_settings(guidance: AnyGuidance) -> tuple[float, tuple[float, float]]:
    """Return scale and interval of classifier-free guidance: 1 and all times without it."""
    default = guidance if isinstance(guidance, ClassifierFree) else ClassifierFree()
    return default.scale, default.interval


def with_options(sampling: Sampling, given: Mapping[str, object]) -> Sampling:
    """Return the sampling with other settings, by the names of `SamplingOptions`.

    This is the only place where short names select and fill a sampler: options of commands,
    keyword arguments and files of older versions all end here.

    Args:
        sampling: The settings that are changed.
        given: The new values by name. None removes a setting: the number of steps, slots, the
            bound or the guidance.

    Raises:
        ValueError: If a name or value is wrong, or the sampler does not have the setting.
    """
    rest = dict(given)
    known = [field.name for field in dataclasses.fields(SamplingOptions)]
    for name in rest:
        require(name in known, "setting", f"be one of {', '.join(known)}", name)
    SamplingOptions(**cast(Any, rest))  # Checks the numbers.
    names = ("num_samples", "batch_size", "seed", "prompts")
    changes: dict[str, Any] = {name: rest.pop(name) for name in names if name in rest}
    if "guidance" in rest or "guidance_interval" in rest:
        scale, interval = guidance_settings(sampling.guidance)
        options: Any = {"scale": scale, "interval": interval}
        for name, field in (("guidance", "scale"), ("guidance_interval", "interval")):
            if name in rest:
                value = rest.pop(name)
                options[field] = getattr(ClassifierFree, field) if value is None else value
        guidance = ClassifierFree(**options)
        changes["guidance"] = None if guidance == ClassifierFree() else guidance
    if rest:
        changes["sampler"] = make_sampler(sampling.sampler, rest)
    return dataclasses.replace(sampling, **changes)


_FLAT_DEFAULTS = {
    "num_steps": None,
    "grid": "uniform",
    "shift": 3.0,
    "grid_density": dataclasses.asdict(LogitNormal()),
    "rtol": 1e-4,
    "atol": 1e-4,
    "control": ErrorControl.LARGEST_SAMPLE,
    "slots": None,
    "rate": "sigma",
    "rate_scale": 1.0,
    "rate_power": 1.0,
    "last_step": 0.04,
    "clip": None,
    "guidance": 1.0,
    "guidance_interval": (0.0, 1.0),
}


def flat_settings(sampling: Sampling) -> dict[str, Any]:
    """Return the settings in one JSON object, with defaults for those that a sampler lacks.

    Records of the sampling have this form in all versions. Classes of users, and settings without a
    short name, are described by `sampler`.
    """
    options = dataclasses.asdict(sampling.options)
    if sampling.options.slots is not None or sampling.options.rate is not None:
        del options["control"]  # Always PER_SAMPLE.
    given = {name: value for name, value in options.items() if value is not None}
    flat = {**_FLAT_DEFAULTS, **given}
    if not sampling.is_named:
        flat["sampler"] = repr((sampling.sampler, sampling.guidance))
    return json.loads(json.dumps(flat, default=str))


SamplingConfig = Sampling.of
"""Former name of `Sampling.of`."""
