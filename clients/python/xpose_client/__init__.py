"""Receive the poses that X-Pose Stream publishes: messages, their codec, and `PoseSubscriber`."""
