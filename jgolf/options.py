"""Paths on the command line. `~` is the home folder, also where the shell leaves it as it is: `--out=~/x`, '~/x'."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo


def _of(kind: type) -> PrimitiveConstructorSpec:
    """How the parser makes a path of this type, Path or str."""
    return PrimitiveConstructorSpec(
        nargs=1,
        metavar="PATH",
        instance_from_str=lambda words: (
            kind(Path(words[0]).expanduser()) if words[0].startswith("~") else kind(words[0])
        ),
        is_instance=lambda value: isinstance(value, kind),
        str_from_instance=lambda path: [str(path)],
    )


PathText = Annotated[str, _of(str)]
"""The type of an option that is kept as text: in settings, or where it may be something else than a path."""

PATHS = ConstructorRegistry()
"""Makes the parser treat every option of type Path so, while it is entered."""


@PATHS.primitive_rule
def _path_rule(info: PrimitiveTypeInfo) -> Any:
    return _of(Path) if info.type is Path else None
