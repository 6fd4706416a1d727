"""What a check found: errors, warnings and notes, each with examples; as text and as JSON."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

Level = Literal["error", "warning", "note"]
TITLES: dict[Level, str] = {"error": "ERRORS", "warning": "WARNINGS", "note": "NOTES"}
SHOWN = 6  # examples of a finding in the text
WIDTH = 110


@dataclass(frozen=True)
class Finding:
    """One thing that was found, and where."""

    level: Level
    """`error`: training or evaluation fails or means nothing. `warning`: look at it. `note`: good
    to know.
    """
    kind: str
    """A name that stays the same from version to version: `unreadable-image`, `jump`, ..."""
    text: str
    """One line: what, how often, what it means."""
    examples: tuple[str, ...] = ()
    """All places, the most telling ones first."""

    def lines(self) -> list[str]:
        """The finding with its first examples, indented."""
        shown = self.examples if len(self.examples) <= SHOWN + 1 else self.examples[:SHOWN]
        rest = len(self.examples) - len(shown)
        more = [f"    ... and {rest} more, all in check.json"] if rest else []
        text = textwrap.wrap(
            self.text, WIDTH, initial_indent="  ", subsequent_indent="  ", break_on_hyphens=False
        )
        return [*text, *(f"    {example}" for example in shown), *more]

    def as_json(self) -> dict[str, Any]:
        """`level, kind, text, examples`."""
        return {
            "level": self.level,
            "kind": self.kind,
            "text": self.text,
            "examples": list(self.examples),
        }


def findings_text(findings: Sequence[Finding]) -> str:
    """Errors, then warnings, then notes, each part under its title; then how many there are."""
    lines = []
    for level, title in TITLES.items():
        part = [finding for finding in findings if finding.level == level]
        if part:
            lines += [title, *(line for finding in part for line in finding.lines()), ""]
    return "\n".join([*lines, summary(findings)])


def summary(findings: Sequence[Finding]) -> str:
    """`1 error, no warnings`."""
    counts = [sum(finding.level == level for finding in findings) for level in ("error", "warning")]
    words = [
        f"{count or 'no'} {word}{'s' * (count != 1)}"
        for count, word in zip(counts, ("error", "warning"), strict=True)
    ]
    return ", ".join(words)


def share(part: int, whole: int) -> str:
    """`12 of 340 (3.5 %)`."""
    return f"{part} of {whole} ({100 * part / max(whole, 1):.3g} %)"
