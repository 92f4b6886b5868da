"""The methods that are compared: the model, sampled as `spinset views` samples it, and two baselines that need no model."""

import zlib
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from jaxtyping import Float, Float32, Int
from torch import Tensor

from geometry.cameras import Cameras, orbit
from geometry.directions import angular_distance
from infer.evaluation.held_out import HeldOut, StoredPeople
from infer.inputs import BACK, ControlPictures
from infer.make import sample_back
from infer.metrics.likeness import cosines
from infer.views import ViewPlan, ViewSampler, plan_of
from manifests.draws import generator
from manifests.errors import UserError
from train.batch import from_bytes, to_bytes
from train.networks.config import ModelConfig


@dataclass(frozen=True, eq=False)
class EvaluatedViews:
    """k views of a person by one method, sRGB over white in [-1, 1], which are compared with the true views."""

    rgb: Float32[Tensor, "k 3 h w"]
    normal: Float32[Tensor, "k 3 h w"] | None
    """Normals in camera space in [-1, 1], if the method gives any."""
    cameras: Cameras
    """The cameras of the views; those of a baseline differ from the true ones."""
    points: Float[np.ndarray, "5 3"]
    """World positions of eyes, nose and corners of the mouth."""
    call: Int[np.ndarray, " k"] | None = None
    """The number of the sampler's call that sampled each view, for models."""


def person_key(name: str) -> int:
    """The number that keys the random draws of a person."""
    return int(name) if name.isdecimal() else zlib.crc32(name.encode())


def noise_seed(name: str, seed: int) -> int:
    """The seed of the sampler for a person, so that people have different noise; `spinset views --seed` takes it, too."""
    return int(generator(seed, "evaluation noise", person_key(name)).integers(2**31))


def evaluation_plan(
    held: HeldOut, model: ModelConfig, stages: int, takes_photo: bool, back: bool = False, overlap: int = 0
) -> ViewPlan:
    """The plan of `spinset views` for the directions of a person's targets from the input view, with their true cameras.

    A model that takes no photo samples all targets from the identity alone, in one stage. With `back` a view from behind is
    given, too. Windows run along the azimuth, whatever the order of the targets.
    """
    azimuth = held.azimuth.astype(np.float64) - float(held.azimuth[0])
    elevation, input_elevation = held.elevation.astype(np.float64), float(held.elevation[0])
    photos, stages = ((0.0, *([BACK - float(held.azimuth[0])] if back else [])), stages) if takes_photo else ((), 1)
    order = np.argsort(held.azimuth[1:] % 360, kind="stable") if model.window else np.arange(len(held) - 1)
    plan = plan_of(model, azimuth[1:][order], elevation[1:][order], photos, input_elevation, stages, overlap=overlap)
    plan = replace(plan, wanted=tuple(plan.wanted[place] for place in np.argsort(order).tolist()))
    # Anchors stand on the orbit; the input and the targets have the cameras of their pictures.
    on_orbit = orbit(plan.azimuth + float(held.azimuth[0]), plan.elevation)
    c2w, K = on_orbit.c2w.clone(), on_orbit.K.clone()
    positions = [0, *plan.wanted]
    c2w[positions], K[positions] = held.cameras.c2w, held.cameras.K
    return replace(plan, cameras=Cameras(c2w, K))


def sample_views(
    sampler: ViewSampler,
    held: HeldOut,
    photo: Float32[Tensor, "3 x x"],
    identity: Float[Tensor, " d"] | None,
    stages: int = 2,
    input_normals: Literal["own", "stored"] = "own",
    control: ControlPictures | None = None,
    generator: ViewSampler | None = None,
    proxies: Float32[Tensor, "k 3 y y"] | None = None,
) -> EvaluatedViews:
    """Sample a person's targets from the input view, as `spinset views` does with the seed `noise_seed`.

    `photo` is the preprocessed input view in [-1, 1]. Models that take no photo get the identity alone. `control` are the
    pictures of a stranger for models that need them, `generator` makes the back that is given besides the input, and sampling
    starts from `proxies` of the targets, if there are any.

    Raises:
        UserError: stored normals are asked for, and the person has none.
    """
    seeded = replace(sampler.config, seed=noise_seed(held.name, sampler.config.seed))
    sampler, model = replace(sampler, config=seeded), sampler.model.config
    takes_photo = max(sampler.model.about.conditions) > 0
    plan = evaluation_plan(held, model, stages, takes_photo, generator is not None, sampler.config.overlap)
    given = {}
    if takes_photo:
        normal = None
        if input_normals == "stored":
            if held.normal is None:
                raise UserError(f"identity {held.name} has no stored normals; give --input-normals own")
            normal = held.normal[0]
        given[0] = sampler.input_latents(photo, identity, normal=normal)
    if generator is not None:
        back = sample_back(replace(generator, config=seeded), photo, control)
        given[1] = sampler.input_latents(back, None)
    pictures = None
    if control is not None and "control" in model.inputs:
        pictures = from_bytes(control.read(held.azimuth[1:].astype(np.float64), held.elevation[1:].astype(np.float64)))
    views = sampler.sample(plan, given, identity, control=pictures, proxies=proxies)
    # What is measured has 8 bits, as the files that spinset views writes.
    rgb, normal = (None if part is None else from_bytes(to_bytes(part)) for part in (views.rgb, views.normal))
    assert rgb is not None
    return EvaluatedViews(rgb, normal, held.cameras[slice(1, None)], held.points, plan.call_numbers)


def copied_input(held: HeldOut) -> EvaluatedViews:
    """The baseline that shows the input view in the place of every target."""
    positions = [0] * (len(held) - 1)
    normal = None if held.normal is None else held.normal[positions]
    return EvaluatedViews(held.rgb[positions], normal, held.cameras[positions], held.points)


@dataclass(frozen=True, eq=False)
class NearestHead:
    """The baseline that shows the training head with the most similar embedding."""

    people: StoredPeople

    @property
    def dimensions(self) -> int:
        """Numbers of an embedding of the training set."""
        assert self.people.embeddings is not None
        return self.people.embeddings.shape[1]

    def find(self, embedding: Float32[np.ndarray, " d"]) -> str:
        """The name of the head whose embedding has the largest cosine with a person's."""
        table = self.people.embeddings
        assert table is not None and table.shape[1] == len(embedding)
        similarity = cosines(embedding[None], table)
        return self.people.names[int(np.nan_to_num(similarity, nan=-2.0).argmax())]

    def views(self, held: HeldOut, name: str) -> EvaluatedViews:
        """For each of a person's targets the view of one head that is nearest in direction."""
        person = self.people.person(name)
        positions = [
            int(angular_distance(person.azimuth, person.elevation, float(a), float(e)).argmin())
            for a, e in zip(held.azimuth[1:], held.elevation[1:], strict=True)
        ]
        stored = person.read(np.array(positions, np.int64))
        return EvaluatedViews(stored.rgb, stored.normal, stored.cameras, stored.points)
