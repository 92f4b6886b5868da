"""What takes no model: showing the input again, and showing the training head that is most like the person."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32

from geometry.directions import angular_distance
from infer.evaluation.held_out import HeldOut, StoredPeople
from infer.evaluation.novel_views import Shown
from infer.metrics.likeness import cosines
from manifests.errors import UserError


def copied(held: HeldOut) -> Shown:
    """The input in the place of every other view."""
    places = [0] * (len(held) - 1)
    normal = None if held.normal is None else held.normal[places]
    return Shown(held.rgb[places], normal, held.cameras[places], held.points)


@dataclass(frozen=True, eq=False)
class Nearest:
    """The heads of a training set, by the cosines of their embeddings."""

    people: StoredPeople

    def __post_init__(self) -> None:
        assert self.people.embeddings is not None

    def find(self, embedding: Float32[np.ndarray, " d"]) -> str:
        """The name of the head most like a person.

        Raises:
            ValueError: embeddings of the two sets have another number of dimensions.
        """
        table = self.people.embeddings
        assert table is not None
        if table.shape[1] != len(embedding):
            raise UserError(
                f"--nearest has embeddings of {table.shape[1]} numbers and the held-out people of {len(embedding)}; "
                "score both with one recogniser"
            )
        likeness = cosines(embedding[None], table)
        return self.people.names[int(np.nan_to_num(likeness, nan=-2.0).argmax())]

    def show(self, held: HeldOut, name: str) -> Shown:
        """Of one head, the view nearest in direction to each of a person's targets."""
        person = self.people.person(name)
        places = [
            int(angular_distance(person.azimuth, person.elevation, float(a), float(e)).argmin())
            for a, e in zip(held.azimuth[1:], held.elevation[1:], strict=True)
        ]
        own = person.read(np.array(places, np.int64))
        return Shown(own.rgb, own.normal, own.cameras, own.points)
