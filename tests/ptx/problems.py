"""What a program does that a GPU would not forgive, noted while it runs on."""

from collections import Counter


class Problems(Counter[str]):
    """How often each kind of fault was noted, and where each was seen first."""

    def __init__(self) -> None:
        super().__init__()
        self.first: dict[str, str] = {}
        self.place = ""
        """The kernel and the instruction that runs."""

    def note(self, kind: str, *, unless: bool = False) -> None:
        """Note a fault of this kind at the current place, unless all is well."""
        if not unless:
            self[kind] += 1
            self.first.setdefault(kind, self.place)
