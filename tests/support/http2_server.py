"""An HTTP/2 server under TLS in front of a scripted server; each stream becomes a request."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import ipaddress
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path

import h2.config
import h2.connection
import h2.events
import h2.exceptions
import httpx
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from tests.support.scripted_server import ScriptedServer

__all__ = ["HTTP2Server", "make_certificate"]


def make_certificate(directory: Path) -> Path:
    """Write a key and its self-signed certificate for 127.0.0.1 into one PEM file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = directory / "certificate.pem"
    path.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        + certificate.public_bytes(serialization.Encoding.PEM)
    )
    return path


class HTTP2Server:
    """Runs in a thread on a free port; ``protocols`` are the ALPN names that it offers."""

    def __init__(self, behind: ScriptedServer, certificate: Path, protocols: tuple[str, ...] = ("h2",)) -> None:
        self.connections = 0
        self._behind = behind
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(certificate)
        self._context.set_alpn_protocols(list(protocols))
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)
        self._loop: asyncio.AbstractEventLoop
        self._stopping: asyncio.Event
        self._port = 0

    @property
    def url(self) -> str:
        """The base URL."""
        return f"https://127.0.0.1:{self._port}"

    @contextlib.contextmanager
    def running(self) -> Iterator[HTTP2Server]:
        """Serve for the length of a with block."""
        self._thread.start()
        assert self._ready.wait(10), "the server did not start"
        try:
            yield self
        finally:
            self._loop.call_soon_threadsafe(self._stopping.set)
            self._thread.join(10)
            assert not self._thread.is_alive(), "the server did not stop"

    async def _serve(self) -> None:
        self._loop, self._stopping = asyncio.get_running_loop(), asyncio.Event()
        server = await asyncio.start_server(self._connection, "127.0.0.1", 0, ssl=self._context)
        self._port = server.sockets[0].getsockname()[1]
        self._ready.set()
        await self._stopping.wait()
        server.close()
        tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        connection = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False))
        connection.initiate_connection()
        requests: dict[int, tuple[dict[str, str], bytearray]] = {}
        async with httpx.AsyncClient(base_url=self._behind.url, trust_env=False, timeout=30) as http:
            tasks = set()
            with contextlib.suppress(OSError, asyncio.CancelledError):
                while True:
                    writer.write(connection.data_to_send())
                    await writer.drain()
                    data = await reader.read(1 << 16)
                    if not data:
                        break
                    for event in connection.receive_data(data):
                        match event:
                            case h2.events.RequestReceived():
                                headers = {_text(name): _text(value) for name, value in event.headers or ()}
                                requests[event.stream_id or 0] = headers, bytearray()
                            case h2.events.DataReceived():
                                requests[event.stream_id or 0][1].extend(event.data or b"")
                                connection.acknowledge_received_data(
                                    event.flow_controlled_length or 0, event.stream_id or 0
                                )
                            case h2.events.StreamEnded():
                                stream = event.stream_id or 0
                                job = self._answer(http, connection, writer, stream, *requests.pop(stream))
                                tasks.add(asyncio.create_task(job))
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        writer.close()

    async def _answer(
        self,
        http: httpx.AsyncClient,
        connection: h2.connection.H2Connection,
        writer: asyncio.StreamWriter,
        stream: int,
        headers: dict[str, str],
        body: bytearray,
    ) -> None:
        own = {name: value for name, value in headers.items() if not name.startswith(":") and name != "host"}
        request = http.build_request(headers[":method"], headers[":path"], headers=own, content=bytes(body))
        with contextlib.suppress(h2.exceptions.ProtocolError):  # the client has left the stream
            try:
                answer = await http.send(request, stream=True)
                dropped = ("connection", "transfer-encoding")
                kept = [(name, value) for name, value in answer.headers.items() if name not in dropped]
                connection.send_headers(stream, [(":status", str(answer.status_code)), *kept])
                async for piece in answer.aiter_raw(1 << 13):
                    for start in range(0, len(piece), 1 << 13):
                        connection.send_data(stream, piece[start : start + (1 << 13)])
                        writer.write(connection.data_to_send())
                        await writer.drain()
                await answer.aclose()
                connection.end_stream(stream)
            except httpx.HTTPError:
                connection.reset_stream(stream)
        writer.write(connection.data_to_send())


def _text(value: bytes | str) -> str:
    return value.decode("ascii") if isinstance(value, bytes) else value
