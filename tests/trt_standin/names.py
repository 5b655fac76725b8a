"""Reports every `tensorrt` name in the given sources that the bindings lack; run by `run_offline`."""

import ast
import importlib
import sys
from pathlib import Path


def used_names(source: str) -> set[str]:
    """Return the dotted names that a source takes from `tensorrt`, for instance `tensorrt.plugin.register`."""
    tree = ast.parse(source)
    aliases: dict[str, str] = {}
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for name in node.names:
                if name.name.split(".")[0] == "tensorrt":
                    aliases[name.asname or "tensorrt"] = name.name if name.asname else "tensorrt"
                    names.add(name.name)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "tensorrt":
            for name in node.names:
                aliases[name.asname or name.name] = f"{node.module}.{name.name}"
                names.add(f"{node.module}.{name.name}")
    for node in ast.walk(tree):
        parts: list[str] = []
        at: ast.AST = node
        while isinstance(at, ast.Attribute):
            parts.append(at.attr)
            at = at.value
        if parts and isinstance(at, ast.Name) and at.id in aliases:
            names.add(".".join([aliases[at.id], *reversed(parts)]))
    return names


def exists(dotted: str) -> bool:
    """Whether a dotted name can be reached from the imported package."""
    root, *parts = dotted.split(".")
    found: object = importlib.import_module(root)
    for part in parts:
        if not hasattr(found, part):
            return False
        found = getattr(found, part)
    return True


def main() -> None:
    from tests.trt_standin import report
    from tests.trt_standin.activate import activate

    activate()
    names = set().union(*(used_names(Path(path).read_text()) for path in sys.argv[1:]))
    report({"checked": sorted(names), "missing": sorted(name for name in names if not exists(name))})


if __name__ == "__main__":
    main()
