"""The sizes of a network, and the three networks that have names."""

from dataclasses import dataclass

from engines.xpose import efficientnet

BACKBONES = ("swin", "efficientnet_lite0")


@dataclass(frozen=True)
class XPoseConfig:
    """All sizes of one X-Pose network. The structure of encoder, decoder and heads is the same for every network.

    Backbone: one of `BACKBONES`. "swin" uses the sizes below; "efficientnet_lite0" has fixed sizes of its own.
    Swin: `embed_dim` channels after the patches, doubled per stage; `depths` blocks and `num_heads` heads per stage;
    attention in windows of `window` x `window` cells.
    Levels: with Swin, each stage in `level_stages` gives one level, and one more level halves the last of them. With
    EfficientNet, the maps at strides 8, 16 and 32 give one level each.
    Queries: the network selects `queries` boxes in the image. After `box_layers`, the best `groups` of them become
    groups of one box and its keypoints.
    Sources: X-Pose (ECCV 2024), section 4 and its released configuration; Swin, arXiv:2103.14030.
    """

    backbone: str = "swin"
    embed_dim: int = 96
    depths: tuple[int, ...] = (2, 2, 6, 2)
    num_heads: tuple[int, ...] = (3, 6, 12, 24)
    window: int = 7
    level_stages: tuple[int, ...] = (1, 2, 3)
    hidden_dim: int = 256
    heads: int = 8
    points: int = 4
    encoder_layers: int = 6
    decoder_layers: int = 6
    box_layers: int = 2
    queries: int = 900
    groups: int = 50
    feedforward: int = 2048
    text_feedforward: int = 1024
    text_heads: int = 4
    fusion_dim: int = 1024
    fusion_heads: int = 4
    max_keypoints: int = 68
    text_dim: int = 512
    visual_width: int = 768  # width of CLIP's image tower, and of the keypoint token of a visual prompt
    label_book: int = 2000  # labels of the denoising queries in training; one more label means "unknown"
    drop_path: float = 0.2  # drop rate of the last Swin block in training; it grows linearly from 0 at the first block
    fusion_drop_path: float = 0.1
    input_hw: tuple[int, int] = (800, 1333)

    def __post_init__(self) -> None:
        if self.backbone not in BACKBONES:
            raise ValueError(f"backbone is {self.backbone!r}, allowed are {', '.join(BACKBONES)}")

    @property
    def level_widths(self) -> tuple[int, ...]:
        """Channels of the backbone's maps, fine to coarse."""
        if self.backbone == "efficientnet_lite0":
            return efficientnet.LEVEL_WIDTHS
        return tuple(self.embed_dim * 2**stage for stage in self.level_stages)

    @property
    def extra_level(self) -> bool:
        """Whether the neck makes one more level by halving the last map of the backbone."""
        return self.backbone == "swin"

    @property
    def levels(self) -> int:
        """Number of feature maps that the neck makes."""
        return len(self.level_widths) + self.extra_level

    @classmethod
    def swin_t(cls) -> "XPoseConfig":
        """The released network, `unipose_swint.pth`."""
        return cls()

    @classmethod
    def swin_l(cls) -> "XPoseConfig":
        """The larger network of the paper, with Swin-L for 384 px. Its weights were never released."""
        return cls(embed_dim=192, depths=(2, 2, 18, 2), num_heads=(6, 12, 24, 48), window=12)

    @classmethod
    def nano(cls) -> "XPoseConfig":
        """The same architecture for CPUs: narrower, three stages, fewer layers, queries and groups."""
        return cls(
            embed_dim=48, depths=(2, 2, 6), num_heads=(4, 8, 8), window=4, level_stages=(1, 2), hidden_dim=128, heads=4,
            encoder_layers=2, decoder_layers=5, queries=40, groups=16, feedforward=256, text_feedforward=256,
            fusion_dim=256, fusion_heads=2, visual_width=128, drop_path=0.05, fusion_drop_path=0.0,
            input_hw=(256, 320),
        )  # fmt: skip
