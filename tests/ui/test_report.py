import csv
import json
import re
from html.parser import HTMLParser

import numpy as np
import pyarrow.parquet
import pytest
from PIL import Image

from archsearch.study import Study, StudyError, StudyLog
from archsearch.ui.report import write_report

from .fakes import LAYOUTS, header

VOID = {"meta", "circle", "path", "use", "br", "img"}


class Page(HTMLParser):
    """Collects tags and text, and fails on tags that do not close as they opened."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.ids, self.links, self.said = [], [], set(), [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        found = dict(attrs)
        self.ids |= {found["id"]} if "id" in found else set()
        self.links += [found["href"]] if "href" in found else []
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.said.append(data)


@pytest.fixture
def report(finished):
    (finished / "front").mkdir()
    for trial in Study.read(finished).front():
        (finished / "front" / f"{trial.id}.yaml").write_text("name: x\n")
    return write_report(finished)


def test_the_csv_holds_every_trial(finished, report):
    rows = list(csv.DictReader(report.csv.open()))
    study = Study.read(finished)
    assert [row["id"] for row in rows] == list(study.trials)
    by_id = {row["id"]: row for row in rows}
    trial = study.front()[0]
    row = by_id[trial.id]
    assert row["front"] == "True"
    assert float(row["values.recall"]) == trial.values["recall"]
    assert float(row["params.training.lr"]) == trial.params["training.lr"]
    assert float(row["mixture.code"]) == trial.mixture["code"]
    assert int(row["cost.state_bytes"]) == trial.cost["state_bytes"]
    assert float(row["metrics.recall/mqar@32"]) == trial.metrics["recall/mqar@32"]
    assert json.loads(row["layout"]) == trial.layout
    assert json.loads(by_id["0005"]["cause"])["kind"] == "non-finite loss"
    assert by_id["0005"]["values.recall"] == ""
    assert float(by_id["0008"]["constraints.params <= 150k"]) == 0.157


def test_the_parquet_says_the_same_with_types(report):
    table = pyarrow.parquet.read_table(report.parquet)
    rows = list(csv.DictReader(report.csv.open()))
    assert table.num_rows == len(rows) == 24
    assert table.column_names == list(rows[0])
    assert table.schema.field("values.recall").type == "double"
    assert table.schema.field("cost.params").type == "int64"
    assert table.column("values.recall").null_count == sum(row["values.recall"] == "" for row in rows)


def test_holes_of_mixed_kinds_become_text(tmp_path):
    with StudyLog(tmp_path) as log:
        log.append(header(3))
        for name, entry in (("1", 4), ("2", "mean"), ("3", [1, 2])):
            log.trial(name, "running", params={"merge": entry, "n": 1 if name == "1" else 0.5})
    table = pyarrow.parquet.read_table(write_report(tmp_path).parquet)
    assert table.column("params.merge").to_pylist() == ["4", "mean", "[1, 2]"]
    assert table.column("params.n").to_pylist() == [1.0, 0.5, 0.5]


def test_the_picture_decodes_and_shows_the_front(report):
    image = Image.open(report.png)
    image.load()
    assert image.size == (2200, 1120)
    pixels = np.asarray(image.convert("RGB")).reshape(-1, 3)
    gold = (np.abs(pixels.astype(int) - (0xB8, 0x86, 0x0B)).sum(axis=1) < 12).sum()
    assert gold > 1000


def test_the_page_needs_no_network_and_its_links_lead_somewhere(finished, report):
    text = report.html.read_text()
    page = Page(text)
    assert not re.search(r"https?://|//[a-z]|url\(|@import|<link|src=", text)
    for link in page.links:
        if link.startswith("#"):
            assert link[1:] in page.ids
        else:
            assert (report.html.parent / link).is_file(), link
    for trial in Study.read(finished).front():
        assert f"front/{trial.id}.yaml" in page.links
    assert "trials/0000/spec.yaml" in page.links


def test_the_page_tells_the_study(finished, report):
    said = " ".join(Page(report.html.read_text()).said)
    for words in (
        "recall-vs-perplexity",
        "sampler tpe",
        "seed 0",
        "1.00M tokens a trial",
        "hypervolume against recall 0, perplexity 16.0",
        "out of memory",
        "loss became nan at learning rate 0.0093",
        "breaks params <= 150k by 16%",
        "same as 0002",
    ):
        assert words in said
    for trial in Study.read(finished).trials:
        assert trial in said


def test_what_users_wrote_is_escaped(tmp_path):
    evil = "<script>alert('x')</script>\"&"
    with StudyLog(tmp_path / "run") as log:
        log.append(
            header(2, name=evil, sampler=evil, sources=[evil], objectives={evil: "minimize"}, reference={})
        )
        layout = [{"glyph": "<", "kind": evil, "family": evil}, {"kind": "parallel", "branches": [LAYOUTS[0]],
                                                                "merge": evil}]  # fmt: skip
        log.trial(
            evil, "complete", values={evil: 1.0}, layout=layout, mixture={evil: 1.0}, params={evil: evil}
        )
        log.trial("2", "failed", cause={"kind": evil, "message": evil}, layout=layout)
        log.note("warning", evil)
        log.session("finished")
    text = write_report(tmp_path / "run").html.read_text()
    page = Page(text)
    assert page.tags.count("script") == 1
    assert "alert('x')" not in text
    assert "&lt;script&gt;" in text


def test_an_empty_study_has_a_report(empty):
    report = write_report(empty)
    said = " ".join(Page(report.html.read_text()).said)
    assert "No trial has completed, so there is no front." in said
    assert "This study has no trials." in said
    Image.open(report.png).load()
    assert list(csv.DictReader(report.csv.open())) == []
    assert pyarrow.parquet.read_table(report.parquet).num_rows == 0


def test_a_live_run_can_be_reported_and_reported_again(live):
    write_report(live.run_dir)
    live.end("0018", "complete", values={"recall": 0.999, "perplexity": 4.0}, seconds=31.0)
    said = " ".join(Page(write_report(live.run_dir).html.read_text()).said)
    assert "0.999" in said
    assert not list(live.run_dir.glob(".draft*"))


def test_a_report_elsewhere_links_back(finished, tmp_path):
    report = write_report(finished, tmp_path / "out")
    page = Page(report.html.read_text())
    assert "../finished/trials/0000/spec.yaml" in page.links
    assert "trials.csv" in page.links


@pytest.mark.parametrize("count", [1, 3])
def test_other_numbers_of_objectives(tmp_path, count):
    names = ["recall", "perplexity", "state_bytes"][:count]
    with StudyLog(tmp_path) as log:
        log.append(header(3, objectives=dict.fromkeys(names, "minimize"), reference={}))
        for number in range(3):
            log.trial(
                str(number), "complete", layout=LAYOUTS[number], values={n: 1.0 + number for n in names}
            )
    text = write_report(tmp_path).html.read_text()
    assert all(f"{name} ↓" in text for name in names)


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(StudyError, match="not a run folder"):
        write_report(tmp_path)
    assert list(tmp_path.iterdir()) == []
