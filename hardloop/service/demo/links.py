"""What was seen of every link of the loop, and what speaks against it."""

from hardloop.service.demo import report


class Links:
    """A link that happened once stays so; one that failed in some round is broken whatever the others show."""

    def __init__(self) -> None:
        self._happened: set[str] = set()
        self._evidence: dict[str, str] = {}
        self._broken: dict[str, str] = {}

    def see(self, link: str, happened: object, evidence: str) -> None:
        """Note whether a link happened and what shows it; the last time that it did is what the report tells."""
        if happened or link not in self._happened:
            self._evidence[link] = evidence
        if happened:
            self._happened.add(link)

    def fail(self, link: str, evidence: str) -> None:
        """Note that a link did not hold in some round; the first time is what the report tells."""
        self._broken.setdefault(link, evidence)

    def told(self) -> tuple[report.Link, ...]:
        """Every link of `report.LINKS`, in its order."""
        return tuple(
            report.Link(
                name=name,
                happened=name in self._happened and name not in self._broken,
                evidence=self._broken.get(name) or self._evidence.get(name, "no sign of it"),
            )
            for name in report.LINKS
        )
