"""Publishes the poses of X-Pose Stream to ROS 2, over DDS, without an installation of ROS 2."""
