"""Following the policy: fetch each new version, load it, and only then announce it."""

from __future__ import annotations

import logging
import shutil
import tempfile
from pathlib import Path

from explorer_mq.bus.connection import Bus
from explorer_mq.bus.follower import Received
from explorer_mq.bus.objects import get_object_file
from explorer_mq.bus.patience import Patience
from explorer_mq.bus.state import RunState
from explorer_mq.crew import Pulse
from explorer_mq_schemas.errors import ContractError, EngineError, ExplorerError, NotFound
from explorer_mq_schemas.messages import ObjectRef
from explorer_mq_schemas.policy import PolicyAnnouncement
from explorer_mq_workers.engines.protocol import Engine

logger = logging.getLogger(__name__)

POLICY_KEY = "policy"


class PolicyFollower:
    """Keeps one engine at the newest policy version.

    ``error`` says why the newest could not be loaded; the engine serves the old one meanwhile.
    ``is_swapping`` while the engine takes over new weights.
    """

    def __init__(self, bus: Bus, engine: Engine) -> None:
        self._bus = bus
        self._engine = engine
        self._patience = Patience(bus)
        self._follower = RunState(bus).follow(POLICY_KEY)
        shared = Path("/dev/shm")  # noqa: S108 - memory-backed, so that weights never touch a disk
        self._dir = Path(
            tempfile.mkdtemp(prefix="exmq-policy-", dir=shared if shared.is_dir() else None)
        )
        self.loaded = 0
        self.error = ""
        self.is_swapping = False
        self.changed = Pulse()

    async def start(self) -> None:
        """Load the newest version there is; a worker pulls nothing before."""
        await self._follower.start()
        if self._follower.backlog:
            await self._apply(await self._follower.next_batch())

    async def run(self) -> None:
        """Load every newer version until cancelled.

        Raises:
            EngineError: the engine died.
        """
        while True:
            await self._apply(await self._follower.next_batch())

    async def close(self) -> None:
        """Stop and remove fetched files."""
        await self._follower.close()
        shutil.rmtree(self._dir, ignore_errors=True)

    async def _apply(self, messages: list[Received]) -> None:
        """Only the newest announcement matters: versions in between are skipped."""
        data = messages[-1].data
        if not data:
            return
        try:
            policy = PolicyAnnouncement.decode(data)
            if policy.version > self._engine.policy_version:
                await self._load(policy)
                self.error = ""
        except EngineError:
            raise
        except ExplorerError as error:
            self.error = str(error)
            logger.warning("policy not loaded, still at %d: %s", self._engine.policy_version, error)
        self.changed.beat()

    async def _load(self, policy: PolicyAnnouncement) -> None:
        if policy.channel != "object" or policy.object is None:
            raise ContractError(
                f"policy version {policy.version} comes by channel {policy.channel!r}, which this "
                "worker does not support"
            )
        path = self._dir / f"{policy.version}.safetensors"
        try:
            await self._fetch(policy.object, path)
            self.is_swapping = True
            self.changed.beat()
            await self._engine.load_policy(policy.version, path)
        except NotFound as error:
            raise NotFound(f"policy version {policy.version}: {error}") from error
        finally:
            self.is_swapping = False
            path.unlink(missing_ok=True)
        self.loaded += 1
        logger.info("policy_version=%d loaded", policy.version)

    async def _fetch(self, ref: ObjectRef, path: Path) -> None:
        stream = self._bus.names.weights_stream
        await self._patience.until_done(
            lambda: get_object_file(self._bus, stream, ref, path), "fetching a policy"
        )
