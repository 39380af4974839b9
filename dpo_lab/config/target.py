"""What a `_target_` takes, read from its source: importing torch only to learn a signature would cost seconds."""

import ast
import importlib.machinery
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from dpo_lab.config.names import did_you_mean, nearest


@dataclass(frozen=True)
class Signature:
    """The parameters of a function or of a class's __init__ (without self)."""

    positional: tuple[str, ...]
    keyword_only: tuple[str, ...]
    required: tuple[str, ...]
    takes_any: bool  # has **kwargs
    decorators: tuple[str, ...]  # without module and arguments

    @property
    def names(self) -> tuple[str, ...]:
        """Everything that may be passed by keyword."""
        return self.positional + self.keyword_only


class TargetError(Exception):
    """There is no such module or name; the message says what there is instead."""


@dataclass(frozen=True)
class _Module:
    name: str
    source: Path | None  # None: compiled, nothing to read
    folder: Path | None  # of a package


def signature(target: str) -> Signature | None:
    """The signature of `package.module.name`, or None where only running the code could tell."""
    found = _definition(target)
    return _signature(*found) if found else None


def source_file(target: str) -> Path | None:
    """The file that defines `package.module.name`, following re-exports; None where it cannot be found."""
    try:
        found = _definition(target)
    except TargetError:
        return None
    return found[0].source if found else None


def _definition(target: str) -> "tuple[_Module, ast.ClassDef | ast.FunctionDef] | None":
    path, _, name = target.rpartition(".")
    if not path or not all(part.isidentifier() for part in target.split(".")):
        raise TargetError(f"{target} is not of the form MODULE.NAME")
    return _lookup(_module(path), name)


def _module(path: str) -> _Module:
    """The module's files, found without importing any package on the way."""
    names = path.split(".")
    spec = importlib.machinery.PathFinder.find_spec(names[0])
    if spec is None and names[0] in sys.builtin_module_names:
        return _Module(names[0], None, None)
    if spec is None:
        raise TargetError(
            f"there is no module {names[0]}: install it, or give its folder with --config-dir FOLDER"
            f"{did_you_mean(names[0], ['dpo_lab', 'torch', 'bitsandbytes'])}"
        )
    folders = list(spec.submodule_search_locations or [])
    module = _Module(
        names[0],
        Path(spec.origin) if spec.origin and spec.origin.endswith(".py") else None,
        Path(folders[0]) if folders else None,
    )
    for name in names[1:]:
        module = _submodule(module, name)
    return module


def _submodule(parent: _Module, name: str) -> _Module:
    full = f"{parent.name}.{name}"
    if parent.folder is not None:
        package, file = parent.folder / name / "__init__.py", parent.folder / f"{name}.py"
        if package.is_file():
            return _Module(full, package, package.parent)
        if file.is_file():
            return _Module(full, file, None)
        if any(parent.folder.glob(f"{name}.*.so")):
            return _Module(full, None, None)
    siblings = [p.stem for p in parent.folder.iterdir() if p.suffix == ".py" or p.is_dir()] if parent.folder else []
    if parent.source is None or name in _names(parent) or (_open_ended(parent) and not nearest(name, siblings)):
        return _Module(full, None, None)  # an object of the parent, or a module under another name
    raise TargetError(f"there is no module {full}{did_you_mean(name, siblings)}")


def _lookup(module: _Module, name: str) -> "tuple[_Module, ast.ClassDef | ast.FunctionDef] | None":
    """Where `name` is defined, from its module or the one that it was imported from."""
    if module.source is None:
        return None
    names = _names(module)
    node = names.get(name)
    if isinstance(node, ast.ClassDef | ast.FunctionDef):
        return module, node
    if isinstance(node, ast.ImportFrom):
        alias = next(a for a in node.names if (a.asname or a.name) == name)
        if (origin := _origin(module, node)) is None:
            return None
        try:
            return _lookup(_module(origin), alias.name)
        except TargetError:
            return None  # the library's own affair
    if node is not None or _open_ended(module):
        return None
    known = [n for n, d in names.items() if isinstance(d, ast.ClassDef | ast.FunctionDef | ast.ImportFrom)]
    public = [n for n in known if not n.startswith("_")]
    raise TargetError(f"{module.name} has no {name}{did_you_mean(name, public)}")


@cache
def _names(module: _Module) -> dict[str, ast.stmt]:
    """The names that a module's top level binds; its `if` and `try` blocks count."""
    assert module.source is not None
    try:
        tree = ast.parse(module.source.read_bytes(), filename=str(module.source))
    except SyntaxError as e:
        raise TargetError(f"{module.source}, line {e.lineno}: {e.msg}") from e
    found: dict[str, ast.stmt] = {}
    blocks: list[list[ast.stmt]] = [tree.body]
    while blocks:
        for node in blocks.pop(0):
            if isinstance(node, ast.ClassDef | ast.FunctionDef):
                found[node.name] = node
            elif isinstance(node, ast.Import | ast.ImportFrom):
                found |= {alias.asname or alias.name: node for alias in node.names}
            elif isinstance(node, ast.Assign | ast.AnnAssign):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                found |= {t.id: node for t in targets if isinstance(t, ast.Name)}
            elif isinstance(node, ast.If | ast.Try):
                blocks += [node.body, node.orelse]
                if isinstance(node, ast.Try):
                    blocks += [node.finalbody, *(handler.body for handler in node.handlers)]
    return found


def _open_ended(module: _Module) -> bool:
    """Whether a module may hold names that its source does not show."""
    return not {"*", "__getattr__"}.isdisjoint(_names(module))


def _origin(module: _Module, node: ast.ImportFrom) -> str | None:
    """The absolute name of the module in `from ... import`."""
    if not node.level:
        return node.module
    package = module.name.split(".")
    package = package[: len(package) - node.level + (1 if module.folder else 0)]
    return ".".join([*package, *([node.module] if node.module else [])]) or None


def _signature(module: _Module, node: ast.ClassDef | ast.FunctionDef) -> Signature | None:
    if isinstance(node, ast.FunctionDef):
        return _parameters(node, skip=0)
    if node.decorator_list or node.keywords:
        return None  # a dataclass or a metaclass writes its __init__
    for statement in node.body:
        if isinstance(statement, ast.FunctionDef) and statement.name == "__init__":
            return _parameters(statement, skip=1)
    if len(node.bases) == 1 and isinstance(base := node.bases[0], ast.Name):
        found = _lookup(module, base.id)
        return _signature(*found) if found else None
    return None


def _parameters(node: ast.FunctionDef, skip: int) -> Signature:
    arguments = node.args
    positional = [a.arg for a in (*arguments.posonlyargs, *arguments.args)]
    needed = positional[: len(positional) - len(arguments.defaults)][skip:]
    needed += [a.arg for a, d in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True) if d is None]
    return Signature(
        positional=tuple(positional[skip:]),
        keyword_only=tuple(a.arg for a in arguments.kwonlyargs),
        required=tuple(needed),
        takes_any=arguments.kwarg is not None,
        decorators=tuple(ast.unparse(d).partition("(")[0].rpartition(".")[2] for d in node.decorator_list),
    )
