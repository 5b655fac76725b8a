"""An RTSP server on loopback, run by the system's Python where GStreamer's is installed: rtsp_server.py PORT [FILE]

Serves a moving ball, 160 x 120, 30 frames a second, at rtsp://127.0.0.1:PORT/ball, or the H.264 of an MP4 file there.
Prints "ready".
"""

import sys

import gi

gi.require_version("Gst", "1.0")
gi.require_version("GstRtspServer", "1.0")
from gi.repository import GLib, Gst, GstRtspServer  # noqa: E402

LAUNCH = (
    "( videotestsrc is-live=true pattern=ball ! video/x-raw,width=160,height=120,framerate=30/1"
    " ! x264enc tune=zerolatency speed-preset=ultrafast key-int-max=15 ! rtph264pay name=pay0 pt=96 )"
)
FILE_LAUNCH = "( filesrc location={} ! qtdemux ! rtph264pay name=pay0 pt=96 config-interval=-1 )"

if __name__ == "__main__":
    Gst.init(None)
    server = GstRtspServer.RTSPServer()
    server.set_address("127.0.0.1")
    server.set_service(sys.argv[1])
    factory = GstRtspServer.RTSPMediaFactory()
    factory.set_launch(LAUNCH if len(sys.argv) < 3 else FILE_LAUNCH.format(sys.argv[2]))
    factory.set_shared(True)
    server.get_mount_points().add_factory("/ball", factory)
    if server.attach(None) == 0:
        sys.exit(f"port {sys.argv[1]} is taken")
    print("ready", flush=True)
    GLib.MainLoop().run()
