import io

import numpy as np
import pytest
from PIL import Image

from lmc.dataset.decode import decode
from lmc.errors import UserError


def run(blobs, **settings):
    return decode(len(blobs), lambda i: blobs[i], lambda i: f"file {i}", **settings).numpy()


@pytest.mark.parametrize(
    ("kind", "shape"), [("png", (5, 7, 3)), ("bmp", (5, 7, 3)), ("png", (6, 6)), ("tiff", (4, 4, 3))]
)
def test_pixels_come_back_in_order_with_channels_first(pictures, png, kind, shape):
    drawn = pictures(700, *shape)  # more than two pieces of work
    found = run([png(pixels, kind) for pixels in drawn])
    expected = drawn.transpose(0, 3, 1, 2) if drawn.ndim == 4 else drawn[:, None]
    assert np.array_equal(found, expected)


def test_jpeg_gives_what_pil_gives(pictures, png):
    blobs = [png(pixels, "jpeg") for pixels in pictures(3, 16, 16, 3)]

    expected = np.stack([np.asarray(Image.open(io.BytesIO(blob))).transpose(2, 0, 1) for blob in blobs])
    assert np.array_equal(run(blobs), expected)


def test_channels_turn_colour_to_grey_and_back(pictures, png):
    colour, grey = pictures(2, 4, 4, 3), pictures(2, 4, 4)
    blobs = [png(colour[0]), png(grey[0])]
    assert np.array_equal(run(blobs, channels=3)[1], np.broadcast_to(grey[0], (3, 4, 4)))
    red, green, blue = np.moveaxis(colour[0].astype(float), -1, 0)
    luma = 0.299 * red + 0.587 * green + 0.114 * blue  # ITU-R 601-2
    assert np.abs(run(blobs, channels=1)[0, 0] - luma).max() <= 1


def test_transparency_and_palettes_become_colours(pictures, png):
    colour = pictures(1, 4, 4, 3)[0]
    transparent = np.dstack([colour, np.full((4, 4), 7, dtype=np.uint8)])
    assert np.array_equal(run([png(colour), png(transparent)])[1], colour.transpose(2, 0, 1))
    few = (colour // 128 * 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(few).convert("P", palette=Image.Palette.ADAPTIVE).save(buffer, "png")
    assert np.array_equal(run([png(colour), buffer.getvalue()])[1], few.transpose(2, 0, 1))


def test_size_resizes_all(pictures, png):
    blobs = [png(pictures(1, 8, 8)[0]), png(pictures(1, 3, 11)[0]), png(np.full((5, 5), 77, dtype=np.uint8))]
    found = run(blobs, size=4)
    assert found.shape == (3, 1, 4, 4)
    assert (found[2] == 77).all()


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ("wide", r"file 1: the image is 4 x 6 pixels where file 0 is 4 x 4; set dataset\.size=PIXELS"),
        ("grey", r"file 1: the image has 1 channels where file 0 has 3; set dataset\.channels=3 \(colour\)"),
        ("deep", r"file 1: an image of mode I;16 has more than 8 bits a channel; convert it"),
        ("text", r"file 1: the image is damaged or not an image \(no known image format\); replace or remove it"),
        ("empty", r"file 1: the image is damaged or not an image"),
        ("cut png", r"file 1: the image is damaged or not an image \(.*\); replace or remove it"),
        ("cut jpeg", r"file 1: the image is damaged or not an image \(.*truncated.*\); replace"),
    ],
)
def test_an_image_that_does_not_fit_is_named_in_one_line(pictures, png, second, message):
    good = pictures(1, 4, 4, 3)[0]
    blob = {
        "wide": png(pictures(1, 4, 6, 3)[0]),
        "grey": png(pictures(1, 4, 4)[0]),
        "deep": png(pictures(1, 4, 4)[0].astype(np.uint16)),
        "text": b"not an image at all",
        "empty": b"",
        "cut png": png(pictures(1, 40, 40, 3)[0])[:-700],
        "cut jpeg": png(pictures(1, 40, 40, 3)[0], "jpeg")[:-700],
    }[second]
    with pytest.raises(UserError, match=message) as caught:
        run([png(good), blob])
    assert "\n" not in str(caught.value)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # PIL says what it skips in a damaged file
def test_whatever_the_damage_it_is_a_user_error(pictures, png):
    """Bytes overwritten at random either still decode or are refused; nothing else escapes."""
    generator = np.random.default_rng(0)
    whole = [png(pictures(1, 12, 12, 3)[0], kind) for kind in ("png", "jpeg", "bmp", "tiff")]
    refused = 0
    for trial in range(400):
        blob = bytearray(whole[trial % len(whole)])
        for place in generator.integers(0, len(blob), 4):
            blob[place] = generator.integers(0, 256)
        try:
            run([bytes(blob)])
        except UserError:
            refused += 1
    assert 40 < refused < 400
