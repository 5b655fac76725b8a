"""Read and write weights: the official checkpoint under its own names, our own files, and seeded noise.

The official state dict has 1,165 keys. Its shared heads appear under several of them; here each head is one module.
Reading checks that all its names agree, saving writes all of them. The released file has no CLIP text tower; OpenAI's
own file has it.
"""

import json
import logging
import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from engines.clip import Clip, ClipConfig, load_clip
from engines.errors import CheckpointError
from engines.fetch import CLIP_FILE, OFFICIAL_FILE, weights_folder
from engines.folders import expanded
from engines.xpose import XPose, XPoseConfig

CLIP_PREFIX = "clip_model."
CATEGORIES_KEY = "categories"
RANDOM = "random"
RANDOM_SEED = 20240731
NANO_FILE = Path(__file__).parent / "weights" / "nano.safetensors"

MODELS: dict[str, tuple[Callable[[], XPoseConfig], Callable[[], ClipConfig]]] = {
    "nano": (XPoseConfig.nano, ClipConfig.nano),
    "swin-t": (XPoseConfig.swin_t, ClipConfig.vit_b_32),
    "swin-l": (XPoseConfig.swin_l, ClipConfig.vit_b_32),
}


@dataclass(frozen=True)
class LoadReport:
    """The parts of an official checkpoint besides the network."""

    source: str
    clip: dict[str, Tensor]  # CLIP's keys in the file, without `clip_model.`
    missing_clip_text: tuple[str, ...]  # the released file lacks all 150


def load_official(model: XPose, state_dict_or_path: Mapping[str, Tensor] | str | Path) -> LoadReport:
    """Load X-Pose's official checkpoint strictly.

    Args:
        model: of the checkpoint's size; keeps its dtypes.
        state_dict_or_path: `unipose_swint.pth`, or its contents; keys may carry `module.`, and stand under `model`.
    Raises:
        CheckpointError: unreadable file; any key missing (but CLIP's text tower) or unexpected; another shape; names of
            one shared head that disagree.
    """
    if isinstance(state_dict_or_path, Mapping):
        source, found = "the state dict", dict(state_dict_or_path)
    else:
        source, found = str(state_dict_or_path), _read_pickle(Path(state_dict_or_path))
    found = _unwrap(source, found)
    with torch.device("meta"):
        clip_shapes = {CLIP_PREFIX + key: value for key, value in Clip(ClipConfig.vit_b_32()).state_dict().items()}
    own = model.state_dict()
    names = {key: alias_names(key, model.config) for key in own}
    expected = {name: own[key] for key, aliases in names.items() for name in aliases} | clip_shapes
    clip_text = {key for key in clip_shapes if not key.startswith(f"{CLIP_PREFIX}visual.")}
    _check_keys(source, found, expected, optional=clip_text)
    for key, aliases in names.items():
        _check_aliases(source, found, aliases)
        if not own[key].is_floating_point() and not torch.equal(found[key].cpu(), own[key].cpu()):
            raise CheckpointError(f"{source}: {key} is not the index that its window size implies; the file is damaged")
    model.load_state_dict({key: found[key] for key in own})
    missing = tuple(sorted(clip_text - found.keys()))
    if missing:
        logger = logging.getLogger(__name__)
        logger.info("%s lacks %d of CLIP's %d text keys, as released", source, len(missing), len(clip_text))
    clip = {key.removeprefix(CLIP_PREFIX): found[key] for key in clip_shapes if key in found}
    return LoadReport(source, clip, missing)


def official_state_dict(model: XPose, clip: Clip | None = None) -> dict[str, Tensor]:
    """Return the weights under all official names; a shared head appears under each of its names."""
    named = {
        name: value for key, value in model.state_dict().items() for name in alias_names(key, model.config)
    }  # fmt: skip
    if clip is not None:
        named |= {CLIP_PREFIX + key: value for key, value in clip.state_dict().items()}
    return named


def alias_names(key: str, config: XPoseConfig) -> list[str]:
    """Return all official names of one of our keys, the key itself first.

    Box heads serve every decoder layer. Keypoint heads serve the expansion and the layers after it.
    """
    head, _, rest = key.partition(".0.")
    after = config.decoder_layers - config.box_layers
    copies = {"bbox_embed": config.decoder_layers, "pose_embed": after + 1, "pose_hw_embed": after}.get(head)
    if copies is None:
        return [key]
    return [f"{prefix}{head}.{copy}.{rest}" for prefix in ("", "transformer.decoder.") for copy in range(copies)]


def load_weights(model_name: str, weights: str = "") -> tuple[XPose, Clip]:
    """Build a named model and its CLIP, with weights.

    Args:
        model_name: nano, swin-t or swin-l.
        weights: a `.safetensors` file of ours, an official `.pth` (OpenAI's ViT-B-32.pt beside it or in the weights
            folder), "random", or empty for the model's own default.
    Raises:
        CheckpointError: unknown model; weights that are absent, unreadable or of another model.
    """
    if model_name not in MODELS:
        raise CheckpointError(f"model is {model_name!r}; allowed are {', '.join(MODELS)}")
    if weights == RANDOM:
        return _random(model_name)
    path = expanded(weights) if weights else default_weights(model_name)
    if not path.is_file():
        raise CheckpointError(f"no weights at {path}: {_how_to_get(model_name)}")
    model, clip = _build(model_name)
    if path.suffix == ".safetensors":
        load_own(path, model, clip)
    else:
        report = load_official(model, path)
        if report.missing_clip_text:
            load_clip(clip, _clip_beside(path))
        load_clip(clip, report.clip)  # last: the checkpoint's own towers count
    return model.eval().requires_grad_(requires_grad=False), clip.eval().requires_grad_(requires_grad=False)


def default_weights(model_name: str) -> Path:
    """Return the default path of a model's weights."""
    return NANO_FILE if model_name == "nano" else weights_folder() / OFFICIAL_FILE


def save_weights(
    path: Path,
    model: XPose,
    clip: Clip,
    categories: Mapping[str, str] | None = None,
    dtype: torch.dtype = torch.float16,
) -> None:
    """Write one file of our own form: each key of the network once, and CLIP's keys under `clip_model.`.

    `categories` are the only classes that the model knows, each with its keypoint list; None if it takes any words.
    """
    named = dict(model.state_dict()) | {CLIP_PREFIX + key: value for key, value in clip.state_dict().items()}
    stored = {
        key: (value.to(dtype) if value.is_floating_point() else value).contiguous() for key, value in named.items()
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    save_file(stored, partial, metadata={CATEGORIES_KEY: json.dumps(dict(categories))} if categories else None)
    partial.replace(path)


def trained_categories(model_name: str, weights: str = "") -> dict[str, str] | None:
    """Return the classes that a file knows, each with its keypoint list; None if the model takes any words."""
    path = expanded(weights) if weights else default_weights(model_name)
    if weights == RANDOM or path.suffix != ".safetensors":
        return None
    try:
        with safe_open(path, framework="pt") as file:
            categories = (file.metadata() or {}).get(CATEGORIES_KEY)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"cannot read {path} as safetensors ({error}): fetch it again") from error
    return None if categories is None else dict(json.loads(categories))


def _build(model_name: str) -> tuple[XPose, Clip]:
    network, clip = MODELS[model_name]
    return XPose(network()), Clip(clip())


def _random(model_name: str) -> tuple[XPose, Clip]:
    """Return seeded noise whose outputs spread over the image. Fresh weights would put each keypoint on its centre."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(RANDOM_SEED)
        model, clip = _build(model_name)
        for name, parameter in model.named_parameters():
            if name.endswith(("gamma_v", "gamma_l")):
                nn.init.constant_(parameter, 0.3)
            elif "_embed.0.layers.2." in name or "enc_out_bbox_embed.layers.2." in name:
                nn.init.normal_(parameter, std=0.05)
    return model.eval().requires_grad_(requires_grad=False), clip.eval().requires_grad_(requires_grad=False)


def load_own(path: Path, model: XPose, clip: Clip) -> None:
    """Load a file of ours, whose sizes must be those of `model` and `clip`, which keep their dtypes.

    Raises:
        CheckpointError: unreadable file; a key missing or unexpected; another shape.
    """
    try:
        found = load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"cannot read {path} as safetensors ({error}): fetch it again") from error
    expected = dict(model.state_dict()) | {CLIP_PREFIX + key: value for key, value in clip.state_dict().items()}
    _check_keys(str(path), found, expected, optional=set())
    model.load_state_dict({key: value for key, value in found.items() if not key.startswith(CLIP_PREFIX)})
    clip.load_state_dict(
        {key.removeprefix(CLIP_PREFIX): value for key, value in found.items() if key.startswith(CLIP_PREFIX)}
    )


def _read_pickle(path: Path) -> dict[str, Tensor]:
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise CheckpointError(f"no checkpoint at {path}: {_how_to_get('swin-t')}") from error
    except (OSError, RuntimeError, ValueError, EOFError, KeyError, pickle.UnpicklingError) as error:
        first_line = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(
            f"cannot read {path} as a checkpoint ({first_line}): it is truncated or no PyTorch file; fetch it again"
        ) from error
    if not isinstance(found, dict):
        raise CheckpointError(f"{path} holds a {type(found).__name__}, not a state dict: give {OFFICIAL_FILE}")
    return found


def _unwrap(source: str, found: dict[str, Tensor]) -> dict[str, Tensor]:
    inner = found.get("model", found)
    if not isinstance(inner, Mapping):
        raise CheckpointError(f"{source}: its entry `model` is a {type(inner).__name__}, not a state dict")
    named = {str(key).removeprefix("module."): value for key, value in inner.items()}
    for key, value in named.items():
        if not isinstance(value, Tensor):
            raise CheckpointError(f"{source}: {key} is a {type(value).__name__}, not a tensor; give {OFFICIAL_FILE}")
    return named


def _check_keys(source: str, found: Mapping[str, Tensor], expected: Mapping[str, Tensor], optional: set[str]) -> None:
    missing = sorted(expected.keys() - found.keys() - optional)
    unexpected = sorted(found.keys() - expected.keys())
    if missing or unexpected:
        raise CheckpointError(
            f"{source} belongs to another model: {_listed('missing', missing)}; {_listed('unexpected', unexpected)}"
        )
    reshaped = [
        f"{key} is {list(found[key].shape)}, needed {list(expected[key].shape)}"
        for key in sorted(found)
        if found[key].shape != expected[key].shape
    ]
    if reshaped:
        raise CheckpointError(f"{source} belongs to a model of another size: {_listed('different shapes', reshaped)}")


def _listed(what: str, entries: list[str]) -> str:
    return f"{len(entries)} {what}" + (f" ({', '.join(entries)})" if entries else "")


def _check_aliases(source: str, found: Mapping[str, Tensor], aliases: list[str]) -> None:
    for name in aliases[1:]:
        if not torch.equal(found[name], found[aliases[0]]):
            raise CheckpointError(
                f"{source}: {name} differs from {aliases[0]}, but both name one shared head; they were trained apart"
            )


def _clip_beside(path: Path) -> Path:
    for folder in (path.parent, weights_folder()):
        if (folder / CLIP_FILE).is_file():
            return folder / CLIP_FILE
    raise CheckpointError(
        f"no {CLIP_FILE} beside {path} or in {weights_folder()}: X-Pose's checkpoint lacks CLIP's text tower; "
        "run `python run_pipeline.py fetch-weights`"
    )


def _how_to_get(model_name: str) -> str:
    if model_name == "nano":
        return "this checkout does not ship it; name another file with --weights, or use --weights random"
    if model_name == "swin-l":
        return "its weights were never released; name your own file with --weights, or use --weights random"
    return "run `python run_pipeline.py fetch-weights`, name a file with --weights, or use --weights random"
