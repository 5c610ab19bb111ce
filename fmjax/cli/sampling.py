"""Options of sampling: short names, which select and fill the sampler of a config."""

import dataclasses
from typing import TYPE_CHECKING, Annotated, Any

if TYPE_CHECKING:
    from tyro.constructors import ConstructorRegistry


def short_names() -> "ConstructorRegistry":
    """Return tyro's rules that make the options of a `Sampling` from its short names.

    An option that differs from the setting of the default `Sampling` changes it, by
    `fmjax.config.with_options`. Equal ones change nothing.
    """
    import tyro
    from tyro.constructors import (
        ConstructorRegistry,
        StructConstructorSpec,
        StructFieldSpec,
        StructTypeInfo,
    )

    from fmjax.config import LogitNormal, Sampling, SamplingOptions, with_options

    registry = ConstructorRegistry()

    @registry.struct_rule
    def rule(info: StructTypeInfo) -> StructConstructorSpec | None:
        if info.type is not Sampling:
            return None
        default = info.default if isinstance(info.default, Sampling) else Sampling()
        shown = default.options
        if shown.grid_density is None:  # Without a default, its options would not exist.
            shown = dataclasses.replace(shown, grid_density=LogitNormal())

        def change(options: SamplingOptions) -> Sampling:
            names = [field.name for field in dataclasses.fields(options)]
            values = {name: (getattr(options, name), getattr(shown, name)) for name in names}
            given = {name: new for name, (new, old) in values.items() if new != old}
            return with_options(default, given)

        flat: Any = Annotated[SamplingOptions, tyro.conf.arg(name="")]
        return StructConstructorSpec(change, (StructFieldSpec("options", flat, shown),))

    return registry
