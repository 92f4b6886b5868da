"""The command line makes whole datasets from official checkpoints."""

import numpy as np
import pytest
from panohead_files import KWARGS, config, generator, untrained, write

import spinset
from manifests.dataset import Dataset
from manifests.storage import Storage

SMALL = ["--identities", "2", "--rig", "orbit-2", "--resolution", "32", "--mesh.resolution", "64", "--inline"]


def surfaced(family: str):
    """An untrained generator whose density has a surface."""
    made = untrained(config(family), seed=0)
    last = made.decoder.net[2]
    last.weight[0] *= 5
    last.bias[0] = 30
    return generator(made.state_dict(), KWARGS, resolution=8)


@pytest.mark.parametrize("source", ["panohead", "spherehead"])
def test_generate(tmp_path, capsys, source):
    file = write(tmp_path / "weights.pkl", G_ema=surfaced(source))
    command = ["generate", str(tmp_path / "out"), "--source", source, "--weights", str(file), *SMALL]
    assert spinset.main(command) == 0, capsys.readouterr().err
    plan = Dataset(Storage(tmp_path / "out")).plan
    assert plan.source["name"] == source
    assert "non-commercial" in plan.source["licence"]
    assert spinset.main(["verify", str(tmp_path / "out"), "--deep"]) == 0
    # The converted folder is the same source, so its plan resumes the dataset instead of being refused.
    assert spinset.main(["convert", str(file), str(tmp_path / "folder")]) == 0
    command[command.index(str(file))] = str(tmp_path / "folder")
    assert spinset.main(command) == 0, capsys.readouterr().err


def test_mistakes_are_one_line(tmp_path, capsys):
    garbage = tmp_path / "garbage.pkl"
    garbage.write_bytes(np.random.default_rng(0).bytes(1000))
    wrong = write(tmp_path / "s.pkl", G_ema=surfaced("spherehead"))
    for weights, complaint in (
        ([], "panohead needs --weights"),
        (["--weights", str(tmp_path / "none.pkl")], "no weights at"),
        (["--weights", str(garbage)], "damaged, or no pickle"),
        (["--weights", str(wrong)], "use --source spherehead"),
    ):
        assert spinset.main(["generate", str(tmp_path / "out"), "--source", "panohead", *weights, *SMALL]) == 2
        error = capsys.readouterr().err
        assert complaint in error
        assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()
