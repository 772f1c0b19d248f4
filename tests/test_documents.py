"""Text, YAML and JSON that anybody may have written."""

import gzip
from itertools import pairwise

import pytest

from metaseg import documents

LAUGHS = "a: &a [x]\n" + "".join(f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in pairwise("abcdefghij"))
MERGES = "a: &a {x: 1}\n" + "".join(f"{b}: &{b} {{<<: [*{a}, *{a}]}}\n" for a, b in pairwise("abcdefghij"))


@pytest.mark.parametrize(
    "text",
    [
        *(LAUGHS, MERGES, "&a [*a]", "[" * 3000, "!!python/object/apply:os.system ['false']"),
        *("!!int x", "!!bool x", "!!float x", "!!timestamp x", "2001-99-99", "9" * 5000),
        *("? [a]\n: b", "<<: x", "\t", '"', "a\0b", "%YAML 9.9\n---\n", "---\n---\n", "# " + "x" * documents.MOST_YAML),
    ],
    ids=lambda text: text[:12],
)
def test_hostile_yaml_is_a_value_error_of_one_line(tmp_path, text):
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(ValueError, match=r"^[^\n]+$"):
        documents.read_yaml(tmp_path / "a.yaml")


def test_yaml_is_read_as_plain_containers(tmp_path):
    (tmp_path / "a.yaml").write_text("a: [1, 0.5, null, x]\n")
    assert documents.read_yaml(tmp_path / "a.yaml") == {"a": [1, 0.5, None, "x"]}


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, "9" * 5000, "", b"\xff"])
def test_hostile_json_is_a_value_error(tmp_path, text):
    (tmp_path / "a.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError):  # noqa: PT011 (as json.loads raises them)
        documents.read_json(tmp_path / "a.json")


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:-9],
        lambda data: data[:-8] + bytes(8),
        lambda data: data[:12] + b"\xff" * 9,
        lambda data: b"text",
    ],
)
def test_compressed_text_is_read_up_to_its_limit(tmp_path, damage):
    path = tmp_path / "a.csv.gz"
    path.write_bytes(gzip.compress(b"x" * 1000))
    assert documents.text_of(path, 1000) == "x" * 1000
    with pytest.raises(ValueError, match="larger"):
        documents.text_of(path, 999)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError):  # noqa: PT011
        documents.text_of(path, 1000)
