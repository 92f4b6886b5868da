"""The command line: a mistake is one line on stderr and exit code 2, damage is exit code 3, and nothing gets hurt."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
from PIL import Image
from small import small_plan, write_shard
from tiny_vae import write_vae

import spinset
from manifests.plan import write_plan
from manifests.storage import Storage

ROOT = Path(__file__).parents[1]
SMALL = ["--identities", "1", "--rig", "orbit-2", "--resolution", "16", "--mesh.resolution", "64", "--inline"]


def run(capsys, *args: str) -> tuple[int, str, str]:
    code = spinset.main(list(args))
    out, err = capsys.readouterr()
    return code, out, err


def one_line(err: str) -> str:
    assert err.count("\n") == 1 and "Traceback" not in err, err
    return err.strip()


@pytest.fixture
def dataset(tmp_path) -> Path:
    storage, plan = Storage(tmp_path / "heads"), small_plan()
    write_plan(storage, plan)
    for shard in range(plan.shards):
        write_shard(storage, plan, shard)
    return tmp_path / "heads"


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--source", "gan"], "unknown source 'gan'; there are procedural"),
        (["--rig", "sphere"], "unknown rig 'sphere'; there are spinmeround-125, "),
        (["--identities", "0"], "--identities is 0; it must be from 1 to 10000000"),
        (["--identities", "-3"], "--identities is -3; it must be from 1 to 10000000"),
        (["--identities", "many"], "--identities"),
        (["--seed", "-1"], "--seed is -1; it must be from 0 to 9223372036854775807"),
        (["--resolution", "100"], "--resolution is 100; it must be a multiple of 8 from 8 to 4096"),
        (["--resolution", "0"], "--resolution is 0; it must be a multiple of 8 from 8 to 4096"),
        (["--resolution", "100000"], "--resolution is 100000; it must be a multiple of 8 from 8 to 4096"),
        (["--identities", "99999999999"], "--identities is 99999999999; it must be from 1 to 10000000"),
        (["--image.format", "gif"], "--image.format is 'gif'; it must be one of jpg, png, webp"),
        (["--mesh.resolution", "100"], "--mesh.resolution is 100; it must be 64, 128, 256 or 512"),
        (["--defect-rate", "2"], "--defect-rate is 2.0; it must be from 0 to 1"),
        (["--device", "tpu"], "--device is 'tpu'; it must be cpu, cuda, or cuda:N for the GPU of index N"),
        (["--workers", "-1"], "--workers is -1; it must be from 0 to 100000"),
        (["--frobnicate"], "Unrecognized options: --frobnicate"),
    ],
)
def test_bad_generate_options(capsys, tmp_path, args, says):
    code, _, err = run(capsys, "generate", str(tmp_path / "heads"), *args)
    assert code == 2
    assert says in one_line(err)
    assert not (tmp_path / "heads").exists()


def test_cuda_without_a_gpu(capsys, tmp_path, monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    code, _, err = run(capsys, "generate", str(tmp_path / "heads"), "--device", "cuda")
    assert code == 2 and "no usable CUDA device" in one_line(err)
    assert not (tmp_path / "heads").exists()


def test_no_or_unknown_command(capsys):
    code, out, _ = run(capsys)
    assert code == 2 and "usage: spinset COMMAND" in out
    code, _, err = run(capsys, "dance")
    assert code == 2 and "unknown command 'dance'; there are demo, plan, generate" in one_line(err)


def test_help_lists_every_command(capsys):
    code, out, _ = run(capsys, "--help")
    assert code == 0 and all(f"\n  {name}" in out for name in spinset.COMMANDS)


@pytest.mark.parametrize("command", spinset.COMMANDS)
def test_every_command_has_help(capsys, command):
    with pytest.raises(SystemExit) as stop:
        spinset.main([command, "--help"])
    assert stop.value.code == 0
    assert f"usage: spinset {command}" in capsys.readouterr().out


def test_missing_argument(capsys):
    code, _, err = run(capsys, "verify")
    assert code == 2 and "Missing from spinset verify" in one_line(err)


@pytest.mark.parametrize("command", ["status", "verify"])
def test_not_a_dataset(capsys, tmp_path, command):
    code, _, err = run(capsys, command, str(tmp_path))
    assert code == 2 and "is not a dataset: it has no dataset.json" in one_line(err)


def test_a_policy_for_first_looks_that_is_none(capsys, tmp_path):
    code, _, err = run(capsys, "generate", str(tmp_path / "heads"), "--reject.policy", "strict")
    assert code == 2 and "there is no policy 'strict'" in one_line(err)
    assert not (tmp_path / "heads").exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["export", "{data}", "{out}", "--format", "gltf"], "--format is 'gltf'; there are nerfstudio"),
        (["export", "{data}", "{out}", "--format", "facelift"], "facelift"),
        (["export", "{data}", "{data}", "--format", "eg3d"], "holds other files"),
        (["pack", "{data}", "{out}", "--selection", "best"], "there is no selection 'best'"),
        (["latents", "{data}", "--vae", "{out}"], "vae"),
    ],
)
def test_copies_that_cannot_be_made_are_one_line(capsys, tmp_path, dataset, arguments, says):
    where = {"data": str(dataset), "out": str(tmp_path / "out")}
    code, _, err = run(capsys, *(word.format(**where) for word in arguments))
    assert code == 2 and says in one_line(err)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "give a model and --data, or two folders with --pair GENERATED TRUTH"),
        (["heads64", "--data", "{data}", "--protocol", "panohead"], "--protocol"),
        (["heads64", "--data", "{data}", "--stages", "3"], "--stages is 3; 1 makes all views from the input"),
        (["{nothing}", "--data", "{data}"], "is no model of spinset"),
        (["heads64", "--data", "{data}", "--clip", "local-dir:{nothing}"], "open_clip_config.json"),
        (["--pair", "{nothing}", "{data}"], "{nothing}"),
    ],
)
def test_evaluations_that_cannot_be_made_are_one_line(capsys, tmp_path, dataset, arguments, says):
    where = {"data": str(dataset), "nothing": str(tmp_path / "nothing")}
    out = tmp_path / "out"
    code, _, err = run(capsys, "evaluate", *(word.format(**where) for word in arguments), "--out", str(out))
    assert code == 2 and says.format(**where) in one_line(err)
    assert not out.exists()


def test_evaluate_says_where_the_results_are(capsys, tmp_path):
    for folder in ("made", "true"):
        (tmp_path / folder).mkdir()
        Image.new("RGB", (64, 64), (200, 30, 40)).save(tmp_path / folder / "a.png")
    pair, out = ["--pair", str(tmp_path / "made"), str(tmp_path / "true")], str(tmp_path / "out")
    clip = ["--clip", f"local-dir:{ROOT / 'weights/embedded/clip'}", "--allow-embedded"]
    code, said, _ = run(capsys, "evaluate", *pair, *clip, "--weights", str(tmp_path), "--out", out)
    assert code == 0 and said == f"{out}/results.md\nworst people: {out}/failures.html\n"
    results = json.loads((tmp_path / "out/results.json").read_text())["results"]["generated"]
    assert {row["name"]: row for row in results}["clip"]["value"] == pytest.approx(1, abs=1e-5)


def test_latents_say_what_was_made(capsys, tmp_path, dataset):
    vae = write_vae(tmp_path / "vae")
    code, out, _ = run(capsys, "latents", str(dataset), "--vae", vae, "--inline")
    assert code == 0 and f"latents of 3 shards by {vae}" in out


def test_status(capsys, dataset):
    code, out, _ = run(capsys, "status", str(dataset))
    assert code == 0 and "3 of 3 shards, 5 of 5 identities (5 kept, 0 filtered, 0 failed), 15 views" in out
    (dataset / "shards/heads-000001.done.json").unlink()
    _, out, _ = run(capsys, "status", str(dataset))
    assert "2 of 3 shards, 3 of 5 identities" in out and "0:00:02 (0:00:02 to 0:00:02) of worker time left" in out


def test_verify(capsys, dataset):
    assert run(capsys, "verify", str(dataset), "--deep")[:2] == (
        0,
        "3 shards are whole (every byte, hash and picture)\n",
    )
    tar = dataset / "shards/heads-000001.tar"
    tar.write_bytes(tar.read_bytes()[:5000])
    code, out, err = run(capsys, "verify", str(dataset))
    assert code == 3 and err == ""
    assert re.match(r"shards/heads-000001\.tar, 0000002_v00\d\.[\w.]+: is cut: .* \(byte 5000\)\n1 faults\n", out)


def test_corrupt_plan(capsys, dataset):
    (dataset / "dataset.json").write_text("{")
    for command in (["status"], ["verify"], ["generate", *SMALL]):
        code, _, err = run(capsys, command[0], str(dataset), *command[1:])
        assert code == 2 and "dataset.json is damaged" in one_line(err)
    assert (dataset / "dataset.json").read_text() == "{"


def test_folder_of_another_plan(capsys, dataset):
    before = sorted(dataset.rglob("*"))
    code, _, err = run(capsys, "generate", str(dataset), *SMALL)
    assert code == 2 and "holds another dataset: " in one_line(err) and "identities is 5, asked for 1" in err
    assert sorted(dataset.rglob("*")) == before


def test_generate_then_resume(capsys, tmp_path):
    out = tmp_path / "heads"
    code, said, _ = run(capsys, "generate", str(out), *SMALL)
    assert code == 0 and "1 of 1 shards, 1 of 1 identities (1 kept" in said
    made = (out / "shards/heads-000000.done.json").read_bytes()
    assert run(capsys, "generate", str(out), *SMALL)[0] == 0
    assert (out / "shards/heads-000000.done.json").read_bytes() == made
    assert json.loads((out / "dataset.json").read_text())["plan"]["source"]["name"] == "procedural"


def test_folder_that_cannot_be_made(capsys, tmp_path):
    (tmp_path / "file").write_text("x")
    code, _, err = run(capsys, "generate", str(tmp_path / "file" / "heads"), *SMALL)
    assert code == 2 and "Not a directory" in one_line(err)


@pytest.mark.parametrize("how", ["--inline", "--workers=1"])
def test_ctrl_c_leaves_a_dataset_that_resumes(tmp_path, how):
    out = tmp_path / "heads"
    command = [sys.executable, "spinset.py", "generate", str(out), *SMALL[2:-1], how]
    command += ["--identities", "5", "--identities-per-shard", "1"]
    # Background jobs of a shell ignore SIGINT, and so would whatever they start.
    heed = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    streams = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    job = subprocess.Popen(command, **streams, cwd=ROOT, preexec_fn=heed)
    while not (out / "shards/heads-000000.done.json").exists():
        assert job.poll() is None, job.stderr.read()
        time.sleep(0.05)
    job.send_signal(signal.SIGINT)
    _, err = job.communicate()
    assert job.returncode == 130
    assert err.splitlines()[-1] == "spinset generate: interrupted; the same command resumes"
    assert "Traceback" not in err
    assert 1 <= len(list((out / "shards").glob("*.done.json"))) < 5
    again = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert again.returncode == 0, again.stderr
    assert "5 of 5 shards" in again.stdout
    assert list((out / "shards").glob(".*")) == []


def test_full_disk_stops_cleanly_and_resumes(tmp_path):
    """A real full file system: 300 kB of memory mounted as a disk, then made larger."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if (
        os.geteuid()
        or not shutil.which("mount")
        or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", disk], capture_output=True).returncode
    ):
        pytest.skip("no small disk can be mounted here: it takes root, mount and the right to")
    command = [sys.executable, "spinset.py", "generate", str(disk / "heads"), "--identities", "6", "--rig", "orbit-16"]
    command += ["--resolution", "64", "--mesh.resolution", "64", "--identities-per-shard", "1", "--inline"]
    try:
        full = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
        assert full.returncode == 1, full.stderr
        last = full.stderr.splitlines()[-1]
        assert f"no space is left on the disk of {disk}" in last and "MB free" in last, last
        assert last.endswith("; free some space and run the same command again to continue")
        assert "Traceback" not in full.stderr
        done = len(list((disk / "heads/shards").glob("*.done.json")))
        assert 0 < done < 6
        subprocess.run(["mount", "-o", "remount,size=20m", disk], check=True)
        again = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
        assert again.returncode == 0, again.stderr
        assert "6 of 6 shards" in again.stdout
        verified = subprocess.run(
            [sys.executable, "spinset.py", "verify", str(disk / "heads"), "--deep"],
            capture_output=True, text=True, cwd=ROOT,
        )  # fmt: skip
        assert verified.returncode == 0, verified.stdout
    finally:
        subprocess.run(["umount", disk], check=True)


def test_plan_foretells_and_repair_mends(capsys, tmp_path):
    out = str(tmp_path / "heads")
    assert run(capsys, "plan", out, *SMALL, "--probe", "1")[::2] == (
        2,
        "spinset plan: --probe is 1; it must be from 2 to 10000\n",
    )
    code, said, _ = run(capsys, "plan", out, *SMALL)
    assert (
        code == 0 and said.startswith("1 identities of 2 views, 16 px: 2 views in 1 shards") and not Path(out).exists()
    )
    run(capsys, "generate", out, *SMALL)
    assert run(capsys, "repair", out, "--inline")[:2] == (0, f"{out}: no shard is damaged\n")
    tar = Path(out) / "shards" / "heads-000000.tar"
    whole = tar.read_bytes()
    tar.write_bytes(whole[:2000])
    code, said, _ = run(capsys, "repair", out, "--inline")
    assert (code, said) == (0, "heads-000000: repaired; the new files have the hashes that were recorded\n")
    assert tar.read_bytes() == whole
    tar.with_suffix(".done.json").write_text("{")
    tar.write_bytes(whole[:2000])
    assert run(capsys, "repair", out, "--inline")[0] == 3


def refused(run_of, code: int, *parts: str) -> None:
    """That a command ended with this code and one line that holds all of these."""
    was, _, err = run_of
    said = one_line(err)
    assert was == code and all(part in said for part in parts), (was, said)


def test_a_dangling_link_as_out(capsys, tmp_path):
    link = tmp_path / "heads"
    link.symlink_to(tmp_path / "gone")
    refused(run(capsys, "generate", str(link), *SMALL), 2, f"{link}: File exists")
    assert link.is_symlink() and not (tmp_path / "gone").exists()


@pytest.mark.parametrize("name", ["a::b", "simplecache::c"])
def test_local_folders_with_colons(capsys, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    assert run(capsys, "generate", name, *SMALL)[0] == 0
    assert [p.name for p in tmp_path.iterdir()] == [name]
    assert run(capsys, "verify", str(tmp_path / name))[:2] == (0, "1 shards are whole (every file and size)\n")


@pytest.mark.parametrize("command", ["status", "verify"])
def test_a_storage_that_cannot_be_reached(capsys, command):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        url = f"ftp://127.0.0.1:{listener.getsockname()[1]}/heads"
    refused(run(capsys, command, url), 1, f"spinset {command}: {url} cannot be used: ConnectionRefusedError")


def test_a_protocol_that_nobody_knows(capsys):
    refused(run(capsys, "status", "nowhere://heads"), 2, "nowhere://heads cannot be used")


@pytest.mark.parametrize(
    ("format", "damage"),
    [
        ("huggingface", "cut"),
        ("huggingface", "empty"),
        ("huggingface", "a member too many"),
        # Pictures are copied by their places and hashes, which a member too many leaves right.
        ("nerfstudio", "cut"),
        ("nerfstudio", "empty"),
    ],
)
def test_damaged_shards_are_not_exported(capsys, tmp_path, dataset, damage, format):
    tar = dataset / "shards/heads-000001.tar"
    whole = tar.read_bytes()
    tar.write_bytes({"cut": whole[:5000], "empty": b"", "a member too many": whole + whole[:5120]}[damage])
    result = run(capsys, "export", str(dataset), str(tmp_path / "out"), "--format", format)
    refused((*result[:2], last_line(result[2])), 3, "shards/heads-000001.tar", f"run spinset repair {dataset}")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", ["score", "export", "pack", "latents"])
def test_a_missing_views_table(capsys, tmp_path, dataset, command):
    (dataset / "shards/heads-000001.views.parquet").unlink()
    out = str(tmp_path / "out")
    options = {
        "score": ["--scorers", "image", "--inline"],
        "export": [out, "--format", "huggingface"],
        "pack": [out],
        "latents": ["--vae", write_vae(tmp_path / "vae"), "--inline"],
    }
    result = run(capsys, command, str(dataset), *options[command])
    refused((*result[:2], last_line(result[2])), 3, "heads-000001.views.parquet", f"run spinset repair {dataset}")


def test_a_missing_views_table_in_training(capsys, tmp_path, dataset):
    (dataset / "shards/heads-000001.views.parquet").unlink()
    vae = write_vae(tmp_path / "vae")
    options = ["--data", str(dataset), "--vae", vae, "--out", str(tmp_path / "run"), "--no-latents", "--samples", "8"]
    result = run(capsys, "train", "small", *options)
    refused((*result[:2], last_line(result[2])), 3, "heads-000001.views.parquet", f"run spinset repair {dataset}")


def last_line(err: str) -> str:
    """The last line of what a command printed, after that of its progress."""
    assert "Traceback" not in err, err
    return err.splitlines()[-1] + "\n"


def test_a_damaged_record_names_repair(capsys, tmp_path):
    out = tmp_path / "heads"
    assert run(capsys, "generate", str(out), *SMALL)[0] == 0
    (out / "shards/heads-000000.done.json").write_text("{")
    result = run(capsys, "generate", str(out), *SMALL)
    refused((*result[:2], last_line(result[2])), 3, "heads-000000.done.json is damaged", f"run spinset repair {out}")
    code, printed, err = run(capsys, "status", str(out))
    assert (code, last_line(err)) == (3, f"next: spinset repair {out}\n")
    assert "damaged: shards/heads-000000.done.json" in printed
    code, printed, _ = run(capsys, "verify", str(out))
    assert (code, printed.splitlines()[-1]) == (3, f"next: spinset repair {out}")


def test_an_empty_score_table(capsys, tmp_path, dataset):
    assert run(capsys, "score", str(dataset), "--scorers", "image", "--inline")[0] == 0
    (dataset / "scores/image.parquet").write_bytes(b"")
    policy = {"name": "fog", "rules": [{"name": "fog", "score": "image.fog", "max": 0.9, "drop": "view"}]}
    (tmp_path / "fog.json").write_text(json.dumps(policy))
    result = run(capsys, "select", str(dataset), "--policy", str(tmp_path / "fog.json"))
    refused(result, 3, "scores/image.parquet is damaged", f"run spinset score {dataset}")


def test_a_name_that_this_locale_cannot_print(tmp_path):
    """A folder with an umlaut in the C locale, where Python takes its bytes for surrogates."""
    out = tmp_path / "köpfe"
    env = {k: v for k, v in os.environ.items() if not k.startswith(("LC_", "LANG", "PYTHONIO"))}
    env |= {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    command = [sys.executable, "spinset.py", "generate", os.fsencode(out), *SMALL]
    done = subprocess.run(command, capture_output=True, cwd=ROOT, env=env)
    said = b"spinset generate: a path holds characters that this locale cannot encode; set LC_ALL=C.UTF-8\n"
    assert (done.returncode, done.stderr) == (2, said)
    assert not out.exists()


def test_a_selection_name_that_is_too_long(capsys, dataset):
    result = run(capsys, "export", str(dataset), str(dataset) + "-out", "--format", "eg3d", "--selection", "x" * 300)
    refused(result, 2, "x" * 300)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_dataset(capsys, dataset):
    (dataset / "scores").mkdir()
    (dataset / "scores").chmod(0o500)
    result = run(capsys, "score", str(dataset), "--scorers", "image", "--inline")
    refused((*result[:2], last_line(result[2])), 2, "Permission denied", str(dataset / "scores"))


def test_printed_commands_are_quoted(capsys, tmp_path):
    out = tmp_path / "my heads"
    assert run(capsys, "generate", str(out), *SMALL)[0] == 0
    (out / "shards/heads-000000.done.json").write_text("{")
    assert f"next: spinset repair '{out}'" in run(capsys, "status", str(out))[2]
