"""The command line: light, and clear about what is wrong."""

import argparse
import importlib
import subprocess
import sys

import pytest

from csfm_jax import cli

# options that name what a command writes, and the commands that write to object stores as well
OUTPUTS = ("--output", "--workdir", "--staging", "--new-key", "--fill-cache")
ANYWHERE = {
    ("prepare", "--output"), ("train", "--workdir"), ("finetune", "--workdir"), ("export", "--output"),
    ("launch", "--workdir"),
}  # fmt: skip
HERE = [
    ("audit", "--workdir"), ("data", "--output"), ("embed", "--output"), ("evaluate", "--output"),
    ("evaluate", "--workdir"), ("launch", "--output"), ("plan", "--fill-cache"), ("predict", "--output"),
    ("prepare", "--new-key"), ("prepare", "--staging"), ("show", "--output"),
]  # fmt: skip


def test_help_imports_no_jax():
    code = (
        "import sys; from csfm_jax import cli; assert cli.main(['--help']) == 0;"
        "heavy = {'jax', 'flax', 'optax', 'grain', 'orbax', 'numpy', 'torch'} & set(sys.modules);"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert all(name in done.stdout for name in cli.COMMANDS)


def test_unknown_command_is_one_line_and_code_2(capsys):
    assert cli.main(["pretrain"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("command", sorted(cli.COMMANDS))
def test_every_command_has_help(command, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main([command, "--help"])
    assert stop.value.code == 0
    assert f"csfm {command}" in capsys.readouterr().out


@pytest.mark.parametrize("command", sorted(cli.COMMANDS))
def test_unknown_option_is_refused(command):
    with pytest.raises(SystemExit) as stop:
        cli.main([command, "--no-such-option=1"])
    assert stop.value.code == 2


def test_what_every_command_writes_is_known():
    found = set()
    for command in cli.COMMANDS:
        parser = argparse.ArgumentParser()
        importlib.import_module(f"csfm_jax.commands.{command}").arguments(parser)
        known = {word for action in parser._actions for word in action.option_strings}
        found |= {(command, option) for option in OUTPUTS if option in known}
    assert found == {*HERE} | ANYWHERE


@pytest.mark.parametrize(("command", "option"), HERE)
def test_an_output_that_is_written_here_is_no_address(command, option, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main([command, f"{option}=gs://lab/there"]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"csfm {command}: {option}: found gs://lab/there; expected a path on this machine")
    assert said.count("\n") == 1 and not any(tmp_path.iterdir())
    assert cli.main([command, f"{option}="]) == 2 and "found nothing" in capsys.readouterr().err


def test_full_disk_is_one_line_and_code_2(monkeypatch, capsys):
    import errno

    from csfm_jax.commands import data

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device", "store/shard")

    monkeypatch.setattr(data, "run", full)
    assert cli.main(["data", "store"]) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1 and "store/shard" in message and "no space left" in message


def test_a_place_that_cannot_be_a_folder_is_one_line_and_code_2(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    words = ["prepare", "--source=simulated:subjects=3", f"--output={tmp_path / 'file' / 'store'}"]
    assert cli.main(words) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1 and str(tmp_path / "file") in message


def test_a_second_interrupt_is_one_line(monkeypatch, capsys):
    from csfm_jax.commands import data

    def interrupted(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(data, "run", interrupted)
    assert cli.main(["data", "store"]) == 130
    assert capsys.readouterr().err == "csfm data: interrupted\n"
