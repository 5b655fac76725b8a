"""RTSP servers for tests: GStreamer's, in a process of its own."""

import subprocess
from pathlib import Path

from benchmarks.chaos.run import free_port
from tests.support import lacks

SYSTEM_PYTHON = "/usr/bin/python3"
IMPORTS = "import gi; gi.require_version('GstRtspServer', '1.0'); from gi.repository import GstRtspServer"


def need_rtsp_server() -> None:
    """Skip the test where GStreamer's server is not installed; fail under CI=true."""
    if (
        not Path(SYSTEM_PYTHON).exists()
        or subprocess.run([SYSTEM_PYTHON, "-c", IMPORTS], capture_output=True).returncode
    ):
        lacks("no RTSP server: install gir1.2-gst-rtsp-server-1.0, python3-gi and GStreamer's plugins")


class RtspServer:
    """A server process that can be killed and started again on the same port.

    Args:
        clip: MP4 file of H.264 to serve; None serves a moving ball.
    """

    def __init__(self, clip: Path | None = None) -> None:
        self.port = free_port()
        self._clip = clip
        self.uri = f"rtsp://127.0.0.1:{self.port}/ball"
        self.start()

    def start(self) -> None:
        script = Path(__file__).parent / "rtsp_server.py"
        command = [SYSTEM_PYTHON, script, str(self.port), *([] if self._clip is None else [self._clip])]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "ready\n"

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(timeout=10)
        assert self.process.stdout is not None
        self.process.stdout.close()
