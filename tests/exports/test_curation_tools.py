"""Exports for tools of curation hold pictures, scores and outcomes, and the tools open them wherever those are installed."""

import json
import runpy
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from small import choose, members_of, small_plan, write_shard
from tables import write_scores

from exports.config import WITH_COLUMNS, ExportConfig
from exports.export import export
from manifests.dataset import Dataset
from manifests.errors import UserError
from manifests.plan import write_plan
from manifests.scores import WHOLE
from manifests.storage import Storage

AZIMUTHS = [0.0, 120.0, 240.0]
DEFECTS = {0: [], 1: [{"kind": "haze", "strength": 0.5}, {"kind": "hole", "strength": 0.3}], 2: None}
REASONS = {(1, WHOLE): "fog: too much", (1, 0): "its identity was dropped", (1, 1): "its identity was dropped",
           (1, 2): "its identity was dropped", (2, 2): "blurred"}  # fmt: skip


@pytest.fixture(scope="module")
def scored(tmp_path_factory) -> Dataset:
    """3 people of 3 views with scores of two tables; the selection gen3d-face drops person 1, and view 2 of person 2."""
    plan, storage = small_plan(3), Storage(tmp_path_factory.mktemp("scored"))
    write_plan(storage, plan)
    for shard in range(plan.shards):
        write_shard(storage, plan, shard, defects=DEFECTS)
    dataset = Dataset(storage)
    sharpness, nan = [[0.1, 0.2, 0.3], [1.1, float("nan"), 1.3], [2.1, None, 2.3]], float("nan")
    write_scores(dataset, "image", {"sharpness": sharpness}, {}, AZIMUTHS)
    write_scores(dataset, "mesh", {}, {"holes": [0.0, nan, 2.0]}, AZIMUTHS)
    choose(dataset, "gen3d-face", REASONS)
    return dataset


@pytest.fixture(scope="module")
def opened(scored, tmp_path_factory):
    """The folder of the dataset in a format, made once."""
    root = tmp_path_factory.mktemp("curation")

    def folder(format: str) -> Path:
        if not (root / format).exists():
            export(ExportConfig(scored.storage.root, str(root / format), format))
        return root / format

    return folder


def test_embedding_atlas(scored, opened):
    """One row per view, in which nothing is lost, not even which numbers are NaN and which are null."""
    table = pq.read_table(opened("embedding-atlas") / "data.parquet")
    assert table.column("id").to_pylist() == [f"000000{i}/v00{v}" for i in range(3) for v in range(3)]
    assert table.schema.field("image_sharpness").type == table.schema.field("mesh_holes").type == pa.float64()
    rows = table.to_pylist()
    assert [(r["identity"], r["view"], r["azimuth"]) for r in rows] == [
        (i, v, 120.0 * v) for i in range(3) for v in range(3)
    ]
    assert repr([round(r["image_sharpness"] or -1, 4) for r in rows]) == "[0.1, 0.2, 0.3, 1.1, nan, 1.3, 2.1, -1, 2.3]"
    assert repr([r["mesh_holes"] for r in rows]) == repr([0.0] * 3 + [float("nan")] * 3 + [2.0] * 3)
    assert [r["defects"] for r in rows] == ["none"] * 3 + ["haze, hole"] * 3 + [None] * 3
    dropped = "identity dropped: fog: too much"
    assert [r["selection_gen3d_face"] for r in rows] == [
        *["kept"] * 3,
        *[dropped] * 3,
        "kept",
        "kept",
        "dropped: blurred",
    ]
    pictures = [data for shard in range(2) for data in members_of(scored, shard, "rgb")]
    assert [r["image"] for r in rows] == [
        {"bytes": data, "path": f"{r['id']}.jpg"} for data, r in zip(pictures, rows, strict=True)
    ]


def test_fiftyone(scored, opened):
    folder = opened("fiftyone")
    samples = json.loads((folder / "samples.json").read_text())["samples"]
    meta = json.loads((folder / "metadata.json").read_text())
    assert [(folder / sample["filepath"]).read_bytes() for sample in samples] == [
        data for shard in range(2) for data in members_of(scored, shard, "rgb")
    ]
    assert len({sample["_id"]["$oid"] for sample in samples}) == 9
    assert len({sample["group"]["_id"]["$oid"] for sample in samples}) == 3
    assert [sample["group"]["name"] for sample in samples] == ["v000", "v001", "v002"] * 3
    assert meta["group_media_types"] == dict.fromkeys(["v000", "v001", "v002"], "image")
    declared = {field["name"]: field["ftype"].rpartition(".")[2] for field in meta["sample_fields"]}
    assert declared["image_sharpness"] == declared["mesh_holes"] == "FloatField"
    for number, sample in enumerate(samples):
        assert set(sample) <= set(declared) | {"_id"}
        assert ("image_sharpness" in sample) == (number not in (4, 7))
        assert ("mesh_holes" in sample) == (sample["identity"] != 1)


def test_lightly_studio(scored, opened):
    folder = opened("lightly-studio")
    rows = [json.loads(line) for line in (folder / "views.jsonl").read_text().splitlines()]
    assert [(folder / row["file"]).read_bytes() for row in rows] == [
        data for shard in range(2) for data in members_of(scored, shard, "rgb")
    ]
    assert "NaN" not in (folder / "views.jsonl").read_text() and rows[8]["image_sharpness"] == pytest.approx(2.3)
    compile((folder / "open.py").read_text(), "open.py", "exec")


@pytest.mark.parametrize("format", WITH_COLUMNS)
def test_the_same_inputs_give_the_same_bytes(scored, opened, tmp_path, format):
    export(ExportConfig(scored.storage.root, str(tmp_path / "again"), format))
    assert contents(tmp_path / "again") == contents(opened(format))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("format", WITH_COLUMNS)
def test_only_what_a_selection_keeps(scored, tmp_path, format):
    export(ExportConfig(scored.storage.root, str(tmp_path / "out"), format, selection="gen3d-face"))
    names = ["0000000/v000", "0000000/v001", "0000000/v002", "0000002/v000", "0000002/v001"]
    if format == "embedding-atlas":
        assert pq.read_table(tmp_path / "out/data.parquet").column("id").to_pylist() == names
    else:
        pictures = sorted(path.relative_to(tmp_path / "out") for path in (tmp_path / "out").rglob("*.jpg"))
        assert ["/".join(path.with_suffix("").parts[1:]) for path in pictures] == names
    if format == "fiftyone":
        assert json.loads((tmp_path / "out/metadata.json").read_text())["default_group_slice"] == "v000"


@pytest.mark.parametrize("format", WITH_COLUMNS)
def test_a_dataset_without_scores(eggs, tmp_path, format):
    export(ExportConfig(eggs.storage.root, str(tmp_path / "out"), format, identities="1"))
    assert b"sharpness" not in b"".join(contents(tmp_path / "out").values())


def test_scores_that_are_older_than_the_shards_are_refused(scored, tmp_path, monkeypatch):
    monkeypatch.setattr("exports.columns.shard_hashes", lambda dataset: {"0": "other", "1": "other"})
    with pytest.raises(UserError, match="is older than shards 0, 1; run spinset score again"):
        export(ExportConfig(scored.storage.root, str(tmp_path / "out"), "fiftyone"))
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def copy(scored, tmp_path) -> Dataset:
    """The dataset again, to change its scores."""
    shutil.copytree(scored.storage.root, tmp_path / "copy")
    return Dataset(str(tmp_path / "copy"))


def test_an_export_of_other_scores_is_another(copy, tmp_path):
    """It is neither resumed nor taken for finished."""
    config = ExportConfig(copy.storage.root, str(tmp_path / "out"), "fiftyone")
    export(config)
    assert "is this export already" in export(config)
    write_scores(copy, "mesh", {}, {"holes": [5.0, 5.0, 5.0]}, AZIMUTHS)
    with pytest.raises(UserError, match="holds other files"):
        export(config)


def test_two_columns_of_one_name_are_refused(copy, tmp_path):
    write_scores(copy, "image", {"sharpness_a": [[0.0] * 3] * 3}, {}, AZIMUTHS)
    write_scores(copy, "image_sharpness", {}, {"a": [0.0] * 3}, AZIMUTHS)
    with pytest.raises(UserError, match="would both be called image_sharpness_a; rename one"):
        export(ExportConfig(copy.storage.root, str(tmp_path / "out"), "fiftyone"))


@pytest.mark.filterwarnings("ignore")
def test_embedding_atlas_opens_it(opened):
    cli = pytest.importorskip("embedding_atlas.cli", reason="Embedding Atlas is not installed")
    data = cli.load_datasets([str(opened("embedding-atlas") / "data.parquet")])
    assert len(data) == 9 and set(data["image"][0]) == {"bytes", "path"}
    assert data["mesh_holes"].dtype == "float64"


@pytest.mark.filterwarnings("ignore")
def test_fiftyone_opens_it(opened):
    fiftyone = pytest.importorskip("fiftyone", reason="FiftyOne is not installed")
    dataset = fiftyone.Dataset.from_dir(str(opened("fiftyone")), dataset_type=fiftyone.types.FiftyOneDataset)
    try:
        assert dataset.media_type == "group" and dataset.group_slices == ["v000", "v001", "v002"]
        assert len(list(dataset.iter_groups())) == 3
        flat = dataset.select_group_slices()
        assert len(flat) == 9 and all(Path(path).exists() for path in flat.values("filepath"))
        assert dataset.bounds("mesh_holes") == (0.0, 2.0)
        sharp = flat.match(fiftyone.ViewField("image_sharpness") > 1.2)
        assert sharp.values("identity") == [1, 2, 2] and sharp.values("defects") == ["haze, hole", None, None]
        assert flat.count_values("selection_gen3d_face")["dropped: blurred"] == 1
        group = dataset.get_group(dataset.first().group.id)
        assert {name: sample["view"] for name, sample in group.items()} == {"v000": 0, "v001": 1, "v002": 2}
    finally:
        dataset.delete()


@pytest.mark.filterwarnings("ignore")
def test_lightly_studio_opens_it(scored, tmp_path, monkeypatch):
    studio = pytest.importorskip("lightly_studio", reason="LightlyStudio is not installed")
    export(ExportConfig(scored.storage.root, str(tmp_path / "out"), "lightly-studio"))
    monkeypatch.setattr(studio, "start_gui", lambda: None)
    for _ in range(2):  # the second run opens what the first imported
        runpy.run_path(str(tmp_path / "out/open.py"), run_name="__main__")
        groups = sorted(studio.GroupDataset.load("identities"), key=lambda group: group.metadata["identity"])
        assert [group.metadata["mesh_holes"] for group in groups] == [0.0, None, 2.0]
        assert [group.metadata["defects"] for group in groups] == ["none", "haze, hole", None]
        view = groups[2]["v002"]
        assert view.metadata["selection_gen3d_face"] == "dropped: blurred"
        assert groups[1]["v001"].metadata["image_sharpness"] is None
        assert view.file_name == "v002.jpg" and round(view.metadata["image_sharpness"], 4) == 2.3
        studio.db_manager.close()
