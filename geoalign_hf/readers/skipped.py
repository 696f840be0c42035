"""What was left out and why: one entry for each thing, so that nothing vanishes silently."""

from collections import Counter
from dataclasses import dataclass, field


@dataclass
class SkipReport:
    """Collects what a run leaves out.

    Args:
        on_error: what becomes of a thing that is wrong: "stop" raises, "skip" notes it and goes on.
        entries: of the form {"kind": ..., "message": ...}; a message begins with the place.

    Example:
        >>> report = SkipReport(on_error="skip")
        >>> report.refuse("bad region", "a.txt line 3: the box has no area. Mend or drop it.")
        >>> report.count_kinds()
        {'bad region': 1}
    """

    on_error: str = "stop"
    entries: list[dict] = field(default_factory=list)

    def __post_init__(self):
        if self.on_error not in ("stop", "skip"):
            raise ValueError(f"on_error is {self.on_error!r}. Choose 'stop' or 'skip'.")

    def skip(self, kind: str, message: str) -> None:
        """Note something that is right, but not wanted."""
        self.entries.append({"kind": kind, "message": message})

    def refuse(self, kind: str, message: str, cause: Exception | None = None) -> None:
        """Stop at something that is wrong, or note it and go on.

        Raises:
            ValueError: if `on_error` is "stop".
        """
        if self.on_error == "stop":
            raise ValueError(message) from cause
        self.skip(kind, message)

    def count_kinds(self) -> dict[str, int]:
        """Count the entries of each kind, the commonest first."""
        return dict(Counter(entry["kind"] for entry in self.entries).most_common())
