"""The core as a whole, against a world that duplicates, reorders, delays and crashes.

A bus keeps the first result of each slice and delivers it in any order, also twice or late. Workers
complete, lose runs, fail or die within the attempt budget. A coordinator carries out what ``decide``
says, step by step, may die between any two steps and rebuilds its state from journal and results,
with or without a snapshot. What must hold is checked after every move, by the letters of DESIGN §6.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import islice

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from explorer_mq.core.batch import (
    abort_entry,
    collect_entry,
    decide,
    evolve,
    expired,
    needs_of,
    next_wake,
    open_needs,
    replay,
)
from explorer_mq.core.grouping import each_task
from explorer_mq.core.outcome import batch_metrics, batch_result, end_entry, manifest, statuses
from explorer_mq.core.records import Report, SliceNeed
from explorer_mq.core.snapshot import RunSnapshot, digest, dump, load
from explorer_mq.core.state import (
    LEGAL_MOVES,
    Abort,
    BatchState,
    Close,
    Deliver,
    Effect,
    Event,
    FinalizeRequested,
    FinalizeWithdrawn,
    LateRemoved,
    PublishRetry,
    PublishTasks,
    RemoveLate,
    ResultArrived,
    RetryQueued,
)
from explorer_mq.core.table import Table
from explorer_mq_schemas.batches import BatchLifecycleState as Phase
from explorer_mq_schemas.batches import BatchResult, Parts
from explorer_mq_schemas.journal import (
    Aborted,
    BatchEntry,
    Finalizing,
    Running,
    Submitting,
    TaskGroup,
)

Key = tuple[str, int, int]
"""Batch, task and number of a slice."""

LONG_S = 1e6
LIMIT = 200


def groups(*shapes: tuple[int, int, int]) -> tuple[TaskGroup, ...]:
    """Groups of tasks from their count, ``repeat_times`` and ``runs_per_slice``."""
    return tuple(
        TaskGroup(count=count, repeat_times=repeat, runs_per_slice=per_slice)
        for count, repeat, per_slice in shapes
    )


SHAPES = st.fixed_dictionaries(
    {
        "batch_type": st.sampled_from(["train", "train", "eval"]),
        "groups": st.sampled_from(
            [groups((2, 3, 2)), groups((1, 4, 3)), groups((3, 2, 2)), groups((1, 1, 1), (2, 3, 3))]
        ),
        "max_attempts": st.sampled_from([3, 2, 1]),
        "min_wait_num": st.sampled_from([None, None, 1, 2]),
        "grace_s": st.sampled_from([0.0, 30.0]),
        "return_partial": st.booleans(),
        "auto_finalize": st.booleans(),
    }
)
OUTCOMES = st.tuples(
    st.sampled_from(["all", "some", "none"]), st.sampled_from([False, False, True])
)
"""How many of a slice's runs complete, and whether the worker dies before its acknowledgement."""
ANY = st.integers(0, 1000)
"""Taken modulo the number of choices there are."""


@dataclass(slots=True)
class Bus:
    """What outlives everybody: queue, results, journal, snapshot, training batches.

    ``slices`` is every slice that was ever queued, ``accepted`` every result that was ever stored.
    """

    queue: dict[Key, int] = field(default_factory=dict)
    slices: dict[Key, SliceNeed] = field(default_factory=dict)
    results: dict[int, tuple[str, ResultArrived]] = field(default_factory=dict)
    accepted: dict[int, tuple[str, ResultArrived]] = field(default_factory=dict)
    journal: list[BatchEntry] = field(default_factory=list)
    snapshot: tuple[bytes, int, int] = (dump(RunSnapshot()), 0, 0)
    trains: dict[str, Parts] = field(default_factory=dict)

    def enqueue(self, key: Key, need: SliceNeed) -> None:
        """One key, one content, however often it is published."""
        assert self.slices.setdefault(key, need) == need
        self.queue.setdefault(key, 0)

    def publish(self, name: str, task: int, report: Report) -> None:
        """The first result of a slice is accepted, every other is refused."""
        key = (name, task, report.number)
        if key not in {(n, e.task, e.report.number) for n, e in self.results.values()}:
            stored = report._replace(seq=len(self.accepted) + 1)
            found = (name, ResultArrived(task, stored))
            self.results[stored.seq] = self.accepted[stored.seq] = found

    def purge(self, name: str) -> None:
        """No slice of the batch is left."""
        self.queue = {key: used for key, used in self.queue.items() if key[0] != name}


@dataclass(frozen=True, slots=True)
class Closed:
    """What was true of a batch at its close, and its result once it is over."""

    entry: Finalizing
    tasks: Table
    result: BatchResult | None = None


class World(RuleBasedStateMachine):
    """One run with its bus, workers and coordinator; ``folded`` are the sequences it has seen."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0
        self.bus = Bus()
        self.states: dict[str, BatchState] = {}
        self.folded: set[int] = set()
        self.closed: dict[str, Closed] = {}
        self.phases: dict[str, Phase] = {}

    # The user.

    @initialize(shape=SHAPES)
    def submit(self, shape):
        self.open_batch(shape)

    @precondition(lambda self: len(self.states) < 3)
    @rule(shape=SHAPES)
    def submit_another(self, shape):
        self.open_batch(shape)

    def open_batch(self, shape):
        """Journal the first entry of a batch; its id is its place."""
        self.log(
            Submitting(
                batch=len(self.states),
                at=self.now,
                results_seq=len(self.bus.accepted),
                deadline_s=100.0,
                timeout_s=10.0,
                **shape,
            )
        )

    @rule(which=ANY, seconds=st.sampled_from([None, None, 5.0, 300.0]))
    def finalize(self, which, seconds):
        until = None if seconds is None else self.now + seconds
        self.apply(pick(self.states, which), FinalizeRequested(until))

    @rule(which=ANY)
    def withdraw(self, which):
        self.apply(pick(self.states, which), FinalizeWithdrawn())

    @precondition(lambda self: self.open())
    @rule(which=ANY, how=st.sampled_from(["not", "not", "not", "not", "drop", "keep", "collect"]))
    def give_up(self, which, how):
        """Abort a batch, with or without what it has, or take the first settled task and be done."""
        name = pick(self.open(), which)
        state = self.states[name]
        settled = [task for task, _ in state.tasks.items() if not needs_of(state, task)]
        if how == "drop":
            self.abort(name, "asked to")
        elif how == "keep" and state.phase is Phase.RUNNING:
            self.log(abort_entry(state, "asked to"))
        elif how == "collect" and state.phase is Phase.RUNNING and settled:
            self.log(collect_entry(state, settled[:1]))

    # The workers.

    @rule(
        outcomes=st.lists(st.tuples(ANY, OUTCOMES), min_size=1, max_size=8), is_late=st.booleans()
    )
    def go_on(self, outcomes, is_late):
        """A usual round: hear what there is unless it ``is_late``, queue what is due, run slices."""
        if not is_late:
            self.deliver_all()
        self.drive(LIMIT)
        for which, (done, dies) in outcomes:
            if self.bus.queue:
                self.run(pick(self.bus.queue, which), done, dies=dies)
        self.now += 1.0

    @precondition(lambda self: self.bus.queue)
    @rule(which=ANY, outcome=OUTCOMES)
    def work(self, which, outcome):
        """One slice is run."""
        done, dies = outcome
        self.run(pick(self.bus.queue, which), done, dies=dies)

    def run(self, key, done, *, dies=False):
        """One attempt at a slice; who ``dies`` does so before the acknowledgement."""
        need, limit = self.bus.slices[key], self.states[key[0]].opening.max_attempts
        self.bus.queue[key] += 1
        attempt = need.attempts_used + self.bus.queue[key]
        completed = {"all": need.run_ids, "some": need.run_ids[1:], "none": ()}[done]
        if attempt > limit:
            completed = ()
        if not completed and attempt < limit:
            return
        report = report_of(need, completed, min(attempt, limit), self.now)
        self.bus.publish(key[0], key[1], report)
        if not dies:
            del self.bus.queue[key]

    @rule(which=ANY)
    def send_nonsense(self, which):
        """A result for a task that the batch does not have."""
        name = pick(self.states, which)
        need = SliceNeed(len(self.bus.accepted), (0,), 0)
        self.bus.publish(name, self.states[name].task_count, report_of(need, (0,), 1, self.now))

    # The bus and the clock.

    @precondition(lambda self: self.bus.results)
    @rule(which=ANY)
    def deliver_one(self, which):
        """In any order, and again."""
        self.fold(pick(self.bus.results, which))

    @rule()
    def deliver_all(self):
        for seq in list(self.bus.results):
            self.fold(seq)

    @rule(seconds=st.sampled_from([-2.0, 0.3, 1.0, 10.0, 40.0, 110.0]))
    def tick(self, seconds):
        self.now += seconds

    # The coordinator.

    @rule(steps=st.sampled_from([LIMIT, LIMIT, LIMIT, 0, 1, 2, 3, 5, 8]))
    def drive(self, steps):
        """Carry out what is due, and crash after so many steps unless all are done before."""
        work = (step for name in self.states for step in self.perform(name))
        if steps <= len(list(islice(work, steps))):
            self.crash(from_snapshot=False)

    @rule()
    def take_snapshot(self):
        through = 0
        while through + 1 in self.folded:
            through += 1
        data = dump(RunSnapshot(self.states))
        self.bus.snapshot = (data, len(self.bus.journal), through)

    @rule(from_snapshot=st.booleans())
    def crash(self, from_snapshot):
        """Die; what is rebuilt from the durable facts is what was there (I3)."""
        removed = LateRemoved(frozenset(self.bus.accepted) - self.bus.results.keys())
        before = {name: evolve(state, removed) for name, state in self.states.items()}
        data, entries, seen = self.bus.snapshot if from_snapshot else (dump(RunSnapshot()), 0, 0)
        tail = [
            self.bus.results[s] for s in sorted(self.folded & self.bus.results.keys()) if s > seen
        ]
        loaded = load(data, window=9).batches
        found = replay(self.bus.journal[entries:], tail, loaded)
        self.states = {name: evolve(state, removed) for name, state in found.items()}
        assert durable(self.states) == durable(before)
        for name in self.states:
            queued = frozenset(key[1:] for key in self.bus.queue if key[0] == name)
            self.apply(name, RetryQueued(queued))
            if self.states[name].phase is Phase.RUNNING:
                for _ in self.publish_open(name):
                    pass

    # What must hold.

    @invariant()
    def open_batches_have_all_that_arrived(self):
        """I2: a report that was folded is there until the close; the counters follow from it."""
        for name, state in self.open().items():
            seen = {
                s: self.bus.accepted[s][1] for s in self.folded if self.bus.accepted[s][0] == name
            }
            mine = {s: e for s, e in seen.items() if e.task < state.task_count}
            held = {r.seq: task for task, record in state.tasks.items() for r in record.reports}
            assert held == {seq: event.task for seq, event in mine.items()}
            assert state.completed_runs == sum(len(e.report.completed) for e in mine.values())
            assert state.settled == sum(
                self.is_settled(name, task, set(mine)) for task in range(state.task_count)
            )
            is_enough = state.settled >= (state.opening.min_wait_num or LIMIT)
            assert (state.enough_at is not None) == is_enough
            loaded = load(dump(RunSnapshot({name: state})), window=9).batches[name]
            assert loaded == replace(
                state, requested=False, requested_until=None, retries=loaded.retries
            )
            assert loaded.retries >= state.retries

    @invariant()
    def closed_batches_never_change(self):
        """I5, and every move is a legal one."""
        for name, state in self.states.items():
            before = self.phases.get(name, state.phase)
            assert reachable(before, state.phase)
            self.phases[name] = state.phase
            if state.closing is None:
                continue
            closed = self.closed.setdefault(name, Closed(state.closing, state.tasks))
            assert state.closing == closed.entry
            if state.outcome is None:
                # Right after a crash not every result has been folded again.
                assert set(closed.tasks.items()) >= set(state.tasks.items())
                continue
            result = batch_result(replace(state, late_total=0))
            if closed.result is None:
                self.closed[name] = replace(closed, result=result)
            assert self.closed[name].result == result

    @invariant()
    def nothing_is_due_before_the_wake(self):
        """I8: one timer suffices, and an open batch always waits for something that can come."""
        for name, state in self.states.items():
            due, wake = decide(state, self.now), next_wake(state, self.now)
            keys = [effect_key(effect) for effect in due]
            assert len(keys) == len(set(keys))
            if wake is None:
                assert decide(state, self.now + LONG_S) == due
            else:
                assert wake > self.now
                assert decide(state, (self.now + wake) / 2) == due
            if state.phase is not Phase.RUNNING:
                continue
            if state.requested or state.opening.auto_finalize:
                assert due or wake is not None or expired(state, self.now)
            waiting = {retry[:2] for retry in state.retries}
            answered = {
                (e.task, e.report.number) for n, e in self.bus.results.values() if n == name
            }
            for task, need in open_needs(state):
                place = (task, need.number)
                assert place in waiting or place in answered or (name, *place) in self.bus.queue

    def teardown(self):
        """Whoever asks gets an answer: each batch closes, or is expired at its deadline."""
        for name in self.states:
            self.apply(name, FinalizeRequested(self.now + 50.0))
        self.now += 60.0
        self.settle()
        for name, state in self.states.items():
            assert state.outcome is not None or expired(state, self.now)
            self.apply(name, FinalizeRequested(self.now + LONG_S))
        for _ in range(LIMIT):
            if all(state.outcome for state in self.states.values()):
                break
            for key in list(self.bus.queue):
                self.run(key, "all")
            self.now += 31.0
            self.settle()
        assert all(state.outcome for state in self.states.values())
        self.crash(from_snapshot=True)
        self.closed_batches_never_change()

    # How the coordinator does it.

    def open(self) -> dict[str, BatchState]:
        """Batches that can still take a result."""
        return {name: state for name, state in self.states.items() if not state.is_closed}

    def settle(self) -> None:
        """Fold everything and carry out all that is due now."""
        self.deliver_all()
        for name in self.states:
            for _ in range(LIMIT):
                if not decide(self.states[name], self.now):
                    break
                list(self.perform(name))
            else:
                raise AssertionError(f"{name} never comes to rest")

    def apply(self, name: str, event: Event) -> None:
        """Fold an event; the same event again changes nothing."""
        once = evolve(self.states[name], event)
        assert evolve(once, event) == once
        self.states[name] = once

    def fold(self, seq: int) -> None:
        """A result reaches the coordinator."""
        self.folded.add(seq)
        self.apply(*self.bus.results[seq])

    def log(self, entry: BatchEntry) -> None:
        """Journal an entry; what the journal holds is true at once."""
        self.bus.journal.append(entry)
        name = str(entry.batch)
        if isinstance(entry, Submitting):
            self.states |= replay([entry], [])
        else:
            assert self.states[name] != evolve(self.states[name], entry)
            self.apply(name, entry)

    def perform(self, name: str) -> Iterator[None]:
        """What is due for a batch, in steps that a crash may part."""
        for effect in decide(self.states[name], self.now):
            match effect:
                case PublishTasks():
                    yield from self.publish_open(name)
                    self.log(Running(batch=self.states[name].batch))
                case PublishRetry(task, need):
                    self.bus.enqueue((name, task, need.number), need)
                    yield
                    self.apply(name, RetryQueued(frozenset({(task, need.number)})))
                case Close(entry):
                    self.log(entry)
                case Deliver():
                    yield from self.deliver(name)
                case Abort(reason):
                    self.abort(name, reason)
                case RemoveLate(seqs):
                    for seq in seqs:
                        assert not self.is_delivered(name, seq)
                        self.bus.results.pop(seq, None)
                        yield
                    self.apply(name, LateRemoved(seqs))
            yield

    def publish_open(self, name: str) -> Iterator[None]:
        """Queue what is awaited and not known to be queued."""
        state = self.states[name]
        waiting = {retry[:2] for retry in state.retries}
        for task, need in open_needs(state):
            if (task, need.number) not in waiting:
                self.bus.enqueue((name, task, need.number), need)
                yield

    def deliver(self, name: str) -> Iterator[None]:
        """Publish the training batch once, clean the queue, journal the end."""
        for seq in list(self.bus.results):  # a coordinator has caught up before it drives
            self.fold(seq)
        state = self.states[name]
        self.check_content(name, state)
        found = statuses(state)
        metrics = batch_metrics(state, found)
        batch = manifest(state, run="r", stream="s", finished=len(found), metrics=metrics)
        assert self.bus.trains.setdefault(name, batch.parts) == batch.parts
        assert sum(batch.parts.experiences) == batch.experiences
        yield
        self.bus.purge(name)
        yield
        self.end(name, end_entry(state, finished=len(found), metrics=metrics, manifest_seq=1))

    def abort(self, name: str, reason: str) -> None:
        """Give up a batch with all it has."""
        opening = self.states[name].opening
        self.end(name, Aborted(batch=opening.batch, batch_type=opening.batch_type, reason=reason))

    def end(self, name: str, entry: BatchEntry) -> None:
        """Journal the end and clean up."""
        self.log(entry)
        self.bus.purge(name)

    def check_content(self, name: str, state: BatchState) -> None:
        """I1: each run at most once; all of a complete batch but those given up; whole tasks else."""
        reports = {t: record.reports for t, record in state.tasks.items()}
        delivered = [
            (task, run)
            for task, held in reports.items()
            for report in held
            for run in report.completed
        ]
        assert len(delivered) == len(set(delivered)) == state.completed_runs
        assert {r.seq for held in reports.values() for r in held} <= self.bus.results.keys()
        reason = state.closing.reason
        for task, repeat, _ in each_task(state.opening.groups):
            mine = {run for at, run in delivered if at == task}
            lost = self.given_up(name, task)
            assert mine.isdisjoint(lost)
            is_whole = mine | lost == set(range(repeat))
            assert is_whole or reason != "complete"
            assert is_whole or not mine or state.opening.return_partial or reason == "aborted"

    def is_delivered(self, name: str, seq: int) -> bool:
        """Whether the published training batch names that result."""
        return name in self.bus.trains and seq in self.bus.trains[name].seq

    def given_up(self, name: str, task: int) -> set[int]:
        """Runs of a task that have used up their attempts."""
        limit = self.states[name].opening.max_attempts
        return {
            run
            for batch, event in self.bus.results.values()
            if (batch, event.task) == (name, task) and event.report.attempt >= limit
            for run in self.bus.slices[name, task, event.report.number].run_ids
            if run not in event.report.completed
        }

    def is_settled(self, name: str, task: int, seqs: set[int]) -> bool:
        """Each slice that was queued has its result among ``seqs``, and each run has come to an end."""
        found = {
            e.report.number: e.report for s in seqs if (e := self.bus.accepted[s][1]).task == task
        }
        queued = {n: need for (b, t, n), need in self.bus.slices.items() if (b, t) == (name, task)}
        done = {run for report in found.values() for run in report.completed}
        repeat = list(each_task(self.states[name].opening.groups))[task][1]
        return queued.keys() <= found.keys() and (
            done | self.given_up(name, task) == set(range(repeat))
        )


def pick(choices, which):
    """One of the choices there are now."""
    return list(choices)[which % len(choices)]


def reachable(before: Phase, after: Phase) -> bool:
    """Whether legal moves lead from one phase to the other; a rule may make several."""
    return before is after or any(reachable(move, after) for move in LEGAL_MOVES[before])


def effect_key(effect: Effect) -> tuple[object, ...]:
    """What makes a repeat of the effect harmless."""
    if isinstance(effect, PublishRetry):
        return (PublishRetry, effect.task, effect.need.number)
    return (type(effect),)


def durable(states: dict[str, BatchState]) -> str:
    """Digest of what does not depend on the order of results; ``enough_at`` is told apart below."""
    return digest(RunSnapshot({name: replace(s, enough_at=None) for name, s in states.items()}))


def report_of(need: SliceNeed, completed: tuple[int, ...], attempt: int, at: float) -> Report:
    """What a worker says about a slice; the bus gives it its sequence."""
    return Report(
        number=need.number,
        seq=0,
        at=at,
        completed=completed,
        runs=len(need.run_ids),
        attempt=attempt,
        seconds=1.0,
        experiences=len(completed),
        payload_bytes=10,
        policy_version_min=attempt,
        policy_version_max=attempt + 1,
        metrics_json=b'[{"reward":1.0}]' if completed else b"[]",
        failure="" if completed else "it failed",
        worker="w",
    )


World.TestCase.settings = settings(
    max_examples=2 * settings.default.max_examples,
    stateful_step_count=50,
    deadline=None,
    derandomize=True,
)
test_core_keeps_its_laws_in_any_world = World.TestCase
