"""Wrong credentials are told apart from a server that does not answer."""

from __future__ import annotations

import socket
import subprocess

import pytest

from explorer_mq.bus.connection import Bus, BusOptions
from explorer_mq.bus.embedded import find_binary
from explorer_mq_schemas.errors import BusUnavailable, ConfigError, PermissionRefused

CONFIG = """
listen: "127.0.0.1:{port}"
jetstream {{ store_dir: "{store}" }}
authorization {{
  users: [
    {{ user: full, password: secret }}
    {{ user: narrow, password: secret,
       permissions: {{ publish: ["_INBOX.>", "$JS.API.INFO"], subscribe: ["_INBOX.>"] }} }}
  ]
}}
"""


@pytest.fixture
def guarded(tmp_path):
    """Port of a server that wants a password."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    config = tmp_path / "nats.conf"
    config.write_text(CONFIG.format(port=port, store=tmp_path / "store"))
    command = [find_binary(), "-c", str(config)]
    with subprocess.Popen(command, stderr=subprocess.PIPE) as child:
        assert any(b"Server is ready" in line for line in child.stderr)
        yield port
        child.terminate()


async def connect(port, user):
    url = f"nats://{user}@127.0.0.1:{port}"
    return await Bus.connect("run", BusOptions(url=url, connect_timeout_s=2, request_timeout_s=1))


async def test_wrong_password_is_refused_by_name_and_not_shown(guarded):
    with pytest.raises(PermissionRefused, match="refused the credentials") as caught:
        await connect(guarded, "full:wrong")
    assert "wrong@" not in str(caught.value)
    assert caught.value.exit_code == 2


async def test_denied_subject_is_named_instead_of_a_time_out(guarded):
    async with await connect(guarded, "narrow:secret") as bus:
        with pytest.raises(PermissionRefused, match=r"(?i)permissions violation.*exmq\.run\.thing"):
            await bus.request("exmq.run.thing", b"")


async def test_silence_is_a_time_out(guarded):
    async with await connect(guarded, "full:secret") as bus:
        subscription = await bus.subscribe("exmq.run.thing", _ignore)
        with pytest.raises(BusUnavailable, match=r"within 0\.2 s"):
            await bus.request("exmq.run.thing", b"", timeout_s=0.2)
        await subscription.unsubscribe()


async def test_missing_credentials_file_is_named(tmp_path):
    options = BusOptions(nkey_seed_file=tmp_path / "none.nk")
    with pytest.raises(ConfigError, match=r"none\.nk does not exist"):
        await Bus.connect("run", options)


async def _ignore(_):
    return
