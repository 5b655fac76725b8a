"""X-Pose on live video: sources, stages, wire format, publisher and subscriber."""
