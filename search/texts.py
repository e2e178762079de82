"""Many texts in one buffer: a text costs its bytes and four more, not an object of its own.

Laid out as Arrow lays out strings, so that a table takes the buffer as it is.
"""

from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field


@dataclass(slots=True)
class Texts:
    """Text i is `utf8[offsets[i] : offsets[i + 1]]`; offsets are int32, so all have 2 GiB."""

    utf8: bytearray = field(default_factory=bytearray)
    offsets: "array[int]" = field(default_factory=lambda: array("i", [0]))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, place: int) -> str:
        return self.utf8[self.offsets[place] : self.offsets[place + 1]].decode()

    def __iter__(self) -> Iterator[str]:
        return (self[place] for place in range(len(self)))

    def append(self, text: str) -> None:
        """Adds a text behind the others; raises ValueError if it cannot be written as UTF-8."""
        self.utf8 += text.encode()
        self.offsets.append(len(self.utf8))

    def joined(self, places: Iterable[int]) -> str:
        """The texts at these places as one."""
        parts = (self.utf8[self.offsets[place] : self.offsets[place + 1]] for place in places)
        return b"".join(parts).decode()
