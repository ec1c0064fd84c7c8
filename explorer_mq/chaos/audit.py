"""What trainers received, held against what was submitted. Pure: records in, faults out.

It proves I1 (each run at most once, exactly once when it can succeed), I2 (what the result stream
accepted for a complete batch is delivered) and I6 (an acknowledged batch does not come again, a
repeated one has the same content).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

Pair = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Submitted:
    """A batch the coordinator acknowledged; ``state`` is what it was found to have become."""

    batch: str
    is_train: bool
    expected: frozenset[Pair]
    runs: int
    state: str


@dataclass(frozen=True, slots=True)
class Delivery:
    """A training batch as one trainer got it, once.

    ``pairs`` are task and run of each experience, ``origins`` the ``batch/task`` each says it is from.
    ``seqs`` are the manifest's parts; ``is_acked`` says that the server confirmed the
    acknowledgement. ``digest`` stands for manifest and payloads.
    """

    trainer: str
    batch: str
    digest: str
    is_acked: bool
    pairs: tuple[Pair, ...] = ()
    origins: tuple[str, ...] = ()
    seqs: tuple[int, ...] = ()
    experiences: int = 0
    runs: int = 0
    completed_runs: int = 0


@dataclass(frozen=True, slots=True)
class Accepted:
    """A result the stream holds, as first seen."""

    batch: str
    task: int
    number: int
    seq: int
    experiences: int


@dataclass(slots=True)
class Faults:
    """What the audit found; empty lists are the proof. One text per lost or doubled run or batch."""

    lost: list[str] = field(default_factory=list)
    duplicates: list[str] = field(default_factory=list)
    inconsistent: list[str] = field(default_factory=list)


def audit(
    submitted: Iterable[Submitted],
    deliveries: Sequence[Delivery],
    accepted: Iterable[Accepted],
    *,
    trainers: Sequence[str],
) -> Faults:
    """Every way in which ``deliveries`` differ from what ``submitted`` promised.

    Each of ``trainers`` must have got every train batch.
    """
    faults = Faults()
    received: dict[tuple[str, str], list[Delivery]] = defaultdict(list)
    for delivery in deliveries:
        received[delivery.trainer, delivery.batch].append(delivery)
    results: dict[str, list[Accepted]] = defaultdict(list)
    for result in accepted:
        results[result.batch].append(result)
    known: set[str] = set()
    digests: dict[str, str] = {}
    for batch in submitted:
        known.add(batch.batch)
        if batch.is_train and batch.state != "finalized":
            faults.lost.append(f"batch {batch.batch} is {batch.state or 'unknown'}")
            continue
        for trainer in trainers if batch.is_train else ():
            found = received[trainer, batch.batch]
            if not found:
                faults.lost.append(f"batch {batch.batch} never reached trainer {trainer}")
                continue
            _check_repeats(found, digests.setdefault(batch.batch, found[0].digest), faults)
            _check_content(batch, found[0], results[batch.batch], faults)
    for batch_name in sorted({delivery.batch for delivery in deliveries} - known):
        faults.duplicates.append(f"batch {batch_name} was delivered but never submitted")
    return faults


def _check_repeats(found: Sequence[Delivery], digest: str, faults: Faults) -> None:
    """``digest`` is that of the first delivery to any trainer."""
    where = f"batch {found[0].batch} at trainer {found[0].trainer}"
    repeats = sum(delivery.is_acked for delivery in found[:-1])
    faults.duplicates.extend([f"{where} came again after its acknowledgement"] * repeats)
    if any(delivery.digest != digest for delivery in found):
        faults.inconsistent.append(f"{where}: another delivery had other content")


def _check_content(
    batch: Submitted, delivery: Delivery, results: Sequence[Accepted], faults: Faults
) -> None:
    where = f"batch {batch.batch} at trainer {delivery.trainer}"
    counts = Counter(delivery.pairs)
    for task, run in sorted(batch.expected - counts.keys()):
        faults.lost.append(f"{where}: task {task} run {run} is missing")
    for (task, run), count in sorted(counts.items()):
        if count > 1:
            faults.duplicates.append(f"{where}: task {task} run {run} came {count} times")
        if (task, run) not in batch.expected:
            faults.inconsistent.append(f"{where}: task {task} run {run} cannot have succeeded")
    for (task, run), origin in zip(delivery.pairs, delivery.origins, strict=True):
        if origin != f"{batch.batch}/{task}":
            faults.inconsistent.append(f"{where}: task {task} run {run} came from {origin}")
    _check_counts(batch, delivery, where, faults)
    parts = set(delivery.seqs)
    for result in results:
        if result.experiences and result.seq not in parts:
            faults.lost.append(
                f"{where}: accepted result {result.task}/{result.number} at sequence {result.seq} "
                "was not delivered"
            )


def _check_counts(batch: Submitted, delivery: Delivery, where: str, faults: Faults) -> None:
    said = (delivery.experiences, delivery.completed_runs, delivery.runs)
    is_so = (len(delivery.pairs), len(set(delivery.pairs)), batch.runs)
    if said != is_so:
        faults.inconsistent.append(
            f"{where}: the manifest says (experiences, completed runs, runs) are {said}, they are "
            f"{is_so}"
        )
