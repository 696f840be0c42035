"""A report of what a run skipped and why, so that nothing vanishes silently."""

from collections import Counter
from dataclasses import dataclass, field


@dataclass
class SkipReport:
    """Collects what a run skips.

    Args:
        on_error: Treatment of wrong data: "stop" raises an error, "skip" records it and goes on.
        entries: Dictionaries {"kind": ..., "message": ...}; a message begins with the place.

    Example:
        >>> report = SkipReport(on_error="skip")
        >>> report.refuse("bad region", "a.txt line 3: the box has no area. Correct or remove it.")
        >>> report.count_kinds()
        {'bad region': 1}
    """

    on_error: str = "stop"
    entries: list[dict] = field(default_factory=list)

    def __post_init__(self):
        if self.on_error not in ("stop", "skip"):
            raise ValueError(f"on_error is {self.on_error!r}. Choose 'stop' or 'skip'.")

    def skip(self, kind: str, message: str) -> None:
        """Record something that is correct, but not wanted."""
        self.entries.append({"kind": kind, "message": message})

    def refuse(self, kind: str, message: str, cause: Exception | None = None) -> None:
        """Stop at something that is wrong, or record it and go on.

        Raises:
            ValueError: If `on_error` is "stop".
        """
        if self.on_error == "stop":
            raise ValueError(message) from cause
        self.skip(kind, message)

    def count_kinds(self) -> dict[str, int]:
        """Count the entries of each kind, the most frequent first."""
        return dict(Counter(entry["kind"] for entry in self.entries).most_common())
