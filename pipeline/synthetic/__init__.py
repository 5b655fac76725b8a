"""Synthetic scenes with exact keypoints (numpy and OpenCV only).

scene = render_scene(seed=7, config=SceneConfig(size_hw=(320, 320)))
video = SceneVideo(seed=7, config=SceneConfig(), size_hw=(480, 640), rate=30.0)
video.frame(100)   # any frame, in any order
"""

from pipeline.synthetic.scene import CATEGORIES, Instance, Scene, SceneConfig, SceneVideo, render_scene

__all__ = ["CATEGORIES", "Instance", "Scene", "SceneConfig", "SceneVideo", "render_scene"]
