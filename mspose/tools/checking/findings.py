"""Findings of a check: errors, warnings and notes, each with examples; as text and as JSON."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

Level = Literal["error", "warning", "note"]
TITLES: dict[Level, str] = {"error": "ERRORS", "warning": "WARNINGS", "note": "NOTES"}
SHOWN = 6  # examples of a finding in the text
WIDTH = 100


@dataclass(frozen=True)
class Finding:
    """A fault or oddity, with examples."""

    level: Level
    """`error`: training or evaluation fails or means nothing. `warning`: to be examined. `note`:
    good to know.
    """
    kind: str
    """A name that stays the same from version to version: `unreadable-image`, `jump`, ..."""
    text: str
    """One line: what, how often, what it means."""
    examples: tuple[str, ...] = ()
    """All cases, the most telling ones first; each begins with its image where it has one."""

    def lines(self) -> list[str]:
        """The finding with its first examples, indented."""
        shown = self.examples if len(self.examples) <= SHOWN + 1 else self.examples[:SHOWN]
        lines = textwrap.wrap(
            self.text, WIDTH, initial_indent="  ", subsequent_indent="  ", break_on_hyphens=False
        )
        lines += [f"    {example}" for example in shown]
        if rest := len(self.examples) - len(shown):
            lines.append(f"    ... and {rest} more, all in check.json")
        return lines

    def as_json(self) -> dict[str, Any]:
        """`level, kind, text, examples`."""
        return {**vars(self), "examples": list(self.examples)}


def findings_text(findings: Sequence[Finding]) -> str:
    """Errors, warnings and notes, each part under its title, and a summary."""
    lines = []
    for level, title in TITLES.items():
        part = [finding for finding in findings if finding.level == level]
        if part:
            lines += [title, *(line for finding in part for line in finding.lines()), ""]
    return "\n".join([*lines, summary(findings)])


def summary(findings: Sequence[Finding]) -> str:
    """`1 error, no warnings`."""
    counts = {
        level: sum(finding.level == level for finding in findings) for level in ("error", "warning")
    }
    return ", ".join(
        f"1 {level}" if count == 1 else f"{count or 'no'} {level}s"
        for level, count in counts.items()
    )


def share(part: int, whole: int) -> str:
    """`12 of 340 (3.5 %)`."""
    return f"{part} of {whole} ({100 * part / max(whole, 1):.3g} %)"


def equal_images(images: Sequence[str]) -> str:
    """`a.jpg = b.jpg = c.jpg = 4 more`."""
    more = [f"{len(images) - 3} more"] if len(images) > 3 else []
    return " = ".join([*images[:3], *more])
