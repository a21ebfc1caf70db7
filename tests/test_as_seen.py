"""Photos have the pixels that a person sees: a browser's, or those that the file was made of."""

import base64
import io
import struct
import zlib
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lab.torture import gallery
from lab.torture.gallery import exif, jpeg, picture, png_chunk, saved, scene, segment, tiff, turn, veil, with_segment
from runtime.errors import BadPhoto
from runtime.preprocess import decode

# What is between two decoders: one step of rounding; two blends round it twice
TOLERANCE = 2
HEIC = Path(__file__).parent / "heic"
SHOW = """async files => Promise.all(files.map(async file => {
  const image = new Image()
  image.src = `data:image/jpeg;base64,${file}`
  await image.decode()
  const size = {width: image.naturalWidth, height: image.naturalHeight}
  const canvas = Object.assign(document.createElement('canvas'), size)
  const context = canvas.getContext('2d')
  context.fillStyle = 'white'
  context.fillRect(0, 0, canvas.width, canvas.height)
  context.drawImage(image, 0, 0)
  const data = context.getImageData(0, 0, canvas.width, canvas.height).data
  return [canvas.height, canvas.width, btoa(Array.from(data, value => String.fromCharCode(value)).join(''))]
}))"""


def shown(page: Any, files: list[bytes]) -> list[np.ndarray]:
    """Each photo as the browser draws it on white, uint8 `[H, W, 3]`."""
    answers = page.evaluate(SHOW, [base64.b64encode(file).decode() for file in files])
    return [np.frombuffer(base64.b64decode(d), np.uint8).reshape(h, w, 4)[..., :3] for h, w, d in answers]


@pytest.fixture(scope="module")
def page(browser: Any) -> Any:
    return browser.new_page()


GALLERIES: dict[str, Callable[[], dict[str, bytes]]] = {
    "JPEG": gallery.jpegs,
    "PNG": lambda: gallery.pngs(interlaced=False),
    "interlaced PNG": lambda: gallery.pngs(interlaced=True),
    "colours": gallery.colours_told,
    "others": gallery.others,
}


# What this and later versions of Chromium show otherwise than those before, which docs/photos.md tells
OTHERWISE_SINCE = {"BMP, endpoints": 156, "BMP, clear everywhere": 156}


@pytest.mark.parametrize("name", GALLERIES)
def test_photos_have_the_pixels_that_a_browser_shows(name: str, page: Any) -> None:
    version = int(page.context.browser.version.partition(".")[0])
    files = {kind: file for kind, file in GALLERIES[name]().items() if OTHERWISE_SINCE.get(kind, version + 1) > version}
    for kind, theirs in zip(files, shown(page, list(files.values())), strict=True):
        ours = np.asarray(decode(files[kind]), int)
        assert ours.shape == theirs.shape, kind
        assert np.abs(ours - theirs).max() <= TOLERANCE, kind


grey = np.asarray(picture("L"))[..., None]


def on_white(colours: np.ndarray) -> np.ndarray:
    part = veil()[..., None] / 255
    return part * colours + 255 * (1 - part)


def tiffs() -> dict[str, tuple[bytes, np.ndarray]]:
    """TIFFs, which no browser shows, with what they are made of: `[H, W, 1 or 3]`."""
    rgb, opacity = scene(), veil()[..., None]
    deep = {name: each.astype(np.uint16) * 257 for name, each in (("rgb", rgb), ("grey", grey), ("opacity", opacity))}
    inks = np.concatenate([255 - rgb, 0 * opacity], 2)
    dimmed = (rgb * (opacity / 255)).round().astype(np.uint8)
    kinds = {"colours": (tiff(rgb, 2), rgb), "planes": (tiff(rgb, 2, planes=2), rgb), "inks": (tiff(inks, 5), rgb)}
    kinds |= {"white is 0": (tiff(255 - grey, 0), grey), "white is 0, 16 bits": (tiff(65535 - deep["grey"], 0), grey)}
    for order in "<>":
        kinds |= {f"16 bits {order}": (tiff(deep["rgb"], 2, order), rgb)}
        kinds |= {f"16-bit grey {order}": (tiff(deep["grey"], 1, order), grey)}
        kinds |= {f"16-bit inks {order}": (tiff(inks.astype(np.uint16) * 257, 5, order), rgb)}
        both = np.concatenate([deep["rgb"], deep["opacity"]], 2)
        kinds |= {f"16-bit RGBA {order}": (tiff(both, 2, order, extra=2), on_white(rgb))}
    kinds |= {"RGBA": (tiff(np.concatenate([rgb, opacity], 2), 2, extra=2), on_white(rgb))}
    kinds |= {"RGBA, multiplied": (tiff(np.concatenate([dimmed, opacity], 2), 2, extra=1), on_white(rgb))}
    kinds |= {"grey and alpha": (tiff(np.concatenate([grey, opacity], 2), 1, extra=2), on_white(grey))}
    kinds |= {f"orientation {o}": (tiff(rgb, 2, orientation=o), turned) for o, turned in upright(rgb).items()}
    for packing in ("jpeg", "tiff_lzw", "tiff_adobe_deflate", "packbits"):
        kinds |= {
            packing: (
                saved(picture(), "TIFF", compression=packing, **({"quality": 98} if packing == "jpeg" else {})),
                rgb,
            )
        }
    pages = saved(picture(), "TIFF", save_all=True, append_images=[picture().rotate(180)])
    inked = saved(picture("CMYK"), "TIFF", compression="jpeg", quality=98)
    return kinds | {"pages": (pages, rgb), "JPEG of inks": (inked, rgb)}


def upright(lying: np.ndarray) -> dict[int, np.ndarray]:
    """By orientation, what a picture kept so is (TIFF 6.0, tag 274)."""
    turned = np.swapaxes(lying, 0, 1)
    return {1: lying, 2: lying[:, ::-1], 3: lying[::-1, ::-1], 4: lying[::-1]} | {
        5: turned, 6: turned[:, ::-1], 7: turned[::-1, ::-1], 8: turned[::-1]
    }  # fmt: skip


def hidden() -> dict[str, tuple[bytes, np.ndarray]]:
    """What a browser does not show, or otherwise: Chromium takes some numbers of AVIF for those of television."""
    moving = {"save_all": True, "append_images": [picture().rotate(180)], "subsampling": "4:4:4"}
    kinds = {"AVIF, transparent": (saved(picture("RGBA"), "AVIF", quality=98, subsampling="4:4:4"), on_white(scene()))}
    kinds |= {"AVIF that moves": (saved(picture(), "AVIF", quality=98, **moving), scene())}
    kinds |= {f"JPEG, lossless, {each.shape[2]}": (gallery.lossless_jpeg(each), each) for each in (scene(), grey)}
    deep = grey.astype(np.uint16) * 257
    kinds |= {"JPEG 2000 of 16-bit grey": (saved(Image.fromarray(deep[..., 0]), "JPEG2000"), grey)}
    kinds |= {"PGM of 16 bits": (b"P5 48 32 65535\n" + deep.astype(">u2").tobytes(), deep >> 8)}
    kinds |= {"PGM of 10 bits": (b"P5 48 32 1023\n" + (deep >> 6).astype(">u2").tobytes(), deep >> 8)}
    for mode in ("RGBA", "LA"):
        unveiled = Image.merge(mode, (*picture(mode).split()[:-1], Image.new("L", gallery.SIZE)))
        kinds |= {f"TGA, {mode}, clear everywhere": (saved(unveiled, "TGA"), np.asarray(unveiled.convert("RGB")))}
    return kinds | {f"{kind}, {mode}": (saved(picture(mode), kind), on_white(scene()) if mode == "RGBA" else scene())
                    for kind in ("JPEG2000", "TGA") for mode in ("RGB", "RGBA")}  # fmt: skip


def heics() -> dict[str, tuple[bytes, np.ndarray]]:
    """Written by pillow-heif 1.8.1 and its libheif; ffmpeg reads the same pixels untiled.

    Only what HEIC says itself turns a photo, whatever its EXIF says (ISO/IEC 23008-12, annex A).
    """
    truth = dict.fromkeys(("colours", "sequence", "ten_bits", "turned_by_exif_alone"), scene())
    truth |= {"transparent": on_white(scene()), "grey": np.asarray(picture("L"))[..., None]}
    truth |= {"tiles": scene().repeat(4, 0).repeat(4, 1)}  # as iPhones write them, of 64 pixels
    truth |= {f"turned_{o}": turned for o, turned in upright(scene()).items() if o > 1}
    return {kind: ((HEIC / f"{kind}.heic").read_bytes(), pixels) for kind, pixels in truth.items()}


needs_heif = pytest.mark.skipif(find_spec("pillow_heif") is None, reason="pillow-heif is not installed")


@pytest.mark.parametrize("kinds", [tiffs, hidden, pytest.param(heics, marks=needs_heif)])
def test_photos_that_no_browser_shows_have_the_pixels_that_they_were_made_of(kinds: Callable) -> None:
    for kind, (file, truth) in kinds().items():
        ours = np.asarray(decode(file), float)
        assert ours.shape[:2] == truth.shape[:2], kind
        difference = np.abs(ours - truth)
        assert difference.max() <= 8 and difference.mean() <= 1.5, kind  # of JPEG and AVIF; the others are exact


@needs_heif
def test_a_heic_photo_of_high_dynamic_range_is_refused() -> None:
    with pytest.raises(BadPhoto, match=r"high dynamic range \(HLG\)"):
        decode(HEIC / "hlg.heic")


@needs_heif
def test_a_heic_photo_that_claims_an_impossible_size_is_a_bad_photo() -> None:
    file = (HEIC / "colours.heic").read_bytes()
    place = file.index(b"ispe") + 8  # width and height
    for size in (0, 48 * 1000, 2**31):
        with pytest.raises(BadPhoto):
            decode(file[:place] + size.to_bytes(4, "big") + file[place + 4 :])


# A browser leaves these lying; whoever wrote them meant the photo to be turned, and other viewers turn it
MEANT = {
    "a long number": jpeg(exif=exif(turn(6, kind=4))),
    "a long number, big endian": jpeg(exif=exif(turn(6, ">", kind=4), order=">")),
    "a signed number": jpeg(exif=exif((0x0112, 8, 1, b"\6\0"))),
    "two numbers": jpeg(exif=exif(turn(6, count=2))),
    "XMP": with_segment(jpeg(), segment(0xE1, gallery.XMP % b'tiff:Orientation="6"')),
    "WebP": saved(picture(), "WEBP", lossless=True, exif=exif(turn(6))),
}


@pytest.mark.parametrize("kind", MEANT)
def test_an_orientation_told_otherwise_than_a_browser_expects_it_turns_the_photo(kind: str) -> None:
    assert decode(MEANT[kind]).size == gallery.SIZE[::-1]


def with_box(file: bytes, content: bytes) -> bytes:
    """An AVIF or HEIC of one item, with a box before all that it tells of itself."""
    meta, pixels = file.index(b"meta") - 4, file.index(b"mdat") + 4
    told = file[meta : pixels - 8].replace(struct.pack(">I", pixels), struct.pack(">I", pixels + 8 + len(content)))
    return file[:meta] + struct.pack(">I", 8 + len(content)) + b"free" + content + told + file[pixels - 8 :]


def of_colours(*chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG with these chunks before its pixels."""
    return gallery.png(scene(), 2, 8, b"".join(png_chunk(*chunk) for chunk in chunks))


def with_profile(jp2: bytes, kind: int) -> bytes:
    """A JPEG 2000 whose box of colours has the profile of Display P3, which is of one kind or the other."""
    header, colours = jp2.index(b"jp2h") - 4, jp2.index(b"colr") - 4
    size, end = struct.unpack(">I", jp2[header : header + 4])[0], colours + int.from_bytes(jp2[colours : colours + 4])
    box = b"colr" + bytes([kind, 0, 0]) + gallery.profile(**gallery.P3)
    grown = struct.pack(">I", size + len(box) + 4 - (end - colours))
    return jp2[:header] + grown + jp2[header + 4 : colours] + struct.pack(">I", len(box) + 4) + box + jp2[end:]


JP2 = saved(picture(), "JPEG2000")
WIDE, MUCH = (b"cICP", bytes([12, 13, 0, 1])), bytes(70_000)
LONG = zlib.compress(bytes(1_500_000))
LETTERS = b"\0\0\0\4cICP" + bytes([9, 16, 0, 1])
BOX_LETTERS = b"colrnclx" + struct.pack(">HH", 9, 16)
PALETTE = (b"PLTE", bytes(range(48)))
# What tells its colours in its own way, and a file that tells the same plainly; Chromium heeds and ignores the same
TOLD_AS = {
    "cICP of sRGB": (of_colours((b"cICP", bytes([1, 13, 0, 1]))), of_colours()),
    "cICP of a matrix": (of_colours((b"cICP", bytes([12, 13, 1, 1]))), of_colours()),
    "cICP of a narrow range": (of_colours((b"cICP", bytes([12, 13, 0, 0]))), of_colours()),
    "cICP before a profile": (
        of_colours(WIDE, (b"iCCP", b"x\0\0" + zlib.compress(gallery.profile()))),
        of_colours(WIDE),
    ),
    "AVIF behind a box whose length has 64 bits": (
        with_box(gallery.said_in_avif(12, 13), bytes(8)).replace(
            struct.pack(">I4sQ", 16, b"free", 0), struct.pack(">I4sQ", 1, b"free", 16)
        ),
        gallery.said_in_avif(12, 13),
    ),
    "cICP behind much else": (of_colours((b"teXt", MUCH), WIDE), of_colours(WIDE)),
    "cICP's letters in a comment": (of_colours((b"tEXt", b"Comment\0" + LETTERS)), of_colours()),
    "cICP behind the pixels": (of_colours()[:-12] + png_chunk(*WIDE) + of_colours()[-12:], of_colours()),
    "chunks of a wrong checksum": (
        gallery.png(scene(), 2, 8, png_chunk(b"tEXt", b"a\0b")[:-1] + b"?" + png_chunk(*WIDE)[:-1] + b"?"),
        of_colours(),
    ),
    "cICP behind a chunk of a wrong checksum": (
        gallery.png(scene(), 2, 8, png_chunk(b"tEXt", b"a\0b")[:-1] + b"?" + png_chunk(*WIDE)),
        of_colours(WIDE),
    ),
    **{
        f"{chunks[0][0].decode()}, {what}": (of_colours(*chunks, WIDE), of_colours(WIDE))
        for what, *chunks in (
            ("a megabyte of it", (b"zTXt", b"workflow\0\0" + LONG)),
            ("a megabyte of it", (b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + LONG)),
            ("a megabyte of it", (b"iCCP", b"x\0\0" + LONG)),
            ("much of it", *[(b"zTXt", b"a\0\0" + zlib.compress(bytes(2**20)))] * 99),
            *(("of a wrong length", (kind, b"\0")) for kind in (b"gAMA", b"cHRM", b"pHYs", b"acTL", b"fcTL", b"fdAT")),
            *(("of nothing", (kind, b"")) for kind in (b"sRGB", b"iCCP", b"zTXt", b"iTXt", b"tEXt", b"eXIf", b"tIME")),
            ("of no method", (b"iCCP", b"x\0\1")),
        )
    },
    "cICP behind the palette": (of_colours(PALETTE, WIDE), of_colours()),
    "cICP of a wrong length": (of_colours((b"cICP", bytes([9, 16, 0, 1, 0]))), of_colours()),
    "cICP of no colours, and a profile": (
        of_colours((b"cICP", bytes([2, 2, 0, 1])), (b"iCCP", b"x\0\0" + zlib.compress(gallery.profile(**gallery.P3)))),
        saved(picture(), "PNG", icc_profile=gallery.profile(**gallery.P3)),
    ),
    "JPEG 2000, a profile": (with_profile(JP2, 2), saved(picture(), "PNG", icc_profile=gallery.profile(**gallery.P3))),
    "JPEG 2000, any profile": (with_profile(JP2, 3), with_profile(JP2, 2)),
    "JPEG 2000, the profile of another kind": (with_profile(JP2, 4), JP2),
    "AVIF of colours without a name": (gallery.said_in_avif(2, 2), gallery.said_in_avif(1, 13)),
    "AVIF behind much else": (with_box(gallery.said_in_avif(12, 13), MUCH), gallery.said_in_avif(12, 13)),
    "AVIF's letters elsewhere": (with_box(gallery.said_in_avif(12, 13), BOX_LETTERS), gallery.said_in_avif(12, 13)),
    "HEIC's letters elsewhere": pytest.param(
        with_box((HEIC / "colours.heic").read_bytes(), BOX_LETTERS),
        (HEIC / "colours.heic").read_bytes(),
        marks=needs_heif,
    ),
}


@pytest.mark.parametrize(("file", "plain"), TOLD_AS.values(), ids=TOLD_AS)
def test_colours_are_told_by_the_parts_of_a_file_and_not_by_letters_in_it(file: bytes, plain: bytes) -> None:
    assert np.array_equal(decode(file), decode(plain))


def power(exponent: float) -> Callable[[np.ndarray], np.ndarray]:
    return lambda value: value**exponent


def of_srgb(value: np.ndarray) -> np.ndarray:
    return np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)


def told(name: bytes, *numbers: int) -> tuple[bytes, bytes]:
    """A chunk of PNG of numbers of 32 bits."""
    return name, struct.pack(f">{len(numbers)}I", *numbers)


# Light of Display P3 and of BT.2020 in that of sRGB (CSS Color 4; ITU-R BT.2087)
SAME = np.eye(3)
P3 = np.array([[1.2249, -0.2249, 0.0], [-0.0421, 1.0421, 0.0], [-0.0196, -0.0786, 1.0982]])
BT_2020 = np.array([[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]])
CORNERS = told(b"cHRM", 31270, 32900, 68000, 32000, 26500, 69000, 15000, 6000)
CORNERS_OF_P3 = (0.68, 0.32, 0, 0.265, 0.69, 0.045, 0.15, 0.06, 0.79)
# A file of `scene`, and the light that its numbers are: of which curve and which primaries
LIGHT: dict[str, tuple[bytes, Callable[[np.ndarray], np.ndarray], np.ndarray]] = {
    "PNG, cICP of P3": (of_colours(WIDE), of_srgb, P3),
    "PNG, cICP of television": (of_colours((b"cICP", bytes([9, 14, 0, 1]))), power(2.4), BT_2020),
    "PNG, cICP of light": (of_colours((b"cICP", bytes([1, 8, 0, 1]))), power(1), SAME),
    "PNG, cICP before gAMA": (of_colours(WIDE, told(b"gAMA", 100000)), of_srgb, P3),
    "PNG, gAMA of light": (of_colours(told(b"gAMA", 100000)), power(1), SAME),
    "PNG, gAMA behind sRGB": (of_colours((b"sRGB", b"\0"), told(b"gAMA", 100000)), of_srgb, SAME),
    "PNG, gAMA about that of sRGB": (of_colours(told(b"gAMA", 43400)), of_srgb, SAME),
    "PNG, gAMA of less": (of_colours(told(b"gAMA", 35000)), power(1 / 0.35), SAME),
    "PNG, gAMA and primaries": (of_colours(told(b"gAMA", 45455), CORNERS), power(2.2), P3),
    "AVIF of P3": (gallery.said_in_avif(12, 13), of_srgb, P3),
    "AVIF of television": (gallery.said_in_avif(9, 14), of_srgb, BT_2020),
    "AVIF of a profile": (
        saved(picture(), "AVIF", quality=95, speed=9, subsampling="4:4:4", icc_profile=gallery.profile(**gallery.P3)),
        of_srgb,
        P3,
    ),
    "BMP of nothing": (gallery.bmp_of_colours(bytes(4)), of_srgb, SAME),
    "BMP of endpoints": (gallery.bmp_of_colours(bytes(4), CORNERS_OF_P3, 1.8), power(1.8), P3),
    "BMP of endpoints without a curve": (gallery.bmp_of_colours(bytes(4), CORNERS_OF_P3), of_srgb, SAME),
    "BMP of endpoints that are sRGB's": (gallery.bmp_of_colours(b"BGRs", CORNERS_OF_P3, 1.8), of_srgb, SAME),
    "BMP of a profile": (gallery.bmp_of_colours(b"DEBM", icc=gallery.profile(**gallery.P3)), of_srgb, P3),
}


@pytest.mark.parametrize("kind", LIGHT)
def test_the_light_that_numbers_stand_for_is_that_of_the_colours_that_are_told(kind: str) -> None:
    file, linear, primaries = LIGHT[kind]
    numbers = np.asarray(decode(gallery.said_in_avif(1, 13))) if "AVIF" in kind else scene()
    light = np.clip(linear(numbers / 255) @ primaries.T, 0, 1)
    truth = 255 * np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    assert np.abs(np.asarray(decode(file)) - truth).max() <= 2 * TOLERANCE


def of_bits(file: bytes, *bits: int) -> bytes:
    """A JPEG 2000 that says of its colours, one after the other, that they have so many bits."""
    start = file.index(b"\xff\x4f\xff\x51") + 42
    told = b"".join(bytes([each - 1, 1, 1]) for each in bits)
    return file[:start] + told + file[start + len(told) :]


J2K = saved(picture("RGBA"), "JPEG2000", no_jp2=True)
UNREAD = "is of a kind that is not read"
REFUSED = {
    "TIFF of fractions": (tiff((grey / 255).astype(np.float32), 1), "floating-point"),
    "TIFF of coloured fractions": (tiff((scene() / 255).astype(np.float32), 2), "of a kind that Pillow cannot read"),
    "TIFF of signed numbers": (tiff(grey.astype(np.int16) * 128, 1), "signed numbers"),
    "TIFF of 32 bits": (tiff(grey.astype(np.uint32) << 24, 1), "32-bit numbers"),
    "TIFF of deep planes": (tiff(scene().astype(np.uint16) * 257, 2, planes=2), "one after the other"),
    "JPEG 2000 of 12 bits": (of_bits(JP2, 12, 12, 12), "keeps 12-bit colours"),
    "JPEG 2000 of 5 bits and 6": (of_bits(JP2, 5, 6, 5), "keeps 6-bit colours"),
    "JPEG 2000 of 16 bits and transparent, without boxes": (of_bits(J2K, 8, 8, 8, 16), "keeps 16-bit colours"),
    "JPEG 2000 of grey and alpha": (of_bits(saved(picture("LA"), "JPEG2000"), 9, 8), "keeps 9-bit colours"),
    "JPEG 2000 of black and white": (of_bits(saved(picture("L"), "JPEG2000"), 1), "keeps 1-bit colours"),
    "JPEG of 12 bits": (gallery.lossless_jpeg(scene().astype(int) * 16, 12), "keeps 12-bit colours"),
    "PSD of 16 bits": (b"8BPS" + struct.pack(">H6xHIIHH", 1, 3, 8, 8, 16, 3) + bytes(400), "keeps 16-bit colours"),
    "PFM": (b"Pf 48 32 -1.0\n" + (grey / 255).astype("<f4").tobytes(), "floating-point"),
    "PNG of high dynamic range": (gallery.png(scene(), 2, 8, png_chunk(b"cICP", bytes([9, 16, 0, 1]))), "(PQ)"),
    "PNG of high dynamic range and primaries without a name": (of_colours((b"cICP", bytes([2, 18, 0, 1]))), "(HLG)"),
    "PNG of high dynamic range behind much else": (
        of_colours((b"teXt", MUCH), (b"cICP", bytes([9, 16, 0, 1]))),
        "(PQ)",
    ),
    "AVIF of high dynamic range behind much else": (with_box(gallery.said_in_avif(9, 16), MUCH), "(PQ)"),
    "AVIF of high dynamic range": (gallery.said_in_avif(9, 18), "(HLG)"),
    "TIFF of more than 4 GB, big endian": (b"MM\0+\0\10" + bytes(40), "of a kind that Pillow cannot read"),
    "TIFF of planes, grey and alpha": (
        tiff(np.concatenate([grey, veil()[..., None]], 2), 1, planes=2, extra=2),
        UNREAD,
    ),
    "TIFF of planes, multiplied by alpha": (
        tiff(np.concatenate([scene(), veil()[..., None]], 2), 2, planes=2, extra=1),
        UNREAD,
    ),
    "BMP of 4 bits a colour": (gallery.bmp(16, grey.astype(np.uint16), (0xF00, 0xF0, 0xF)), UNREAD),
    "BMP of 10 bits a colour": (
        gallery.bmp(32, grey.astype(np.uint32), (0x3FF << 20, 0x3FF << 10, 0x3FF)),
        UNREAD,
    ),
    "TGA of a transparent palette": (
        struct.pack("<3BHHBHHHHBB", 0, 1, 1, 0, 1, 32, 0, 0, 8, 8, 8, 0) + bytes(68),
        UNREAD,
    ),
    "an icon": (saved(picture("RGBA"), "ICO"), "no picture that can be read"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_not_read_is_one_sentence_and_not_called_damaged(kind: str) -> None:
    with pytest.raises(BadPhoto, match=r"^the file (is|keeps) ") as refusal:
        decode(REFUSED[kind][0])
    assert REFUSED[kind][1] in str(refusal.value)


@pytest.mark.parametrize("gamma", [0, 1, 2**31 - 1])
@pytest.mark.parametrize("corner", [0, 1, 2**31 - 1])
def test_colours_that_do_not_exist_damage_no_photo(gamma: int, corner: int) -> None:
    told = png_chunk(b"gAMA", struct.pack(">I", gamma)) + png_chunk(b"cHRM", struct.pack(">8I", *[corner] * 8))
    assert decode(gallery.png(scene(), 2, 8, told)).size == gallery.SIZE


def test_a_picture_that_is_open_already_has_the_same_pixels(tmp_path: Any) -> None:
    for orientation in (3, 6):
        (tmp_path / "photo.tif").write_bytes(tiff(scene(), 2, orientation=orientation))
        with Image.open(tmp_path / "photo.tif") as opened:
            assert np.array_equal(decode(opened), decode(tmp_path / "photo.tif"))


@pytest.mark.parametrize("kinds", [*GALLERIES.values(), pytest.param(heics, marks=needs_heif)])
def test_a_pil_image_has_the_pixels_of_its_file_each_time_and_stays_as_it_was(kinds: Callable) -> None:
    for kind, file in kinds().items():
        data = file if isinstance(file, bytes) else file[0]
        photo = decode(data)
        with Image.open(io.BytesIO(data)) as given, Image.open(io.BytesIO(data)) as other:
            assert np.array_equal(decode(given), photo) and np.array_equal(decode(given), photo), kind
            assert np.array_equal(given, other) and given.info == other.info, kind
        assert np.array_equal(decode(photo), photo), kind


def test_a_pil_image_of_high_dynamic_range_is_refused_as_its_file_is() -> None:
    for file in (of_colours((b"cICP", bytes([9, 16, 0, 1]))), gallery.said_in_avif(9, 18)):
        with pytest.raises(BadPhoto, match="the picture is a photo of high dynamic range"):
            decode(Image.open(io.BytesIO(file)))
