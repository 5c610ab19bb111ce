"""Classifier-free guidance that is learned, so that sampling pays for one evaluation only."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from fmjax._arrays import Points, PRNGKey, Times, expand_like
from fmjax._checks import require, require_at_least, require_between, require_numbers


@dataclass(frozen=True)
class BuiltInGuidance:
    """The guided velocity `v_null + scale (v_cond - v_null)` as a target of training.

    It is written with the network's own guided velocity v, which is right where it is learned:
    `w u + mix v + (1 - w - mix) v_null` with `w = scale (1 - mix)`, u the draw's velocity.

    Attributes:
        scale: The one scale that is built in; 1 is none.
        max_scale: A number makes guidance an input of the network instead: each example draws a
            scale between 1 and it, with a density that falls as `scale^-power`.
        power: Of that density.
        mix: In [0, 1); None takes `1 - 1 / scale`, so that the draw counts once (w = 1).
        first: Guided are the times from `first` to `last`. Where guidance is an input, they are
            drawn too, from [0, first] and from [last, 1].
        last: Likewise.

    Source: Geng et al. 2025, arXiv:2505.13447, equations 18 to 21 (its omega is w here, its kappa
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
            rule = "be 1 where guidance is an input"
            require(self.scale == 1.0, "guidance.scale", rule, self.scale)
        require_at_least("guidance.power", self.power, 0.0)
        if self.mix is not None:
            require(0.0 <= self.mix < 1.0, "guidance.mix", "lie in [0, 1)", self.mix)
        for name in ("first", "last"):
            require_between(f"guidance.{name}", getattr(self, name), 0.0, 1.0)
        rule = f"be at most last {self.last}"
        require(self.first <= self.last, "guidance.first", rule, self.first)

    @property
    def enabled(self) -> bool:
        """Whether any target is guided."""
        return self.is_input or self.scale != 1.0

    @property
    def is_input(self) -> bool:
        """Whether the network is told the scale and its times."""
        return self.max_scale is not None

    def check(self, guided: bool, null_cond: Any) -> None:
        """Raise unless a network of this kind can learn it."""
        right = guided == self.is_input
        require(right, "net", "have guidance for an input if it is drawn, and only then", guided)
        rule = "be 1 for a network without classes, or trained with loss.label_drop 0"
        require(
            null_cond is not None or not self.enabled,
            "loss.guidance.scale",
            rule,
            self.scale if self.max_scale is None else self.max_scale,
        )

    def draw(self, key: PRNGKey, num: int) -> Float[Array, "batch 3"]:
        """Scale, first and last guided time of each example."""
        if self.max_scale is None:
            return jnp.broadcast_to(jnp.array([self.scale, self.first, self.last]), (num, 3))
        u, first, last = jax.random.uniform(key, (3, num))
        if self.power == 1.0:
            scale = self.max_scale**u
        else:
            most = self.max_scale ** (1.0 - self.power)
            scale = (1.0 + u * (most - 1.0)) ** (1.0 / (1.0 - self.power))
        return jnp.stack([scale, self.first * first, 1.0 - (1.0 - self.last) * last], axis=-1)

    def target(
        self,
        t: Times,
        draw: Points,
        v_cond: Points,
        v_uncond: Points,
        guidance_input: Float[Array, "batch 3"],
        dropped: Bool[Array, " batch"],
    ) -> Points:
        """The velocity to learn.

        Args:
            t: Times.
            draw: The velocity u of the path.
            v_cond: The network's guided velocity, with the condition.
            v_uncond: Its velocity without.
            guidance_input: As `draw` gave it.
            dropped: Which examples have no condition: these learn the draw's velocity.
        """
        scale, first, last = guidance_input[:, 0], guidance_input[:, 1], guidance_input[:, 2]
        mix = 1.0 - 1.0 / scale if self.mix is None else jnp.full_like(scale, self.mix)
        w, mix = (expand_like(number, draw) for number in (scale * (1.0 - mix), mix))
        guided = w * draw + mix * v_cond + (1.0 - w - mix) * v_uncond
        here = (t >= first) & (t <= last) & ~dropped
        return jnp.where(expand_like(here, draw), guided, draw)
