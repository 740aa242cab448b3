"""Images as the bytes of a file, for models that take encoded images. Needs Pillow: `forebay[images]`."""

import io
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

if TYPE_CHECKING:
    from PIL import Image

ImageFormat = Literal["JPEG", "PNG", "WEBP"]
QUALITY = 90  # of 1 to 100; below about 80 classifiers begin to notice

_LOSSY = {"JPEG", "WEBP"}


def encode_image(
    source: "bytes | str | Path | Image.Image",
    *,
    accept: Collection[ImageFormat] = get_args(ImageFormat),
    max_side: int | None = None,
    format: ImageFormat = "JPEG",  # noqa: A002  # what Pillow and its users call it
    quality: int = QUALITY,
) -> bytes:
    """An image as a file of a kind that the model takes, no larger than it is worth sending.

    A file that is of an accepted format and small enough is returned as it is. Anything else is turned upright as its
    EXIF data say, made smaller in proportion, and encoded anew. Put the bytes into an array of objects, one element for
    each image: `np.array([encode_image("cat.jpg")], object)`.

    Args:
        source: The bytes of a file, its path, or an image of Pillow.
        accept: Formats that may be sent as they are; files of other kinds are refused.
        max_side: The most pixels of the longer side; None: any number.
        format: What is written if something has to be.
        quality: Of JPEG and WEBP, 1 to 100.

    Raises:
        ValueError: The bytes are no image, of a format that is not accepted, or damaged, or the image is so large
            that it looks like an attack; or an argument is out of range.
        OSError: The file can't be read.
        ImportError: Pillow is not installed.
    """
    try:
        from PIL import Image, ImageOps, UnidentifiedImageError  # noqa: PLC0415  # an extra
    except ImportError as exc:
        raise ImportError("encode_image needs Pillow: pip install 'forebay[images]'") from exc
    if max_side is not None and max_side < 1:
        raise ValueError(f"max_side is at least one pixel, not {max_side}")
    if not 1 <= quality <= 100:
        raise ValueError(f"quality is between 1 and 100, not {quality}")
    data = Path(source).read_bytes() if isinstance(source, (str, Path)) else source
    try:
        if isinstance(data, bytes):
            image: Image.Image = Image.open(io.BytesIO(data), formats=[*accept])
            image.verify()  # without unpacking it
            if max_side is None or max(image.size) <= max_side:
                return data
            image = Image.open(io.BytesIO(data), formats=[*accept])
        else:
            image = data
        return _write(ImageOps.exif_transpose(image), max_side, format, quality)
    except UnidentifiedImageError:
        raise ValueError(f"this is no image of the formats {', '.join(accept)}") from None
    except Image.DecompressionBombError as exc:
        raise ValueError(f"the image is too large to be unpacked: {exc}") from exc
    except (OSError, SyntaxError) as exc:  # Pillow's for damaged files
        raise ValueError(f"the image is damaged: {exc}") from exc


def _write(image: "Image.Image", max_side: int | None, kind: ImageFormat, quality: int) -> bytes:
    from PIL import Image  # noqa: PLC0415  # an extra

    if max_side is not None:
        image.thumbnail((max_side, max_side), Image.Resampling.LANCZOS)  # never makes it larger
    if kind == "JPEG" and image.mode not in {"L", "RGB"}:
        image = image.convert("RGB")
    written = io.BytesIO()
    image.save(written, kind, **({"quality": quality} if kind in _LOSSY else {}))
    return written.getvalue()
