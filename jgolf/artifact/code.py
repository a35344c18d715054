"""Which of our own source files are needed to load and score an artifact, and their bytes."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator, Sequence
from importlib.util import resolve_name
from pathlib import Path

from jgolf.errors import ArtifactError

SCORING_MODULES = ("jgolf.artifact.scoring",)


def scoring_sources(entries: Sequence[str] = SCORING_MODULES, root: str | Path | None = None) -> list[Path]:
    """Source files that `entries` need, found without running any: their imports, theirs, and so on.

    Only modules of the entries' own package count. Imports at the top of a module are always followed.
    Imports inside a function or class are followed where something reached may use it: everything
    defined in an entry is reached, and so is every definition whose name occurs in what is reached.
    A name that two modules share may thus bring in a file too many, never one too few.

    Args:
      entries: dotted names of the modules that load and score an artifact.
      root: folder that holds the package; where this one lies if None.

    Returns:
      Sorted paths, with the `__init__.py` of each package on the way.

    Raises:
      ArtifactError: there is no such module.
    """
    root = Path(root) if root is not None else Path(__file__).resolve().parents[2]
    for entry in entries:
        if _source(entry, root) is None:
            raise ArtifactError(f"{root}: no module {entry} is there to count the code of")
    reached = {entry: set(_definitions(_parse(entry, root))) for entry in entries}
    while True:
        known = {module: set(names) for module, names in reached.items()}
        used: set[str] = set()
        for module, names in known.items():
            for node in _reached_nodes(_parse(module, root), names):
                used |= _names(node)
                for imported in _imports(node, module, root):
                    reached.setdefault(imported, set())
        for module in reached:
            reached[module] |= used & set(_definitions(_parse(module, root)))
        if reached == known:
            return sorted(_source(module, root) for module in reached)


def code_bytes(sources: Iterable[Path]) -> int:
    """Bytes of all `sources`, as the challenge counts code."""
    return sum(path.stat().st_size for path in sources)


def _source(module: str, root: Path) -> Path | None:
    path = root.joinpath(*module.split("."))
    candidates = (path.with_suffix(".py"), path / "__init__.py")
    return next((candidate for candidate in candidates if candidate.is_file()), None)


def _parse(module: str, root: Path) -> ast.Module:
    return ast.parse(_source(module, root).read_text())


def _definitions(tree: ast.Module) -> dict[str, ast.stmt]:
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    return {node.name: node for node in tree.body if isinstance(node, kinds)}


def _reached_nodes(tree: ast.Module, names: set[str]) -> list[ast.stmt]:
    """The module's statements and those of its definitions that are in `names`."""
    definitions = _definitions(tree).values()
    return [node for node in tree.body if node not in definitions or node.name in names]


def _names(node: ast.stmt) -> set[str]:
    """Every name that `node` may use a definition by, renamed imports included."""
    names = {child.id for child in ast.walk(node) if isinstance(child, ast.Name)}
    names |= {child.attr for child in ast.walk(node) if isinstance(child, ast.Attribute)}
    return names | {child.name for child in ast.walk(node) if isinstance(child, ast.alias) and child.asname}


def _imports(node: ast.stmt, module: str, root: Path) -> Iterator[str]:
    """Modules of the same package that `node` imports, and the packages that hold them."""
    for child in ast.walk(node):
        if isinstance(child, ast.Import):
            wanted = [alias.name for alias in child.names]
        elif isinstance(child, ast.ImportFrom):
            package = module if _source(module, root).name == "__init__.py" else module.rpartition(".")[0]
            base = resolve_name("." * child.level + (child.module or ""), package)
            wanted = [base, *(f"{base}.{alias.name}" for alias in child.names)]
        else:
            continue
        for name in wanted:
            parts = name.split(".")
            if parts[0] == module.split(".")[0]:
                prefixes = (".".join(parts[:length]) for length in range(1, len(parts) + 1))
                yield from (prefix for prefix in prefixes if _source(prefix, root))
