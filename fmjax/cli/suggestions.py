"""Suggest known options for an unknown one."""

import difflib
from collections.abc import Sequence

_MIN_RATIO = 0.75
"""Least difflib ratio of two last components that differ by a typing error."""

_MIN_FULL_RATIO = 0.9
"""Least difflib ratio of two full names, group included."""

_SYNONYMS = {
    "cfg": "guidance",
    "cfg-scale": "guidance",
    "guidance-scale": "guidance",
    "num-inference-steps": "num-steps",
}
"""Names of the same settings in other libraries."""


def suggestion(name: str, options: Sequence[str]) -> str:
    """Format the similar options as ` (did you mean --seed?)`; empty if there are none.

    Args:
        name: The unknown option, such as `--optimizer.lr`.
        options: All known options.
    """
    *others, last = nearest(name, options) or [""]
    if not last:
        return ""
    return f" (did you mean {', '.join(others)}{' or ' if others else ''}{last}?)"


def nearest(name: str, options: Sequence[str], *, most: int = 3) -> list[str]:
    """Return the options that are most similar to a name; empty if none is similar.

    The last component decides: `--lr` matches `--optimizer.learning-rate`. Among options whose
    last components are equally similar, the group decides. The name of a group matches all its
    options.

    Args:
        name: The unknown option.
        options: All known options.
        most: Largest number of options to return.
    """
    parts = _split(name)
    scores = {option: _score(parts, _split(option)) for option in options}
    best = max(scores.values(), default=0.0)
    return [option for option, score in scores.items() if score == best > 0][:most]


def _split(option: str) -> tuple[str, str]:
    """Split an option into group and last component: `--a.b-c` into (`a`, `b-c`)."""
    group, _, last = option.lstrip("-").lower().replace("_", "-").rpartition(".")
    return group, _SYNONYMS.get(last, last)


def _score(name: tuple[str, str], option: tuple[str, str]) -> float:
    """Score the similarity, first of the last component and then of the group; 0 if there is none.

    Args:
        name: Group and last component of the unknown option.
        option: Group and last component of a known option.
    """
    (name_group, name_last), (group, last) = name, option
    full_name = ".".join(filter(None, name))
    if group and full_name == group:
        return 20.0
    # Compare the full names too, for a missing dot or the name of a group.
    full_option = "-".join(filter(None, option)).replace(".", "-")
    full = _similarity("-".join(filter(None, name)), full_option)
    if name_group:
        group_similarity = _similarity(name_group, group)
        # In another group, only an option with the same last component matches.
        comparable = group_similarity or name_last == last
        score = _similarity(name_last, last) if comparable else 0.0
    else:
        # A name without a group matches any group, but options without a group come first.
        group_similarity, score = (0.5 if group else 1.0), _similarity(name_last, last)
    by_parts = 10 * score + group_similarity if score else 0.0
    return max(by_parts, 10 * full if full > _MIN_FULL_RATIO else 0.0)


def _similarity(name: str, option: str) -> float:
    """Return 1 for equal names, less for an abbreviation or typing error, 0 otherwise."""
    if name == option:
        return 1.0
    if not name or not option:
        return 0.0
    words = option.split("-")
    abbreviated = (
        len(name) > 1
        and (
            name == "".join(word[0] for word in words if word)  # lr: learning-rate.
            or _begins(name.split("-"), words)  # learn-rate, warmup, num: learning-rate, ...
            or name in (words[-1], "-".join(words[1:]))  # steps: num-steps.
        )
    )
    ratio = difflib.SequenceMatcher(a=name, b=option).ratio()
    if abbreviated:
        return 0.9 + 0.05 * ratio
    joined = difflib.SequenceMatcher(a=name.replace("-", ""), b=option.replace("-", "")).ratio()
    ratio = max(ratio, joined - 0.01)
    return 0.95 * ratio if ratio >= _MIN_RATIO else 0.0


def _begins(prefixes: Sequence[str], words: Sequence[str]) -> bool:
    """Whether each prefix is non-empty and begins the word at the same place."""
    pairs = zip(prefixes, words, strict=False)
    return len(prefixes) <= len(words) and all(p and word.startswith(p) for p, word in pairs)
