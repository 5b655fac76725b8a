"""The X-Pose network."""

from engines.xpose.config import XPoseConfig
from engines.xpose.model import XPose, XPoseOutput

__all__ = ["XPose", "XPoseConfig", "XPoseOutput"]
