"""Which option was meant by a misspelt one."""

import difflib
from collections.abc import Sequence

_LIKE = 0.75
"""The least similarity, as difflib measures it, of components that differ by a slip."""

_WHOLE = 0.9
"""The same of names with their groups."""

_SYNONYMS = {
    "cfg": "guidance",
    "cfg-scale": "guidance",
    "guidance-scale": "guidance",
    "num-inference-steps": "num-steps",
}
"""Names of the same settings in other libraries."""


def suggestion(name: str, options: Sequence[str]) -> str:
    """Name the options that are near: ` (did you mean --seed?)`, or nothing.

    Args:
        name: The unknown option, such as `--optimizer.lr`.
        options: All known options.
    """
    *others, last = nearest(name, options) or [""]
    if not last:
        return ""
    return f" (did you mean {', '.join(others)}{' or ' if others else ''}{last}?)"


def nearest(name: str, options: Sequence[str], *, most: int = 3) -> list[str]:
    """The options that come nearest to a name; none if nothing is near.

    The last component decides: `--lr` means `--optimizer.learning-rate`. Of several options with
    an equally near last component, those of the nearest group count. The name of a group means
    the options in it.
    """
    wanted = _parts(name)
    scores = {option: _score(wanted, _parts(option)) for option in options}
    best = max(scores.values(), default=0.0)
    return [option for option, score in scores.items() if score == best > 0][:most]


def _parts(option: str) -> tuple[str, str]:
    """Group and last component: `--a.b-c` is (`a`, `b-c`)."""
    group, _, last = option.lstrip("-").lower().replace("_", "-").rpartition(".")
    return group, _SYNONYMS.get(last, last)


def _score(wanted: tuple[str, str], option: tuple[str, str]) -> float:
    """How near an option is, by its last component first and then by its group; 0 if it is not."""
    (wanted_group, wanted_last), (group, last) = wanted, option
    # As of a dot that is missing, or of a group instead of an option.
    whole = _near("-".join(filter(None, wanted)), "-".join(filter(None, option)).replace(".", "-"))
    if group and ".".join(filter(None, wanted)) == group:
        return 20.0
    if wanted_group:
        nearness = _near(wanted_group, group)
        # In another group, only an option of the same name is meant.
        score = _near(wanted_last, last) if nearness or wanted_last == last else 0.0
    else:
        # A name without a group means any group, first of all the options without one.
        nearness, score = (0.5 if group else 1.0), _near(wanted_last, last)
    return max(10 * score + nearness if score else 0.0, 10 * whole if whole > _WHOLE else 0.0)


def _near(wanted: str, name: str) -> float:
    """1 for the same, less for an abbreviation or a slip, 0 for anything else."""
    if wanted == name:
        return 1.0
    if not wanted or not name:
        return 0.0
    words = name.split("-")
    abbreviated = (
        len(wanted) > 1
        and (
            wanted == "".join(word[0] for word in words if word)  # lr: learning-rate.
            or _begins(wanted.split("-"), words)  # learn-rate, warmup, num: learning-rate, ...
            or wanted in (words[-1], "-".join(words[1:]))  # steps: num-steps.
        )
    )
    ratio = difflib.SequenceMatcher(a=wanted, b=name).ratio()
    if abbreviated:
        return 0.9 + 0.05 * ratio
    joined = difflib.SequenceMatcher(a=wanted.replace("-", ""), b=name.replace("-", "")).ratio()
    ratio = max(ratio, joined - 0.01)
    return 0.95 * ratio if ratio >= _LIKE else 0.0


def _begins(wanted: Sequence[str], words: Sequence[str]) -> bool:
    """Whether each wanted word begins a word of the name, in order."""
    pairs = zip(wanted, words, strict=False)
    return len(wanted) <= len(words) and all(w and word.startswith(w) for w, word in pairs)
