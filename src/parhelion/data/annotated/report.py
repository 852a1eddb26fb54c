"""What was found in a COCO annotation file that cannot be used, or not as it stands."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from parhelion.data.annotated.annotations import FEW_POINTS, NO_SEGMENTATION, OF_LEFT_OUT, Annotation
from parhelion.data.annotated.file import IMAGE_FILE
from parhelion.data.samples import few


@dataclass(frozen=True, kw_only=True)
class Report:
    """One file's findings, in ids unless said otherwise; an id stands as often as it was found."""

    file: Path
    folder: Path
    """Of the images."""
    annotations: int
    """How many are used."""
    dropped: Mapping[str, tuple[int | str, ...]]
    """What is left out, for each kind of problem; an annotation counts for the first that it has, and of images
    whose file is missing the names are listed."""
    bad_polygons: Mapping[str, tuple[int, ...]]
    """For each polygon that was left out beside good ones the annotation, by what is wrong with it."""
    unmatchable: Mapping[str, tuple[int, ...]]
    """Annotations that stay though no detection can match them, for each kind of problem."""
    reaching_out: tuple[int, ...]
    """Annotations whose box leaves the image by more than a pixel."""
    sharing_ids: int
    """How many annotations share their id with another one."""
    respelled: tuple[str, ...]
    """Names, as in the file, of images whose file is spelled otherwise."""
    federated: bool
    """Whether the file says, as LVIS does, which categories were not annotated everywhere."""

    def refusal(self) -> str | None:
        """What a user who wants nothing left out must mend, in words."""
        lossy = {kind: ids for kind, ids in self.bad_polygons.items() if kind != FEW_POINTS}
        return self.described({**self.dropped, **{f"annotations with {kind}": ids for kind, ids in lossy.items()}})

    def described(self, problems: Mapping[str, Sequence[int | str]] | None = None) -> str | None:
        """Each kind of problem with how often and where, but not what follows from another one."""
        problems = self.dropped if problems is None else problems
        where = {IMAGE_FILE: f", searched in '{self.folder}'"}
        parts = [
            f"{kind}: {len(ids)} ({_few(ids)}{where.get(kind, '')})"
            for kind, ids in problems.items()
            if kind != OF_LEFT_OUT
        ]
        return ", ".join(parts) or None

    @property
    def hint(self) -> str:
        """What else could be done about what is left out: a clause, or nothing."""
        if NO_SEGMENTATION not in self.dropped:
            return ""
        return "; --no-masks trains and scores boxes only, which need no segmentation"

    def notes(self) -> tuple[str, ...]:
        """A sentence for everything that is not used as it stands."""
        file = self.file
        found = [f"left out of {file}: {len(ids)} {kind} ({_few(ids)})" for kind, ids in self.dropped.items()]
        found += [
            f"left out of {file}: {len(ids)} polygons of {len(set(ids))} annotations, whose others stay: {kind} "
            f"({_few(ids)})"
            for kind, ids in self.bad_polygons.items()
        ]
        found += [
            f"kept in {file}: {len(ids)} {kind} ({_few(ids)}): COCO's scores count them, and nothing can match them"
            for kind, ids in self.unmatchable.items()
        ]
        if self.reaching_out:
            found.append(
                f"{len(self.reaching_out)} annotations that reach out of their image in {file}: clipped for training, "
                f"scored as they stand ({_few(self.reaching_out)})"
            )
        if self.sharing_ids:
            found.append(
                f"{self.sharing_ids} of {self.annotations} annotations in {file} share their id with another one; "
                "all are kept"
            )
        if self.respelled:
            found.append(
                f"{len(self.respelled)} names of images in {file} are spelled otherwise than the files, which were "
                f"found all the same (%20 for a space, \\ for / and the like): {few(self.respelled)}"
            )
        if self.federated:
            found.append(
                f"{file} says, as LVIS does, which categories were not annotated in an image; COCO's scores, "
                "unlike those of LVIS, count detections of them as false"
            )
        return tuple(found)


def by_problem(found: Iterable[tuple[str | None, Annotation]]) -> dict[str, tuple[int, ...]]:
    """The ids of annotations for each problem; None is none."""
    ids: dict[str, list[int]] = {}
    for problem, annotation in found:
        if problem is not None:
            ids.setdefault(problem, []).append(annotation.identifier)
    return {problem: tuple(those) for problem, those in ids.items()}


def sharing_ids(annotations: Iterable[Annotation]) -> int:
    """How many of `annotations` have the id of another one."""
    return sum(count for count in Counter(one.identifier for one in annotations).values() if count > 1)


def _few(ids: Sequence[int | str]) -> str:
    return few(list(dict.fromkeys(ids)))
