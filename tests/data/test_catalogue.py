import pytest
import yaml
from conftest import command

from metaseg.data import catalogue
from metaseg.errors import MetasegError

main = command("data")

NEW = {
    "name": "moles",
    "title": "Moles",
    "folders": ["moles"],
    "count": 3,
    "paper_count": 3,
    "image_size": "10×10",
    "imaging": "dermoscopy",
    "lesion": "skin lesion",
    "foreground": 0.25,
    "url": "https://example.org",
    "licence": "CC0",
    "citation": "nobody",
    "how": "draw them",
}


def load(tmp_path, stem="moles", **changes):
    content = {key: value for key, value in {**NEW, **changes}.items() if value is not None}
    (tmp_path / f"{stem}.yaml").write_text(yaml.safe_dump(content, allow_unicode=True), encoding="utf-8")
    return catalogue.read(tmp_path / f"{stem}.yaml")


def test_table_1_of_the_paper():
    counts = {name: (catalogue.get(name).count, catalogue.get(name).paper_count) for name in catalogue.names()}
    assert counts == {
        "cvc": (612, 612),
        "isic": (2594, 2596),
        "kvasir": (1000, 1000),
        "kvasir_capsule": (55, 55),
        "ph2": (200, 200),
    }
    known = [catalogue.get(name) for name in catalogue.published()]
    assert all(one.url.startswith("https://") and one.licence and one.citation for one in known)


def test_the_lesion_identifies_the_disease():
    lesions = {name: catalogue.get(name).lesion for name in catalogue.names()}
    assert {name for name, lesion in lesions.items() if lesion == "polyp"} == {"cvc", "kvasir", "kvasir_capsule"}
    assert {name for name, lesion in lesions.items() if lesion == "skin lesion"} == {"isic", "ph2"}


def test_cvc_has_29_sequences_of_612_frames():
    starts = catalogue.get("cvc").sequence_starts
    assert len(starts) == 29
    assert (starts[0], starts[1], starts[-1]) == (1, 26, 592)
    assert catalogue.get("kvasir_capsule").blocks == 5


def test_unknown_dataset_names_the_allowed_ones():
    with pytest.raises(
        MetasegError, match="unknown dataset 'kvasr': choose from cvc, isic, kvasir, kvasir_capsule, ph2"
    ):
        catalogue.get("kvasr")


def test_a_new_dataset_is_one_yaml(tmp_path):
    dataset = load(tmp_path)
    assert dataset.layouts == (catalogue.PLAIN,)
    assert dataset.sequence_starts == ()
    layouts = load(tmp_path, layouts=[{"images": "a/{stem}", "masks": "b/{stem}_m"}]).layouts
    assert layouts == (catalogue.Layout("a/{stem}", "b/{stem}_m"), catalogue.PLAIN)


def test_a_number_too_long_to_be_written_is_refused(tmp_path):
    (tmp_path / "moles.yaml").write_text(f"title: 0x{'f' * 5000}\n")
    with pytest.raises(MetasegError, match=r"moles\.yaml: title should be text"):
        catalogue.read(tmp_path / "moles.yaml")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"colour": "red"}, "unknown key colour: allowed keys are name, title"),
        ({"title": None}, "lacks the key title"),
        ({"count": "many"}, "count should be a whole number, 0 or more, not 'many'"),
        ({"count": True}, "count should be a whole number"),
        ({"foreground": 32.3}, "foreground should be a number from 0 to 1, not 32.3"),
        ({"folders": "moles"}, "folders should be a list of strings"),
        ({"licence": 5}, "licence should be text, not 5"),
        ({"layouts": [{"images": "a/*", "masks": "b/{stem}"}]}, "layouts should be a list of"),
        ({"sequence_starts": [1, 9, 5]}, "sequence_starts should be a list of increasing whole numbers"),
        ({"sequence_starts": [1], "blocks": 2}, "both sequence_starts and blocks"),
        ({"name": "freckles"}, "the name must match the file, 'moles'"),
    ],
)
def test_faulty_yaml_is_refused(tmp_path, changes, sentence):
    with pytest.raises(MetasegError, match=sentence):
        load(tmp_path, **changes)


def test_a_name_must_fit_into_file_names(tmp_path):
    with pytest.raises(MetasegError, match="lower-case"):
        load(tmp_path, stem="my-moles", name="my-moles")


def test_broken_yaml_and_empty_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(catalogue, "FOLDER", tmp_path)
    with pytest.raises(MetasegError, match="found none"):
        catalogue._catalogue.__wrapped__()
    (tmp_path / "moles.yaml").write_text("name: [")
    with pytest.raises(MetasegError, match=r"moles\.yaml is not valid YAML"):
        catalogue.read(tmp_path / "moles.yaml")
    (tmp_path / "moles.yaml").write_text("")
    with pytest.raises(MetasegError, match="should have the keys"):
        catalogue.read(tmp_path / "moles.yaml")


def test_command_prints_the_table(capsys):
    assert main(["table"]) == 0
    printed = capsys.readouterr().out
    for dataset in map(catalogue.get, catalogue.names()):
        assert all(text in printed for text in (dataset.title, dataset.url, dataset.licence, dataset.citation))
    assert all(text in printed for text in ("2594 (paper: 2596)", "384×288", "32.3 %"))
    assert main(["table", "ph2"]) == 0
    assert "Kvasir" not in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [[], ["tabel"], ["table", "kvasr"], ["prepare", "ph2", "--size", "large"]])
def test_command_refuses_in_one_sentence(arguments, capsys):
    assert main(arguments) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
