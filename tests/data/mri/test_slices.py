import os

import numpy as np
import pytest
import torch
from PIL import Image

from metaseg.data.mri import twin as brain_twin
from metaseg.data.mri import volumes as brain_mri
from metaseg.data.mri.slices import BrainMRI, SliceBatches, augment, slice_weights
from metaseg.data.mri.volumes import Volume, crop, find, read, split
from metaseg.errors import MetasegError
from metaseg.runs.schema import SliceAugmentation, Slices

REAL_DATA = os.environ.get("METASEG_DATA")
PATIENTS = {"TCGA_AA_1_19990101": 12, "TCGA_BB_2_20000101": 5}
NOTHING = SliceAugmentation(scale=0, rotation=0, flip=0)
SETTINGS = Slices(
    source="synthetic",
    root=".",
    size=32,
    validation="auto",
    workers=0,
    batch=4,
    steps=None,
    augment=NOTHING,
)


def slices(count, width=40, height=48, seed=0):
    """A head with a bright spot on its right, in slices that differ in brightness; ends of the volume are dimmer."""
    rng = np.random.default_rng(seed)
    images = np.zeros((count, height, width, 3), np.uint8)
    masks = np.zeros((count, height, width), np.uint8)
    for number in range(count):
        images[number, 10:40, 8:32] = rng.integers(40 + number, 90 + number, (30, 24, 3))
        if number >= count // 2:
            images[number, 16:24, 22:30, 1], masks[number, 16:24, 22:30] = 220, 1
    return images, masks


def published(folder):
    """kaggle_3m as it is published; TIFF images and masks of one patient share a folder."""
    folder.mkdir(parents=True)
    (folder / "data.csv").write_text("Patient,RNASeqCluster\n")
    for seed, (patient, count) in enumerate(PATIENTS.items()):
        (folder / patient).mkdir()
        images, masks = slices(count, seed=seed)
        for number in range(count):
            stem = folder / patient / f"{patient}_{number + 1}"
            Image.fromarray(images[number]).save(f"{stem}.tif")
            Image.fromarray(masks[number] * np.uint8(255)).save(f"{stem}_mask.tif")


def plain(folder):
    """The same slices as images/, masks/ and patients.csv."""
    rows = ["stem,patient"]
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    for seed, (patient, count) in enumerate(PATIENTS.items()):
        images, masks = slices(count, seed=seed)
        for number in range(count):
            stem = f"{patient}_{number + 1}"
            Image.fromarray(images[number]).save(folder / "images" / f"{stem}.png")
            Image.fromarray(masks[number] * np.uint8(255)).save(folder / "masks" / f"{stem}.png")
            rows.append(f"{stem},{patient}")
    (folder / "patients.csv").write_text("\n".join(rows) + "\n")


@pytest.mark.parametrize("folder", brain_mri.FOLDERS)
def test_both_layouts_give_the_same_volumes_in_the_order_of_their_numbers(tmp_path, folder):
    published(tmp_path / "a" / folder)
    plain(tmp_path / "b" / folder)
    scans = {root: find(tmp_path / root) for root in "ab"}
    for found in scans.values():
        assert {scan.patient: len(scan.slices) for scan in found} == PATIENTS
        assert [pair.id.rsplit("_", 1)[1] for pair in found[0].slices] == [str(n) for n in range(1, 13)]
    for one, other in zip(*(read(found, 32) for found in scans.values()), strict=True):
        assert one.patient == other.patient
        np.testing.assert_array_equal(one.images, other.images)
        np.testing.assert_array_equal(one.masks, other.masks)
    # The first and the last slice are left out.
    assert [len(volume.masks) for volume in read(scans["a"], 32)] == [10, 3]


def test_a_volume_is_normalised_per_channel_over_all_its_slices(tmp_path):
    published(tmp_path / "kaggle_3m")
    for volume in [*read(find(tmp_path), 32), *brain_twin.twin(2, 32, 0)]:
        values = volume.normalised().astype(np.float64)
        assert values.dtype == np.float64
        np.testing.assert_allclose(values.mean(axis=(0, 1, 2)), 0, atol=1e-5)
        np.testing.assert_allclose(values.std(axis=(0, 1, 2)), 1, atol=1e-5)
        assert abs(values[0].mean()) > 1e-3  # over the volume, and not over a slice
        low, high = np.percentile(volume.images, (10, 99))
        clipped = np.clip(volume.images.astype(np.float64), low, high)
        expected = (clipped - clipped.mean((0, 1, 2))) / clipped.std((0, 1, 2))
        np.testing.assert_allclose(values, expected, atol=1e-4)
        np.testing.assert_array_equal(volume.normalised([1])[0], values[1].astype(np.float32))


def test_a_constant_channel_becomes_zero_and_a_constant_volume_is_refused():
    images = slices(4)[0]
    images[..., 2] = 60
    values = Volume.of("a", images, slices(4)[1]).normalised()
    assert not values[..., 2].any()
    assert np.isfinite(values).all()
    with pytest.raises(MetasegError, match="patient b should show a head"):
        Volume.of("b", np.zeros((2, 32, 32, 3), np.uint8), np.zeros((2, 32, 32), np.uint8))


def test_volumes_are_cropped_to_the_head_and_padded_to_a_square():
    images, masks = slices(4)
    images[0] = images[:, :9] = 8  # dark: below a tenth of the brightest
    cropped, truth = crop(images, masks)
    assert cropped.shape == (3, 30, 30, 3)
    assert truth.shape == (3, 30, 30)
    np.testing.assert_array_equal(cropped[:, :, 3:27], images[1:, 10:40, 8:32])
    assert not cropped[:, :, :3].any()
    assert not cropped[:, :, 27:].any()
    assert truth.sum() == masks[1:].sum()


def test_the_split_separates_patients_and_follows_the_seed():
    volumes = brain_twin.twin(6, 32, 0)
    training, validation = split(volumes, 2, 0)
    names = [{volume.patient for volume in part} for part in (training, validation)]
    assert not names[0] & names[1]
    assert (len(training), len(validation)) == (4, 2)
    assert {volume.patient for volume in split(volumes, 2, 0)[1]} == names[1]
    assert len({tuple(v.patient for v in split(volumes, 2, seed)[1]) for seed in range(10)}) > 1


@pytest.mark.parametrize(("patients", "expected"), [(2, 1), (19, 1), (50, 5), (110, 10), (200, 10)])
def test_ten_patients_or_a_tenth_are_held_out(patients, expected):
    one = brain_twin.twin(1, 32, 0)[0]
    volumes = [Volume(str(i), one.images, one.masks, one.clip, one.mean, one.deviation) for i in range(patients)]
    assert len(split(volumes, "auto", 0)[1]) == expected


@pytest.mark.parametrize("validation", [0, 6, -1, 0.5, "some", None])
def test_a_validation_set_that_cannot_be_is_refused(validation):
    with pytest.raises(MetasegError, match=r"data\.validation .*from 1 to 5"):
        split(brain_twin.twin(6, 32, 0), validation, 0)


@pytest.mark.parametrize(
    ("gone", "words"),
    [
        ("TCGA_BB_2_20000101/TCGA_BB_2_20000101_3.tif", r"1 masks without an image \(such as .*_3_mask\.tif\)"),
        ("TCGA_BB_2_20000101/TCGA_BB_2_20000101_3_mask.tif", r"1 without a mask \(such as .*_3\.tif\)"),
    ],
)
def test_unpaired_files_are_reported_in_one_sentence(tmp_path, gone, words):
    published(tmp_path / "kaggle_3m")
    (tmp_path / "kaggle_3m" / gone).unlink()
    with pytest.raises(MetasegError, match=words):
        find(tmp_path)


def test_faults_of_the_plain_layout_are_reported(tmp_path):
    folder = tmp_path / "lgg_brain_mri"
    plain(folder)
    table = folder / "patients.csv"
    rows = table.read_text().splitlines()
    table.write_text("\n".join(rows[:-2]) + "\n")
    with pytest.raises(MetasegError, match=r"2 images not in patients\.csv"):
        find(tmp_path)
    table.write_text("\n".join(rows), encoding="utf-8-sig")  # as spreadsheets save it
    assert len(find(tmp_path)) == len(PATIENTS)
    twin = folder / "images" / "TCGA_AA_1_19990101_1.png"
    twin.with_suffix(".bmp").write_bytes(twin.read_bytes())
    with pytest.raises(MetasegError, match="2 files that share a stem"):
        find(tmp_path)
    twin.with_suffix(".bmp").unlink()
    table.write_text("image,who\na,b\n")
    with pytest.raises(MetasegError, match="columns stem and patient"):
        find(tmp_path)
    table.unlink()
    with pytest.raises(MetasegError, match="both sides of the split"):
        find(tmp_path)


def test_damaged_files_are_counted_and_one_is_named(tmp_path):
    published(tmp_path / "kaggle_3m")
    for patient in PATIENTS:
        (tmp_path / "kaggle_3m" / patient / f"{patient}_2.tif").write_bytes(b"not a picture")
    with pytest.raises(MetasegError, match=r"TCGA_AA_1_19990101_2\.tif.*1 more patients"):
        read(find(tmp_path), 32)


def test_a_mask_of_another_size_is_refused(tmp_path):
    published(tmp_path / "kaggle_3m")
    patient = "TCGA_BB_2_20000101"
    Image.new("L", (20, 20)).save(tmp_path / "kaggle_3m" / patient / f"{patient}_4_mask.tif")
    with pytest.raises(MetasegError, match=r"40×48 .*_4 has an image of 40×48 and a mask of 20×20"):
        read(find(tmp_path), 32)


def test_missing_data_name_the_folders_and_the_twin(tmp_path):
    (tmp_path / "kaggle_3m").mkdir()
    with pytest.raises(MetasegError, match=r"lgg_brain_mri .*kaggle_3m.*data=synthetic"):
        find(tmp_path)


def test_slices_are_drawn_by_area_of_tumour_with_a_tenth_evenly():
    masks = np.zeros((4, 8, 8), np.uint8)
    masks[1, :2, :2] = 1
    masks[2, :3, :4] = 1
    np.testing.assert_allclose(slice_weights(masks), np.array([0.4, 4.4, 12.4, 0.4]) / 17.6)
    np.testing.assert_allclose(slice_weights(np.zeros((4, 8, 8))), 0.25)


def test_a_batch_is_a_function_of_seed_epoch_and_step():
    volumes = brain_twin.twin(3, 32, 0)
    settings = SliceAugmentation(scale=0.05, rotation=15, flip=0.5)
    batches, again, other = (SliceBatches(volumes, 4, None, settings, seed) for seed in (0, 0, 1))
    assert len(batches) == 3 * brain_twin.SLICES // 4
    _ = again[0, 0], again[1, 1]
    images, masks = batches[1, 2]
    assert images.shape == (4, 3, 32, 32)
    assert images.dtype == masks.dtype == torch.float32
    assert set(masks.unique().tolist()) == {0, 1}
    assert torch.equal(images, again[1, 2][0])
    for different in (batches[1, 3], batches[2, 2], other[1, 2]):
        assert not torch.equal(images, different[0])


def test_augmentation_moves_image_and_mask_alike():
    mask = np.zeros((32, 32), np.uint8)
    mask[8:20, 4:12] = 1
    image = np.repeat(mask[..., None], 3, 2).astype(np.float32)
    settings = SliceAugmentation(scale=0.2, rotation=30, flip=0.5)
    flipped = moved = 0
    for seed in range(20):
        new, truth = augment(image, mask, settings, np.random.default_rng(seed))
        assert ((new[..., 1] > 0.5) == truth).mean() > 0.97
        flipped += truth[:, 16:].sum() > truth[:, :16].sum()
        moved += not np.array_equal(truth, mask)
    assert 0 < flipped < 20
    assert moved == 20
    same, truth = augment(image, mask, NOTHING, np.random.default_rng(0))
    assert np.array_equal(same, image)
    assert np.array_equal(truth, mask)
    mirrored, truth = augment(image, mask, NOTHING.model_copy(update={"flip": 1}), np.random.default_rng(0))
    assert np.array_equal(mirrored, image[:, ::-1])
    assert np.array_equal(truth, mask[:, ::-1])


def test_more_slices_in_a_batch_than_there_are_is_refused():
    with pytest.raises(MetasegError, match=r"data\.batch"):
        BrainMRI(SETTINGS.model_copy(update={"batch": 177}), 0)


def test_twins_differ_by_patient_and_are_the_same_each_time():
    (first, second), (again,) = brain_twin.twin(2, 48, 0), brain_twin.twin(1, 48, 0)
    np.testing.assert_array_equal(first.images, again.images)
    assert not np.array_equal(first.images, second.images)
    for volume in brain_twin.twin(brain_twin.PATIENTS, 32, 0):
        tumour = volume.masks.any(axis=(1, 2))
        assert 2 <= tumour.sum() <= 10
        assert set(np.unique(volume.masks)) == {0, 1}
        inside = volume.images[tumour][volume.masks[tumour] > 0].mean(0)
        assert inside[1] > volume.images[tumour][volume.masks[tumour] == 0].mean(0)[1] + 20


@pytest.mark.skipif(not REAL_DATA, reason="needs the real datasets in METASEG_DATA")
def test_real_scans_are_found_and_read():
    scans = find(REAL_DATA)
    assert len(scans) >= 50
    volume = brain_mri.read_volume(scans[0], 64)
    assert volume.images.shape[1:] == (64, 64, 3)
    assert volume.masks.any()
