"""The only place that builds or parses a subject, stream, bucket or consumer name.

Every name belongs to one run; :class:`RunNames` holds them all. Patterns (``R`` is the run):

    exmq.R.task.<pool>.<lane>.<batch>.<task>.<slice>    stream EXMQ_R_TASKS
    exmq.R.result.<batch>.<task>.<slice>                stream EXMQ_R_RESULTS
    exmq.R.attempt.<batch>.<task>.<slice>               stream EXMQ_R_RESULTS
    exmq.R.object.<name...>.<chunk>                     stream EXMQ_R_RESULTS
    exmq.R.journal                                      stream EXMQ_R_JOURNAL
    exmq.R.train.<batch>.<part>                         stream EXMQ_R_TRAIN
    exmq.R.dead.<batch>.<task>.<slice>                  stream EXMQ_R_DEAD
    exmq.R.weights.<version>.<chunk>                    stream EXMQ_R_WEIGHTS
    $KV.EXMQ_R_STATE.<key>                              stream KV_EXMQ_R_STATE
    exmq.R.cancel, exmq.R.worker.<id>.beat              core NATS
    exmq.R.worker.<id>.claims, exmq.R.event.<kind>      core NATS
    exmq.R.actor.<name>.<method>                        NATS micro services

``attempt`` records attempts that ended without a result; ``object`` holds payloads that exceed the
server's message limit, in chunks.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum

from explorer_mq_schemas.errors import ContractError
from explorer_mq_schemas.ids import check_run, decode_token, encode_token

DISCONNECTS = "exmq.disconnects"
"""Where the server's disconnect events arrive, if its configuration grants them to our account."""

# Canonical, so that no two subjects name one slice.
_NUMBER = re.compile(r"(?:0|[1-9][0-9]{0,17})\Z")


class Lane(StrEnum):
    """``urgent`` is pulled first: retries, missing runs, evals that somebody waits for."""

    URGENT = "urgent"
    NORMAL = "normal"


@dataclass(frozen=True, slots=True)
class SliceKey:
    """Names one slice: batch id as text, task number and slice number within the task."""

    batch: str
    task: int
    slice: int

    def __str__(self) -> str:
        """``batch/task/slice`` for messages and logs."""
        return f"{self.batch}/{self.task}/{self.slice}"

    @property
    def tail(self) -> str:
        """The last three subject tokens."""
        return f"{encode_token(self.batch)}.{self.task}.{self.slice}"


@dataclass(frozen=True, slots=True)
class RunNames:
    """All names of one run.

    Raises:
        ConfigError: on construction, when ``run`` is not usable as a token.
    """

    run: str

    def __post_init__(self) -> None:
        check_run(self.run)

    @property
    def root(self) -> str:
        """First two tokens of every subject of the run."""
        return f"exmq.{self.run}"

    @property
    def tasks_stream(self) -> str:
        """Work queue of slices."""
        return f"EXMQ_{self.run}_TASKS"

    @property
    def results_stream(self) -> str:
        """Results, attempt records and large payloads."""
        return f"EXMQ_{self.run}_RESULTS"

    @property
    def journal_stream(self) -> str:
        """The coordinator's single-writer log."""
        return f"EXMQ_{self.run}_JOURNAL"

    @property
    def train_stream(self) -> str:
        """Finished training batches."""
        return f"EXMQ_{self.run}_TRAIN"

    @property
    def dead_stream(self) -> str:
        """Dead letters."""
        return f"EXMQ_{self.run}_DEAD"

    @property
    def weights_stream(self) -> str:
        """Weights of the ``object`` channel."""
        return f"EXMQ_{self.run}_WEIGHTS"

    @property
    def state_bucket(self) -> str:
        """KV bucket of policy, timeouts, members, leader."""
        return f"EXMQ_{self.run}_STATE"

    @property
    def state_stream(self) -> str:
        """The stream behind :attr:`state_bucket`."""
        return f"KV_{self.state_bucket}"

    @property
    def journal(self) -> str:
        """Subject of every journal entry."""
        return f"{self.root}.journal"

    @property
    def cancel(self) -> str:
        """Core subject on which slices and batches are cancelled."""
        return f"{self.root}.cancel"

    @property
    def all_tasks(self) -> str:
        """Filter over every slice."""
        return f"{self.root}.task.>"

    @property
    def all_results(self) -> str:
        """Filter over every result."""
        return f"{self.root}.result.>"

    @property
    def all_attempts(self) -> str:
        """Filter over every attempt record."""
        return f"{self.root}.attempt.>"

    @property
    def all_objects(self) -> str:
        """Filter over every large-payload chunk."""
        return f"{self.root}.object.>"

    @property
    def all_training(self) -> str:
        """Filter over every training-batch part."""
        return f"{self.root}.train.>"

    @property
    def all_dead(self) -> str:
        """Filter over every dead letter."""
        return f"{self.root}.dead.>"

    @property
    def all_weights(self) -> str:
        """Filter over every weight chunk."""
        return f"{self.root}.weights.>"

    @property
    def all_beats(self) -> str:
        """Filter over the beats of every worker."""
        return f"{self.root}.worker.*.beat"

    @property
    def all_claims(self) -> str:
        """Filter over the claims of every worker."""
        return f"{self.root}.worker.*.claims"

    @property
    def all_events(self) -> str:
        """Filter over every event."""
        return f"{self.root}.event.*"

    def pool_consumer(self, pool: str, lane: Lane) -> str:
        """Durable pull consumer of one pool and lane on the task stream."""
        return f"w_{encode_token(pool)}_{lane}"

    def pool_filter(self, pool: str, lane: Lane) -> str:
        """Slices of one pool and lane."""
        return f"{self.root}.task.{encode_token(pool)}.{lane}.>"

    def trainer_consumer(self, trainer: str) -> str:
        """Durable pull consumer of one trainer on the training stream."""
        return f"t_{encode_token(trainer)}"

    def task(self, pool: str, lane: Lane, key: SliceKey) -> str:
        """Subject of one slice in the work queue."""
        return f"{self.root}.task.{encode_token(pool)}.{lane}.{key.tail}"

    def batch_tasks(self, batch: str) -> str:
        """Slices of one batch in every pool and lane."""
        return f"{self.root}.task.*.*.{encode_token(batch)}.>"

    def result(self, key: SliceKey) -> str:
        """Subject that holds the one result of a slice."""
        return f"{self.root}.result.{key.tail}"

    def batch_results(self, batch: str) -> str:
        """Results of one batch."""
        return f"{self.root}.result.{encode_token(batch)}.>"

    def attempt(self, key: SliceKey) -> str:
        """Subject of the attempts of a slice that ended without a result."""
        return f"{self.root}.attempt.{key.tail}"

    def dead(self, key: SliceKey) -> str:
        """Subject of a slice's dead letter."""
        return f"{self.root}.dead.{key.tail}"

    def train(self, batch: str, part: int) -> str:
        """Subject of one part of a training batch; part 0 is its manifest."""
        return f"{self.root}.train.{encode_token(batch)}.{part}"

    def batch_training(self, batch: str) -> str:
        """Filter over all parts of one training batch."""
        return f"{self.root}.train.{encode_token(batch)}.*"

    def manifests(self) -> str:
        """Filter over the manifests of all training batches."""
        return f"{self.root}.train.*.0"

    def weights(self, version: int) -> str:
        """Prefix of the chunks of one policy version."""
        return f"{self.root}.weights.{version}"

    def object(self, *parts: str) -> str:
        """Prefix of the chunks of a large payload, e.g. ``object("7", "tasks")``."""
        return ".".join([self.root, "object", *(encode_token(part) for part in parts)])

    def state(self, *parts: str) -> str:
        """Subject of one key of the state bucket, e.g. ``state("policy")``."""
        return f"$KV.{self.state_bucket}." + ".".join(encode_token(part) for part in parts)

    def beat(self, worker: str) -> str:
        """Core subject of one worker's beats."""
        return f"{self.root}.worker.{encode_token(worker)}.beat"

    def claims(self, worker: str) -> str:
        """Core subject on which one worker says what it took."""
        return f"{self.root}.worker.{encode_token(worker)}.claims"

    def event(self, kind: str) -> str:
        """Core subject of one kind of event."""
        return f"{self.root}.event.{encode_token(kind)}"

    def connection(self, role: str, name: str = "") -> str:
        """Name of a connection to the server, e.g. of worker ``w1``: ``exmq/R/worker/w1``.

        The server's disconnect events carry it, which is how a dead worker is known at once.
        """
        return "/".join(["exmq", self.run, role, *([encode_token(name)] if name else [])])

    def parse_connection(self, name: str) -> tuple[str, str] | None:
        """Role and name of a connection of this run; None for any other connection."""
        tokens = name.split("/")
        if len(tokens) not in (3, 4) or tokens[:2] != ["exmq", self.run]:
            return None
        return tokens[2], decode_token(tokens[3]) if len(tokens) == 4 else ""

    def actor(self, name: str, method: str) -> str:
        """Subject of one method of a named actor."""
        return f"{self.root}.actor.{encode_token(name)}.{encode_token(method)}"

    def parse_slice(self, subject: str) -> SliceKey:
        """The slice that a task, result, attempt or dead-letter subject names.

        Raises:
            ContractError: the subject is none of those, or its tokens are malformed.
        """
        tokens = subject.split(".")
        kind = tokens[2] if len(tokens) > 2 else ""
        wanted = {"task": 8, "result": 6, "attempt": 6, "dead": 6}.get(kind)
        if tokens[:2] != ["exmq", self.run] or len(tokens) != wanted:
            raise ContractError(f"subject {subject!r} does not name a slice of run {self.run}")
        batch, task, number = tokens[-3:]
        if not (_NUMBER.match(task) and _NUMBER.match(number)):
            raise ContractError(f"subject {subject!r}: task and slice must be numbers")
        return SliceKey(decode_token(batch), int(task), int(number))

    def parse_lane(self, subject: str) -> tuple[str, Lane]:
        """Pool and lane of a task subject.

        Raises:
            ContractError: the subject is not a task subject of this run.
        """
        self.parse_slice(subject)
        tokens = subject.split(".")
        try:
            return decode_token(tokens[3]), Lane(tokens[4])
        except ValueError as error:
            raise ContractError(f"subject {subject!r}: no such lane") from error
