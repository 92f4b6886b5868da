"""The options and the help of every command, frozen in tests/help; a change is deliberate and visible in the diff.

After a change of an option or its help: `SPINSET_UPDATE_HELP=1 python -m pytest tests/test_cli_help.py`, then review the diff.
"""

import os
import re
from pathlib import Path

import pytest

import spinset

FOLDER = Path(__file__).parent / "help"
COMMANDS = {name: [name] for name in spinset.COMMANDS} | {"train": ["train", "spinmeround"]}
SHOWN = {"spinset": [], "train-presets": ["train"], **COMMANDS}
BASE = {
    "plan": ["out"],
    "generate": ["out"],
    "repair": ["out"],
    "retry": ["out"],
    "status": ["out"],
    "review": ["heads"],
    "score": ["out"],
    "pack": ["out", "dest"],
    "latents": ["out", "--vae", "vae"],
    "train": ["spinmeround", "--data", "data"],
    "views": ["heads64", "photo.png", "--out", "out", "--aligned"],
    "heads": ["heads64", "--out", "out"],
    "invert": ["photo.png", "--weights", "weights.pkl", "--out", "out", "--aligned"],
    "evaluate": ["heads64", "--data", "data"],
    "average": ["run", "dest"],
}
"""Arguments that each command with numbers parses."""


@pytest.fixture
def help_of(capsys, monkeypatch):
    """The help of a command as it is printed in a terminal of 100 columns without colours."""
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("NO_COLOR", "1")

    def shown(arguments: list[str]) -> str:
        try:
            code = spinset.main([*arguments, "--help"])
        except SystemExit as stop:
            code = stop.code
        assert code == 0
        return "".join(line.rstrip() + "\n" for line in capsys.readouterr().out.splitlines())

    return shown


def options(shown: str) -> dict[str, tuple[str, str]]:
    """The kind of value and the text of every option and argument in a help, without its default."""
    found, name = {}, ""
    for line in shown.splitlines():
        if begin := re.match(r"  (--[a-z][\w.-]*|\[*STR\b)(.*?)(?:  +(.*))?$", line):
            name = f"{begin[1]} {len(found)}" if begin[1].endswith("STR") else begin[1]
            found[name] = [begin[2], begin[3] or ""]
        elif name and line.startswith("    "):
            found[name][1] += " " + line
        else:
            name = ""
    trimmed = {key: (kind, " ".join(text.split())) for key, (kind, text) in found.items()}
    return {k: (kind, re.sub(r" ?\((default: .*|required)\)$", "", text)) for k, (kind, text) in trimmed.items()}


@pytest.mark.parametrize("name", SHOWN)
def test_help_is_the_committed_one(help_of, name):
    shown, file = help_of(SHOWN[name]), FOLDER / f"{name}.txt"
    if os.environ.get("SPINSET_UPDATE_HELP"):
        file.write_text(shown, encoding="utf-8")
    assert shown == file.read_text(encoding="utf-8"), (
        "if this is meant: SPINSET_UPDATE_HELP=1 pytest tests/test_cli_help.py"
    )


def test_help_is_kept_of_these_commands_only():
    assert {file.stem for file in FOLDER.iterdir()} == set(SHOWN)


def test_every_preset_is_described(help_of):
    from train.families.presets import PRESETS

    described = re.findall(r"^  ([\w-]+) +[A-Z].*\.$", help_of(["train"]), re.MULTILINE)
    assert described == list(PRESETS)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_is_explained_by_a_sentence(help_of, name):
    found = options(help_of(COMMANDS[name]))
    assert found or name == "demo"
    for option, (_, text) in found.items():
        assert re.fullmatch(r"[A-Z].*\.", text), f"{option}: {text!r}"
        assert not re.match(r"(Of|And|What|Which|How|Where) ", text), f"{option}: {text!r}"


@pytest.mark.parametrize("name", BASE)
def test_numbers_that_cannot_be_are_one_line_that_names_the_option(capsys, tmp_path, monkeypatch, help_of, name):
    """NaN and infinity for every option that takes a real number, and a negative one for every whole number."""
    monkeypatch.chdir(tmp_path)
    numbers = {
        option: kind
        for option, (kind, _) in options(help_of(COMMANDS[name])).items()
        if "INT" in kind or "FLOAT" in kind
    }
    assert numbers
    for option, kind in numbers.items():
        count = 2 if re.fullmatch(r" (FLOAT FLOAT|INT INT)", kind) else 1
        for value in ("-7",) if "INT" in kind else ("nan", "inf"):
            code = spinset.main([name, *BASE[name], option, *[value] * count])
            out, err = capsys.readouterr()
            assert code == 2 and out == "" and err.count("\n") == 1, (option, value, out, err)
            assert f"{option} is {value}" in err, (option, value, err)
    assert list(tmp_path.iterdir()) == []


def test_commands_without_numbers_have_none(help_of):
    for name in set(COMMANDS) - set(BASE):
        assert not any("INT" in kind or "FLOAT" in kind for kind, _ in options(help_of(COMMANDS[name])).values()), name
