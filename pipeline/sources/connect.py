"""Opens live addresses: waits until they can be reached, and says in one sentence why one cannot be opened."""

from __future__ import annotations

import socket
import ssl
import threading
import time
from pathlib import Path

import av
from av.container import InputContainer
from av.video.stream import VideoStream

from pipeline.errors import SourceError
from pipeline.sources.addresses import Address
from pipeline.sources.base import SourceConfig
from pipeline.sources.status import SourceStatus
from pipeline.sources.video import open_video, reason

_PORTS = {"rtsp": 554, "rtsps": 322, "rtmp": 1935, "rtmps": 443, "http": 80, "https": 443}
_PROBE_S = 1.0
"""A camera that is back is noticed within this time. TCP by itself repeats its first packet after 1, 3 and 7 s."""


class RefusedError(SourceError):
    """The server refused the login. Frequent retries could lock the account."""


class Connector:
    """Opens one address, as often as needed.

    Args:
        stopped: event that ends the waiting.
    """

    def __init__(self, address: Address, config: SourceConfig, stopped: threading.Event) -> None:
        self._address = address
        self._config = config
        self._stopped = stopped
        self._silent_host = address.scheme in ("rtsp", "rtsps", "rtmp", "rtmps")
        # Otherwise FFmpeg waits for 20 pictures to estimate their rate, which is not needed here.
        self._options = {"fflags": "nobuffer", "fpsprobesize": "0"}
        if address.scheme in ("rtsp", "rtsps"):
            self._options["rtsp_transport"] = config.rtsp_transport
        self._options |= dict(config.options)

    def open(self, status: SourceStatus) -> tuple[InputContainer, VideoStream]:
        """Open the address and return the container with its video stream.

        Raises:
            SourceError: there is no answer, or the answer is not a video.
            RefusedError: the login was refused.
        """
        label = self._address.label
        if self._address.kind == "device" and not Path(self._address.url).exists():
            present = ", ".join(sorted(str(path) for path in Path("/dev").glob("video*"))) or "none"
            raise SourceError(f"{label}: there is no such device; present: {present}")
        if self._silent_host and self._address.scheme in _PORTS:
            self._await_reachable(status)
        timeout_s = (self._config.open_timeout_s, self._config.read_timeout_s)
        format_name = "v4l2" if self._address.kind == "device" else None
        begun_s = time.monotonic()
        try:
            return open_video(
                self._address.url, label, format_name=format_name, options=self._options, timeout_s=timeout_s
            )
        except SourceError as error:
            self._silent_host |= time.monotonic() - begun_s >= self._config.open_timeout_s
            raise self._explained(error) from error.__cause__

    def _await_reachable(self, status: SourceStatus) -> None:
        """Wait until the address accepts connections."""
        address = self._address
        port = address.port or _PORTS[address.scheme]
        begun_s = time.monotonic()
        while not self._stopped.is_set():
            asked_s = time.monotonic()
            try:
                socket.create_connection((address.host, port), timeout=_PROBE_S).close()
                return
            except ConnectionRefusedError:
                raise SourceError(
                    f"{address.label}: nothing listens on port {port} (connection refused); check that the camera is "
                    "on and the port is right"
                ) from None
            except TimeoutError:
                sentence = f"{address.label}: {address.host} does not answer"
            except socket.gaierror as error:
                sentence = f"{address.label}: the name {address.host} is not known ({error.strerror})"
            except OSError as error:
                sentence = f"{address.label}: {address.host} cannot be reached ({error.strerror})"
            if time.monotonic() - begun_s >= self._config.open_timeout_s:
                raise SourceError(f"{sentence}; check the address, the camera and the network")
            status.failed(sentence)
            self._stopped.wait(max(0.0, asked_s + _PROBE_S / 2 - time.monotonic()))
        raise SourceError(f"{address.label}: stopped")

    def _explained(self, error: SourceError) -> SourceError:
        """Convert an error of FFmpeg to a sentence about the live address."""
        label, cause = self._address.label, error.__cause__
        if isinstance(cause, av.HTTPUnauthorizedError | av.HTTPForbiddenError):
            return RefusedError(f"{label}: the user name or the password was refused; check them in the address")
        if isinstance(cause, av.HTTPNotFoundError):
            return SourceError(f"{label}: the server has no such stream (404); check the path of the address")
        if isinstance(cause, ConnectionRefusedError):
            return SourceError(
                f"{label}: nothing listens there (connection refused); check that the camera is on and the port"
            )
        tls = self._tls_failure() if self._address.scheme in ("rtsps", "https", "rtmps") else None
        if tls is not None and isinstance(cause, Exception):
            return SourceError(f"{label}: no secure connection ({tls}); FFmpeg says: {reason(cause)}")
        return error

    def _tls_failure(self) -> str | None:
        """Try only the TLS handshake and return what is wrong with it."""
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        address = (self._address.host, self._address.port or _PORTS[self._address.scheme])
        try:
            with socket.create_connection(address, timeout=_PROBE_S) as plain, context.wrap_socket(plain):
                return None
        except ssl.SSLError as error:
            return f"TLS: {(error.reason or str(error)).lower().replace('_', ' ')}"
        except OSError:
            return None
