"""What every pool of members is to those who use it, whatever its members do."""

from cluster.census import Census
from cluster.crew import Crew
from cluster.watchdog import Waiting


class Pool:
    """Members by name. One that dies is replaced, and what it was working on is done by another."""

    _crew: Crew

    @property
    def names(self) -> list[str]:
        """Members that can be given work: of those that must hold what is newest, the ones that do."""
        return self._crew.names

    @property
    def target(self) -> int:
        """How many members there are to be."""
        return self._crew.fleet.target

    @property
    def busy_seconds(self) -> float:
        """Time that members had work, all together, since the start."""
        return self._crew.busy_seconds

    def resize(self, members: int) -> None:
        """How many members there should be."""
        self._crew.resize(members)

    def withdraw(self) -> None:
        """Calls off who waits for a place."""
        self._crew.withdraw()

    def census(self) -> Census:
        """How the pool stands; may be asked from another thread."""
        return self._crew.census()

    def awaited(self) -> list[Waiting]:
        """Everybody, with what each was asked to do."""
        return self._crew.awaited()

    def stop(self) -> None:
        self._crew.stop()
