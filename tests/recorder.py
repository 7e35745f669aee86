"""Stands between nodes and a coordinator, ends their TLS with the coordinator's own certificate, and keeps what they send.

So a test reads every byte that left a node as it was before encryption: request lines, headers and bodies alike.
"""

import asyncio
import contextlib
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(slots=True)
class Recording:
    """What came from the nodes, one row of bytes for each connection."""

    port: int = 0
    _connections: list[bytearray] = field(default_factory=list)

    def opened(self) -> bytearray:
        """Begin a connection."""
        self._connections.append(bytearray())
        return self._connections[-1]

    def everything(self) -> bytes:
        """All that was sent so far, connection after connection."""
        return b"\n".join(bytes(row) for row in self._connections)


@contextmanager
def recording(target_port: int, certificate: Path, key: Path, authority: Path) -> Iterator[Recording]:
    """Record what is sent to a coordinator's public port by way of another port of ours."""
    found = Recording()
    loop = asyncio.new_event_loop()
    ready, stop = threading.Event(), asyncio.Event()
    inside = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    inside.load_cert_chain(certificate, key)
    outside = ssl.create_default_context(cafile=str(authority))

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        row = found.opened()
        with contextlib.suppress(OSError, ssl.SSLError):
            there_in, there_out = await asyncio.open_connection("127.0.0.1", target_port, ssl=outside)
            await asyncio.gather(_pump(reader, there_out, row), _pump(there_in, writer, None))

    async def serve() -> None:
        server = await asyncio.start_server(relay, "127.0.0.1", 0, ssl=inside)
        found.port = server.sockets[0].getsockname()[1]
        ready.set()
        await stop.wait()
        server.close()
        others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    def run() -> None:
        loop.run_until_complete(serve())
        loop.close()

    thread = threading.Thread(target=run, name="recorder", daemon=True)
    thread.start()
    assert ready.wait(30)
    try:
        yield found
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(30)


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, row: bytearray | None) -> None:
    with contextlib.suppress(OSError, ssl.SSLError):
        while data := await reader.read(65536):
            if row is not None:
                row += data
            writer.write(data)
            await writer.drain()
    with contextlib.suppress(OSError, ssl.SSLError):
        writer.close()
        await writer.wait_closed()
