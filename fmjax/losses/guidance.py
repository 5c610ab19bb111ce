"""Classifier-free guidance as part of the training target.

A network trained on it samples with guidance at one network evaluation per step instead of two.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PyTree

from fmjax._arrays import Points, PRNGKey, Times, expand_like
from fmjax._checks import require, require_at_least, require_between, require_numbers


@dataclass(frozen=True)
class BuiltInGuidance:
    """Train a network to predict the guided velocity `v_null + scale (v_cond - v_null)` directly.

    The training target is `w u + mix v + (1 - w - mix) v_null` with `w = scale (1 - mix)`. Here u
    is the conditional velocity of the path and v the network's own prediction with the condition,
    which is the guided velocity at the optimum.

    Attributes:
        scale: Guidance scale of the target if guidance is not a network input; 1 disables guidance.
        max_scale: If given, guidance is a network input instead: each training example samples its
            scale from [1, max_scale] with a density proportional to `scale^-power`.
        power: Exponent of that density.
        mix: Weight of the network's own prediction in the target, in [0, 1). None means
            `1 - 1 / scale`, which gives w = 1.
        first: Start of the time interval with guidance. If guidance is a network input, each
            example samples its start uniformly from [0, first].
        last: End of the time interval with guidance. If guidance is a network input, each example
            samples its end uniformly from [last, 1].

    Reference: Geng et al. 2025, arXiv:2505.13447, equations 18 to 21 (omega is w here, kappa is
    mix); arXiv:2512.02012, section 4.2 (guidance as an input).
    """

    scale: float = 1.0
    max_scale: float | None = None
    power: float = 1.0
    mix: float | None = None
    first: float = 0.0
    last: float = 1.0

    def __post_init__(self) -> None:
        require_numbers(self, "guidance.")
        require(self.scale > 0.0, "guidance.scale", "be positive", self.scale)
        if self.max_scale is not None:
            require_at_least("guidance.max_scale", self.max_scale, 1.0)
            rule = "be 1 if guidance.max_scale is given"
            require(self.scale == 1.0, "guidance.scale", rule, self.scale)
        require_at_least("guidance.power", self.power, 0.0)
        if self.mix is not None:
            require(0.0 <= self.mix < 1.0, "guidance.mix", "lie in [0, 1)", self.mix)
        for name in ("first", "last"):
            require_between(f"guidance.{name}", getattr(self, name), 0.0, 1.0)
        rule = f"be at most guidance.last = {self.last}"
        require(self.first <= self.last, "guidance.first", rule, self.first)

    @property
    def enabled(self) -> bool:
        """Whether any training target uses guidance."""
        return self.is_input or self.scale != 1.0

    @property
    def is_input(self) -> bool:
        """Whether the network takes the guidance scale and interval as an input."""
        return self.max_scale is not None

    def check(self, guided: bool, null_cond: PyTree) -> None:
        """Raise a `ValueError` unless a network can be trained with this guidance.

        Args:
            guided: Whether the network takes guidance as an input.
            null_cond: Null condition of the training, or None if conditions are never dropped.
        """
        rule = "be True if guidance.max_scale is given, and False otherwise"
        require(guided == self.is_input, "net.guided", rule, guided)
        trainable = null_cond is not None or not self.enabled
        needs = "for a network without classes or with loss.label_drop = 0"
        if self.max_scale is None:
            require(trainable, "loss.guidance.scale", f"be 1 {needs}", self.scale)
        else:
            require(trainable, "loss.guidance.max_scale", f"be None {needs}", self.max_scale)

    def sample(self, key: PRNGKey, num: int) -> Float[Array, "batch 3"]:
        """Sample the guidance scale, start time and end time of each of `num` examples."""
        if self.max_scale is None:
            return jnp.broadcast_to(jnp.array([self.scale, self.first, self.last]), (num, 3))
        u, first, last = jax.random.uniform(key, (3, num))
        if self.power == 1.0:
            scale = self.max_scale**u
        else:
            upper = self.max_scale ** (1.0 - self.power)
            scale = (1.0 + u * (upper - 1.0)) ** (1.0 / (1.0 - self.power))
        return jnp.stack([scale, self.first * first, 1.0 - (1.0 - self.last) * last], axis=-1)

    def target(
        self,
        t: Times,
        u_t: Points,
        v_cond: Points,
        v_uncond: Points,
        guidance_input: Float[Array, "batch 3"],
        dropped: Bool[Array, " batch"],
    ) -> Points:
        """Compute the target velocity of each example.

        Args:
            t: Times of the examples.
            u_t: Conditional velocity of the path.
            v_cond: Velocity that the network predicts with the condition.
            v_uncond: Velocity that the network predicts with the null condition.
            guidance_input: Scale, start and end of the guidance of each example, from `sample`.
            dropped: True for examples whose condition was dropped; their target is u.
        """
        scale, first, last = guidance_input[:, 0], guidance_input[:, 1], guidance_input[:, 2]
        mix = 1.0 - 1.0 / scale if self.mix is None else jnp.full_like(scale, self.mix)
        w, mix = (expand_like(weight, u_t) for weight in (scale * (1.0 - mix), mix))
        guided = w * u_t + mix * v_cond + (1.0 - w - mix) * v_uncond
        in_interval = (t >= first) & (t <= last) & ~dropped
        return jnp.where(expand_like(in_interval, u_t), guided, u_t)
