"""Actor mailboxes on NATS micro services: JSON in and out, typed errors, visible to ``nats micro``."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import orjson
from nats.micro import add_service
from nats.micro.request import Request
from nats.micro.service import EndpointConfig, Service, ServiceConfig

from explorer_mq.bus.connection import Bus, Msg, NoResponders
from explorer_mq_schemas.errors import (
    ContractError,
    ExplorerError,
    NotFound,
    TransientError,
    from_wire,
)

logger = logging.getLogger(__name__)

Method = Callable[..., Awaitable[Any]]

_ERROR_HEADER = "Nats-Service-Error"
_PING = "ping"
_LOOK_S = 2.0
"""How long a caller waits before it looks whether the actor is still there."""


class ActorService:
    """A running mailbox; :meth:`close` ends it and the calls in progress."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._calls: set[asyncio.Task[None]] = set()

    async def close(self) -> None:
        """Take no more calls and cancel those in progress."""
        await self._service.stop()
        for call in list(self._calls):
            call.cancel()
        await asyncio.gather(*self._calls, return_exceptions=True)

    def accept(self, method: Method, request: Request) -> None:
        """Run one call beside the others."""
        call = asyncio.create_task(_answer(method, request), name=f"call {request.subject}")
        self._calls.add(call)
        call.add_done_callback(self._calls.discard)


async def serve_actor(
    bus: Bus,
    name: str,
    methods: Mapping[str, Method],
    *,
    version: str,
    description: str = "",
    metadata: dict[str, str] | None = None,
) -> ActorService:
    """Answer calls of ``methods`` on ``exmq.R.actor.<name>.<method>``.

    A method gets the request's JSON fields as keyword arguments and returns a JSON value; an
    :class:`ExplorerError` it raises is raised again at the caller.
    """
    service = await add_service(
        bus.client,
        ServiceConfig(
            name=f"exmq-{name}",
            version=version,
            description=description or f"{name} of run {bus.names.run}",
            metadata={"run": bus.names.run, **(metadata or {})},
        ),
    )
    actor = ActorService(service)
    since = bus.now()

    async def ping() -> float:
        return since

    for method_name, method in {**methods, _PING: ping}.items():
        await service.add_endpoint(
            EndpointConfig(
                name=method_name.replace("_", "-"),
                subject=bus.names.actor(name, method_name),
                handler=_endpoint(actor, method),
            )
        )
    await bus.api("INFO")  # a round trip: the server knows the subscriptions made before it
    return actor


class ActorHandle:
    """Calls the methods of a running actor; ``command`` is what starts one."""

    def __init__(self, bus: Bus, name: str, *, command: str = "") -> None:
        self._bus = bus
        self._name = name
        self._command = command or name

    async def call(self, method: str, *, timeout_s: float = 30.0, **arguments: Any) -> Any:
        """The method's reply.

        Raises:
            NotFound: no such actor runs.
            ExplorerError: what the method raised there.
            TransientError: no reply in time, or the actor ended meanwhile.
        """
        try:
            reply = await self._ask(method, orjson.dumps(arguments), timeout_s)
        except NoResponders as error:
            run = self._bus.names.run
            raise NotFound(
                f"no {self._name} is running for run {run!r}; start one with "
                f"`explorer-mq {self._command} --run {run}`"
            ) from error
        fields: Any = orjson.loads(reply.data) if reply.data else None
        if reply.headers and _ERROR_HEADER in reply.headers:
            raise from_wire(fields["code"], fields["message"])
        return fields

    async def _ask(self, method: str, body: bytes, timeout_s: float) -> Msg:
        """The reply, or an error as soon as the actor that got the call is seen to have ended."""
        names, asked_at = self._bus.names, self._bus.now()
        subject = names.actor(self._name, method)
        asking = asyncio.create_task(
            self._bus.request(subject, body, timeout_s=timeout_s), name=f"call of {subject}"
        )
        try:
            while not (await asyncio.wait((asking,), timeout=_LOOK_S))[0]:
                if await self._has_ended(asked_at):
                    raise TransientError(
                        f"the {self._name} of run {names.run} ended during {method}; it may have "
                        "been carried out or not: ask again"
                    )
            return asking.result()
        finally:
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)

    async def _has_ended(self, asked_at: float) -> bool:
        try:
            reply = await self._bus.request(
                self._bus.names.actor(self._name, _PING), timeout_s=_LOOK_S
            )
        except NoResponders:
            return True
        except TransientError:
            return False
        return float(orjson.loads(reply.data)) > asked_at


def _endpoint(actor: ActorService, method: Method) -> Callable[[Request], Awaitable[None]]:
    async def accept(request: Request) -> None:
        actor.accept(method, request)

    return accept


async def _answer(method: Method, request: Request) -> None:
    try:
        arguments = orjson.loads(request.data) if request.data else {}
        if not isinstance(arguments, dict):
            raise ContractError("the arguments of a call are a JSON object")
        reply = await method(**arguments)
    except ExplorerError as error:
        await request.respond_error(error.code, str(error)[:200], orjson.dumps(error.to_wire()))
    except Exception as error:
        logger.exception("call %s failed", request.subject)
        text = f"{type(error).__name__}: {error}"
        body = orjson.dumps({"code": "error", "message": text})
        await request.respond_error("error", type(error).__name__, body)
    else:
        await request.respond(orjson.dumps(reply))
