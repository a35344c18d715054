"""Which of our own source is needed to load and score an artifact: modules, and what of each.

Found without running any of it. A statement at the top of a module that binds names (a function, a class, a constant,
an import) is needed where one of them may be meant: by its name in its own module, imported from it by another, or as
an attribute of what is not another package's, which a string may name too. So is a method of a class that has no base,
or only such ones of its own module. Statements that bind nothing are always needed. A name that two definitions share
may bring in one too many, never one too few.
"""

from __future__ import annotations

import ast
import io
import tokenize
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import resolve_name
from pathlib import Path

from jgolf.errors import ArtifactError

SCORING_MODULES = ("jgolf.artifact.scoring",)
ADAPTING_MODULE = "jgolf.artifact.adapting"
"""Which does the same, and scores with test-time training."""
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def needed_code(entries: Sequence[str] = SCORING_MODULES, root: str | Path | None = None) -> dict[str, str]:
    """The source that `entries` need, without docstrings, lines of comment and types: path below `root` → text.

    Only modules of the entries' own packages are followed; all statements of an entry count as needed.

    Args:
      entries: dotted names of the modules that load and score an artifact.
      root: folder that holds the package; where this one lies if None.

    Returns:
      Sorted by path, with the `__init__.py` of each package on the way.

    Raises:
      ArtifactError: there is no such module.
    """
    root = Path(root) if root is not None else Path(__file__).resolve().parents[2]
    for entry in entries:
        if _source(entry, root) is None:
            raise ArtifactError(f"{root}: no module {entry} is there to count the code of")
    modules = {entry: _Module(entry, root, whole=True) for entry in entries}
    attributes: set[str] = set()
    grown = True
    while grown:
        grown = False
        for module in [*modules.values()]:
            for part in module.newly_needed(attributes):
                grown = True
                attributes |= {name for node in part.walk() for name in _attributes(node, module.others)}
                for imported, names in part.imports(module, root):
                    if imported not in modules:
                        modules[imported] = _Module(imported, root)
                    modules[imported].names |= names
    texts = {module.path.relative_to(root).as_posix(): module.needed_text() for module in modules.values()}
    return dict(sorted(texts.items()))


@dataclass(frozen=True, eq=False)
class _Part:
    """What is needed as a whole or not at all.

    Attributes:
      names: that it binds; None where it is needed whatever is.
      nodes: that it consists of.
      statement: that it is, or is a part of: a class of its methods, an import of the names that it imports.
    """

    names: frozenset[str] | None
    nodes: tuple[ast.AST, ...]
    statement: ast.stmt
    is_method: bool = False

    def walk(self) -> Iterator[ast.AST]:
        return (child for node in self.nodes for child in ast.walk(node))

    def imports(self, module: _Module, root: Path) -> Iterator[tuple[str, set[str]]]:
        """Modules of the same package that it imports, with the packages that hold them, and the names from each."""
        found = [self.statement] if isinstance(self.nodes[0], ast.alias) else []
        for node in (*found, *self.walk()):
            aliases = [self.nodes[0]] if found and node is self.statement else getattr(node, "names", [])
            if isinstance(node, ast.Import):
                wanted = [(alias.name, set()) for alias in aliases]
            elif isinstance(node, ast.ImportFrom):
                package = module.name if module.path.name == "__init__.py" else module.name.rpartition(".")[0]
                base = resolve_name("." * node.level + (node.module or ""), package)
                wanted = [(base, {alias.name for alias in aliases})]
                wanted += [(f"{base}.{alias.name}", set()) for alias in aliases]
            else:
                continue
            for name, names in wanted:
                parts = name.split(".")
                if parts[0] != module.name.split(".")[0]:
                    continue
                for length in range(1, len(parts) + 1):
                    prefix = ".".join(parts[:length])
                    if _source(prefix, root):
                        yield prefix, names if prefix == name else set()


class _Module:
    """A module's source, and what of it is needed.

    Attributes:
      names: that are used in it or imported from it.
      others: names in it that are other packages' (modules, or what is imported from one).
    """

    def __init__(self, name: str, root: Path, whole: bool = False):
        self.name, self.path, self._whole = name, _source(name, root), whole
        self._text = _without_annotations(self.path.read_text(encoding="utf-8"))
        self._tree = ast.parse(self._text)
        self.others = {name for node in ast.walk(self._tree) for name in _imported_from_others(node, self.name)}
        closed = _closed_classes(self._tree)
        self._parts = [part for statement in self._tree.body for part in _parts(statement, closed)]
        self._needed: set[_Part] = set()
        self.names: set[str] = set()

    def newly_needed(self, attributes: set[str]) -> list[_Part]:
        """The parts that turn out to be needed, given the attributes that anything has."""
        found = [part for part in self._parts if part not in self._needed and self._may_be_meant(part, attributes)]
        self._needed |= set(found)
        self.names |= {node.id for part in found for node in part.walk() if isinstance(node, ast.Name)}
        return found

    def _may_be_meant(self, part: _Part, attributes: set[str]) -> bool:
        if part.names is None or (self._whole and not (part.is_method or isinstance(part.nodes[0], ast.alias))):
            return True
        return not part.names.isdisjoint(attributes if part.is_method else self.names | attributes)

    def needed_text(self) -> str:
        lines = self._text.splitlines()
        changed: dict[int, str] = {}
        dropped = set(_comment_lines(self._text)) | {line for part in _docstrings(self._tree) for line in _lines(part)}
        for part in self._parts:
            statement = part.nodes[0] if part.is_method else part.statement
            if isinstance(part.nodes[0], ast.alias):
                kept = [other.nodes[0] for other in self._needed if other.statement is statement]
                if len(kept) == len(statement.names):
                    continue
                dropped |= set(_lines(statement))
                if kept:
                    statement.names = [alias for alias in statement.names if alias in kept]
                    changed[statement.lineno - 1] = ast.unparse(statement)
            elif part not in self._needed:
                dropped |= set(_lines(statement))
        kept_lines = (
            changed.get(number, line) for number, line in enumerate(lines) if number in changed or number not in dropped
        )
        return _without_gaps(kept_lines)


def _closed_classes(tree: ast.Module) -> set[str]:
    """Names of the classes whose methods no base of another package calls: of no base, or of such classes alone."""
    closed: set[str] = set()
    for node in tree.body:
        bases = [getattr(base, "id", None) for base in node.bases] if isinstance(node, ast.ClassDef) else [None]
        closed |= {node.name} if closed.issuperset(bases) else set()
    return closed


def _parts(statement: ast.stmt, closed: set[str]) -> list[_Part]:
    if isinstance(statement, ast.ImportFrom) and statement.module == "__future__":
        return [_Part(None, (statement,), statement)]
    if isinstance(statement, ast.Import | ast.ImportFrom):
        return [
            _Part(frozenset({alias.asname or alias.name.split(".")[0]}), (alias,), statement)
            for alias in statement.names
        ]
    if isinstance(statement, ast.ClassDef):
        methods = [node for node in statement.body if isinstance(node, FUNCTIONS) and not node.name.startswith("__")]
        methods = methods if statement.name in closed else []
        if all(node in methods or _is_string(node) for node in statement.body):
            methods = methods[1:]  # something has to be left
        rest = [child for child in ast.iter_child_nodes(statement) if child not in methods]
        head = _Part(frozenset({statement.name}), tuple(rest), statement)
        return [head, *(_Part(frozenset({method.name}), (method,), statement, is_method=True) for method in methods)]
    if isinstance(statement, FUNCTIONS):
        return [_Part(frozenset({statement.name}), (statement,), statement)]
    targets = {ast.Assign: "targets", ast.AnnAssign: "target"}.get(type(statement))
    bound = getattr(statement, targets) if targets else None
    bound = bound if isinstance(bound, list) else [bound]
    names = {node.id for target in bound if target for node in ast.walk(target) if isinstance(node, ast.Name)}
    return [_Part(frozenset(names) or None, (statement,), statement)]


def _imported_from_others(node: ast.AST, module: str) -> set[str]:
    """Names that an import, of `module`, binds to what is no part of the same package."""
    own = module.split(".")[0]
    if isinstance(node, ast.Import):
        return {alias.asname or alias.name.split(".")[0] for alias in node.names if alias.name.split(".")[0] != own}
    if isinstance(node, ast.ImportFrom) and not node.level and (node.module or "").split(".")[0] != own:
        return {alias.asname or alias.name for alias in node.names}
    return set()


def _attributes(node: ast.AST, others: set[str]) -> set[str]:
    """Names by which `node` may mean a definition of any module; an attribute of another package's means none."""
    if isinstance(node, ast.Attribute):
        of = node.value
        while isinstance(of, ast.Attribute):
            of = of.value
        return set() if isinstance(of, ast.Name) and of.id in others else {node.attr}
    if isinstance(node, ast.keyword) and node.arg:
        return {node.arg}
    return {node.value} if isinstance(node, ast.Constant) and isinstance(node.value, str) else set()


def _source(module: str, root: Path) -> Path | None:
    path = root.joinpath(*module.split("."))
    candidates = (path.with_suffix(".py"), path / "__init__.py")
    return next((candidate for candidate in candidates if candidate.is_file()), None)


def _lines(statement: ast.stmt) -> range:
    """Numbers of a statement's lines, from 0."""
    first = min([statement.lineno, *(node.lineno for node in getattr(statement, "decorator_list", []))])
    return range(first - 1, statement.end_lineno)


def _docstrings(tree: ast.AST) -> Iterator[ast.stmt]:
    """Strings that stand alone, but for one where a definition consists of nothing else."""
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            strings = [statement for statement in body if _is_string(statement)]
            yield from strings if len(strings) < len(body) or isinstance(node, ast.Module) else strings[1:]


def _is_string(statement: ast.stmt) -> bool:
    value = statement.value if isinstance(statement, ast.Expr) else None
    return isinstance(value, ast.Constant) and isinstance(value.value, str)


def _without_annotations(text: str) -> str:
    """The text without the types of functions' arguments and results, which nothing reads when the code is run."""
    data, cuts = text.encode(), []
    starts = [0, *(number + 1 for number, byte in enumerate(data) if byte == ord("\n"))]
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.arg) and node.annotation:
            first = starts[node.lineno - 1] + node.col_offset + len(node.arg.encode())
            cuts.append((first, starts[node.annotation.end_lineno - 1] + node.annotation.end_col_offset))
        elif isinstance(node, ast.FunctionDef) and node.returns:
            before = data[: starts[node.returns.lineno - 1] + node.returns.col_offset]
            first = len(before[: before.rindex(b"->")].rstrip())
            cuts.append((first, starts[node.returns.end_lineno - 1] + node.returns.end_col_offset))
    for first, end in sorted(cuts, reverse=True):
        data = data[:first] + data[end:]
    return data.decode()


def _comment_lines(text: str) -> Iterator[int]:
    """Numbers of the lines that hold a comment alone, from 0."""
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT and token.line.lstrip().startswith("#"):
            yield token.start[0] - 1


def _without_gaps(lines: Iterator[str]) -> str:
    """The lines with at most one empty one in a row, and none at the start and the end."""
    kept: list[str] = []
    for line in lines:
        if line or (kept and kept[-1]):
            kept.append(line)
    return "\n".join(kept).rstrip("\n") + "\n" if any(kept) else ""
