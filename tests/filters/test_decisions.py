"""Logs of decisions: chained, one per session, merged by time, taken back, and the command that writes them."""

import json
import re

import pytest

from filters.decisions import Decision, DecisionLog, new_id, now, read_decisions, standing, undo
from manifests.errors import UserError
from spinset import main


def decision(identity: int, verdict: str = "drop", who: str = "ann", when: str = "", view: int | None = None, **fields):
    return Decision(identity, view, verdict, "looked", who, when or now(), new_id(), **fields)


def at(minute: int) -> str:
    return f"2026-11-20T10:{minute:02d}:00.000Z"


def test_an_edited_log_is_noticed(small_dataset):
    storage = small_dataset.storage
    log = DecisionLog(storage, "ann")
    log.append([decision(0)])
    log.append([decision(1), decision(2)])
    made, hashes = read_decisions(storage)
    assert [d.identity for d in made] == [0, 1, 2]
    assert {name: len(lines) for name, lines in hashes.items()} == {log.file.split("/")[1]: 3}
    lines = storage.read(log.file).splitlines()
    for edited, where in (([lines[0], lines[2]], "line 2"), ([lines[0].replace(b"drop", b"keep"), *lines[1:]], "line 2"),
                          ([b"{}", *lines[1:]], "line 1"), ([b"x"], "line 1")):  # fmt: skip
        storage.write(log.file, b"\n".join(edited) + b"\n")
        with pytest.raises(UserError, match=where):
            read_decisions(storage)


def test_two_people_at_once_lose_nothing(small_dataset):
    storage = small_dataset.storage
    ann, bob = DecisionLog(storage, "ann"), DecisionLog(storage, "Bob B. / 2")
    for minute in range(6):
        who = (ann, "ann") if minute % 2 else (bob, "Bob B. / 2")
        who[0].append([decision(minute % 3, "drop" if minute < 3 else "keep", who[1], at(minute))])
    made, hashes = read_decisions(storage)
    assert [d.when for d in made] == [at(minute) for minute in range(6)]
    assert len(hashes) == 2
    assert {item: d.verdict for item, d in standing(made).items()} == {(i, None): "keep" for i in range(3)}


def test_a_session_of_the_same_person_and_second_has_its_own_log(small_dataset):
    files = {DecisionLog(small_dataset.storage, "ann").file for _ in range(8)}
    assert len(files) == 8


def test_undo_steps_back_through_a_persons_decisions():
    made = [decision(1, "drop"), decision(1, "keep"), decision(2, "drop"), decision(1, "drop", who="bob")]
    first = undo(made, "ann")
    assert (first.item, first.verdict, first.undoes) == ((2, None), "clear", made[2].id)
    second = undo([*made, first], "ann")
    assert (second.item, second.verdict, second.undoes) == ((1, None), "drop", made[1].id)
    third = undo([*made, first, second], "ann")
    assert (third.item, third.verdict, third.undoes) == ((1, None), "clear", made[0].id)
    with pytest.raises(UserError, match="ann has no decision to undo"):
        undo([*made, first, second, third], "ann")


def test_labels_override_nothing():
    label = decision(1, "drop", blind=True)
    assert standing([decision(1, "keep"), label])[1, None].verdict == "keep"
    assert undo([label], "ann").blind


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"verdict": "maybe"}, "verdict is 'maybe'; it must be one of keep, drop, unsure, clear"),
        ({"when": "yesterday"}, "the time of a decision is 'yesterday'"),
        ({"who": " "}, "a decision needs the name of the person"),
    ],
)
def test_decisions_that_are_none(fields, says):
    with pytest.raises(UserError, match=says):
        decision(0, **fields)


def test_the_command(capsys, small_dataset):
    out = small_dataset.storage.url

    def run(*arguments: str) -> tuple[int, str]:
        code = main(["decide", out, *arguments])
        said = capsys.readouterr()
        return code, said.out + said.err

    code, said = run("--drop", "1", "2/v002", "--keep", "3", "--reason", "janus", "--who", "ann")
    assert (code, said.splitlines()) == (
        0,
        ["3: keep, janus (ann)", "1: drop, janus (ann)", "2/v002: drop, janus (ann)"],
    )
    assert run("--undo", "--who", "ann") == (0, "2/v002: clear, undone (ann)\n")
    code, said = run("--list")
    assert [line.partition("  ")[2] for line in said.splitlines()] == [
        "3: keep, janus (ann)",
        "1: drop, janus (ann)",
        "2/v002: drop, janus (ann) (no longer counts)",
        "2/v002: clear, undone (ann) (no longer counts)",
    ]
    made, _ = read_decisions(small_dataset.storage)
    assert {item: d.verdict for item, d in standing(made).items()} == {(1, None): "drop", (3, None): "keep"}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--drop", "17"], "17: .* holds no identity 17"),
        (["--drop", "1/v003"], r"1/v003: identity 1 has no view 3 \(views: 0 to 2\)"),
        (["--drop", "1/3"], "'1/3' is no item; write 17 for an identity and 42/v063 for one of its views"),
        (["--drop", "1", "--keep", "1"], "1 is given twice"),
        (["--list", "--undo"], "give items after --keep"),
        (["--undo", "--who", "zoe"], "zoe has no decision to undo"),
        ([], "give items after --keep"),
    ],
)
def test_what_the_command_refuses(capsys, small_dataset, arguments, says):
    assert main(["decide", small_dataset.storage.url, *arguments]) == 2
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 1

    assert re.search(says, said), said
    assert not small_dataset.storage.exists("decisions")


def test_lines_are_json_that_other_tools_read(small_dataset):
    log = DecisionLog(small_dataset.storage, "ann")
    log.append([decision(4, view=2)])
    (line,) = small_dataset.storage.read(log.file).splitlines()
    fields = json.loads(line)
    assert (fields["identity"], fields["view"], fields["verdict"], fields["previous"]) == (4, 2, "drop", None)
