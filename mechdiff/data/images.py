"""One encoded image, or one array, to bytes of a network's size: decoded, turned upright, cropped, resized.

Pillow does the work, and the bytes are Pillow's. What a file leaves open is refused by name: transparent
pixels without a background, colors that need a profile (CMYK, LAB), 32-bit grays, several frames, and where
white is in files of 16 bits that are dark. 16-bit grays are rounded to 8 bits. A camera's orientation (EXIF)
is applied; color profiles are not.
"""

import io
import re

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageOps, UnidentifiedImageError

from mechdiff.core.config import Preprocessing
from mechdiff.core.errors import DataError, shorten
from mechdiff.data.dataset import to_float
from mechdiff.data.scrambled import scrambled

DEFAULT = Preprocessing()
GRAY = Preprocessing(channels="gray")
LUMINANCE = np.array([0.299, 0.587, 0.114], np.float32)  # Rec. 601: gray of red, green and blue, as Pillow's
CELEBA_SIZE = (178, 218)  # width, height of the aligned images
DDIM_BOX = (25, 57, 153, 185)  # left, top, right, bottom; Crop in ddim's datasets/__init__.py
SIXTEEN_BIT = ("I;16", "I;16L", "I;16B", "I;16N")
EIGHT_OF_SIXTEEN = ("RGB", "RGBA", "LA")  # colors of 16 bits, of which Pillow keeps the upper 8
PNG_DEPTH = 24  # which byte of a PNG says how many bits a value has
FEW_BITS = {"L;2": 2, "L;4": 4}  # how Pillow calls grays of a PNG that it scales to 8 bits
BITS_PER_SAMPLE, WHITE_IS_ZERO = 258, 262  # tags of a TIFF; of the second, PhotometricInterpretation, value 0
SAMPLE_FORMAT, SIGNED = 339, 2  # another tag, and its value that Pillow ignores in 8 bits
BLANK = rb"(?:\s|#[^\n]*\n)+"  # or a comment, in a PPM
PPM_HEAD = re.compile(
    rb"P[36]" + BLANK + rb"\d+" + BLANK + rb"\d+" + BLANK + rb"(\d+)\s"
)  # its largest value
SIGNIFICANT = re.compile(rb"\0\0\0[\1-\4]sBIT([\1-\x10]{1,4})")  # of a PNG: bits of each channel that tell
WHITE = 65535  # of 16 bits
HALF_OF_WHITE = 32767  # the most in 15 bits; cameras and scanners write 10 to 15 of them in files of 16
HALF_OF_EIGHT = 128  # the same in 8 bits, rounded (127 where the lower bits are cut off)
PLAIN = ("1", "L", "P", "RGB", "YCbCr")  # modes that Pillow makes RGB or gray without a loss of meaning
TRANSPARENT = ("LA", "La", "PA", "RGBA", "RGBa")
BACKGROUNDS = {"black": 0, "white": 255}

Encoded = bytes | UInt8[np.ndarray, "height width channels"]  # a file's content, or pixels


def thumbnail(
    encoded: Encoded, size: int, name: str, preprocessing: Preprocessing = DEFAULT
) -> UInt8[np.ndarray, "size size channels"]:
    """Decodes, crops and resizes one image, with antialiasing; never enlarges. Phases are scrambled last.

    CelebA's 178x218 gives the usual 178x178 crop; its half-size copies (89x109) give the same framing.

    Raises:
      DataError: damaged, smaller than `size`, or of a kind that can't be read without a guess.
    """
    name = shorten(name)[1:-1]  # of one line, whatever a file is called
    image = _opened(encoded, name, preprocessing.white)
    image, original = _converted(image, name, preprocessing), image.size
    image = cropped(image, name, preprocessing.crop)
    if min(image.size) < size:
        left = f" (of which the crop leaves {image.width}x{image.height})" if image.size != original else ""
        raise DataError(
            f"image {name} is {original[0]}x{original[1]}{left}, too small for {size}x{size}; "
            f"leave it out of the images (to train on it: unet.image_size of at most {min(image.size)})"
        )
    if image.size != (size, size):
        image = image.resize((size, size), Image.Resampling[preprocessing.filter.upper()])
    pixels = np.asarray(image)
    pixels = pixels if pixels.ndim == 3 else pixels[..., None]
    return scrambled(pixels) if preprocessing.phases == "random" else pixels


def plain_pixels(image: Image.Image, name: str) -> UInt8[np.ndarray, "height width channels"]:
    """An image that Pillow has opened, upright, as RGB, or as gray if it is gray.

    Raises:
      DataError: of a kind that can't be read without a guess, see `thumbnail`.
    """
    if getattr(image, "n_frames", 1) > 1 and image.format != "MPO":
        raise DataError(
            f"image {name} ({image.format}) has {image.n_frames} frames; give the one that is meant"
        )
    gray = image.mode in ("1", "L", "LA", "La", *SIXTEEN_BIT)
    _scale_transparent(image)
    try:
        upright = ImageOps.exif_transpose(image)
    except (OSError, ValueError) as error:  # cut off, or closed
        raise DataError(f"image {name} can't be decoded ({error})") from error
    pixels = np.asarray(_converted(upright, name, GRAY if gray else DEFAULT))
    return pixels if pixels.ndim == 3 else pixels[..., None]


def enlarged(
    encoded: Encoded, size: int, name: str, preprocessing: Preprocessing = DEFAULT
) -> Float[np.ndarray, "size size channels"]:
    """One image in [-1, 1] as `thumbnail` makes it; a smaller one is enlarged bilinearly, as networks of
    super-resolution are given it (PyTorch's `interpolate`, `align_corners=False`)."""
    image = _converted(_opened(encoded, name, preprocessing.white), name, preprocessing)
    image = cropped(image, name, preprocessing.crop)
    if min(image.size) >= size:
        return to_float(thumbnail(encoded, size, name, preprocessing))
    planes = [Image.fromarray(np.asarray(plane, np.float32)) for plane in image.split()]
    planes = [np.asarray(plane.resize((size, size), Image.Resampling.BILINEAR)) for plane in planes]
    return np.stack(planes, -1) / np.float32(127.5) - 1


def cropped(image: Image.Image, name: str, crop: str) -> Image.Image:
    """The part of an image that is shown, still in its own resolution.

    Args:
      crop: `center`: the largest centered square. `center-N`: the centered square of N pixels (140, 148 and
        160 are usual for CelebA). `ddim`: rows 57 to 185, columns 25 to 153 of CelebA's 178x218, as ddim and
        its successors cut it. `none`: all of it, which must be a square. `squash`: all of it, whatever its
        shape; resizing then changes its proportions.

    Raises:
      DataError: an image that the crop does not fit.
    """
    if crop == "squash":
        return image
    if crop == "none":
        if image.width != image.height:
            raise DataError(
                f"image {name} is {image.width}x{image.height}, no square; data.preprocessing.crop=center "
                "cuts one, squash ignores proportions"
            )
        return image
    if crop == "ddim":
        if image.size != CELEBA_SIZE:
            raise DataError(
                f"image {name} is {image.width}x{image.height}; data.preprocessing.crop=ddim is that of "
                "CelebA's 178x218, use center or center-N"
            )
        return image.crop(DDIM_BOX)
    side = int(crop.removeprefix("center-")) if crop != "center" else min(image.size)
    if side > min(image.size):
        raise DataError(
            f"image {name} is {image.width}x{image.height}, too small for data.preprocessing.crop={crop}; "
            f"center-{min(image.size)} is the most it has"
        )
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side))


def _opened(encoded: Encoded, name: str, white: int) -> Image.Image:
    """Decoded in full, upright. White is that of `Preprocessing`."""
    if isinstance(encoded, np.ndarray):
        return Image.fromarray(encoded[..., 0] if encoded.shape[-1] == 1 else encoded)
    try:
        with Image.open(io.BytesIO(encoded)) as image:
            frames, kind = getattr(image, "n_frames", 1), image.format
            bits, inverted = _bits(image, encoded), getattr(image, "tag_v2", {}).get(WHITE_IS_ZERO) == 0
            _scale_transparent(image)
            image.load()
            upright = ImageOps.exif_transpose(image)
    except UnidentifiedImageError as error:
        raise DataError(
            f"image {name} can't be decoded (of no format that Pillow knows); fetch it again, or leave it out"
        ) from error
    except Image.DecompressionBombError as error:
        raise DataError(
            f"image {name} has more pixels than Pillow opens ({2 * (Image.MAX_IMAGE_PIXELS or 0):,}); save a "
            "smaller one"
        ) from error
    except Exception as error:  # Pillow has no one class for damaged files
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(
            f"image {name} can't be decoded ({reason}); fetch it again, or leave it out"
        ) from error
    if SIGNED in getattr(image, "tag_v2", {}).get(SAMPLE_FORMAT, ()) and image.mode in PLAIN:
        raise DataError(f"image {name} is a TIFF of numbers with a sign; save it with 0 for black")
    if bits == 16 and image.mode in EIGHT_OF_SIXTEEN and not white:
        _check_white(name, int(np.asarray(image.convert("RGB")).max()), HALF_OF_EIGHT, "else scale it")
    if bits == 16 and image.mode in EIGHT_OF_SIXTEEN and white not in (0, WHITE):
        raise DataError(
            f"image {name} has colors of 16 bits, of which the upper 8 are read: data.preprocessing.white="
            f"{white} is for grays; scale it to the whole range, or save it in 8 bits"
        )
    if kind == "PNG" and image.mode not in ("P", "PA") and (bits == 8 or (bits == 16 and not white)):
        _check_significant(name, image, encoded, bits)
    if inverted and image.mode in SIXTEEN_BIT:
        raise DataError(f"image {name} is a TIFF of 16 bits in which 0 is white; save it with 0 for black")
    if frames > 1 and kind != "MPO":  # a camera's MPO holds previews besides the image
        raise DataError(f"image {name} ({kind}) has {frames} frames; save the one that is meant")
    return upright


def _bits(image: Image.Image, encoded: bytes) -> int:
    """Bits of a value in the file, where they may be more than Pillow keeps; else 8."""
    if image.format == "PNG":
        return encoded[PNG_DEPTH]
    if image.format == "TIFF":
        return max(image.tag_v2.get(BITS_PER_SAMPLE, (8,)))
    if image.format == "PPM" and (head := PPM_HEAD.match(encoded)):
        return 16 if int(head[1]) == 65535 else 8
    return 8


def _scale_transparent(image: Image.Image) -> None:
    """Puts the transparent color of a PNG, which Pillow leaves as it is in the file, into the 8 bits to which
    it brings the pixels. Of 16 bits the upper ones tell: colors that differ in the lower count as it too."""
    tiles = image.tile if image.format == "PNG" else ()  # none once it is loaded
    form, color = tiles[0].args if tiles else "", image.info.get("transparency")
    if form in FEW_BITS and isinstance(color, int) and color < 2 ** FEW_BITS[form]:
        image.info["transparency"] = color * 255 // (2 ** FEW_BITS[form] - 1)
    if form == "RGB;16B" and isinstance(color, tuple):
        image.info["transparency"] = tuple(value >> 8 for value in color)


def _check_white(name: str, brightest: int, most: int, stated: str) -> None:
    """Raises DataError if an image of 16 bits has only values of 15, so that it may be of fewer bits."""
    if 0 < brightest <= most:
        raise DataError(
            f"image {name} is of 16 bits, but no pixel is above half of them ({HALF_OF_WHITE}): where white "
            f"is, is not known; state data.preprocessing.white={WHITE} if it is just dark, {stated} (in "
            f"Python mechdiff.api.images.eval_images(..., white={WHITE})), or save it in 8 bits"
        )


def _check_significant(name: str, image: Image.Image, encoded: bytes, bits: int) -> None:
    """Raises DataError if the values of a PNG are those of the fewer bits that it calls significant, which
    should have been scaled to all of them."""
    match = SIGNIFICANT.search(encoded[: encoded.find(b"IDAT")])
    wide = image.mode in SIXTEEN_BIT
    colors = 3 if image.mode in ("RGB", "RGBA") else 1
    few = max(match[1][:colors]) if match else bits
    brightest = int(np.asarray(image).reshape(image.height, image.width, -1)[..., :colors].max())
    most = 2**few - 1 if wide or bits == 8 else 2**few >> 8  # of 16, Pillow keeps the upper 8
    way_out = "save it without sBIT if it is just dark"
    if bits == 16:
        way_out = f"state data.preprocessing.white={2**few - 1} ({WHITE} if it is just dark)"
    if few < bits and 0 < brightest <= most:
        raise DataError(
            f"image {name} is of {bits} bits, {few} of them significant (sBIT), to which it is not scaled: "
            f"where white is, is not known; scale it to the whole range, or {way_out}"
        )


def _converted(image: Image.Image, name: str, preprocessing: Preprocessing) -> Image.Image:
    """The image in the channels asked for."""
    if image.mode in SIXTEEN_BIT:
        wide, white = np.asarray(image, np.uint16).astype(np.uint32), preprocessing.white or WHITE
        if not preprocessing.white:
            _check_white(name, int(wide.max()), HALF_OF_WHITE, "else its white (4095, say)")
        if wide.max() > white:
            raise DataError(
                f"image {name} has a pixel of {wide.max()}, above data.preprocessing.white={white}; state "
                "the value that is white in all of them, at least that"
            )
        opaque = np.where(wide == image.info.get("transparency", -1), 0, 255).astype(np.uint8)
        image = Image.fromarray(((510 * wide + white) // (2 * white)).astype(np.uint8))  # rounded
        image.putalpha(Image.fromarray(opaque))
    if image.mode in TRANSPARENT or "transparency" in image.info:
        image = _flattened(image.convert("RGBA"), name, preprocessing.background)
    elif image.mode not in PLAIN:
        raise DataError(
            f"image {name} is of mode {image.mode}, whose colors Pillow would guess; convert it to 8-bit RGB "
            "or gray"
        )
    return image.convert("RGB" if preprocessing.channels == "rgb" else "L")


def _flattened(image: Image.Image, name: str, background: str) -> Image.Image:
    """Without its alpha channel: over a background, where any pixel is transparent."""
    lowest = image.getchannel("A").getextrema()[0]
    if lowest == 255:
        return image.convert("RGB")
    if not background:
        raise DataError(
            f"image {name} has transparent pixels; data.preprocessing.background=white (or black; in Python "
            "mechdiff.api.images.eval_images(..., background='white')) puts a color under them"
        )
    under = Image.new("RGBA", image.size, (BACKGROUNDS[background],) * 3 + (255,))
    return Image.alpha_composite(under, image).convert("RGB")
