"""`Entry`: a run of the table, with where it comes from, what it costs and what should come out."""

from collections.abc import Callable
from dataclasses import dataclass
from inspect import cleandoc
from typing import Any, Literal

from parhelion.runs.recipe import Recipe

Tag = Literal["paper", "cited", "recalled", "measured"]
TAGS: dict[Tag, str] = {
    "paper": "printed in the paper",
    "cited": "printed in another paper",
    "recalled": "recalled from the paper's body, not checked against its text",
    "measured": "seen here, one run",
}
IMAGENET, IMAGENET_21K, CIFAR, COCO, BUNDLED = 1_281_167, 14_200_000, 50_000, 118_287, 10_000  # training images


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A run of the table; calling it returns its recipe."""

    name: str
    make: Callable[..., Recipe]
    """Returns the recipe; its docstring says what the source leaves open and what we do."""
    of: tuple[Any, ...] = ()
    """What `make` is called with."""
    title: str = ""
    """One line about the run; empty: the first line of `make`'s docstring."""
    source: str
    expected: str = ""
    """What the run should come to; empty where no number is known."""
    tag: Tag | None = None
    """How far `expected` can be trusted."""
    images: int = 0
    """Training images; 0: the user's own, however many."""
    counted: int = 0
    """Multiply-adds of one image where the recipe's choices or size change those of the model's row; 0: the row's."""
    data: str = "DIR"
    """What to give --data, with the options that it needs."""
    start: str = ""
    """Name of the run whose weights this one starts from."""

    def __call__(self) -> Recipe:
        """The recipe."""
        return self.make(*self.of)

    @property
    def headline(self) -> str:
        """One line about the run."""
        return self.title or self._about.splitlines()[0]

    @property
    def command(self) -> str:
        """What to type."""
        start = f" --init-from runs/{self.start}" if self.start else ""
        return f"parhelion train {self.name} --data {self.data} --out runs/{self.name}{start}"

    @property
    def outcome(self) -> str:
        """What the run should come to, with its tag in brackets; "" where no number is known."""
        return f"{self.expected} ({self.tag})" if self.expected else ""

    @property
    def text(self) -> str:
        """Headline, command, source, expectation, and what the source leaves open."""
        expected = f"{self.expected} ({TAGS[self.tag]})" if self.tag else "no number is known"
        about = self._about if self.title else self._about.partition("\n")[2].strip()
        facts = f"Source: {self.source}.\nExpected: {expected}."
        return "\n\n".join(part for part in (self.headline, self.command, facts, about) if part)

    @property
    def multiply_adds(self) -> int:
        """Multiply-adds of one image through the model and not back, with 1000 classes; of a detector, the backbone."""
        # Brings torch, which a help text need not wait for.
        from parhelion.models.catalog import model_info

        return self.counted or model_info(self().model).multiply_adds

    @property
    def passes(self) -> float:
        """How often each training image is seen."""
        recipe = self()
        return recipe.updates * recipe.batch / self.images if recipe.updates else recipe.epochs

    @property
    def _about(self) -> str:
        return cleandoc(self.make.__doc__ or "")
