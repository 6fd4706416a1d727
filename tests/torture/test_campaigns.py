"""A short sample of each campaign; `make torture` runs them at length."""

import random

import pytest
from torture import campaigns


@pytest.mark.parametrize(
    ("name", "count"), [("kills", 1), ("mutations", 10), ("malformed", 21), ("escapes", 6)]
)
def test_a_sample_of_each_campaign_finds_nothing(name, count, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with campaigns.prepared():
        report = campaigns.CAMPAIGNS[name][0](random.Random(0), count, tmp_path / "work")
    assert not report.failures, str(report)
    assert sum(report.counts.values()) >= count
