"""Small pictures of every kind that people have, each as the bytes of its file.

Pillow writes what it can; PNG and TIFF are also written by hand, sample by sample, so that what they show is known.
"""

import io
import struct
import zlib
from typing import Any

import numpy as np
from PIL import Image, ImageCms

SIZE = (48, 32)  # width, height: of several JPEG blocks, and no square, so that turning it shows


def scene() -> np.ndarray:
    """The picture that most files show: colours that change slowly, and a corner that tells how it is turned."""
    y, x = np.mgrid[0 : SIZE[1], 0 : SIZE[0]]
    colours = np.stack([x * 5, y * 7, 230 - 2 * x - 2 * y], 2).clip(0, 255)
    colours[:8, :16] = (230, 40, 30)
    return colours.astype(np.uint8)


def veil() -> np.ndarray:
    """How opaque a picture with transparency is: uint8 `[H, W]`, nothing at the left, all at the right."""
    return np.broadcast_to(np.linspace(0, 255, SIZE[0]).astype(np.uint8), SIZE[::-1])


P3 = {"rXYZ": (0.51512, 0.24120, -0.00105), "gXYZ": (0.29198, 0.69225, 0.04189), "bXYZ": (0.15710, 0.06657, 0.78407)}


def profile(**primaries: tuple[float, float, float]) -> bytes:
    """An ICC profile: that of sRGB with other primaries, each XYZ at the white D50."""
    content = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    for i in range(struct.unpack(">I", content[128:132])[0]):
        name, offset, _ = struct.unpack(">4sII", content[132 + 12 * i : 144 + 12 * i])
        if xyz := primaries.get(name.decode()):
            content[offset + 8 : offset + 20] = struct.pack(">3i", *(round(value * 65536) for value in xyz))
    return bytes(content)


def saved(picture: Image.Image, kind: str, **options: Any) -> bytes:
    """What Pillow writes."""
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def picture(mode: str = "RGB") -> Image.Image:
    """`scene` in one of Pillow's modes, with `veil` where the mode has transparency."""
    photo = Image.fromarray(scene())
    if mode in ("RGBA", "LA"):
        return Image.merge(mode, (*photo.convert(mode[:-1]).split(), Image.fromarray(veil())))
    return photo.quantize(32) if mode == "P" else photo.convert(mode)


def png_chunk(name: bytes, content: bytes) -> bytes:
    """PNG 5.3: length, name, content, checksum."""
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def packed(samples: np.ndarray, bits: int) -> bytes:
    """Rows of samples `[H, W, channels]`, big-endian, each row filled up to whole bytes."""
    rows = samples.reshape(len(samples), -1)
    if bits >= 8:
        return b"".join(b"\0" + row.astype(f">u{bits // 8}").tobytes() for row in rows)
    digits = (rows[..., None] >> np.arange(bits)[::-1]) & 1
    return b"".join(b"\0" + np.packbits(row.ravel().astype(np.uint8)).tobytes() for row in digits)


ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))  # PNG 8.2


def png(samples: np.ndarray, colour: int, bits: int = 8, extra: bytes = b"", interlaced: bool = False) -> bytes:
    """A PNG by its standard; `samples` `[H, W, channels]`, `colour` 0 grey, 2 RGB, 3 palette, 4 with alpha, 6 RGBA."""
    height, width = samples.shape[:2]
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, interlaced)
    passes = [samples[y::down, x::across] for x, y, across, down in ADAM7] if interlaced else [samples]
    rows = b"".join(packed(each, bits) for each in passes if each.size)
    content = png_chunk(b"IHDR", header) + extra + png_chunk(b"IDAT", zlib.compress(rows)) + png_chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + content


def apng_behind(stand_in: np.ndarray, frame: np.ndarray, left: int, top: int) -> bytes:
    """An APNG (PNG 3, 11.3.6) of one frame, smaller than the picture that stands in for it; both `[H, W, 4]`."""
    file = png(stand_in, 6, extra=png_chunk(b"acTL", struct.pack(">II", 1, 0)))
    control = struct.pack(">5I2H2B", 0, frame.shape[1], frame.shape[0], left, top, 1, 1, 0, 1)  # 1: over what is there
    moving = png_chunk(b"fcTL", control) + png_chunk(b"fdAT", struct.pack(">I", 1) + zlib.compress(packed(frame, 8)))
    return file[:-12] + moving + file[-12:]


def exif(*entries: tuple[int, int, int, bytes], order: str = "<") -> bytes:
    """An EXIF block of entries: tag, type, count, value."""
    found = b"".join(struct.pack(f"{order}HHI", *each[:3]) + each[3].ljust(4, b"\0") for each in sorted(entries))
    start = {"<": b"II", ">": b"MM"}[order] + struct.pack(f"{order}HIH", 42, 8, len(entries))
    return b"Exif\0\0" + start + found + bytes(4)


def turn(orientation: int, order: str = "<", kind: int = 3, count: int = 1) -> tuple[int, int, int, bytes]:
    """The entry of the orientation."""
    return 0x0112, kind, count, struct.pack(f"{order}{'I' if kind == 4 else 'H'}", orientation)


def segment(marker: int, content: bytes) -> bytes:
    """A JPEG segment."""
    return struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content


def with_segment(jpeg: bytes, *segments: bytes) -> bytes:
    """A JPEG with segments after its first marker."""
    return jpeg[:2] + b"".join(segments) + jpeg[2:]


def without_adobe(jpeg: bytes) -> bytes:
    """A JPEG of CMYK without the marker that says how its colours are kept."""
    start = jpeg.index(b"\xff\xee")
    return jpeg[:start] + jpeg[start + 2 + int.from_bytes(jpeg[start + 2 : start + 4], "big") :]


def ycck() -> bytes:
    """A CMYK JPEG whose inks are kept as brightness and colour difference: Adobe's transform 2."""
    inks = np.asarray(picture("CMYK")).copy()
    inks[..., :3] = np.asarray(Image.fromarray(inks[..., :3]).convert("YCbCr"))
    inks[..., :3] = 255 - inks[..., :3]  # Pillow inverts all four as it writes
    jpeg = saved(Image.frombytes("CMYK", SIZE, inks.tobytes()), "JPEG", quality=98, subsampling=0)
    start = jpeg.index(b"Adobe")
    return jpeg[: start + 11] + b"\2" + jpeg[start + 12 :]


def lossless_jpeg(samples: np.ndarray, bits: int = 8) -> bytes:
    """A lossless JPEG by its standard (ITU-T T.81, annex H), each sample told by its difference from the left one.

    `samples` `[H, W, channels]`; a difference of 0 to `bits` bits is announced by a code of five.
    """
    height, width, channels = samples.shape
    before = np.roll(samples.astype(int), 1, 1)
    before[1:, 0], before[0, 0] = samples[:-1, 0], 1 << (bits - 1)
    coded = ""
    for step in (samples - before).ravel():
        size = abs(int(step)).bit_length()
        coded += f"{size:05b}" + (f"{step + (step < 0) * ((1 << size) - 1):0{size}b}" if size else "")
    coded += "1" * (-len(coded) % 8)
    pixels = int(coded, 2).to_bytes(len(coded) // 8, "big").replace(b"\xff", b"\xff\0")
    frame = struct.pack(">BHHB", bits, height, width, channels) + b"".join(b"%c\x11\0" % i for i in range(channels))
    codes = bytes([0, 0, 0, 0, 0, bits + 1, *[0] * 11, *range(bits + 1)])
    scan = bytes([channels]) + b"".join(b"%c\0" % i for i in range(channels)) + b"\1\0\0"
    rgb = segment(0xEE, b"Adobe\0\x64\0\0\0\0\0")
    return b"\xff\xd8" + rgb + segment(0xC3, frame) + segment(0xC4, codes) + segment(0xDA, scan) + pixels + b"\xff\xd9"


def tiff(samples: np.ndarray, photometric: int, order: str = "<", **tags: int | list[int]) -> bytes:
    """A TIFF by its standard, one strip without compression, or one for each plane where `planes` is 2.

    `samples` `[H, W, channels]` of uint8, uint16 or float; `photometric` 0 white is zero, 1 black is zero, 2 RGB,
    3 palette, 5 inks.
    """
    names = {"extra": 338, "planes": 284, "colours": 320, "orientation": 274}
    height, width, channels = samples.shape
    planes = [samples[..., i] for i in range(channels)] if tags.get("planes") == 2 else [samples]
    stored: Any = samples.dtype.newbyteorder(order)  # type: ignore[arg-type]  # "<" or ">"
    strips = [plane.astype(stored).tobytes() for plane in planes]
    bits, form = 8 * samples.dtype.itemsize, 3 if samples.dtype.kind == "f" else 2 if samples.dtype.kind == "i" else 1
    starts = [8 + sum(map(len, strips[:i])) for i in range(len(strips))]
    entries = {256: width, 257: height, 258: [bits] * channels, 259: 1, 262: photometric, 273: starts, 277: channels}
    entries |= {278: height, 279: [len(strip) for strip in strips], 339: [form] * channels}
    entries |= {names[name]: value for name, value in tags.items()}
    body = b"".join(strips)
    directory, far, table = 8 + len(body), b"", b""
    for tag, value in sorted(entries.items()):
        values = value if isinstance(value, list) else [value]
        kind, letter = (4, "I") if tag in (273, 279) else (3, "H")
        content = struct.pack(f"{order}{len(values)}{letter}", *values)
        if len(content) > 4:
            place = directory + 2 + 12 * len(entries) + 4 + len(far)
            far, content = far + content, struct.pack(f"{order}I", place)
        table += struct.pack(f"{order}HHI", tag, kind, len(values)) + content.ljust(4, b"\0")
    head = {"<": b"II", ">": b"MM"}[order] + struct.pack(f"{order}HI", 42, directory)
    return head + body + struct.pack(f"{order}H", len(entries)) + table + bytes(4) + far


def jpeg(mode: str = "RGB", **options: Any) -> bytes:
    """The picture as a JPEG in this mode of Pillow's; `options` are those of its writer."""
    return saved(picture(mode), "JPEG", **{"quality": 95, "subsampling": 0, **options})


def gif(box: tuple[int, int, int, int], ground: int = 3, clear: int | None = None, local: bool = False) -> bytes:
    """A GIF (89a) of 16 colours whose first frame fills `box` only: left, top, width, height; not packed."""
    left, top, width, height = box
    table, samples = bytes(range(48)), np.asarray(picture("L"))[top : top + height, left : left + width].ravel() >> 4
    codes = [code for start in range(0, len(samples), 8) for code in (16, *samples[start : start + 8])] + [17]
    bits = "".join(f"{code:05b}"[::-1] for code in codes)
    content = bytes(int(bits[start : start + 8][::-1], 2) for start in range(0, len(bits), 8))
    head = b"GIF89a" + struct.pack("<HHBBB", *SIZE, 0 if local else 0x83, ground, 0) + table * (not local)
    if clear is not None:
        head += struct.pack("<BBBBHBB", 0x21, 0xF9, 4, 1, 0, clear, 0)
    head += b"," + struct.pack("<4HB", *box, 0x83 if local else 0) + table * local + b"\4"
    blocks = [content[start : start + 255] for start in range(0, len(content), 255)]
    return head + b"".join(bytes([len(block)]) + block for block in blocks) + b"\0;"


CLEAR = np.array([1, 1, 1, 0], np.uint8)  # times RGBA: transparent everywhere


def bmp(bits: int, rows: np.ndarray, masks: tuple[int, ...] = (), downwards: bool = False) -> bytes:
    """A BMP of 16 or 32 bits a pixel, its first row the lowest unless `downwards`."""
    content, fields = rows[:: 1 if downwards else -1].tobytes(), struct.pack(f"<{len(masks)}I", *masks)
    height, start = -SIZE[1] if downwards else SIZE[1], 54 + len(fields)
    long = 56 if len(masks) == 4 else 40  # the header that has a mask for how opaque a pixel is holds all of them
    head = struct.pack("<IiiHHIIiiII", long, SIZE[0], height, 1, bits, 3 * bool(masks), len(content), 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", start + len(content), 0, 0, start) + head + fields + content


def bmp_of_colours(told: bytes, corners: tuple[float, ...] = (0,) * 9, gamma: float = 0, icc: bytes = b"") -> bytes:
    """A BMP of 24 bits with the header that tells its colours (BITMAPV5HEADER), in one way or another."""
    content = np.ascontiguousarray(scene()[::-1, :, ::-1]).tobytes()
    head = struct.pack("<IiiHHIIiiII", 124, *SIZE, 1, 24, 0, len(content), 0, 0, 0, 0) + bytes(16) + told
    fixed = [*(round(corner * 2**30) for corner in corners), *[round(gamma * 65536)] * 3]
    head += struct.pack("<12i4I", *fixed, 4, 124 + len(content), len(icc), 0)
    return b"BM" + struct.pack("<IHHI", 138 + len(content) + len(icc), 0, 0, 138) + head + content + icc


def grey_profile(exponent: float) -> bytes:
    """An ICC profile for grey photos, such as Photoshop's (ICC.1:2001-04)."""
    curve = struct.pack(">4s4xIHxx", b"curv", 1, round(exponent * 256))
    white = struct.pack(">4s4x3i", b"XYZ ", 63190, 65536, 54061)
    head = struct.pack(
        ">I4xI4s4s4s12x4s28x3i48x", 192, 2 << 24, b"mntr", b"GRAY", b"XYZ ", b"acsp", 63190, 65536, 54061
    )
    return head + struct.pack(">I4sII4sII", 2, b"wtpt", 156, 20, b"kTRC", 176, 16) + white + curve


def ink_profile(colours: np.ndarray) -> bytes:
    """An ICC profile of a printer (ICC.1:2001-04): uint8 `[2, 2, 2, 2, 3]`, the Lab of none or all of its four inks."""
    straight = bytes(range(256))
    table = b"mft1" + struct.pack(">4x4B9i", 4, 3, 2, 0, 65536, 0, 0, 0, 65536, 0, 0, 0, 65536)
    table += straight * 4 + colours.tobytes() + straight * 3
    kinds, white = (b"prtr", b"CMYK", b"Lab ", b"acsp"), (63190, 65536, 54061)
    head = struct.pack(">I4xI4s4s4s12x4s28x3i48x", 144 + len(table), 2 << 24, *kinds, *white)
    return head + struct.pack(">I4sII", 1, b"A2B0", 144, len(table)) + table


def said_in_avif(primaries: int, curve: int) -> bytes:
    """An AVIF that tells its colours by CICP's numbers."""
    file = saved(picture(), "AVIF", quality=95, speed=9, subsampling="4:4:4")
    start = file.index(b"nclx") + 4
    return file[:start] + struct.pack(">HH", primaries, curve) + file[start + 4 :]


XMP = b"""http://ns.adobe.com/xap/1.0/\0<x:xmpmeta xmlns:x='adobe:ns:meta/'><rdf:RDF
 xmlns:rdf='http://www.w3.org/1999/02/22-rdf-syntax-ns#'><rdf:Description
 xmlns:tiff='http://ns.adobe.com/tiff/1.0/' xmlns:hdrgm='http://ns.adobe.com/hdr-gain-map/1.0/'
 %s/></rdf:RDF></x:xmpmeta>"""
SOFTWARE = (0x0131, 2, 4, b"abc\0")


def jpegs() -> dict[str, bytes]:
    """JPEGs of every colour space and coding, and with whatever stands beside the picture."""
    plain, odd = jpeg(), segment(0xE1, exif(SOFTWARE))
    gain_map = saved(picture("L").resize((12, 8)), "JPEG")
    kinds = {
        "444": plain,
        "422": jpeg(subsampling=1),
        "420": jpeg(subsampling=2),
        "restarts": jpeg(restart_marker_blocks=2),
    }
    kinds |= {"progressive": jpeg(progressive=True), "grey": jpeg("L"), "RGB": jpeg(keep_rgb=True)}
    kinds |= {"CMYK": jpeg("CMYK"), "CMYK without Adobe": without_adobe(jpeg("CMYK")), "YCCK": ycck()}
    kinds |= {f"EXIF {value}": jpeg(exif=exif(turn(value))) for value in range(10)}
    kinds |= {
        "EXIF, big endian": jpeg(exif=exif(turn(6, ">"), order=">")),
        "EXIF, a byte": jpeg(exif=exif((0x0112, 1, 1, b"\6"))),
    }
    kinds |= {"EXIF, twice": with_segment(plain, segment(0xE1, exif(turn(6))), segment(0xE1, exif(turn(3))))}
    kinds |= {"EXIF, the second block": with_segment(plain, odd, segment(0xE1, exif(turn(6))))}
    kinds |= {
        "XMP against EXIF": with_segment(
            plain, segment(0xE1, exif(turn(1))), segment(0xE1, XMP % b'tiff:Orientation="6"')
        )
    }
    kinds |= {"MPO": saved(picture(), "MPO", save_all=True, append_images=[picture().rotate(180)], quality=95)}
    kinds |= {"Ultra HDR": with_segment(plain, segment(0xE1, XMP % b'hdrgm:Version="1.0"')) + gain_map}
    kinds |= {"a comment": jpeg(comment=b"\xff\xd8\xff" * 20), "trailing": plain + b"junk" * 99}
    return {f"JPEG, {name}": file for name, file in kinds.items()}


def colours_told() -> dict[str, bytes]:
    """Photos that say whose colours they are, by ICC and otherwise."""
    wide: dict[str, Any] = {"icc_profile": profile(**P3)}
    kinds = {"ICC in JPEG": jpeg(**wide), "ICC in PNG": saved(picture(), "PNG", **wide)}
    kinds |= {"ICC in WebP": saved(picture(), "WEBP", lossless=True, **wide)}
    kinds |= {"ICC in AVIF": saved(picture(), "AVIF", quality=95, speed=9, subsampling="4:4:4", **wide)}
    kinds |= {
        "ICC and transparency": saved(picture("RGBA"), "PNG", **wide),
        "ICC and palette": saved(picture("P"), "PNG", **wide),
    }
    kinds |= {"ICC of grey": jpeg("L", icc_profile=grey_profile(1.3)), "ICC of sRGB": jpeg(icc_profile=profile())}
    kinds |= {"ICC of grey, transparent": saved(picture("LA"), "PNG", icc_profile=grey_profile(1.3))}
    kinds |= {"ICC of grey in RGB": jpeg(icc_profile=grey_profile(1.3)), "ICC of RGB in grey": jpeg("L", **wide)}
    kinds |= {"ICC of RGB in CMYK": jpeg("CMYK", **wide), "ICC, broken": jpeg(icc_profile=b"junk" * 40)}
    corners_of_p3 = 0.68, 0.32, 0, 0.265, 0.69, 0.045, 0.15, 0.06, 0.79
    kinds |= {"ICC in BMP": bmp_of_colours(b"DEBM", icc=profile(**P3)), "BMP of sRGB": bmp_of_colours(b"BGRs")}
    kinds |= {"BMP, endpoints": bmp_of_colours(bytes(4), corners_of_p3, 1.8), "BMP, none": bmp_of_colours(bytes(4))}
    gamma, old = png_chunk(b"gAMA", struct.pack(">I", 100000)), png_chunk(b"gAMA", struct.pack(">I", 45455))
    corners = png_chunk(b"cHRM", struct.pack(">8I", 31270, 32900, 68000, 32000, 26500, 69000, 15000, 6000))
    nonsense = png_chunk(b"cHRM", bytes(32)), png_chunk(b"gAMA", struct.pack(">I", 1))
    chunks = {"gamma": gamma, "gamma of sRGB": old, "gamma and primaries": old + corners, "primaries alone": corners}
    chunks |= {"sRGB and gamma": png_chunk(b"sRGB", b"\0") + gamma, "cICP": png_chunk(b"cICP", bytes([12, 13, 0, 1]))}
    told = (1, 1), (4, 4), (5, 6), (6, 14), (7, 7), (9, 15), (11, 8), (12, 5), (22, 13), (1, 2), (2, 1)
    chunks |= {f"cICP {each}": png_chunk(b"cICP", bytes([*each, 0, 1])) for each in told}
    chunks |= {f"gamma {each}": png_chunk(b"gAMA", struct.pack(">I", each)) for each in (43000, 43400, 47600, 47800)}
    chunks |= {"primaries of nothing": old + nonsense[0]}
    kinds |= {f"PNG, {name}": png(scene(), 2, 8, chunk) for name, chunk in chunks.items()}
    kinds |= {"PNG, gamma of grey": png(np.asarray(picture("L"))[..., None], 0, 8, gamma)}
    return kinds | {f"AVIF {each}": said_in_avif(*each) for each in ((12, 13), (1, 1), (6, 6), (7, 7), (4, 8))}


def pngs(interlaced: bool) -> dict[str, bytes]:
    """PNGs of every colour type and depth, with transparency in every way."""
    colours, grey, opacity = scene(), np.asarray(picture("L"))[..., None], veil()[..., None]
    table = np.random.default_rng(0).integers(0, 256, (16, 3), np.uint8).tobytes()
    deep = [each.astype(np.uint16) * 257 for each in (colours, grey, opacity)]
    kinds: dict[str, tuple[np.ndarray, int, int, bytes]] = {}
    kinds |= {f"grey {bits}": (grey >> (8 - bits), 0, bits, b"") for bits in (1, 2, 4, 8)}
    kinds |= {f"palette {b}": (grey >> (8 - b), 3, b, png_chunk(b"PLTE", table[: 3 << b])) for b in (1, 2, 4)}
    clear = png_chunk(b"PLTE", table) + png_chunk(b"tRNS", bytes(range(0, 256, 16)))
    kinds |= {"palette with transparency": (grey >> 4, 3, 8, clear), "16-bit grey": (deep[1], 0, 16, b"")}
    kinds |= {"16-bit colours": (deep[0], 2, 16, b""), "colours": (colours, 2, 8, b"")}
    for name, (rgb, light, alpha), bits in (("8", (colours, grey, opacity), 8), ("16", deep, 16)):
        kinds |= {f"{name}-bit RGBA": (np.concatenate([rgb, alpha], 2), 6, bits, b"")}
        kinds |= {f"{name}-bit grey and alpha": (np.concatenate([light, alpha], 2), 4, bits, b"")}
    for bits in (1, 2, 4, 8, 16):
        samples = (grey >> (8 - min(bits, 4))).astype(np.uint16) * (4097 if bits == 16 else 1)
        kinds |= {
            f"one grey clear of {bits} bits": (
                samples,
                0,
                bits,
                png_chunk(b"tRNS", struct.pack(">H", samples[20, 20, 0])),
            )
        }
    red = (230, 40, 30)
    kinds |= {"one colour clear": (colours, 2, 8, png_chunk(b"tRNS", struct.pack(">3H", *red)))}
    near = deep[0].copy()
    near[4:] ^= 3  # where the red corner is of another red, by the lower bits alone
    kinds |= {"one colour clear of 16 bits": (near, 2, 16, png_chunk(b"tRNS", near[0, 0].astype(">u2").tobytes()))}
    return {f"PNG{' interlaced' * interlaced}, {name}": png(*kind, interlaced) for name, kind in kinds.items()}


def others() -> dict[str, bytes]:
    """GIF, WebP, BMP, AVIF and PNG as they move, lie on their side or leave their ground free."""
    turned, rgb, opacity = picture().transpose(Image.Transpose.ROTATE_180), scene(), veil()[..., None]
    moving: dict[str, Any] = {"save_all": True, "append_images": [turned], "duration": 10_000}
    kinds = {"APNG": saved(picture(), "PNG", **moving), "PNG, EXIF 6": saved(picture(), "PNG", exif=exif(turn(6))[6:])}
    kinds |= {"APNG behind another picture": saved(picture(), "PNG", default_image=True, **moving)}
    veiled = np.concatenate([rgb, opacity], 2)
    kinds |= {"APNG, a small frame behind another picture": apng_behind(veiled, veiled[::-1][:9, 20:], 5, 6)}
    kinds |= {"GIF": saved(picture(), "GIF"), "GIF that moves": saved(picture(), "GIF", **moving)}
    kinds |= {"GIF, transparent": saved(picture("RGBA"), "GIF"), "GIF, a small frame": gif((10, 8, 20, 16))}
    kinds |= {"GIF, a small frame of its own colours": gif((10, 8, 20, 16), local=True)}
    kinds |= {"GIF, a small transparent frame": gif((10, 8, 20, 16), clear=5)}
    kinds |= {"WebP": saved(picture(), "WEBP", quality=90), "WebP, lossless": saved(picture(), "WEBP", lossless=True)}
    kinds |= {"WebP, transparent": saved(picture("RGBA"), "WEBP", quality=90)}
    kinds |= {"WebP that moves": saved(picture("RGBA"), "WEBP", lossless=True, **moving)}
    kinds |= {f"BMP, {mode}": saved(picture(mode), "BMP") for mode in ("RGB", "P", "L", "1", "RGBA")}
    padded = np.concatenate([rgb[..., ::-1], opacity], 2)
    five = (rgb.astype(np.uint16) >> 3 << np.array([11, 6, 0], np.uint16)).sum(2, dtype=np.uint16)
    kinds |= {"BMP, 32 bits": bmp(32, padded), "BMP, downwards": bmp(32, padded, downwards=True)}
    told = 0xFF0000, 0xFF00, 0xFF, 0xFF000000
    kinds |= {"BMP, transparent": bmp(32, padded, told), "BMP, clear everywhere": bmp(32, padded * CLEAR, told)}
    kinds |= {"BMP, 16 bits": bmp(16, five.astype("<u2"), (0xF800, 0x7E0, 0x1F))}
    kinds |= {"AVIF": saved(picture(), "AVIF", quality=95, speed=9), "AVIF, grey": saved(picture("L"), "AVIF", speed=9)}
    return kinds | {f"AVIF, EXIF {o}": saved(picture(), "AVIF", speed=9, exif=exif(turn(o))) for o in (2, 3, 5, 6, 8)}
