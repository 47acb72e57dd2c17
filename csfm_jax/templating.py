"""Text files with named places, filled so that a value never leaves the place that it was put in."""

import json
import shlex
import string
from pathlib import Path

from data_pipelines.errors import BadInput


class _Text(string.Template):
    # A shell's own $ stays as it is; only @{name} is a place.
    pattern = r"@\{(?P<braced>[a-z_]+)\}|(?P<escaped>(?!))|(?P<named>(?!))|(?P<invalid>(?!))"


def folder() -> Path:
    """The folder of the launchers' templates."""
    here = Path(__file__).parent
    for path in (here / "_launch", here.parent / "launch"):  # in a wheel; in a source tree
        if path.is_dir():
            return path
    raise BadInput(str(here), "no templates of launchers", "the folder launch/", "install csfm_jax again")


def fill(template: Path, values: dict) -> str:
    """Puts values where their names stand, quoted for a shell, or as YAML: the only way from a value into a file.

    Args:
        template: ends in .yaml, or is a shell script or a Dockerfile. A line that names a value which is None or an
            empty list is left out. values: of str, int or bool, and lists of them; one item a line.
    """
    quote = _as_yaml if template.suffix == ".yaml" else _as_words
    lines = []
    for line in template.read_text(encoding="utf-8").splitlines():
        text = _Text(line)
        names = text.get_identifiers()
        if any(values[name] is None or values[name] == [] for name in names):
            continue
        indent = " " * (len(line) - len(line.lstrip()))
        lines.append(text.substitute({name: quote(values[name], indent) for name in names}))
    return "\n".join(lines) + "\n"


def _as_words(value, indent: str) -> str:
    if isinstance(value, list):
        return f"\n{indent}".join(_as_words(word, indent) for word in value)
    quoted = shlex.quote(str(value))
    # a bare comma in a list is what shellcheck takes for a separator meant for another language
    return f"'{quoted}'" if "," in quoted and quoted == value else quoted


def _as_yaml(value, indent: str) -> str:
    if isinstance(value, list):
        return "".join(f"\n{indent}  - {_as_yaml(word, indent)}" for word in value)
    if isinstance(value, str) and "\n" in value:  # a script
        return "\n".join(["|", *(f"{indent}  {line}".rstrip() for line in value.splitlines())])
    return json.dumps(value, ensure_ascii=False)  # JSON is YAML
