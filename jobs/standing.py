"""Which units stand, if parts of a search were run again and cut in another way.

Invariant: of two units of one search that have a subtree in common the later one stands.
"""

from collections import defaultdict

from search.partition import search_and_subtrees


class Standing:
    """Units that stand, given one after the other in the order of their commits."""

    def __init__(self) -> None:
        self._units: defaultdict[tuple[str, str], dict[str, range]] = defaultdict(dict)

    def add(self, policy: str, unit_id: str) -> list[str]:
        """The other units of which this one has run a part again: they no longer stand."""
        search, subtrees = search_and_subtrees(unit_id)
        units = self._units[policy, search]
        units.pop(unit_id, None)
        replaced = [name for name, others in units.items() if _meet(others, subtrees)]
        for name in replaced:
            del units[name]
        units[unit_id] = subtrees
        return replaced


def _meet(one: range, other: range) -> bool:
    return one.start < other.stop and other.start < one.stop
