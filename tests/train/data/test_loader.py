"""The loader: whatever the ranks, workers, selections and interruptions, the samples are those of the order."""

import os
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from embeddings import write_embeddings
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small import choose, hide_normals, members_of

from manifests.cache import tar_file
from manifests.dataset import Dataset
from manifests.errors import UserError
from manifests.index import open_index
from manifests.storage import Storage
from train.data.config import LoaderConfig
from train.data.loader import open_loader
from train.data.sampling import MultiView, RandomK, SingleView


def config_of(dataset: Dataset, **changes) -> LoaderConfig:
    plain = {"batch": 4, "members": ("rgb",), "workers": 0, "epochs": 1, "random_background": 0.0}
    return LoaderConfig(dataset.storage.url, **{**plain, **changes})


def indices(batches) -> list[int]:
    return [i for batch in batches for i in batch.index.tolist()]


def test_a_batch_holds_the_views_it_says(make):
    dataset = make()
    index = open_index(dataset)
    batch = next(iter(open_loader(config_of(dataset, members=("rgb", "normal", "alpha"), recipe=RandomK(2)))))
    assert [batch.rgb.shape, batch.normal.shape, batch.alpha.shape] == [(4, 2, c, 16, 16) for c in (3, 3, 1)]
    rows = (batch.identity[:, None] * 3 + batch.view).numpy()
    assert batch.index.tolist() == batch.identity.tolist()
    for name in ("azimuth", "elevation", "c2w", "K"):
        assert np.array_equal(getattr(batch, name).numpy(), getattr(index, name)[rows])
    assert (batch.background == 1).all() and not batch.is_condition.any() and not batch.repeated.any()
    assert batch.identity_embedding is None and batch.control is None and batch.data is None
    assert -1 <= batch.rgb.min() < -0.5 and 0.5 < batch.rgb.max() <= 1
    assert batch.to("cpu").rgb is batch.rgb and len(batch) == 4


@pytest.mark.parametrize("start_method", ["fork", "spawn"])
def test_workers_change_nothing(make, start_method):
    config = config_of(make(), recipe=MultiView(2, (0, 1)), random_background=0.5, epochs=2, control=True)
    plain = list(open_loader(config))
    parallel = list(open_loader(replace(config, workers=2, start_method=start_method)))
    assert len(plain) == len(parallel) == 2
    for one, two in zip(plain, parallel, strict=True):
        for name in ("index", "view", "is_condition", "rgb", "control", "background"):
            assert torch.equal(getattr(one, name), getattr(two, name))


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_ranks_change_nothing_and_take_equal_steps(make, data, tmp_path_factory):
    per_shard, world = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 8))
    dataset = make(identities=6, per_shard=per_shard, name=str(tmp_path_factory.mktemp("ranks")))
    dropped = data.draw(st.sets(st.tuples(st.integers(0, 5), st.integers(0, 2)), max_size=9))
    choose(dataset, "some", dropped)
    tail = data.draw(st.sampled_from(["drop", "pad", "exact"]))
    config = config_of(dataset, batch=8 if 8 % world == 0 else world, tail=tail, selection="some", epochs=2)
    config = replace(config, members=("json",), decode=False)
    whole = [batch.index.tolist() for batch in open_loader(config)]
    parts = [[batch.index.tolist() for batch in open_loader(config, rank, world)] for rank in range(world)]
    assert {len(part) for part in parts} == {len(whole)}
    for step, batch in enumerate(whole):
        assert np.stack([part[step] for part in parts], 1).ravel().tolist() == batch
    kept = 18 - len(dropped)
    assert set(np.concatenate(whole).tolist()) <= set(range(kept))
    if tail != "drop":
        assert set(np.concatenate(whole).tolist()) == set(range(kept))


def as_dict(batch):
    return {"rgb": batch.rgb, "nested": {"view": batch.view}}


def as_list(batch):
    return [[rgb, view] for rgb, view in zip(batch.rgb, batch.view, strict=True)]


def as_tuple(batch):
    return (batch.view[0], batch.rgb, "text")


CASES = [
    pytest.param(1, 1, 2, 3, 6, as_dict, id="workers 2 to 3, dict"),
    pytest.param(1, 2, 0, 0, 6, as_list, id="ranks 1 to 2, list"),
    pytest.param(4, 3, 0, 0, 12, as_tuple, id="ranks 4 to 3, tuple"),
    pytest.param(1, 1, 0, 2, 6, as_tuple, id="workers 0 to 2, tuple"),
]


@pytest.mark.filterwarnings(
    "ignore:This DataLoader will create"
)  # torch, of more workers than a small machine has cores
@pytest.mark.parametrize(("ranks", "later_ranks", "workers", "later_workers", "batch", "collate"), CASES)
@pytest.mark.parametrize("selection", ["", "some"])
def test_a_resume_repeats_and_misses_nothing(
    make, ranks, later_ranks, workers, later_workers, batch, collate, selection
):
    """Whatever the caller makes of a batch, and whatever was prepared ahead of it and lost."""
    dataset = make(identities=10, per_shard=3)
    choose(dataset, "some", {(1, 0), (4, 2), (9, 1)})
    config = config_of(dataset, batch=batch, workers=workers, selection=selection, tail="exact", epochs=2)
    seen, states = [], set()
    for rank in range(ranks):
        loader = open_loader(config, rank, ranks)
        for step, delivered in enumerate(loader):
            collate(delivered)
            seen += delivered.index.tolist()
            if step == 2:
                break
        states.add(loader.state().to_json())
    (text,) = states
    assert len(text) < 1000
    for rank in range(later_ranks):
        loader = open_loader(replace(config, workers=later_workers), rank, later_ranks)
        loader.resume(text)
        assert len(loader) == -(-(2 * loader.samples) // batch) - 3
        seen += indices(loader)
    count = 27 if selection else 30
    beyond = -2 * count % batch
    assert len(seen) == 2 * count + beyond
    assert sorted(np.bincount(seen).tolist()) == [2] * (count - beyond) + [3] * beyond


def test_another_batch_size_goes_on_where_the_run_stopped(make):
    config = config_of(make(), tail="exact")
    loader = open_loader(config)
    seen = next(iter(loader)).index.tolist()
    later = open_loader(replace(config, batch=7))
    later.resume(loader.state().to_json())
    assert sorted(seen + indices(later)) == list(range(18))


def test_a_loader_goes_on_after_a_break_and_ends(make):
    loader = open_loader(config_of(make(), tail="pad"))
    assert (len(loader), loader.steps_per_epoch, loader.samples) == (5, 5, 18)
    first = [next(iter(loader)) for _ in range(2)]
    rest = list(loader)
    assert (len(rest), len(loader), list(loader)) == (3, 0, [])
    assert rest[-1].repeated.tolist() == [False, False, True, True]
    assert len(set(indices([*first, *rest]))) == 18
    endless = open_loader(replace(loader.config, epochs=0))
    assert len([batch for batch, _ in zip(endless, range(12), strict=False)]) == 12
    with pytest.raises(TypeError, match="has no end"):
        len(endless)


def test_the_runs_own_generator_is_left_alone(make):
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    list(open_loader(config_of(make())))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_half_of_the_samples_get_one_colour_behind_all_their_views(make):
    loader = open_loader(config_of(make(), recipe=RandomK(2), batch=6, random_background=0.5, epochs=100))
    views = [loader.batch_dataset.views(np.arange(6), np.full(6, epoch)) for epoch in range(100)]
    colours = np.concatenate([v.background for v in views])
    coloured = (colours != 1).any(1)
    assert coloured.mean() == pytest.approx(0.5, abs=0.08)
    assert colours[coloured].mean(0) == pytest.approx([0.5] * 3, abs=0.07)
    assert len({tuple(c) for c in colours[coloured].tolist()}) == coloured.sum()
    batch = next(iter(loader))
    plain = next(iter(open_loader(replace(loader.config, random_background=0.0))))
    changed = (batch.rgb != plain.rgb).flatten(2).any(2)
    assert changed.tolist() == (batch.background != 1).any(1)[:, None].expand(-1, 2).tolist()
    assert 0 < changed[:, 0].sum() < 6


def test_control_shows_the_same_views_of_somebody_else(make):
    dataset = make()
    config = config_of(dataset, recipe=RandomK(2), control=True, as_uint8=True, batch=6)
    batch = next(iter(open_loader(config)))
    everyone = next(iter(open_loader(config_of(dataset, batch=18, as_uint8=True))))
    pictures = {(int(i), int(v)): p for i, v, p in zip(everyone.identity, everyone.view, everyone.rgb, strict=True)}
    for identity, views, control in zip(batch.identity.tolist(), batch.view.tolist(), batch.control, strict=True):
        matches = [i for i in range(6) if torch.equal(pictures[i, views[0]][0], control[0])]
        assert len(matches) == 1 and matches[0] != identity
        assert torch.equal(pictures[matches[0], views[1]][0], control[1])


def test_a_state_belongs_to_the_embeddings_it_was_saved_with(make):
    dataset = make()
    write_embeddings(dataset)
    loader = open_loader(config_of(dataset, embeddings="arcface"))
    state = loader.state().to_json()
    open_loader(config_of(dataset, embeddings="arcface")).resume(state)
    write_embeddings(dataset, seed=1)
    with pytest.raises(UserError, match=r"other latents or embeddings; give those it was saved with"):
        open_loader(config_of(dataset, embeddings="arcface")).resume(state)


@pytest.mark.parametrize("recipe", [SingleView(), RandomK(2)])
def test_embeddings_are_the_unit_means_of_the_frontal_views(make, recipe):
    dataset = make()
    means = write_embeddings(dataset)
    for batch in open_loader(config_of(dataset, embeddings="arcface", recipe=recipe)):
        assert np.allclose(batch.identity_embedding.numpy(), means[batch.identity.numpy()], atol=1e-6)


@pytest.mark.parametrize("recipe", [SingleView(), RandomK(2)])
def test_identities_that_cannot_serve_are_named_or_left_out(make, recipe):
    dataset = make()
    means = write_embeddings(dataset, without={2, 5})
    config = config_of(dataset, embeddings="arcface", recipe=recipe, tail="pad")
    with pytest.raises(ValueError, match=r"2 of 6 identities .*first: 2 has no embedding.*--loader.leave-out"):
        open_loader(config)
    loader = open_loader(replace(config, leave_out=True))
    assert loader.left_out == dict.fromkeys((2, 5), "has no embedding in arcface")
    batches = list(loader)
    assert {i for b in batches for i in b.identity.tolist()} == {0, 1, 3, 4}
    for batch in batches:
        assert np.allclose(batch.identity_embedding.numpy(), means[batch.identity.numpy()], atol=1e-6)


def damage(dataset: Dataset, row: int) -> str:
    index = open_index(dataset)
    with open(dataset.storage.path(tar_file(int(index.shard[row]))), "r+b") as tar:
        tar.seek(int(index.offset["rgb"][row]))
        tar.write(bytes(64))
    return f"{index.key(row)}.rgb.jpg"


@pytest.mark.parametrize("workers", [0, 2])
def test_a_bad_member_stops_the_run_in_one_line(make, workers):
    dataset = make()
    member = damage(dataset, 4)
    with pytest.raises(
        ValueError, match=rf"^shards/heads-000000.tar, {member} does not decode; run spinset repair"
    ) as error:
        list(open_loader(config_of(dataset, workers=workers, tail="exact")))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("workers", [0, 2])
def test_tolerated_bad_members_are_replaced_and_recorded(make, workers):
    dataset = make()
    members = {damage(dataset, row) for row in (4, 5, 12)}
    config = config_of(dataset, workers=workers, tail="pad", batch=6, tolerance=3, epochs=3)
    loader = open_loader(config)
    seen, repeated = [], 0
    for batch in loader:
        assert batch.rgb.shape[0] == 6
        seen += batch.index.tolist()
        repeated += int(batch.repeated.sum())
    assert {bad.member for bad in loader.bad} == members and len(loader.bad) == 3
    assert np.bincount(seen).tolist() == [3 * n for n in (1, 1, 1, 1, 0, 0, 3, 1, 1, 1, 1, 1, 0, 2, 1, 1, 1, 1)]
    assert repeated == 9
    with pytest.raises(ValueError, match=r"rgb\.jpg: does not decode"):
        list(open_loader(replace(config, tolerance=2)))


def test_threads_that_hand_out_bytes_tell_bad_members(make):
    dataset = make()
    index = open_index(dataset)
    os.truncate(dataset.storage.path(tar_file(1)), int(index.offset["rgb"][10]) + 1)
    config = config_of(dataset, decode=False, workers=2, tail="pad", batch=6, tolerance=2)
    loader = open_loader(config)
    seen = indices(loader)
    assert set(seen) == set(range(18)) - {10, 11} and len(seen) == 18
    assert {bad.member for bad in loader.bad} == {f"{index.key(row)}.rgb.jpg" for row in (10, 11)}
    with pytest.raises(
        ValueError, match=r"^shards/heads-000001.tar, 0000003_v00\d.rgb.jpg is cut: the shard ends at"
    ) as error:
        list(open_loader(replace(config, tolerance=0)))
    assert "\n" not in str(error.value)


def test_threads_end_with_the_iteration(make):
    batches = iter(open_loader(config_of(make(), decode=False, workers=2, epochs=0)))
    next(batches)
    assert any(thread.name.startswith("loader") for thread in threading.enumerate())
    batches.close()
    assert not any(thread.name.startswith("loader") for thread in threading.enumerate())


@pytest.mark.parametrize("workers", [0, 2])
def test_a_shard_that_vanishes_stops_the_run_in_one_line(make, workers):
    dataset = make()
    loader = open_loader(config_of(dataset, workers=workers, tolerance=5))
    dataset.storage.remove(tar_file(1))
    with pytest.raises(FileNotFoundError, match=r"^shards/heads-000001.tar of .* was removed") as error:
        list(loader)
    assert "\n" not in str(error.value)


class Latents:
    """What another module may hand over instead of pixels."""

    def __init__(self, dataset, subset):
        self.identity = np.array(subset.index.identity)

    lineage = "numbers"

    def read(self, rows, background, members, keys):
        return {
            m: torch.from_numpy(self.identity[rows]).float()[..., None, None, None].expand(-1, -1, 4, 2, 2)
            for m in members
        }


def test_another_source_makes_the_same_batches(make):
    config = config_of(make(), members=("rgb", "normal"), workers=2)
    for pixels, latents in zip(open_loader(config), open_loader(config, source=Latents), strict=True):
        assert torch.equal(pixels.index, latents.index)
        assert latents.rgb.shape == (4, 1, 4, 2, 2) and torch.equal(
            latents.normal[:, 0, 0, 0, 0].long(), latents.identity
        )


def test_stored_bytes_are_delivered_undecoded(make):
    dataset = make()
    stored = [d for shard in dataset.committed() for d in members_of(dataset, shard, "rgb")]
    for batch in open_loader(config_of(dataset, decode=False, members=("rgb", "json"), workers=2)):
        assert batch.data["rgb"] == [stored[i] for i in batch.index.tolist()]


def test_a_remote_dataset_is_cached_or_read_by_ranges(make, tmp_path):
    local = make()
    remote = Storage("memory://loader/heads")
    remote.fs.put(local.storage.root, remote.root, recursive=True)
    config = replace(config_of(local), data="memory://loader/heads", cache=str(tmp_path / "cache"))
    expected = indices(open_loader(config_of(local)))
    assert indices(open_loader(config)) == expected
    assert len(list((tmp_path / "cache").glob("spinset-cache/*/*.tar"))) == 3
    small = replace(config, cache_gb=7e-5, cache=str(tmp_path / "small"))
    with pytest.warns(UserWarning, match="byte ranges are read instead"):
        assert indices(open_loader(small)) == expected
    assert not (tmp_path / "small").exists()
    windowed = open_loader(replace(small, window=1, tail="pad"))
    assert sorted(set(indices(windowed))) == list(range(18))
    used = sum(file.stat().st_size for file in (tmp_path / "small").glob("spinset-cache/*/*.tar"))
    assert 0 < used <= 7e-5 * 10**9
    with pytest.raises(ValueError, match=r"give --loader\.window 1"):
        open_loader(replace(small, window=2))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"selection": "none"}, "no selection 'none'"),
        ({"recipe": RandomK(4)}, "6 of 6 identities cannot be sampled"),
        ({"recipe": RandomK(4), "leave_out": True}, "take another recipe"),
        ({"resolution": 32}, "give at most that"),
        ({"embeddings": "arcface"}, "no scores of 'arcface'"),
        ({"batch": 19}, "at most 18"),
    ],
)
def test_what_is_known_to_go_wrong_is_said_before_the_first_step(make, changes, message):
    with pytest.raises(ValueError, match=message) as error:
        open_loader(config_of(make(), **changes))
    assert "\n" not in str(error.value)


def test_missing_members_and_datasets_are_said_before_the_first_step(make, tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match="not a dataset"):
        open_loader(LoaderConfig(str(tmp_path / "nothing")))
    with pytest.raises(ValueError, match="take 3 or 6"):
        open_loader(config_of(make()), 0, 3)
    dataset = make(name="bare")
    hide_normals(monkeypatch)
    with pytest.raises(ValueError, match=r"18 of 18 views have no normal \(first: 0000000_v000\)"):
        open_loader(config_of(dataset, members=("rgb", "normal")))
    open_loader(config_of(dataset))


def test_a_state_of_another_run_is_refused(make):
    dataset = make()
    choose(dataset, "some", {(1, 0)})
    config = config_of(dataset, recipe=RandomK(2))
    state = open_loader(config).state().to_json()
    others = {
        "selection": replace(config, selection="some"),
        "recipe": replace(config, recipe=RandomK(3)),
        "seed": replace(config, seed=1),
        "dataset": replace(config, data=make(identities=7, name="other").storage.url),
    }
    for name, other in others.items():
        with pytest.raises(ValueError, match=name):
            open_loader(other).resume(state)


@pytest.mark.parametrize(
    ("changes", "option"),
    [
        ({"batch": 0}, "--loader.batch"),
        ({"tail": "loop"}, "--loader.tail"),
        ({"start_method": "thread"}, "--loader.start-method"),
        ({"members": ("rgb", "rgb")}, "--loader.members"),
        ({"members": ()}, "--loader.members"),
        ({"members": ("json",)}, "--loader.members"),
        ({"resolution": 20}, "--loader.resolution"),
        ({"random_background": 2.0}, "--loader.random-background"),
        ({"cache_gb": 0.0}, "--loader.cache-gb"),
        ({"control": True, "decode": False}, "--loader.control"),
    ],
)
def test_configs_that_cannot_be_name_their_option(changes, option):
    with pytest.raises(ValueError, match=option):
        LoaderConfig("somewhere", **changes)


def test_pictures_over_another_colour_get_no_other_background(make):
    dataset = make(source={"name": "noise", "version": 1, "settings": {"background": "black"}})
    with pytest.raises(ValueError, match="lie over black"):
        open_loader(config_of(dataset, random_background=0.5))
    assert len(next(iter(open_loader(config_of(dataset)))))


def test_ranks_wait_for_a_dataset_to_be_finished(make):
    dataset = make()
    dataset.storage.remove(dataset.file(2, ".done.json"))
    with pytest.raises(ValueError, match=r"1 shards of .* are still to be made"):
        open_loader(config_of(dataset), 0, 2)
    assert open_loader(config_of(dataset)).samples == 12


# Memory of workers.


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_shared_memory_that_is_too_small_is_told_before_the_first_batch(make, method):
    """As many batches ahead as no machine can hold; nothing is started, so nothing is left."""
    config = config_of(make(), workers=2, start_method=method, prefetch=10**9)
    says = (
        r"/dev/shm has \d+ MB free; 2 workers .* 1000000000 batches .* need \d+ MB. Enlarge it \(docker run --shm-size"
    )
    before = psutil.Process().children()
    with pytest.raises(UserError, match=says):
        next(iter(open_loader(config)))
    assert not list(Path("/dev/shm").glob(f"torch_{os.getpid()}_*"))
    assert psutil.Process().children() == before


def test_a_worker_that_is_killed_is_one_line(make):
    others = psutil.Process().children()
    batches = iter(open_loader(config_of(make(), workers=1, epochs=0)))
    next(batches)
    (worker,) = set(psutil.Process().children()) - set(others)
    worker.kill()
    with pytest.raises(
        OSError, match=r"a process of the loader was killed \(DataLoader worker .*lower --loader.workers"
    ):
        for _ in batches:
            pass
