"""Official files are read whole and right; broken and hostile ones are refused in one line, with nothing executed."""

import collections
import json
import os
import pickle
import random
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from golden_panohead import OFFICIAL_PICKLES, REDUCED, read
from golden_panohead import generator as golden_generator
from panohead_files import KWARGS, Reduced, config, dumps, generator, module, untrained, write

from datagen.sources.panohead.checkpoint import convert, load


def refused(path, complaint: str | None = None) -> str:
    """Loading fails with one line that names the file and the trouble."""
    with pytest.raises(ValueError, match=complaint) as caught:
        load(path)
    line = str(caught.value)
    assert line.startswith(str(path))
    assert "\n" not in line
    assert len(line) < len(str(path)) + 310
    return line


@pytest.mark.parametrize("file", [None, *OFFICIAL_PICKLES], ids=lambda file: file.name if file else "ours")
def test_official_files(file, tiny_pickle):
    """Pickles of the official code where they lie beside the clone, and one that these tests wrote in its format."""
    checkpoint, folder = load(file or tiny_pickle), file.parent if file else REDUCED
    expected = golden_generator(folder).state_dict()
    state = checkpoint.generator.state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[key], expected[key]) for key in expected)
    described = read(folder, "tiny")
    kwargs = described["init_kwargs"]
    assert {name: checkpoint.official["init_kwargs"][name] for name in kwargs if name != "rendering_kwargs"} == {
        name: value for name, value in kwargs.items() if name != "rendering_kwargs"
    }
    assert checkpoint.generator.config.neural_resolution == 16
    assert checkpoint.official["rendering_kwargs"] == {
        **kwargs["rendering_kwargs"],
        **described.get("runtime_rendering_kwargs_extra", {}),
    }


def test_conversion_keeps_everything(tiny_pickle, tmp_path):
    before, after = convert(tiny_pickle, tmp_path / "tiny"), load(tmp_path / "tiny")
    assert after.sha256 == before.sha256
    assert after.generator.config == before.generator.config
    state = before.generator.state_dict()
    assert all(torch.equal(state[key], value) for key, value in after.generator.state_dict().items())
    described = json.loads((tmp_path / "tiny" / "config.json").read_text())
    assert "non-commercial" in described["licence"]
    assert described["source"] == {"name": "tiny.pkl", "sha256": before.sha256}


@pytest.fixture
def honest(tmp_path):
    """A small file of our own in the official format."""
    state = untrained(config(), seed=0).state_dict()
    return write(tmp_path / "honest.pkl", G_ema=generator(state, KWARGS))


def test_own_file_in_the_official_format(honest):
    expected = untrained(config(), seed=0).state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in load(honest).generator.state_dict().items())


def test_spherehead_is_recognised(tmp_path):
    state = untrained(config("spherehead"), seed=0).state_dict()
    assert load(write(tmp_path / "s.pkl", G_ema=generator(state, KWARGS))).generator.config.family == "spherehead"


def test_options_in_force_win_over_those_of_construction(tmp_path):
    state = untrained(config(), seed=0).state_dict()
    now = {**KWARGS["rendering_kwargs"], "depth_resolution": np.int64(20)}
    loaded = load(write(tmp_path / "n.pkl", G_ema=generator(state, KWARGS, resolution=32, rendering_kwargs=now)))
    assert loaded.generator.config.depth_resolution == 20
    assert loaded.generator.config.neural_resolution == 32


def test_plane_axes_are_read(tmp_path):
    state = untrained(config(), seed=0).state_dict()
    # The axes of EG3D before its fix: XY, XZ, ZX.
    matrices = torch.stack([torch.eye(3)[list(rows)] for rows in ((0, 1, 2), (0, 2, 1), (2, 0, 1))])
    renderer = {"_parameters": {}, "_buffers": {}, "_modules": {}, "plane_axes": matrices}
    root = generator(state, KWARGS)
    root.call[1][0]["state"]["_modules"]["renderer"] = module(renderer)
    assert load(write(tmp_path / "a.pkl", G_ema=root)).generator.config.plane_axes == ((0, 1, 2), (0, 2, 1), (2, 0, 1))
    renderer["plane_axes"] = matrices * 2
    refused(write(tmp_path / "b.pkl", G_ema=root), "do not lie along the axes")


def test_missing_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="no weights at"):
        load(tmp_path / "nothing.pkl")
    refused(tmp_path, r"no config.json in it")
    (tmp_path / "empty.pkl").touch()
    refused(tmp_path / "empty.pkl", "damaged, or no pickle")


@pytest.mark.parametrize("where", ["G_ema", "D"])
@pytest.mark.parametrize("nested", [False, True])
def test_nothing_is_executed(tmp_path, where, nested):
    trap = Reduced(os.system, f"touch {tmp_path}/sprung")
    if nested:
        inner = tmp_path / "inner.pt"
        torch.save(trap, inner, _use_new_zipfile_serialization=False)
        trap = Reduced(torch.storage._load_from_bytes, inner.read_bytes())
    parts = {"G_ema": generator(untrained(config(), seed=0).state_dict(), KWARGS), **{where: trap}}
    refused(write(tmp_path / "trap.pkl", **parts), r"names 'posix.system', which no checkpoint needs")
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize(
    "call",
    [
        Reduced(eval, "1"),
        Reduced(getattr, "a", "b"),
        Reduced(torch.save, "x", "y"),
        Reduced(collections.Counter, "x"),
        Reduced(np.random.RandomState, 0),
    ],
)
def test_unknown_names(tmp_path, call):
    refused(write(tmp_path / "x.pkl", G_ema=call), "which no checkpoint needs")


def test_steps_that_no_checkpoint_takes(tmp_path):
    for code in (b"(S'x'\nios\nsystem\n.", b"\x82\x01.", b"cos\nsystem\n(S'x'\ntR.", b"P1\n."):
        (tmp_path / "x.pkl").write_bytes(code)
        refused(tmp_path / "x.pkl", "which no checkpoint needs")


def tensor(values: torch.Tensor, offset=0, size=(2,), stride=(1,)) -> Reduced:
    return Reduced(
        torch._utils._rebuild_tensor_v2, Storage(values), offset, size, stride, False, collections.OrderedDict()
    )


class Storage:
    """A storage in torch's old format, without going through torch's pickling of it."""

    def __init__(self, values: torch.Tensor, numel: int | None = None, raw: bytes | None = None):
        self.values, self.numel, self.raw = values, numel, raw

    def __reduce__(self):
        numel = self.values.numel() if self.numel is None else self.numel
        raw = self.values.numpy().tobytes() if self.raw is None else self.raw
        # ('storage', torch.FloatStorage, '0', 'cpu', numel, None) as a persistent id
        identity = b"\x80\x02(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpu"
        identity += b"\x8a\x09" + (numel % (1 << 64)).to_bytes(9, "little") + b"NtQ."
        pickles = [pickle.dumps(v, 2) for v in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})]
        stored = [*pickles, identity, pickle.dumps(["0"], 2), struct.pack("<q", self.values.numel()), raw]
        return torch.storage._load_from_bytes, (b"".join(stored),)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"size": (3,)}, "size .3. in a storage of 2 elements"),
        ({"offset": 1}, "size .2. in a storage of 2 elements"),
        ({"stride": (5,)}, "size .2. in a storage of 2 elements"),
        ({"size": (1 << 39,), "stride": (0,)}, "in a storage of 2 elements"),
        ({"size": (1 << 70,)}, "without proper size and strides"),
        ({"stride": (-1,)}, "without proper size and strides"),
        ({"size": (2, 1)}, "without proper size and strides"),
        ({"offset": "0"}, "without proper size and strides"),
    ],
)
def test_tensors_stay_within_their_storage(tmp_path, changes, complaint):
    root = generator(
        {**untrained(config(), seed=0).state_dict(), "torgb.bias": tensor(torch.zeros(2), **changes)}, KWARGS
    )
    refused(write(tmp_path / "x.pkl", G_ema=root), complaint)


@pytest.mark.parametrize("storage", [{"numel": 1 << 60}, {"numel": -1}, {"raw": b"1234567"}, {"raw": b"12345678" * 9}])
def test_storages_hold_what_they_say(tmp_path, storage):
    broken = tensor(torch.zeros(2))
    broken.call = (broken.call[0], Storage(torch.zeros(2), **storage), *broken.call[1][1:])
    broken = Reduced(torch._utils._rebuild_tensor_v2, *broken.call[1:])
    refused(write(tmp_path / "x.pkl", G_ema=generator({"torgb.bias": broken}, KWARGS)), "bytes that should hold")


def test_wrong_weights(tmp_path):
    state = untrained(config(), seed=0).state_dict()
    for broken, complaint in (
        ({**state, "torgb.bias": torch.zeros(4)}, "torgb.bias: the checkpoint has"),
        ({**state, "torgb.bias": torch.full((3,), torch.nan)}, "torgb.bias are not all finite"),
        ({**state, "torgb.bias": "text"}, "holds a str where a tensor should be"),
        ({key: value for key, value in state.items() if "bcg" not in key}, "the checkpoint has none"),
    ):
        refused(write(tmp_path / "x.pkl", G_ema=generator(broken, KWARGS)), complaint)


def test_wrong_structure(tmp_path):
    state = untrained(config(), seed=0).state_dict()
    for parts, complaint in (
        ({"G": 1}, "no G_ema"),
        ({"G_ema": 3}, "holds a int where a module should be"),
        ({"G_ema": module({"_parameters": [], "_modules": {}})}, "holds a list where a dict should be"),
        ({"G_ema": module({"_modules": {"x": Reduced(torch.device, "cpu")}})}, "holds a torch.device where a module"),
        ({"G_ema": generator(state, KWARGS, _init_args=(1,))}, "positional"),
        ({"G_ema": generator(state, KWARGS, _init_kwargs=None)}, "does not say how it was built"),
        ({"G_ema": generator(state, KWARGS, rendering_kwargs={1: 2})}, "names that are not text"),
        ({"G_ema": generator(state, KWARGS, neural_rendering_resolution="64")}, "neural_rendering_resolution is '64'"),
    ):
        refused(write(tmp_path / "x.pkl", **parts), complaint)


def test_memory_bombs(tmp_path):
    state = untrained(config(), seed=0).state_dict()
    loop: list = []
    loop.append(loop)
    wide: list = [0]
    for _ in range(60):
        wide = [wide, wide]
    bombs = {
        "deep tuples": b"\x80\x04)" + b"\x85" * 300_000 + b".",
        "deep lists": b"\x80\x04" + b"]" * 200_000 + b"a" * 199_999 + b".",
        "a deep key": b"\x80\x04})" + b"\x85" * 300_000 + b"Ns.",
        "huge bytes": b"\x80\x04\x8e" + (1 << 40).to_bytes(8, "little") + b"x.",
        "huger bytes": b"\x80\x04\x8e" + (1 << 63).to_bytes(8, "little") + b"x.",
        "a huge frame": b"\x80\x04\x95" + (1 << 62).to_bytes(8, "little") + b"N.",
        "a huge memo index": b"\x80\x04Nr\xff\xff\xff\xff0.",
        "a huge number": b"\x80\x04I" + b"9" * 100_000 + b"\n.",
        "no end": b"\x80\x04" + b"N" * 100_000,
        "endless": b"\x80\x04" + b"N0" * 510_000 + b".",
        "loop": dumps({"G_ema": generator(state, KWARGS, rendering_kwargs={"x": loop})}),
        "wide": dumps({"G_ema": generator(state, KWARGS, rendering_kwargs={"x": wide})}),
    }
    nested = module({"_modules": {}})
    for _ in range(40):
        nested = module({"_modules": {"a": nested, "b": nested}})
    bombs["doubling modules"] = dumps({"G_ema": nested})
    for name, bomb in bombs.items():
        (tmp_path / f"{name}.pkl").write_bytes(bomb)
    assert all(load_elsewhere(tmp_path))


def test_deeply_wrapped_tensor(tmp_path):
    deep = torch.zeros(3)
    depth = sys.getrecursionlimit()
    code = dumps({"G_ema": generator({"torgb.bias": deep}, KWARGS)})
    # Wrap the only tensor in as many parameters as it takes, by hand: pickle itself would not go as deep.
    wrap = b"ctorch._utils\n_rebuild_parameter\n"
    at = code.index(b"\x8c\x0ctorch._utils")
    assert code.count(b"\x8c\x0ctorch._utils") == 1
    end = code.index(b"t\x94R\x94", code.index(b"_rebuild_tensor_v2")) + 4
    close = b"\x85R" * (2 * depth)
    path = tmp_path / "deep.pkl"
    path.write_bytes(_unframed(code[:at] + wrap * (2 * depth) + code[at:end] + close + code[end:]))
    refused(path, "nested too deeply")


def _unframed(code: bytes) -> bytes:
    """Without the frame of protocol 4, whose length no longer holds."""
    return code[:2] + code[11:] if code[2:3] == b"\x95" else code


@pytest.mark.parametrize("damage", ["missing key", "edited weights", "truncated weights", "no json", "other format"])
def test_damaged_conversions(honest, tmp_path, damage):
    folder = tmp_path / "converted"
    convert(honest, folder)
    described, weights = folder / "config.json", folder / "weights.safetensors"
    values = json.loads(described.read_text())
    if damage == "missing key":
        described.write_text(json.dumps({**values, "init_kwargs": None}))
    elif damage == "edited weights":
        weights.write_bytes(weights.read_bytes()[:-4] + b"abcd")
    elif damage == "truncated weights":
        weights.write_bytes(weights.read_bytes()[:1000])
    elif damage == "no json":
        described.write_text("{")
    else:
        described.write_text(json.dumps({**values, "format": "else"}))
    refused(folder)


# In a process of its own: one that crashed the interpreter or ate the memory would be seen, and nothing slows it down.
LOAD_ALL = """
import resource, sys
from pathlib import Path
from datagen.sources.panohead.checkpoint import load

before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for path in sorted(Path(sys.argv[1]).iterdir()):
    try:
        load(path)
        print()
    except ValueError as error:
        assert str(error).startswith(str(path))
        print(error)
assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1 << 20, "more than a gigabyte"
"""


def load_elsewhere(folder: Path) -> list[str]:
    """The complaint about each file of a folder, or an empty line where there is none."""
    command = [sys.executable, "-W", "error", "-c", LOAD_ALL, str(folder)]
    root = Path(__file__).parents[4]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.split("\n")[:-1]
    assert len(lines) == len(list(folder.iterdir()))
    return lines


def write_mutants(code: bytes, folder: Path, seeds: range) -> None:
    """Copies with bytes changed, cut off, cut out or put in."""
    folder.mkdir()
    for seed in seeds:
        draw, broken = random.Random(seed), bytearray(code)
        at = draw.randrange(len(broken))
        match seed % 4:
            case 0:
                for _ in range(draw.randint(1, 40)):
                    broken[draw.randrange(len(broken))] = draw.randrange(256)
            case 1:
                del broken[at:]
            case 2:
                del broken[at : at + draw.randint(1, 64)]
            case 3:
                broken[at:at] = draw.randbytes(draw.randint(1, 64))
        (folder / f"{seed:03}.pkl").write_bytes(broken)


def check_mutants(folder: Path) -> None:
    complaints = load_elsewhere(folder)
    shutil.rmtree(folder)
    # What changes nothing but the value of a weight cannot be told from another weight.
    assert sum(map(bool, complaints)) > len(complaints) / 2


def test_mutations_of_a_small_file(tmp_path):
    smallest = {"img_resolution": 16, "mapping_kwargs": {"num_layers": 1}}
    rendering = {**KWARGS["rendering_kwargs"], "triplane_size": 4, "use_background": False}
    state = untrained(config(rendering=rendering, **smallest), seed=0).state_dict()
    root = generator(state, {**KWARGS, **smallest, "rendering_kwargs": rendering})
    write_mutants(dumps({"G_ema": root}), tmp_path / "mutants", range(200))
    check_mutants(tmp_path / "mutants")


@pytest.mark.parametrize("first", [0, 100, 200])
def test_300_mutations_of_the_official_file(tiny_pickle, tmp_path, first):
    whole = OFFICIAL_PICKLES[0] if OFFICIAL_PICKLES else tiny_pickle
    write_mutants(whole.read_bytes(), tmp_path / "mutants", range(first, first + 100))
    check_mutants(tmp_path / "mutants")
