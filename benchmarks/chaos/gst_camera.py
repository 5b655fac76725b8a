"""A camera made of GStreamer's RTSP server, run by the system's Python: gst_camera.py PORT FPS [SLICES]

Serves time-coded pictures as H.264 with a key frame each second at rtsp://127.0.0.1:PORT/live, with sender reports.
Each picture has one slice, or as many as stated. Prints "ready".
"""

import sys
import time
from pathlib import Path
from typing import Any

import gi

gi.require_version("Gst", "1.0")
gi.require_version("GstApp", "1.0")
gi.require_version("GstRtspServer", "1.0")
from gi.repository import GLib, Gst, GstRtspServer  # noqa: E402

sys.path.insert(0, str(Path(__file__).parents[2]))
from benchmarks.chaos.timecode import HEIGHT, WIDTH, draw  # noqa: E402


def launch(fps: int, slices: int) -> str:
    """The pipeline of one stream."""
    return (
        f"( appsrc name=pictures is-live=true format=time do-timestamp=true block=false max-buffers=2 leaky-type=2 "
        f"caps=video/x-raw,format=GRAY8,width={WIDTH},height={HEIGHT},framerate={fps}/1 ! videoconvert "
        "! video/x-raw,format=I420 "
        f"! x264enc tune=zerolatency threads={slices} speed-preset=ultrafast key-int-max={fps} bitrate=600 "
        "! rtph264pay name=pay0 pt=96 config-interval=-1 )"
    )


def feed(media: Any, fps: int) -> None:
    """Push one picture after another while a client is connected."""
    source = media.get_element().get_by_name("pictures")
    watched, count = [True], [0]

    def push() -> bool:
        if not watched[0]:
            return False
        picture = Gst.Buffer.new_wrapped(draw(time.time_ns(), count[0]))
        picture.duration = Gst.SECOND // fps
        count[0] += 1
        source.emit("push-buffer", picture)
        return True

    media.connect("unprepared", lambda _: watched.__setitem__(0, False))
    GLib.timeout_add(1000 // fps, push)


def main() -> None:
    """Serve until killed."""
    Gst.init(None)
    fps = int(sys.argv[2])
    server = GstRtspServer.RTSPServer()
    server.set_address("127.0.0.1")
    server.set_service(sys.argv[1])
    factory = GstRtspServer.RTSPMediaFactory()
    factory.set_launch(launch(fps, int(sys.argv[3]) if len(sys.argv) > 3 else 1))
    factory.set_shared(True)
    factory.connect("media-configure", lambda _, media: feed(media, fps))
    server.get_mount_points().add_factory("/live", factory)
    if server.attach(None) == 0:
        sys.exit(f"port {sys.argv[1]} is taken")
    print("ready", flush=True)
    GLib.MainLoop().run()


if __name__ == "__main__":
    main()
