"""Rows of a report: values, and reasons for their absence."""

import json
from dataclasses import asdict

import numpy as np
import pytest

from infer.metrics.figures import Figure, absent, mean_figure


def test_a_mean_and_of_how_many():
    row = mean_figure("id", np.array([0.5, np.nan, 0.75]))
    assert row == Figure("id", 0.625, 2)
    assert str(mean_figure("l2", np.array([0.25]))) == "l2: 0.25 (1)"


def test_nothing_measured_says_why():
    row = mean_figure("i2o", np.array([np.nan, np.nan]), none="no view holds a face")
    assert row == Figure("i2o", None, 0, "no view holds a face")
    assert str(row) == "i2o: no view holds a face"
    assert json.loads(json.dumps(asdict(row)))["reason"] == "no view holds a face"
    assert mean_figure("l2", np.empty(0)).reason == "there was nothing to measure"
    assert [f.name for f in absent(("fid", "fid_front"), "no file")] == ["fid", "fid_front"]


def test_infinity_is_a_reason_and_no_number():
    row = mean_figure("psnr", np.array([30.0, np.inf]))
    assert row.value is None and row.reason == "infinite for 1 of 2, which have no error at all"


def test_a_row_is_either_or():
    for wrong in ({"value": None}, {"value": 1.0, "reason": "x"}, {"value": float("nan")}):
        with pytest.raises(AssertionError):
            Figure("x", **wrong)
