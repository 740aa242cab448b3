"""What `encode_image` makes of images, with the real Pillow."""

import io
import sys

import numpy as np
import pytest
from PIL import Image

from forebay_client import encode_image


def picture(width=64, height=32, mode="RGB"):
    gradient = np.linspace(0, 255, width * height, dtype=np.uint8).reshape(height, width)
    return Image.fromarray(gradient).convert(mode)


def file_of(image, kind, **options):
    written = io.BytesIO()
    image.save(written, kind, **options)
    return written.getvalue()


def read(data):
    return Image.open(io.BytesIO(data))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_a_file_that_fits_is_sent_as_it_is(kind, tmp_path):
    """Each encoding anew costs time, and quality."""
    data = file_of(picture(), kind)
    path = tmp_path / "picture"
    path.write_bytes(data)

    assert encode_image(data) == data
    assert encode_image(path, max_side=64) == data
    assert encode_image(str(path)) == data


def test_a_large_image_is_made_smaller_in_proportion():
    """The longer side has as many pixels as it may."""
    found = read(encode_image(file_of(picture(640, 320), "PNG"), max_side=100))

    assert (found.size, found.format) == ((100, 50), "JPEG")


def test_the_quality_is_kept():
    """A lower one is fewer bytes."""
    noise = Image.fromarray(np.random.default_rng(7).integers(0, 255, (64, 64, 3), np.uint8))

    assert len(encode_image(noise, quality=30)) < len(encode_image(noise, quality=95)) / 2


def test_an_image_of_pillow_is_encoded():
    """Also one with transparency, which JPEG does not have; and it is not changed."""
    image = picture(mode="RGBA")

    assert read(encode_image(image, max_side=16)).size == (16, 8)
    assert read(encode_image(image, format="PNG")).mode == "RGBA"
    assert image.size == (64, 32)


def test_an_image_is_turned_upright():
    """Where it is encoded anew: models do not read EXIF data."""
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    data = file_of(picture(640, 320), "JPEG", exif=exif)

    assert read(encode_image(data, max_side=100)).size == (50, 100)


@pytest.mark.parametrize("accept", [["PNG"], ["PNG", "WEBP"]])
def test_other_formats_are_refused(accept):
    """A decoder that is not needed is not asked."""
    with pytest.raises(ValueError, match="no image of the formats PNG"):
        encode_image(file_of(picture(), "JPEG"), accept=accept)


def test_what_is_no_image_is_refused():
    """By name of the formats, not by Pillow's exception."""
    with pytest.raises(ValueError, match="no image of the formats JPEG, PNG, WEBP"):
        encode_image(b"text")
    with pytest.raises(ValueError, match="damaged"):
        encode_image(file_of(picture(640, 320), "PNG")[:300])


def test_an_image_that_would_fill_the_memory_is_refused(monkeypatch):
    """Its size is looked at before it is unpacked."""
    data = file_of(picture(640, 320), "PNG")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(ValueError, match="too large to be unpacked"):
        encode_image(data)


@pytest.mark.parametrize("options", [{"max_side": 0}, {"quality": 0}, {"quality": 101}])
def test_options_out_of_range_are_refused(options):
    """Before anything is read."""
    with pytest.raises(ValueError):
        encode_image(b"", **options)


def test_without_pillow_it_says_what_to_install(monkeypatch):
    """The rest of the package does without it."""
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(ImportError, match=r"pip install 'forebay\[images\]'"):
        encode_image(b"")
