"""A config as JSON, and back."""

import json

import cattrs
import cattrs.preconf.json
import cattrs.v
from cattrs.strategies import configure_tagged_union

from fmjax.config.fields import AnyCoupling, Config, DensityConfig
from fmjax.data import DataConfig
from fmjax.networks import NetworkConfig
from fmjax.schedules import AnySchedule
from fmjax.times import AnyDensity


def _make_converter() -> cattrs.Converter:
    converter = cattrs.preconf.json.make_converter(forbid_extra_keys=True)
    for union in (DataConfig, NetworkConfig, AnySchedule, AnyDensity, DensityConfig, AnyCoupling):
        configure_tagged_union(union, converter, tag_name="type")
    return converter


_CONVERTER = _make_converter()


def to_json(config: Config) -> str:
    """Every field of the config, unions with their type; `from_json` reads it back equal."""
    return json.dumps(_CONVERTER.unstructure(config, Config), indent=2) + "\n"


def from_json(text: str) -> Config:
    """Read what `to_json` wrote.

    Raises:
        ValueError: If a field is unknown, missing or of the wrong kind; all are named.
    """
    try:
        return _CONVERTER.structure(json.loads(text), Config)
    except cattrs.BaseValidationError as error:
        lines = cattrs.transform_error(error, path="config", format_exception=_in_words)
        raise ValueError("; ".join(lines)) from error
    except json.JSONDecodeError as error:
        raise ValueError(f"config must be JSON, got {error}") from error


def _in_words(error: BaseException, kind: type | None) -> str:
    """A field's own refusal says what it wants; cattrs would only say that it is invalid."""
    if type(error) is ValueError:
        return str(error)
    return cattrs.v.format_exception(error, kind)
