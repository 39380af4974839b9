"""Write docs/options.md from conf/: every option with what its file says of it, every key with its comment.

    python docs/options.py          write it (`make docs`)

A test holds the file against conf/, so that it never says more or less than what is there.
"""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CONF, TARGET = ROOT / "conf", ROOT / "docs" / "options.md"
LINE = re.compile(r"^(?P<indent> *)(?P<key>[\w+]+):\s*(?P<value>.*?)\s*(?:#\s*(?P<comment>.*))?$")
DOORS = ("preview", "bench", "evaluate", "chat", "export", "serve")
HEAD = """# Every option and key

Written from `conf/` by `make docs`. `GROUP=OPTION` picks a file, `GROUP.KEY=VALUE` changes a value of it.
"""


def groups() -> list[str]:
    """In the order in which train.yaml composes them."""
    text = (CONF / "train.yaml").read_text(encoding="utf-8")
    return re.findall(r"^  - (\w+): \w+$", text, re.MULTILINE)


def about(file: Path) -> str:
    """The comment at the head of an option's file."""
    lines = []
    for line in file.read_text(encoding="utf-8").splitlines():
        if line.startswith("# @package"):
            continue
        if not line.startswith("#"):
            break
        lines.append(line.lstrip("# "))
    return " ".join(lines)


def keys(text: str, group: str = "") -> list[tuple[str, str, str]]:
    """(key, value, comment) of each line of YAML that has a comment; of one block of train.yaml, or of a whole file."""
    found: list[tuple[str, str, str]] = []
    path: list[str] = []
    inside = not group
    for line in text.splitlines():
        match = LINE.match(line)
        if match is None or line.startswith("#"):
            continue
        depth = len(match["indent"]) // 2
        if group and depth == 0:
            inside = match["key"] == group
        path = [*path[:depth], match["key"]]
        if inside and match["comment"] and (not group or depth):
            found.append((".".join(path[1:] if group else path), match["value"], match["comment"]))
    return found


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """Markdown."""
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def document() -> str:
    """The whole page."""
    primary = (CONF / "train.yaml").read_text(encoding="utf-8")
    parts = [HEAD]
    for group in groups():
        files = sorted((CONF / group).glob("*.yaml"))
        parts.append(f"## {group}\n\n" + table(("option", "what it is"), [(f"`{f.stem}`", about(f)) for f in files]))
        common = {key: (value, comment) for key, value, comment in keys(primary, group)}
        own: dict[str, dict[str, tuple[str, str]]] = {}
        for file in files if group != "experiment" else []:
            for key, value, comment in keys(file.read_text(encoding="utf-8")):
                own.setdefault(key, {})[file.stem] = (value, comment)
        rows = [(f"`{group}.{key}`", f"`{value}`", comment) for key, (value, comment) in common.items()]
        for key, options in own.items():
            if key in common:
                continue
            for value, comment in dict.fromkeys(options.values()):
                names = ", ".join(name for name, there in options.items() if there == (value, comment))
                rows.append((f"`{group}.{key}`", f"`{value}`", f"{comment} ({names})"))
        if rows:
            parts.append(table(("key", "value", "what it does"), rows))
    texts = {name: (CONF / f"{name}.yaml").read_text(encoding="utf-8") for name in DOORS}
    doors = [(name, texts[name]) for name in DOORS]
    for node, file in [("doctor", primary), ("sweep", primary), *doors, ("judge", texts["evaluate"])]:
        rows = [(f"`{node}.{key}`", f"`{value}`", comment) for key, value, comment in keys(file, node)]
        parts.append(f"## {node}\n\n" + table(("key", "value", "what it does"), rows))
    rest = [
        (f"`{key}`", f"`{value}`", comment)
        for key, value, comment in keys(primary)
        if "." not in key and comment and value
    ]
    alone: dict[tuple[str, str, str], list[str]] = {}  # keys of doors that stand in no node
    for name, text in doors:
        for key, value, comment in keys(text):
            if "." not in key and comment and value:
                alone.setdefault((key, value, comment), []).append(name)
    after = [(f"`{k}`", f"`{v}`", f"{comment} ({', '.join(names)})") for (k, v, comment), names in alone.items()]
    parts.append("## Of the other doors as a whole\n\n" + table(("key", "value", "what it does"), after))
    parts.append("## Of the run as a whole\n\n" + table(("key", "value", "what it does"), rest))
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    TARGET.write_text(document(), encoding="utf-8")
