"""The page with sliders: everything on it is in its folder, and says what the scores say."""

import re
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from PIL import Image

from ipt_fast.evaluation.gallery import Gallery
from ipt_fast.evaluation.score import Score

NAME = 'a<b>&"c"'


class Page(HTMLParser):
    """Collects the attributes of every tag by its name, and the text of table cells."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.cells, self._cell = {}, [], False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.setdefault(tag, []).append(dict(attrs))
        self._cell = tag == "td"

    def handle_data(self, data):
        if self._cell:
            self.cells.append(data)
        self._cell = False


def image(value):
    return torch.full((1, 3, 8, 10), float(value))


@pytest.fixture
def folder(tmp_path):
    gallery = Gallery(tmp_path / "page")
    for name in (NAME, "b"):
        for method, value in (("input", 10), ("net/x.pt", 20)):
            gallery.add(
                Score("Set5", "sr2", name, method, 20 + value, 18.0, float("nan"), 1.0, 0.25), image(value), image(30)
            )
    assert gallery.write() == tmp_path / "page" / "index.html"
    return tmp_path / "page"


def test_pictures_are_the_images(folder):
    page = Page((folder / "index.html").read_text())
    options = [[tag["value"] for tag in page.tags["option"][i : i + 3]] for i in range(0, 12, 3)]
    assert options[0] == options[1] != options[2] == options[3]
    for files in (options[0], options[2]):
        assert [np.unique(np.asarray(Image.open(folder / file))).tolist() for file in files] == [[10], [20], [30]]
    assert [tag["src"] for tag in page.tags["img"]] == options[0][:2] + options[2][:2]
    assert {tag["alt"] for tag in page.tags["img"]} == {"input", "net/x.pt"}


def test_scores_stand_under_each_picture_and_as_means(folder):
    page = Page((folder / "index.html").read_text())
    rows = [page.cells[i : i + 5] for i in range(0, len(page.cells), 5)]
    assert rows == [["input", "30.00", "18.00", "nan", "0.2500"], ["net/x.pt", "40.00", "18.00", "nan", "0.2500"]] * 3


def test_nothing_comes_from_elsewhere_and_names_are_text(folder):
    text = (folder / "index.html").read_text()
    page = Page(text)
    assert "link" not in page.tags and not re.search(r"https?:|//[a-z]|@import|url\(", text)
    assert all("src" not in tag for tag in page.tags["script"])
    assert "<b>a&lt;b&gt;&amp;&quot;c&quot;</b>" in text and NAME not in text


def test_a_name_that_is_not_utf8_is_written_with_escapes(tmp_path):
    gallery = Gallery(tmp_path)
    gallery.add(Score("s", "derain", "a\udcff", "input", 1.0, 1.0, 1.0, 0.0), image(1), image(2))
    assert r"a\udcff" in gallery.write().read_text(encoding="utf-8")


def test_alone_the_input_is_beside_the_ground_truth(tmp_path):
    gallery = Gallery(tmp_path)
    gallery.add(Score("s", "derain", "a", "input", 1.0, 1.0, 1.0, 0.0), image(1), image(2))
    assert [tag["alt"] for tag in Page(gallery.write().read_text()).tags["img"]] == ["input", "ground truth"]
