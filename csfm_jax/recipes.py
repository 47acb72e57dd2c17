"""Recipe files: how somebody fine-tunes, whatever the checkpoint and the task. `csfm finetune --recipe` reads them."""

import dataclasses
import runpy
from collections.abc import Sequence
from typing import TYPE_CHECKING

from csfm_jax import config as configs
from csfm_jax.config import Config
from data_pipelines.errors import BadInput

if TYPE_CHECKING:
    import ml_collections

SECTIONS = ("adaptation", "data", "optimizer", "training")
_LENGTH = {"training.steps", "training.epochs"}  # one says how long
_BY_DEPTH = {"adaptation.rates", "adaptation.layer_decay"}  # of a whole encoder that was pretrained


def blank() -> "ml_collections.ConfigDict":
    """A configuration without any value; a recipe file starts from it and sets what it is about."""
    import ml_collections

    def sections(cls) -> dict:
        nested = {f.name: f.type for f in dataclasses.fields(cls) if dataclasses.is_dataclass(f.type)}
        return {name: sections(of) for name, of in nested.items()}

    return ml_collections.ConfigDict(sections(Config))


def read(name_or_path: str) -> tuple[str, ...]:
    """A recipe as the `--config.x.y=value` words that it stands for.

    Args:
        name_or_path: a .py file that defines `get_recipe() -> ConfigDict`, or the name of a shipped one.

    Raises:
        BadInput: no such file, one that fails, a field that is unknown or of another type, or one that is no recipe's.
    """
    where = f"--recipe={name_or_path}"
    path = configs.find_among(configs.shipped_configs("recipes"), name_or_path, "recipe")
    try:
        values = runpy.run_path(str(path))["get_recipe"]().to_dict()
        configs.from_dict(values)
    except BadInput as error:
        raise BadInput(f"{where}: {error.where}", error.found, error.expected, error.remedy) from error
    except Exception as error:
        raise configs.unusable(where, "recipe", error) from error
    found = dict(_leaves(values))
    for name in found:
        if (section := name.partition(".")[0]) not in SECTIONS:
            expected = f"fields of {', '.join(SECTIONS)}: the network is the checkpoint's, the task that of --task"
            raise BadInput(f"{where}: config.{name}", f"a field of {section}", expected, "remove it")
    if found.keys() >= _LENGTH:
        expected = "training.steps or training.epochs"
        raise BadInput(f"{where}: config.training.epochs", "both lengths", expected, "remove one of them")
    return tuple(f"--config.{name}={value}" for name, value in found.items())


def left_standing(recipe: Sequence[str], overrides: Sequence[str], scratch: bool) -> list[str]:
    """The words of a recipe that hold for a run: overrides win, and rates that fall with depth are those of a whole
    encoder that was pretrained.

    Args:
        recipe: of `read`. overrides: of the command line. scratch: whether weights begin at random.
    """
    beaten = {configs.field_of(word) for word in overrides}
    if beaten & _LENGTH:
        beaten |= _LENGTH
    values = {configs.field_of(word): word.partition("=")[2] for word in (*recipe, *overrides)}
    if scratch or values.get("adaptation.trainable", "all") != "all":
        beaten |= _BY_DEPTH
    return [word for word in recipe if configs.field_of(word) not in beaten]


def _leaves(values: dict, prefix: str = ""):
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value
