"""Estimate what the large recipes take on 8 to 256 GPUs, and what holds them up; docs/scale.md explains it.

    python scripts/scale.py              # write the tables of docs/scale.md anew
    python scripts/scale.py --measure    # the same, after measuring this machine into docs/scale.json, some minutes
    python scripts/scale.py halonet_h4_imagenet --gpus 64 --images-per-second 500 --workers 12

The last one prints a single estimate, from what was measured elsewhere.
"""

import argparse
import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from scale_measured import ALONE, ALONE_SYNCHRONISED, APART, CLASSES, DDP, DDP_SYNCHRONISED, FEW, FSDP, measured
from scale_model import NODE_GPUS, Choices, Cluster, Job, Link, counted, hours, job, parts, update

from parhelion.cli import exit_code
from parhelion.errors import UserError
from parhelion.files.atomic import write_json, write_text
from parhelion.speed.report import narrator
from parhelion.speed.timing import footnote

DOCS = Path(__file__).resolve().parent.parent / "docs"
MEASURED, DOCUMENT = DOCS / "scale.json", DOCS / "scale.md"
NAMES = (
    "halonet_h0_imagenet",
    "halonet_h4_imagenet",
    "halonet_h7_imagenet",
    "gsa_resnet50_imagenet",
    "resnet50_imagenet",
    "halonet_h4_base128_imagenet21k",
)
GPUS = (8, 32, 128, 256)


def hours_table(jobs: Sequence[Job], workers: Mapping[str, float]) -> list[str]:
    """Hours and limit of each job on each number of GPUs."""
    lines = [
        "| recipe | parameters, M | multiply-adds, G | norms | images/s of a GPU, assumed |"
        + "".join(f" {gpus} GPUs |" for gpus in GPUS),
        "|---" + "|--:" * (4 + len(GPUS)) + "|",
    ]
    for each in jobs:
        cells = []
        for gpus in GPUS:
            cluster, choices = assumed(each, gpus, workers)
            cells.append(f"{number(hours(each, cluster, choices))} h, {update(each, cluster, choices).limit}")
        facts = (f"{each.params / 1e6:.1f}", f"{each.multiply_adds / 1e9:.1f}", str(each.norms))
        lines.append(f"| `{each.name}` | {' | '.join((*facts, number(cluster.rate(each)), *cells))} |")
    return lines


def assumed(job: Job, gpus: int, workers: Mapping[str, float]) -> tuple[Cluster, Choices]:
    """The stated cluster with what workers read here, and the recipe's own choices."""
    cluster = Cluster(gpus=gpus, worker_images_per_second=workers[job.name])
    return cluster, Choices(accumulate=parts(job, gpus))


def parts_table(jobs: Sequence[Job], workers: Mapping[str, float], gpus: int) -> list[str]:
    """What makes up an update on `gpus` GPUs, and what remains of the hours without some of it."""
    lines = [
        "| recipe | images of a GPU | computing | sums of norms | gradients | input | hours | without `sync_bn` "
        "| and enough workers | workers of a GPU for that |",
        "|---" + "|--:" * 9 + "|",
    ]
    for each in jobs:
        cluster, choices = assumed(each, gpus, workers)
        cost, own = update(each, cluster, choices), replace(choices, sync_bn=False)
        many = replace(cluster, workers_per_gpu=10**6)
        enough = math.ceil(each.batch / gpus / update(each, many, own).seconds / cluster.worker_images_per_second)
        took = [f"{1e3 * seconds:.1f} ms" for seconds in (cost.compute, cost.norms, cost.gradients, cost.input)]
        ours = [number(hours(each, *case)) for case in ((cluster, choices), (cluster, own), (many, own))]
        lines.append(f"| `{each.name}` | {' | '.join([f'{each.batch // gpus}', *took, *ours, str(enough)])} |")
    return lines


def number(value: float) -> str:
    """Two digits, or all before the point."""
    return f"{value:,.0f}" if value >= 10 else f"{value:.1f}"


def between_markers(text: str, name: str, lines: Sequence[str]) -> str:
    """`text` with `lines` between the markers called `name`; UserError where they are not there once each, in order."""
    begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    before, found, rest = text.partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed or begin in rest or end in after:
        raise UserError(f"{DOCUMENT} must hold {begin} and then {end}, once each")
    return "\n\n".join((f"{before}{begin}", "\n".join(lines), f"{end}{after}"))


def checked_table(facts: Mapping[str, Any]) -> list[str]:
    """Steps of two processes against what the model makes of those of one."""
    lines = ["| network, batch of a process | how | measured, ms | model, ms | measured / model |"]
    lines += ["|---|---|--:|--:|--:|"]
    for subject in facts["steps"]:
        title = f"`{subject['model']}`, {subject['batch']} images of {subject['image_px']} px"
        network = counted(subject["model"], subject["image_px"], CLASSES, 2 * subject["batch"])
        for way, seconds in subject["seconds"].items():
            low, took, high = (1e3 * seconds[key] for key in ("lower_quartile", "median", "upper_quartile"))
            against = "|"
            if way in TWO_PROCESSES:
                model = 1e3 * predicted_seconds(network, subject, facts["all_reduce"], way)
                against = f"{model:.1f} | {took / model:.2f}"
            lines.append(f"| {title} | {way} | {took:.1f} ({low:.1f} to {high:.1f}) | {against} |")
            title = ""
    return lines


# How two processes go: what one process takes, and what they choose; None where nothing travels.
TWO_PROCESSES: dict[str, tuple[str, Choices | None]] = {
    APART: (ALONE, None),
    DDP: (ALONE, Choices(sync_bn=False)),
    DDP_SYNCHRONISED: (ALONE_SYNCHRONISED, Choices()),
    FSDP: (ALONE, Choices(sync_bn=False, sharding="fsdp")),
}


def predicted_seconds(network: Job, subject: Mapping[str, Any], reduced: Mapping[str, Any], way: str) -> float:
    """What the model says of a step of two processes."""
    base, choices = TWO_PROCESSES[way]
    alone = subject["seconds"][base]["median"]
    if choices is None:
        return float(alone)
    cluster = Cluster(
        gpus=2,
        inside=Link(bytes_per_second=bytes_per_second(reduced), hop_seconds=reduced["few_bytes_seconds"] / 2),
        # The cores that compute also send.
        overlap=0.0,
        images_per_second=subject["batch"] / alone,
        worker_images_per_second=math.inf,
    )
    return update(network, cluster, choices).seconds


def bytes_per_second(reduced: Mapping[str, Any]) -> float:
    """Of the link between two processes, each of which sends as many bytes as the tensor has."""
    return float(reduced["many_bytes"] / (reduced["many_bytes_seconds"] - reduced["few_bytes_seconds"]))


def input_table(jobs: Sequence[Job], read: Mapping[str, Any]) -> list[str]:
    """What workers read here, and what a node of the stated GPUs would want."""
    lines = ["| recipe | pixels | images/s of 1 worker | of 2 | a node wants, images/s | MB/s | workers of a GPU |"]
    lines += ["|---" + "|--:" * 6 + "|"]
    for each in jobs:
        one, two = (read["images_per_second"][each.name][workers] for workers in ("1", "2"))
        rate = Cluster(gpus=NODE_GPUS, worker_images_per_second=one).rate(each)
        wanted = (NODE_GPUS * rate, NODE_GPUS * rate * read["mean_bytes"] / 1e6, math.ceil(rate / one))
        cells = (str(each.image_px), *map(number, (one, two, *wanted[:2])), str(wanted[2]))
        lines.append(f"| `{each.name}` | {' | '.join(cells)} |")
    return lines


def document(text: str, facts: Mapping[str, Any]) -> str:
    """docs/scale.md with its tables anew."""
    jobs = [job(name) for name in NAMES]
    workers = {name: rates["1"] for name, rates in facts["input"]["images_per_second"].items()}
    reduced = facts["all_reduce"]
    few, typical = 1e3 * reduced["few_bytes_seconds"], 1e3 * reduced["few_bytes_median_seconds"]
    rate = bytes_per_second(reduced) / 1e9
    tables = {
        "checked": [
            *checked_table(facts),
            "",
            f"Medians and quartiles. Between the two, a sum of {FEW} numbers after some computing took {few:.2f} ms "
            f"(mean; median {typical:.2f}), and bytes travelled at {rate:.2f} GB/s. {footnote(facts)}, "
            f"{facts['time'][:10]}.",
        ],
        "hours": hours_table(jobs, workers),
        "parts": parts_table(jobs, workers, GPUS[-1]),
        "input": input_table(jobs, facts["input"]),
    }
    for name, lines in tables.items():
        text = between_markers(text, name, lines)
    return text


def one_case(chosen: argparse.Namespace, facts: Mapping[str, Any]) -> str:
    """The estimate that the command line asks for, in words."""
    wanted = job(chosen.recipe)
    read = facts["input"]["images_per_second"].get(wanted.name, {"1": 0.0})["1"]
    if not (chosen.worker_images_per_second or read):
        raise UserError(f"what a worker reads for {wanted.name} was not measured; give --worker-images-per-second")
    cluster = Cluster(
        gpus=chosen.gpus,
        images_per_second=chosen.images_per_second,
        workers_per_gpu=chosen.workers,
        worker_images_per_second=chosen.worker_images_per_second or read,
    )
    choices = Choices(
        accumulate=chosen.accumulate or parts(wanted, chosen.gpus), sharding=chosen.sharding, sync_bn=chosen.sync_bn
    )
    cost = update(wanted, cluster, choices)
    return (
        f"{wanted.name} on {chosen.gpus} GPUs of {number(cluster.rate(wanted))} images/s, in parts of "
        f"{wanted.batch / chosen.gpus / choices.accumulate:g} images: {number(hours(wanted, cluster, choices))} hours; "
        f"an update takes {1e3 * cost.seconds:.1f} ms: computing {1e3 * cost.compute:.1f}, sums of norms "
        f"{1e3 * cost.norms:.1f}, gradients {1e3 * cost.gradients:.1f}, or input {1e3 * cost.input:.1f}; "
        f"the limit: {cost.limit}"
    )


def main() -> None:
    """Measure if asked to; write the document's tables, or print one case."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("recipe", nargs="?", help="print the estimate of one recipe only")
    parser.add_argument("--measure", action="store_true", help="measure this machine first, some minutes")
    parser.add_argument("--gpus", type=int, default=NODE_GPUS)
    parser.add_argument("--images-per-second", type=float, default=0.0, help="of one GPU, as parhelion benchmark says")
    parser.add_argument("--workers", type=int, default=8, help="of one GPU")
    parser.add_argument("--worker-images-per-second", type=float, default=0.0, help="as measured here, if not given")
    parser.add_argument("--accumulate", type=int, default=0, help="as many as the memory asks for, if not given")
    parser.add_argument("--sharding", choices=("none", "fsdp"), default="none")
    parser.add_argument("--no-sync-bn", dest="sync_bn", action="store_false")
    chosen = parser.parse_args()
    if chosen.measure:
        say = narrator()
        write_json(MEASURED, measured(NAMES, say))
        say("")
    facts = json.loads(MEASURED.read_text(encoding="utf-8"))
    if chosen.recipe:
        print(one_case(chosen, facts))
    else:
        write_text(DOCUMENT, document(DOCUMENT.read_text(encoding="utf-8"), facts))


if __name__ == "__main__":
    sys.exit(exit_code(main))
