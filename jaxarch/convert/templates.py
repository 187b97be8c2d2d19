"""Templates of tensor names: `h.{i}.attn.{kind}.weight` matches names, and is filled to give them again."""

import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass

from jaxarch.errors import UsageError

# {i}: a segment or part of one; {rest*}: any number of segments; {i*2+1}: the number of i, times and plus constants.
_PART = re.compile(r"\{(?P<name>[A-Za-z_]\w*)(?:(?P<many>\*)|(?:\*(?P<times>\d+))?(?P<plus>[+-]\d+)?)\}")
# What a regular expression may hold to be a template: literal text, and groups of these forms.
_GROUPS = {r"\d+": "", r"[0-9]+": "", r"[^.]+": "", r"\w+": "", r".+": "*", r".*": "*"}
_REGEX = re.compile(r"\((?:\?P<(?P<name>\w+)>)?(?P<body>[^()]*)\)|\\(?P<escaped>[^\w])|(?P<plain>[\w\-/: ])")


@dataclass(frozen=True)
class Template:
    """A pattern of names that can be matched and filled.

    `{name}` stands for text without a dot, `{name*}` for text with dots; `{i*2+1}` for the number that i gives.
    """

    text: str

    def __post_init__(self) -> None:
        if re.search(r"[{}]", _PART.sub("", self.text)) or not self.text:
            raise UsageError(f"{self.text!r} is not a pattern of names: write {{i}}, {{rest*}} or {{i*2+1}}")
        for part in self._parts:
            if part["times"] == "0":
                raise UsageError(f"{self.text!r} multiplies {part['name']} by 0")

    @functools.cached_property
    def _parts(self) -> list[re.Match]:
        return list(_PART.finditer(self.text))

    @functools.cached_property
    def variables(self) -> frozenset[str]:
        """The names in braces."""
        return frozenset(p["name"] for p in self._parts)

    @functools.cached_property
    def _regex(self) -> re.Pattern:
        pattern, position, seen = "", 0, set()
        for part in self._parts:
            pattern += re.escape(self.text[position : part.start()])
            name, position = part["name"], part.end()
            body = r".+" if part["many"] else r"\d+" if part["times"] or part["plus"] else r"[^.]+"
            pattern += f"(?P={name})" if name in seen else f"(?P<{name}>{body})"
            seen.add(name)
        return re.compile(pattern + re.escape(self.text[position:]))

    def match(self, name: str) -> dict[str, str] | None:
        """The values of the variables if `name` is of this form, else None."""
        found = self._regex.fullmatch(name)
        if found is None:
            return None
        values = found.groupdict()
        for part in self._parts:
            if part["times"] or part["plus"]:
                number = int(values[part["name"]]) - int(part["plus"] or 0)
                values[part["name"]], rest = (
                    str(number // int(part["times"] or 1)),
                    number % int(part["times"] or 1),
                )
                if rest or number < 0:
                    return None
        return values

    def fill(self, values: Mapping[str, str]) -> str:
        """The name with these values.

        Raises:
            UsageError: arithmetic with a value that is not a number.
        """

        def value(part: re.Match) -> str:
            text = values[part["name"]]
            if not part["times"] and not part["plus"]:
                return text
            if not text.isdecimal():
                raise UsageError(
                    f"{self.text!r} computes with {part['name']}, which is {text!r}, not a number"
                )
            return str(int(text) * int(part["times"] or 1) + int(part["plus"] or 0))

        return _PART.sub(value, self.text)


def from_regex(pattern: str, replacement: str) -> tuple[str, str]:
    r"""Two templates from a row of the regular-expression tables that public ports carry.

    Args:
        pattern: literal text and groups such as `(\d+)`, `([^.]+)`, `(.*)`.
        replacement: what `re.sub` takes: `\1`, `\g<1>`, `\g<name>`.

    Raises:
        UsageError: an expression that cannot be inverted.
    """
    names: list[str] = []
    body, text, position = pattern.removeprefix("^").removesuffix("$"), "", 0
    while position < len(body):
        part = _REGEX.match(body, position)
        kind = _GROUPS.get(part["body"]) if part and part["body"] is not None else ""
        if part is None or kind is None:
            rest = body[position:]
            raise UsageError(
                f"the pattern {pattern!r} cannot be inverted at {rest!r}: write it as a template"
            )
        if part["body"] is not None:
            names.append(part["name"] or f"g{len(names) + 1}")
            text += f"{{{names[-1]}{kind}}}"
        else:
            text += part["escaped"] or part["plain"]
        position = part.end()

    def reference(found: re.Match) -> str:
        key = found[1] or found[2]
        if key.isdecimal() and 0 < int(key) <= len(names):
            key = names[int(key) - 1]
        if key not in names:
            raise UsageError(f"{replacement!r} refers to a group that {pattern!r} does not have")
        many = f"{{{key}*}}" in text
        return f"{{{key}{'*' if many else ''}}}"

    return text, re.sub(r"\\(\d+)|\\g<(\w+)>", reference, replacement)
