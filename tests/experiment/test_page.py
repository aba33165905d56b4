"""HTML that texts cannot break."""

from html.parser import HTMLParser

from fedsparse.experiment import page

EVIL = "<script>alert('\"&')</script>"


class Reader(HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.texts = [], []

    def handle_starttag(self, tag, _):
        self.tags.append(tag)

    def handle_data(self, data):
        self.texts.append(data)


def read(text):
    reader = Reader()
    reader.feed(text)
    return reader


def test_texts_are_escaped_everywhere():
    parts = [
        page.legend([(EVIL, "#000000", "solid")]),
        page.table(EVIL, [{"run": EVIL, EVIL: "1"}]),
        page.figure(EVIL, "<svg></svg>", EVIL),
    ]
    reader = read(page.page(EVIL, parts))
    assert "script" not in reader.tags
    assert reader.texts.count(EVIL) == 8


def test_a_page_forbids_to_load_anything():
    text = page.page("a", [])
    assert "default-src 'none'" in text
    assert "http://" not in text
    assert "https://" not in text


def test_a_table_has_a_cell_for_each_key():
    reader = read(page.table("t", [{"a": "1", "b": "2"}, {"a": "3", "b": "4"}]))
    assert (reader.tags.count("th"), reader.tags.count("td"), reader.tags.count("tr")) == (2, 4, 3)
    assert [text for text in reader.texts if text.strip()] == ["t", "a", "b", "1", "2", "3", "4"]
