"""X-Pose on live video: sources, the flow of frames through bounded queues, outputs, and the command line."""
