"""Configuration: every field is known, typed and read by some code."""

import ast
import dataclasses
from pathlib import Path

import pytest

from csfm_jax import config as configuration
from csfm_jax.config import Config, from_dict, load, shipped_configs
from csfm_jax.training import record
from data_pipelines.errors import BadInput

ROOT = Path(__file__).resolve().parents[1]


def leaves(cls, prefix=""):
    for field in dataclasses.fields(cls):
        if dataclasses.is_dataclass(field.type):
            yield from leaves(field.type, f"{prefix}{field.name}.")
        else:
            yield prefix + field.name


def test_round_trip_through_json():
    config = Config()
    assert from_dict(config.to_dict()) == config


@pytest.mark.parametrize("name", sorted(shipped_configs()))
def test_shipped_configs_load_and_say_what_they_are(name):
    load(name)
    header = ast.get_docstring(ast.parse(shipped_configs()[name].read_text()))
    commands = (f"csfm train --config={name}", f"csfm finetune --checkpoint=random --config={name}")
    assert header and any(command in header.replace("configs/", "").replace(".py", "") for command in commands)


def test_override_from_the_command_line():
    config = load("csfm_nano", ["--config.optimizer.learning_rate=0.5", "--config.data.rows=3"])
    assert config.optimizer.learning_rate == 0.5 and config.data.rows == 3


@pytest.mark.parametrize(
    "override, names",
    [
        ("--config.optimizer.learning_rat=1", "learning_rat"),
        ("--config.data.rows=many", "rows"),
        ("--config.nothing.rows=1", "nothing"),
    ],
)
def test_bad_overrides_are_named(override, names):
    with pytest.raises(BadInput, match=names) as error:
        load("csfm_nano", [override])
    assert "\n" not in str(error.value) and "\\n" not in str(error.value)


def test_the_last_of_several_words_for_a_field_wins():
    words = [f"--config.tokens.modalities={value}" for value in ('("ecg", "ppg")', '("ppg",)')]
    assert load("csfm_nano", words).tokens.modalities == ("ppg",)


def test_a_run_from_before_a_field_came_goes_on_with_its_default():
    now = {"config": Config().to_dict(), "preprocessing": {}, "channels": [], "tokenizer": None, "subjects": {}}
    earlier = {name: dict(part) for name, part in now["config"].items()}
    del earlier["training"]["ema"], earlier["optimizer"]["name"]
    del earlier["training"]["epochs"], earlier["optimizer"]["decay"]
    record.check_resumable(now | {"config": earlier}, now, "run")
    muon = dataclasses.replace(Config(), optimizer=dataclasses.replace(Config().optimizer, name="muon"))
    with pytest.raises(BadInput, match=r"config.optimizer.name = muon \(was adamw\)"):
        record.check_resumable(now | {"config": earlier}, now | {"config": muon.to_dict()}, "run")
    linear = dataclasses.replace(Config(), optimizer=dataclasses.replace(Config().optimizer, decay="linear"))
    with pytest.raises(BadInput, match=r"config.optimizer.decay = linear \(was cosine\)"):
        record.check_resumable(now | {"config": earlier}, now | {"config": linear.to_dict()}, "run")


def test_overrides_may_add_keys_to_open_mappings():
    words = ["--config.data.weights.ptbxl=2", "--config.objective.weights.ppg=0.5", "--config.tokens.patch.ecg=50"]
    config = load("csfm_base", words)
    assert config.data.weights == {"ptbxl": 2.0} and config.tokens.patch["ecg"] == 50
    assert config.objective.weights == {"text": 0.1, "ppg": 0.5}
    with pytest.raises(BadInput, match="config.data.weights.ptbxl"):
        load("csfm_base", ["--config.data.weights.ptbxl=much"])


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ("def get_config(:", "SyntaxError"),
        ("import no_such_module", "no_such_module"),
        ("x = 1", "get_config"),
        ("def get_config(): return 3", "should be a ConfigDict"),
    ],
)
def test_a_config_file_that_fails_is_refused_in_one_line(tmp_path, content, found):
    file = tmp_path / "mine.py"
    file.write_text(content + "\n")
    with pytest.raises(BadInput, match=found) as error:
        load(str(file))
    assert "\n" not in str(error.value)


def test_unknown_field_in_a_file_is_refused(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "from csfm_jax import config\ndef get_config():\n c = config.default()\n c.data.row_tokns = 5\n return c\n"
    )
    with pytest.raises(BadInput, match="row_tokns"):
        load(str(file))


def test_unknown_field_in_saved_values_is_refused_with_the_nearest():
    values = Config().to_dict()
    values["data"]["row_tokns"] = 1
    with pytest.raises(BadInput, match="did you mean config.data.row_tokens"):
        from_dict(values)


def test_missing_config_lists_the_shipped_ones():
    with pytest.raises(BadInput, match="csfm_base"):
        load("csfm_huge")


def test_every_field_is_read_somewhere():
    """A field that no code reads is a dead option."""
    read = set()
    for folder in ("csfm_jax", "data_pipelines"):
        for path in (ROOT / folder).rglob("*.py"):
            tree = ast.parse(path.read_text())
            read |= {n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute) and isinstance(n.ctx, ast.Load)}
    dead = [name for name in leaves(Config) if name.split(".")[-1] not in read]
    assert not dead, f"nothing reads {dead}"


def test_open_mappings_are_the_dictionaries():
    dictionaries = set()

    def walk(cls, prefix=""):
        for field in dataclasses.fields(cls):
            if dataclasses.is_dataclass(field.type):
                walk(field.type, f"{prefix}{field.name}.")
            elif getattr(field.type, "__origin__", None) is dict:
                dictionaries.add(prefix + field.name)

    walk(Config)
    assert dictionaries == configuration._OPEN
