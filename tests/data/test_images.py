"""Decoding and cropping: bytes equal to Pillow's, and everything that leaves a doubt refused in one line."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from mechdiff.core.config import Preprocessing
from mechdiff.core.errors import ConfigError, DataError
from mechdiff.data.images import plain_pixels, thumbnail

RNG = np.random.default_rng(0)
FACE = RNG.integers(0, 256, (218, 178, 3), np.uint8)


def png(image: np.ndarray | Image.Image, form: str = "PNG", **options) -> bytes:
    """An encoded image."""
    buffer = io.BytesIO()
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    image.save(buffer, form, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("name", ["bicubic", "bilinear", "box", "hamming", "lanczos", "nearest"])
def test_thumbnail_gives_the_bytes_of_pillow(name):
    filtered = Image.fromarray(FACE[20:198]).resize((32, 32), Image.Resampling[name.upper()])
    np.testing.assert_array_equal(
        thumbnail(png(FACE), 32, "x", Preprocessing(filter=name)), np.asarray(filtered)
    )


@pytest.mark.parametrize(
    "crop, rows, columns",
    [
        (
            "ddim",
            slice(57, 185),
            slice(25, 153),
        ),  # of ddim's datasets/__init__.py: cx=89, cy=121, 64 each way
        ("center-128", slice(45, 173), slice(25, 153)),
        ("center-140", slice(39, 179), slice(19, 159)),
    ],
)
def test_crops_are_slices(crop, rows, columns):
    whole = FACE[rows, columns]
    np.testing.assert_array_equal(thumbnail(png(FACE), len(whole), "x", Preprocessing(crop=crop)), whole)


def test_squash_takes_all_and_none_takes_squares_only():
    squashed = Image.fromarray(FACE).resize((64, 64), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(thumbnail(png(FACE), 64, "x", Preprocessing(crop="squash")), squashed)
    square = FACE[:64, :64]
    np.testing.assert_array_equal(thumbnail(png(square), 64, "x", Preprocessing(crop="none")), square)
    with pytest.raises(DataError, match=r"image x is 178x218, no square; .*crop=center"):
        thumbnail(png(FACE), 64, "x", Preprocessing(crop="none"))


@pytest.mark.parametrize(
    "crop, size, why",
    [
        ("center-200", 8, "too small for data.preprocessing.crop=center-200; center-178"),
        ("center-16", 32, r"178x218 \(of which the crop leaves 16x16\), too small for 32x32"),
        ("center", 179, r"the crop leaves 178x178\), too small"),
    ],
)
def test_thumbnail_refuses_what_is_too_small(crop, size, why):
    with pytest.raises(DataError, match=why):
        thumbnail(png(FACE), size, "x", Preprocessing(crop=crop))


def test_the_crop_of_ddim_is_of_celeba_only():
    with pytest.raises(DataError, match=r"64x64; .*crop=ddim is that of CelebA"):
        thumbnail(png(FACE[:64, :64]), 8, "x", Preprocessing(crop="ddim"))


@pytest.mark.parametrize("crop", ["centre", "center-", "center-0", "center-1.5", "-140", "140"])
def test_preprocessing_refuses_unknown_crops(crop):
    with pytest.raises(ConfigError, match=r"unknown data\.preprocessing\.crop"):
        Preprocessing(crop=crop)


def test_gray_and_rgb_become_each_other():
    gray = Preprocessing(channels="gray")
    luma = np.asarray(Image.fromarray(FACE[:8, :8]).convert("L"))
    np.testing.assert_array_equal(thumbnail(png(FACE[:8, :8]), 8, "x", gray), luma[..., None])
    np.testing.assert_array_equal(thumbnail(png(luma), 8, "x"), np.stack([luma] * 3, -1))
    np.testing.assert_array_equal(thumbnail(luma[..., None], 8, "x", gray), luma[..., None])


def test_palettes_and_opaque_alpha_are_converted():
    palette = Image.fromarray(FACE[:8, :8]).quantize(16)
    np.testing.assert_array_equal(thumbnail(png(palette), 8, "x"), np.asarray(palette.convert("RGB")))
    opaque = np.concatenate([FACE[:8, :8], np.full((8, 8, 1), 255, np.uint8)], -1)
    np.testing.assert_array_equal(thumbnail(png(opaque), 8, "x"), FACE[:8, :8])


@pytest.mark.parametrize("background, value", [("white", 255), ("black", 0)])
def test_transparent_pixels_need_a_background(background, value):
    alpha = np.where(np.arange(8) < 4, 0, 255).astype(np.uint8) * np.ones((8, 1), np.uint8)
    clear = np.concatenate([FACE[:8, :8], alpha[..., None]], -1)
    with pytest.raises(DataError, match=r"x has transparent pixels; .*background=white"):
        thumbnail(png(clear), 8, "x")
    pixels = thumbnail(png(clear), 8, "x", Preprocessing(background=background))
    assert (pixels[:, :4] == value).all()
    np.testing.assert_array_equal(pixels[:, 4:], FACE[:8, 4:8])


def test_a_transparent_color_of_a_palette_counts_as_transparent():
    palette = Image.fromarray(FACE[:8, :8]).quantize(4)
    with pytest.raises(DataError, match="transparent"):
        thumbnail(png(palette, transparency=0), 8, "x")


def plain_png(bits: int, kind: int, row: bytes, transparent: tuple[int, ...]) -> bytes:
    """A PNG of 8x8 pixels as the format defines it: eight equal rows, one transparent color."""

    def chunk(name: bytes, content: bytes) -> bytes:
        length, check = (struct.pack(">I", value) for value in (len(content), zlib.crc32(name + content)))
        return length + name + content + check

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 8, bits, kind, 0, 0, 0))
    color = chunk(b"tRNS", struct.pack(f">{len(transparent)}H", *transparent))
    return (
        b"\x89PNG\r\n\x1a\n"
        + head
        + color
        + chunk(b"IDAT", zlib.compress((b"\0" + row) * 8))
        + chunk(b"IEND", b"")
    )


NIBBLES, PAIRS = b"\x55\xaa\x12\x55", b"\x1b\x1b"  # of grays 5, 5, 10, 10, 1, 2, 5, 5; and 0 to 3, twice
WIDE = struct.pack(">6H", 0x1234, 0x5678, 0x9ABC, 0xFFFF, 0, 0) * 4  # two colors in turn


@pytest.mark.parametrize(
    ("bits", "kind", "row", "used", "unused", "clear"),
    [
        (4, 0, NIBBLES, (5,), (7,), [0, 1, 6, 7]),
        (2, 0, PAIRS, (3,), None, [3, 7]),
        (2, 0, PAIRS, (1,), None, [1, 5]),
        (1, 0, b"\x81", (1,), None, [0, 7]),
        (8, 0, bytes([85, 5, 85, 1, 2, 3, 4, 6]), (5,), (17,), [1]),
        (16, 2, WIDE, (0x1234, 0x5678, 0x9ABC), (0x3412, 0x5678, 0x9ABC), [0, 2, 4, 6]),
    ],
    ids=["gray of 4 bits", "white of 2 bits", "gray of 2 bits", "1 bit", "8 bits", "RGB of 16 bits"],
)
def test_a_transparent_color_is_told_in_the_units_of_the_file(bits, kind, row, used, unused, clear):
    encoded = plain_png(bits, kind, row, used)
    for read in (
        lambda: thumbnail(encoded, 8, "x"),
        lambda: plain_pixels(Image.open(io.BytesIO(encoded)), "x"),
    ):
        with pytest.raises(DataError, match="image x has transparent pixels"):
            read()
    opaque = thumbnail(plain_png(bits, kind, row, unused), 8, "x") if unused else None
    sides = [thumbnail(encoded, 8, "x", Preprocessing(background=side))[0] for side in ("white", "black")]
    assert np.flatnonzero((sides[0] != sides[1]).all(-1)).tolist() == clear
    if opaque is not None:
        kept = np.setdiff1d(np.arange(8), clear)
        np.testing.assert_array_equal(sides[0][kept], opaque[0][kept])


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_sixteen_bits_are_rounded_not_clipped(form):
    """Pillow's own conversion clips at 255: nearly everything becomes white."""
    wide = RNG.integers(0, 65536, (8, 8), np.uint16)
    wide[0, :3] = 0, 65535, 128
    pixels = thumbnail(png(wide, form), 8, "x", Preprocessing(channels="gray"))[..., 0]
    np.testing.assert_array_equal(pixels, np.round(wide.astype(np.float64) / 257).astype(np.uint8))


@pytest.mark.parametrize("white", [65535, 32767, 4095])
def test_the_white_of_grays_of_sixteen_bits_is_stated(white):
    """Grays of 12 bits, say, or of 16 that are just dark: the file doesn't tell."""
    few = RNG.integers(0, 4096, (8, 8), np.uint16)
    few[0, 0] = 4095
    with pytest.raises(
        DataError, match=r"no pixel is above half of them \(32767\): .* data.preprocessing.white=65535 if it"
    ):
        thumbnail(png(few), 8, "x")
    pixels = thumbnail(png(few), 8, "x", Preprocessing(channels="gray", white=white))[..., 0]
    np.testing.assert_array_equal(pixels, np.floor(few.astype(float) * 255 / white + 0.5).astype(np.uint8))
    with pytest.raises(DataError, match=r"has a pixel of 4095, above data.preprocessing.white=4094"):
        thumbnail(png(few), 8, "x", Preprocessing(white=4094))
    with pytest.raises(ConfigError, match=r"data.preprocessing.white=65536 is out of range; 0 to 65535"):
        Preprocessing(white=65536)


def test_a_transparent_gray_of_sixteen_bits_is_told_by_its_own_value():
    """Pillow's own conversion clips at 255: the image becomes white."""
    wide = RNG.integers(1, 65536, (8, 8), np.uint16)
    gray = Preprocessing(channels="gray", background="black")
    unused = thumbnail(with_transparent(png(wide), 0), 8, "x", gray)[..., 0]
    expected = np.round(wide.astype(np.float64) / 257)
    np.testing.assert_array_equal(unused, expected)
    wide[2, 3] = 40_000
    used = with_transparent(png(wide), 40_000)
    with pytest.raises(DataError, match="image x has transparent pixels"):
        thumbnail(used, 8, "x")
    under = thumbnail(used, 8, "x", gray)[..., 0]
    np.testing.assert_array_equal(under, np.where(wide == 40_000, 0, np.round(wide / 257)))


def with_transparent(encoded: bytes, gray: int) -> bytes:
    """A PNG of grays with a tRNS chunk behind its header, which Pillow writes in 8 bits only."""
    return with_chunk(encoded, b"tRNS", struct.pack(">H", gray))


def with_chunk(encoded: bytes, kind: bytes, content: bytes) -> bytes:
    """A PNG with one more chunk behind its header."""
    check = struct.pack(">I", zlib.crc32(kind + content))
    return encoded[:33] + struct.pack(">I", len(content)) + kind + content + check + encoded[33:]


@pytest.mark.parametrize("bits", [8, 16])
def test_a_png_is_held_to_the_bits_that_it_calls_significant(bits):
    """Of 15 or 7, values of which the largest is half of white; scaled to all bits they are as they are."""
    gray = Preprocessing(channels="gray")
    whole = RNG.integers(1, 2**bits, (8, 8)).astype(f"u{bits // 8}")
    whole[0, 0] = 2**bits - 1
    image = lambda values: with_chunk(png(values), b"sBIT", bytes([bits - 1]))
    way_out = "data.preprocessing.white=32767 " if bits == 16 else "without sBIT"
    pixels = thumbnail(image(whole), 8, "x", gray)[..., 0]
    np.testing.assert_array_equal(pixels, np.round(whole / (2 ** (bits - 8) + 1 if bits > 8 else 1)))
    with pytest.raises(
        DataError, match=f"image x is of {bits} bits, {bits - 1} of them significant.* {way_out}"
    ):
        thumbnail(image(whole >> 1), 8, "x", gray)
    if bits == 16:
        stated = Preprocessing(channels="gray", white=32767)
        np.testing.assert_allclose(thumbnail(image(whole >> 1), 8, "x", stated)[..., 0], pixels, atol=1)


@pytest.mark.parametrize("comment", ["", "# scanned\n"])
def test_sixteen_bits_of_other_formats_are_asked_about_too(comment):
    wide = RNG.integers(0, 65536, (8, 8, 3), np.uint16)

    def ppm(values):
        return f"P6\n{comment}8 8\n65535\n".encode() + values.astype(">u2").tobytes()

    np.testing.assert_allclose(thumbnail(ppm(wide), 8, "x"), wide / 257, atol=0.51)
    np.testing.assert_allclose(thumbnail(tiff_of_sixteen_bits(wide), 8, "x"), wide / 257, atol=1)
    plain = lambda values: f"P3\n8 8\n65535\n{' '.join(map(str, values.reshape(-1)))}".encode()
    for encode in (ppm, plain, tiff_of_sixteen_bits):
        with pytest.raises(DataError, match="image x is of 16 bits, but no pixel is above half of them"):
            thumbnail(encode(wide >> 1), 8, "x")
        dark = thumbnail(encode(wide >> 2), 8, "x", Preprocessing(white=65535))
        np.testing.assert_allclose(dark, (wide >> 2) / 257, atol=1)
        with pytest.raises(DataError, match=r"colors of 16 bits.*white=16383 is for grays"):
            thumbnail(encode(wide >> 2), 8, "x", Preprocessing(white=16383))


def tiff_of_sixteen_bits(image: np.ndarray, white_is_zero: bool = False) -> bytes:
    """An uncompressed TIFF of one strip, which Pillow can't write in colors of 16 bits."""
    height, width, *rest = image.shape
    channels = rest[0] if rest else 1
    data = image.astype("<u2").tobytes()
    kind = 2 if rest else int(not white_is_zero)
    depth_at = 8 + 2 + 10 * 12 + 4  # behind the directory
    depth = (258, 3, channels, depth_at if channels > 1 else 16)
    entries = [(256, 3, 1, width), (257, 3, 1, height), depth, (259, 3, 1, 1), (262, 3, 1, kind)]
    entries += [(273, 4, 1, depth_at + 6), (277, 3, 1, channels), (278, 3, 1, height)]
    entries += [(279, 4, 1, len(data)), (284, 3, 1, 1)]
    directory = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", *entry) for entry in entries)
    header = struct.pack("<2sHI", b"II", 42, 8) + directory + struct.pack("<I", 0)
    return header + struct.pack("<HHH", 16, 16, 16) + data


def test_a_tiff_of_numbers_with_a_sign_is_refused():
    """Pillow takes -128 for 128."""
    encoded = bytearray(tiff_of_sixteen_bits(RNG.integers(0, 256, (8, 16), np.uint16)))
    encoded[10 + 2 * 12 + 8] = 8  # bits of a number
    encoded[10 + 9 * 12 : 10 + 10 * 12] = struct.pack("<HHII", 339, 3, 1, 2)  # in place of the last entry
    with pytest.raises(DataError, match="image x is a TIFF of numbers with a sign"):
        thumbnail(bytes(encoded), 8, "x")


def test_a_tiff_in_which_zero_is_white_is_refused_in_sixteen_bits():
    wide = RNG.integers(0, 65536, (8, 8), np.uint16)
    gray = Preprocessing(channels="gray")
    upright = thumbnail(tiff_of_sixteen_bits(wide), 8, "x", gray)[..., 0]
    np.testing.assert_array_equal(upright, np.round(wide / 257))
    with pytest.raises(DataError, match="TIFF of 16 bits in which 0 is white"):
        thumbnail(tiff_of_sixteen_bits(wide, white_is_zero=True), 8, "x", gray)


@pytest.mark.parametrize(
    "image",
    [
        Image.fromarray(FACE[:8, :8]).convert("CMYK"),
        Image.fromarray(RNG.normal(size=(8, 8)).astype(np.float32)),
        Image.fromarray(RNG.integers(0, 9999, (8, 8), np.int32)),
    ],
    ids=["CMYK", "float", "int32"],
)
def test_modes_that_pillow_would_guess_are_refused(image):
    with pytest.raises(DataError, match=f"image x is of mode {image.mode}, .*convert it"):
        thumbnail(png(image, "TIFF"), 8, "x")


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_of_a_camera_is_applied(orientation):
    """EXIF 2.3, section 4.6.4: where row 0 and column 0 of the stored pixels belong."""
    upright = FACE[:8, :8]
    store = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.swapaxes(0, 1),
        6: lambda a: np.rot90(a),
        7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
        8: lambda a: np.rot90(a, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = png(np.ascontiguousarray(store(upright)), exif=exif)
    np.testing.assert_array_equal(thumbnail(stored, 8, "x"), upright)


def test_several_frames_are_refused():
    frames = [Image.fromarray(FACE[k : k + 8, :8]) for k in range(3)]
    moving = png(frames[0], "GIF", save_all=True, append_images=frames[1:])
    with pytest.raises(DataError, match=r"image x \(GIF\) has 3 frames"):
        thumbnail(moving, 8, "x")


@pytest.mark.parametrize("encoded", [b"", b"no image", png(FACE)[:3000]], ids=["empty", "text", "cut off"])
def test_damage_is_named(encoded):
    with pytest.raises(DataError, match=r"image photo\.png can't be decoded"):
        thumbnail(encoded, 8, "photo.png")


def test_an_image_of_too_many_pixels_is_not_called_damaged(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(
        DataError, match=r"photo\.png has more pixels than Pillow opens \(200\); save a smaller"
    ):
        thumbnail(png(FACE), 8, "photo.png")


def png_of_sixteen_bits(image: np.ndarray) -> bytes:
    """Colors of 16 bits, which Pillow can't write."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        )

    height, width, _ = image.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in image)  # none is filtered
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def test_colors_of_fifteen_bits_in_sixteen_are_not_taken_for_dark_ones():
    wide = RNG.integers(0, 65536, (8, 8, 3), np.uint16)
    np.testing.assert_array_equal(thumbnail(png_of_sixteen_bits(wide), 8, "x"), wide >> 8)
    with pytest.raises(DataError, match="image x is of 16 bits, but no pixel is above half of them"):
        thumbnail(png_of_sixteen_bits(wide >> 1), 8, "x")
    black = np.zeros((8, 8, 3), np.uint16)
    assert not thumbnail(png_of_sixteen_bits(black), 8, "x").any()
