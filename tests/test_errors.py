"""Sentences of foreign values, wherever these come in."""

import pytest

import metaseg
from metaseg.data import catalogue, layouts
from metaseg.errors import MetasegError

NOBODY = "~nobody-of-this-name/folder"


@pytest.mark.parametrize(
    "call",
    [
        lambda: metaseg.load(NOBODY),
        lambda: metaseg.load_segmenter(NOBODY),
        lambda: catalogue.get("mine", NOBODY),
        lambda: layouts.scan(catalogue.get("ph2"), NOBODY),
    ],
)
def test_the_home_of_an_unknown_user_is_refused_in_one_sentence(call):
    with pytest.raises(MetasegError, match=f"found {NOBODY}, but there is no such user"):
        call()
