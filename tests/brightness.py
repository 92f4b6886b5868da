"""A scorer as a contributor would add it: this file, and a line in the table of scorers."""

from filters.scorer import Columns, Scorer, ScorerContext, Subject
from manifests.scores import IDENTITY, VIEW, Lineage, column


class BrightnessScorer(Scorer):
    """Mean of the picture of every view, and of all of an identity's views, from 0 to 1."""

    table = "brightness"
    members = ("rgb",)
    columns = (column("brightness", VIEW, "mean of the picture"), column("mean", IDENTITY, "mean over the views"))
    lineage = Lineage("brightness", 1, None)

    def prepare(self, subject: Subject) -> Columns:
        means = subject.member("rgb").mean((1, 2, 3)) / 255
        return {"brightness": means, "mean": means.mean()}


def open_scorer(context: ScorerContext) -> BrightnessScorer:
    return BrightnessScorer()
