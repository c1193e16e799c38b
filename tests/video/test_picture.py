"""What models see of colours, transparency, fields and shapes, from real files in many containers."""

import struct
import subprocess
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import imageio_ffmpeg
import numpy as np
import pytest
from av.codec import CodecContext
from av.filter import Graph

from lvspec_cli.errors import VideoError
from lvspec_cli.types import VideoLimits, VideoRequest
from lvspec_cli.video.decode import read_clip
from lvspec_cli.video.picture import brightest_of, framed, matrix_of, on_background
from lvspec_cli.video.pixels import PEAK, Colours
from tests.video.clips import make_clip, numbers, picture

PQ, HLG = 16, 18
BT709, BT2020, P3 = 1, 9, 12
KR_KB = {1: (0.2126, 0.0722), 5: (0.299, 0.114), 9: (0.2627, 0.0593)}  # by H.273's matrix
TO_2020 = [[0.6274, 0.3293, 0.0433], [0.0691, 0.9195, 0.0114], [0.0164, 0.0880, 0.8956]]  # BT.2087
TO_P3 = [[0.8225, 0.1774, 0.0], [0.0332, 0.9669, 0.0], [0.0171, 0.0724, 0.9108]]
PATCHES = [(235, 20, 20), (20, 200, 20), (20, 20, 220), (240, 240, 240), (128, 128, 128), (200, 150, 110)]
RED, GREEN, BLUE = (220, 30, 30), (30, 200, 40), (30, 40, 210)


# --- making files ----------------------------------------------------------------------------


def patches(colours=PATCHES, height: int = 64, width: int = 32) -> np.ndarray:
    """uint8 (height, width * colours, 3): one field of each colour, beside each other."""
    return np.repeat(np.repeat(np.array([colours], np.uint8), height, axis=0), width, axis=1)


def centres(frame: np.ndarray, count: int = len(PATCHES)) -> np.ndarray:
    """The mean colours in the middle of ``count`` patches beside each other."""
    high, wide = frame.shape[0], frame.shape[1] / count
    middle = [
        frame[high // 3 : 2 * high // 3, int((k + 0.3) * wide) : int((k + 0.7) * wide)] for k in range(count)
    ]
    return np.array([part.reshape(-1, 3).mean(axis=0) for part in middle])


def error(frame: np.ndarray, expected=PATCHES) -> float:
    """The largest difference from ``expected`` patches. Where it is as good as black, HDR has few levels."""
    return float(np.abs(np.maximum(centres(frame, len(expected)), 24) - np.maximum(expected, 24)).max())


def yuv(signal: np.ndarray, matrix: int, bits: int = 8, full: bool = False) -> av.VideoFrame:
    """A 4:4:4 frame of RGB signals (height, width, 3) from 0 to 1, by the formulas of the matrix."""
    kr, kb = KR_KB[matrix]
    red, green, blue = np.moveaxis(signal, -1, 0)
    y = kr * red + (1 - kr - kb) * green + kb * blue
    chroma = [(blue - y) / (2 * (1 - kb)), (red - y) / (2 * (1 - kr))]
    step = 1 << (bits - 8)
    if full:
        planes = [y * (256 * step - 1), *(c * (256 * step - 1) + 128 * step for c in chroma)]
    else:
        planes = [(16 + 219 * y) * step, *((128 + 224 * c) * step for c in chroma)]
    height, width = y.shape
    frame = av.VideoFrame(width, height, "yuv444p" if bits == 8 else f"yuv444p{bits}le")
    for plane, values in zip(frame.planes, planes, strict=True):
        line = np.zeros((height, plane.line_size // (1 if bits == 8 else 2)), "<u1" if bits == 8 else "<u2")
        line[:, :width] = np.round(values)
        plane.update(line.tobytes())
    frame.colorspace, frame.color_range = matrix, 2 if full else 1
    return frame


def light(rgb: np.ndarray, matrix=None) -> np.ndarray:
    """Light of SDR pixels on a BT.1886 screen, 1 is white, in the primaries that ``matrix`` leads to."""
    linear = (rgb / 255.0) ** 2.4
    return linear if matrix is None else np.clip(linear @ np.array(matrix).T, 0, 1)


def pq(linear: np.ndarray, white: float = 203) -> np.ndarray:
    """SMPTE ST 2084's inverse EOTF."""
    power = (linear * white / 10_000) ** (2610 / 16384)
    return ((3424 / 4096 + 2413 / 128 * power) / (1 + 2392 / 128 * power)) ** (2523 / 32)


def hlg(linear: np.ndarray) -> np.ndarray:
    """BT.2100's inverse OOTF of a 1000 cd/m2 display, then the OETF."""
    shown = linear * 203 / 1000
    luminance = shown @ np.array([0.2627, 0.6780, 0.0593])
    scene = shown * np.maximum(luminance, 1e-9)[..., None] ** (1 / 1.2 - 1)
    bent = 0.17883277 * np.log(np.maximum(12 * scene - 0.28466892, 1e-9)) + 0.55991073
    return np.where(scene <= 1 / 12, np.sqrt(3 * scene), bent)


def write(path: Path, frames, codec: str, pixels: str, tags=(2, 2, 2), **options: str) -> Path:
    """``frames`` in a file; ``tags`` are H.273's numbers of matrix, transfer and primaries."""
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(codec, rate=10, options=options)
        stream.width, stream.height, stream.pix_fmt = frames[0].width, frames[0].height, pixels
        context = stream.codec_context
        context.colorspace, context.color_trc, context.color_primaries = tags
        context.color_range = frames[0].color_range
        if codec.startswith("libvpx"):
            stream.metadata["alpha_mode"] = "1" if "a" in pixels else "0"
        for number, frame in enumerate(frames):
            frame = frame.reformat(format=pixels)
            frame.pts, frame.time_base = number, Fraction(1, 10)
            if hasattr(frame, "color_trc"):  # some encoders go by these
                frame.colorspace, frame.color_trc, frame.color_primaries = tags
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


X265 = {"x265-params": "log-level=0:lossless=1"}
HIGH: dict[str, dict[str, Any]] = {
    "x265.mp4": {"codec": "libx265", "pixels": "yuv420p10le", **X265},
    "x265.mkv": {"codec": "libx265", "pixels": "yuv444p10le", **X265},
    "av1.webm": {"codec": "libsvtav1", "pixels": "yuv420p10le", "crf": "5"},
    "vp9.webm": {"codec": "libvpx-vp9", "pixels": "yuv420p", "crf": "4", "b": "0"},  # 8 bits
    "prores.mov": {"codec": "prores_ks", "pixels": "yuv422p10le"},
    "h264.mp4": {"codec": "libx264", "pixels": "yuv420p10le", "crf": "5"},
    "h264.ts": {"codec": "libx264", "pixels": "yuv420p10le", "crf": "5"},
}


def hdr(path: Path, signal: np.ndarray, transfer: int, **made: Any) -> Path:
    return write(path, [yuv(signal, 9, 10)] * 3, tags=(9, transfer, BT2020), **made)


# --- HDR and wide gamut ------------------------------------------------------------------------


@pytest.mark.parametrize("name", HIGH)
@pytest.mark.parametrize("transfer", [PQ, HLG])
def test_hdr_shows_what_sdr_of_the_scene_would(tmp_path, name, transfer):
    signal = {PQ: pq, HLG: hlg}[transfer](light(patches(), TO_2020))
    path = hdr(tmp_path / name, signal, transfer, **HIGH[name])
    clip = read_clip(VideoRequest(path, max_frames=2))
    assert error(clip.frames[0]) < (6 if name == "vp9.webm" else 4)
    assert clip.warnings == (f"HDR ({'PQ' if transfer == PQ else 'HLG'}) was tone-mapped to SDR",)
    by_decord = read_clip(VideoRequest(path, max_frames=2, decoder="decord"))
    assert np.array_equal(by_decord.frames, clip.frames)
    assert (by_decord.decoder, by_decord.warnings[1:]) == ("pyav", clip.warnings)


@pytest.mark.parametrize("transfer", ["smpte2084", "arib-std-b67"])
def test_hdr_by_zimg_shows_the_colours_that_it_was_made_of(tmp_path, transfer):
    """zimg is what FFmpeg converts HDR with; ``agamma`` would bend HLG's channels one by one."""
    path, source = tmp_path / "zimg.mp4", patches()
    high, wide = source.shape[:2]
    convert = (
        "zscale=matrixin=gbr:rangein=full:transferin=709:primariesin=709:npl=203:agamma=false"
        f":transfer={transfer}:primaries=2020:matrix=2020_ncl:range=limited,format=yuv444p10le"
    )
    tags = f"log-level=error:lossless=1:colorprim=bt2020:transfer={transfer}:colormatrix=bt2020nc"
    command = [
        imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-f", "rawvideo", "-pix_fmt", "rgb24",
        "-s", f"{wide}x{high}", "-r", "5", "-i", "-", "-vf", convert, "-colorspace", "bt2020nc",
        "-color_trc", transfer, "-color_primaries", "bt2020", "-c:v", "libx265",
        "-x265-params", tags, str(path),
    ]  # fmt: skip
    subprocess.run(command, input=source.tobytes() * 3, check=True)
    assert error(read_clip(VideoRequest(path, max_frames=1)).frames[0]) < 5


def test_hdr_of_8_bits_and_without_a_matrix_is_tone_mapped_too(tmp_path):
    frame = yuv(pq(light(patches(), TO_2020)), 9)
    path = write(tmp_path / "8.mkv", [frame], "ffv1", "yuv444p", tags=(2, PQ, BT2020))
    clip = read_clip(VideoRequest(path, max_frames=1))
    assert error(clip.frames[0]) < 16  # 8 bits of PQ are coarse
    assert clip.warnings == ("HDR (PQ) was tone-mapped to SDR",)


def test_hdr_in_rgb_and_at_a_smaller_size(tmp_path):
    signal = np.round(pq(light(patches(), TO_2020)) * 65535).astype(np.uint16)
    frame = av.VideoFrame.from_ndarray(signal, format="rgb48le")
    path = write(tmp_path / "rgb.mkv", [frame], "ffv1", "gbrp10le", tags=(0, PQ, BT2020))
    clip = read_clip(VideoRequest(path, max_frames=1, max_pixels=3000))
    assert clip.frames.shape[1:3] == (31, 94)
    assert error(clip.frames[0]) < 4


def test_the_metadata_tells_the_brightest_highlight(tmp_path):
    signal = np.full((64, 64, 3), pq(np.array(600 / 203)))
    found: list[int] = []
    for light_level in ("", ":max-cll=600,300"):
        path = tmp_path / f"{len(found)}.mp4"
        params = {"x265-params": f"log-level=0:lossless=1{light_level}"}
        hdr(path, signal, PQ, codec="libx265", pixels="yuv420p10le", **params)
        found.append(int(read_clip(VideoRequest(path, max_frames=1)).frames[0, 32, 32, 1]))
    assert found == [254, 255]


def test_the_brightest_highlight_of_side_data():
    display = struct.pack("=22i", *[0] * 18, 4_000_000, 10_000, 1, 1)
    assert brightest_of(struct.pack("=2I", 600, 300), display) == 600
    assert brightest_of(struct.pack("=2I", 0, 0), display) == brightest_of(None, display) == 400
    assert brightest_of(None, None) == brightest_of(b"", b"short") == PEAK
    assert brightest_of(None, struct.pack("=22i", *[0] * 22)) == PEAK
    assert brightest_of(struct.pack("=2I", 70_000, 0), None) == 10_000


@pytest.mark.parametrize(("primaries", "matrix", "tag"), [(BT2020, TO_2020, 9), (P3, TO_P3, 1)])
@pytest.mark.parametrize("transfer", [1, 14, 2])
def test_wide_gamuts_of_sdr_keep_their_colours(tmp_path, primaries, matrix, tag, transfer):
    signal = light(patches(), matrix) ** (1 / 2.4)
    path = write(
        tmp_path / "wide.mkv", [yuv(signal, tag, 10)], tags=(tag, transfer, primaries), **HIGH["x265.mkv"]
    )
    clip = read_clip(VideoRequest(path, max_frames=1))
    assert error(clip.frames[0]) < 4
    assert clip.warnings == ()


# --- matrices ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "matrix"),
    [((1280, 720), 1), ((720, 1280), 1), ((1280, 534), 1), ((960, 704), 5), ((640, 480), 5)],
)
def test_without_a_tag_the_size_tells_the_matrix(tmp_path, size, matrix):
    width, height = size
    signal = patches(height=height, width=width // len(PATCHES) + 1)[:, :width] / 255
    path = write(tmp_path / "untagged.mp4", [yuv(signal, matrix)], "libx264", "yuv444p", crf="4")
    clip = read_clip(VideoRequest(path, max_frames=1))
    assert error(clip.frames[0]) < 4
    by_decord = read_clip(VideoRequest(path, max_frames=1, decoder="decord"))
    assert np.abs(by_decord.frames.astype(int) - clip.frames).mean() < 3
    assert by_decord.decoder == ("pyav" if matrix == 1 else "decord")


@pytest.mark.parametrize("size", [(192, 64), (1280, 720)])
@pytest.mark.parametrize("matrix", [1, 5])
@pytest.mark.parametrize("full", [False, True])
def test_a_tag_tells_matrix_and_range_at_any_size_in_both_decoders(tmp_path, size, matrix, full):
    width, height = size
    signal = patches(height=height, width=width // len(PATCHES) + 1)[:, :width] / 255
    frame = yuv(signal, matrix, full=full)
    path = write(tmp_path / "tagged.mp4", [frame], "libx264", "yuv444p", tags=(matrix, 1, 1), crf="4")
    for decoder in ("pyav", "decord"):
        clip = read_clip(VideoRequest(path, max_frames=1, decoder=decoder))
        assert error(clip.frames[0]) < 5
        assert (clip.decoder, clip.warnings) == (decoder, ())


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("bits", [8, 10])
def test_a_tag_tells_the_range_where_the_format_does_not(tmp_path, full, bits):
    frame = yuv(patches() / 255, 1, bits, full)
    path = write(tmp_path / "range.mkv", [frame], "ffv1", frame.format.name, tags=(1, 1, 1))
    assert error(read_clip(VideoRequest(path, max_frames=1)).frames[0]) < 2


def test_matrices_by_tag_and_by_size():
    assert [matrix_of(tag, 640, 480, None) for tag in (0, 1, 2, 5, 6, 7, 9, 10)] == [5, 1, 5, 5, 5, 7, 9, 9]
    assert [matrix_of(2, *size, None) for size in ((1, 719), (1279, 1), (1, 720), (1280, 1))] == [5, 5, 1, 1]
    assert matrix_of(2, 640, 480, Colours(PQ, BT2020)) == 9


def test_rgb_and_gray_are_taken_as_they_are(tmp_path):
    for codec, pixels, path in (
        ("ffv1", "bgr0", "rgb.mkv"),
        ("png", "rgb24", "png.mov"),
        ("ffv1", "gray", "gray.mkv"),
    ):
        frame = av.VideoFrame.from_ndarray(patches(), format="rgb24")
        gray = frame.reformat(format="gray").reformat(format="rgb24").to_ndarray()
        expected = gray if pixels == "gray" else patches()
        clip = read_clip(VideoRequest(write(tmp_path / path, [frame], codec, pixels), max_frames=1))
        assert np.abs(clip.frames[0].astype(int) - expected).max() <= 1


def test_ordinary_frames_are_what_one_conversion_gives(tmp_path):
    path = make_clip(tmp_path / "plain.mp4", count=2)
    with av.open(str(path)) as container:
        frame = next(container.decode(video=0))
    expected = frame.reformat(64, 32, "rgb24", interpolation="AREA").to_ndarray()
    assert np.array_equal(read_clip(VideoRequest(path, max_frames=1, max_pixels=2048)).frames, expected[None])


# --- transparency ------------------------------------------------------------------------------

ALPHA: dict[str, tuple[str, str]] = {
    "prores.mov": ("prores_ks", "yuva444p10le"),
    "qtrle.mov": ("qtrle", "argb"),
    "png.mov": ("png", "rgba"),
    "moving.apng": ("apng", "rgba"),
    "ffv1.mkv": ("ffv1", "yuva420p"),
    "ffv1_rgb.mkv": ("ffv1", "bgra"),
    "utvideo.avi": ("utvideo", "gbrap"),
    "vp9.webm": ("libvpx-vp9", "yuva420p"),
    "vp8.webm": ("libvpx", "yuva420p"),
}


def clear(number: int = 0, size: tuple[int, int] = (128, 64)) -> av.VideoFrame:
    """Red and opaque, then green and half opaque, then blue and hidden."""
    pixels = np.zeros((size[1], size[0], 4), np.uint8)
    third = size[0] // 4
    pixels[:, :third], pixels[:, third : 2 * third], pixels[:, 2 * third :] = (
        (*RED, 255),
        (*GREEN, 128),
        (*BLUE, 0),
    )
    return av.VideoFrame.from_ndarray(pixels, format="rgba")


@pytest.mark.parametrize("name", ALPHA)
@pytest.mark.parametrize("background", [(0, 0, 0), (250, 240, 10)])
def test_what_is_transparent_shows_the_background(tmp_path, name, background):
    codec, pixels = ALPHA[name]
    options: Any = {"auto-alt-ref": "0", "crf": "4", "b": "2M"} if codec == "libvpx" else {}
    path = write(tmp_path / name, [clear()] * 4, codec, pixels, **options)
    clip = read_clip(VideoRequest(path, max_frames=2, background=background))
    half = [(128 * a + 127 * b) / 255 for a, b in zip(GREEN, background, strict=True)]
    for frame in clip.frames:
        assert np.abs(centres(frame, 4) - [RED, half, background, background]).max() < 12
    assert clip.warnings == ()
    by_decord = read_clip(VideoRequest(path, max_frames=2, background=background, decoder="decord"))
    assert np.array_equal(by_decord.frames, clip.frames)
    assert by_decord.decoder == "pyav"


def test_a_gif_shows_the_background_where_it_is_transparent(tmp_path):
    from PIL import Image

    frames = [Image.fromarray(clear().to_ndarray()[..., :4]) for _ in range(2)]
    frames[1].putpixel((0, 0), (0, 0, 0, 255))
    path = tmp_path / "moving.gif"
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=100, disposal=2)
    clip = read_clip(VideoRequest(path, max_frames=1, background=(250, 240, 10)))
    assert np.abs(centres(clip.frames[0], 4)[[0, 2, 3]] - [RED, (250, 240, 10), (250, 240, 10)]).max() < 12


def test_hidden_colours_do_not_show_at_the_edges_of_smaller_pictures(tmp_path):
    """One opaque black column in four: a picture of a quarter's width mixes each with hidden white."""
    pixels = np.full((64, 128, 4), (255, 255, 255, 0), np.uint8)
    pixels[:, ::4] = (0, 0, 0, 255)
    frame = av.VideoFrame.from_ndarray(pixels, format="rgba")
    path = write(tmp_path / "edges.mov", [frame], "png", "rgba")
    assert read_clip(VideoRequest(path, max_frames=1, max_pixels=512)).frames.max() == 0


@pytest.mark.parametrize("codec", ["libvpx-vp9", "libvpx"])
def test_seeking_in_transparent_webm_gives_the_frames_of_a_read_from_the_start(tmp_path, codec):
    options: Any = {"g": "20", "deadline": "realtime", "auto-alt-ref": "0", "b": "2M"}
    frames = []
    for number in range(120):
        pixels = np.concatenate([picture(number, 128, 64), np.full((64, 128, 1), 255, np.uint8)], axis=-1)
        pixels[32:, 64:, 3] = 0
        frames.append(av.VideoFrame.from_ndarray(pixels, format="rgba"))
    path = write(tmp_path / "long.webm", frames, codec, "yuva420p", **options)
    clip = read_clip(VideoRequest(path, max_frames=3))
    assert numbers(clip.frames) == [0, 59, 119]
    assert clip.frames[:, 40:, 72:].max() < 16
    assert clip.frames[:, 40:, 8:56, 0].min() > 190


def test_pixels_on_a_background():
    pixels = np.array([[[200, 100, 0]]], np.uint8)
    for alpha, expected in ((255, [200, 100, 0]), (0, [10, 20, 30]), (51, [48, 36, 24])):
        assert on_background(pixels, np.array([[[alpha]]], np.uint8), (10, 20, 30)).tolist() == [[expected]]


# --- shapes ------------------------------------------------------------------------------------


def shapes(
    path: Path,
    sizes: list[tuple[int, int]],
    pixel_aspects: tuple[Fraction, ...] = (),
    codec: str = "libx264",
    per: int = 10,
    before: bytes = b"",
) -> Path:
    """Frames of several ``sizes`` in one stream, ``per`` of each, at 10 a second.

    The first ones are red; the later ones are green, and blue in the lower half. ``before`` each of these
    come the bytes of a further unit.
    """
    with av.open(str(path), "w", format="mpegts" if path.suffix == ".ts" else None) as container:
        stream: Any = container.add_stream(codec, rate=10)
        stream.width, stream.height, stream.pix_fmt = sizes[0][0], sizes[0][1], "yuv420p"
        for place, (width, height) in enumerate(sizes):
            encoder: Any = CodecContext.create(codec, "w")
            encoder.width, encoder.height, encoder.pix_fmt = width, height, "yuv420p"
            encoder.time_base, encoder.framerate = Fraction(1, 10), Fraction(10)
            encoder.gop_size, encoder.max_b_frames = per, 0
            if pixel_aspects:
                encoder.sample_aspect_ratio = pixel_aspects[place]
            pixels = np.full((height, width, 3), GREEN if place else RED, np.uint8)
            pixels[height // 2 :] = BLUE if place else RED
            for number in [*range(per), None]:
                frame = None
                if number is not None:
                    frame = av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(format="yuv420p")
                    frame.pts, frame.time_base = place * per + number, Fraction(1, 10)
                for packet in encoder.encode(frame):
                    container.mux(_with_unit(packet, before if place else b"", stream))
    return path


def _with_unit(packet: Any, before: bytes, stream: Any) -> Any:
    whole: Any = av.Packet(before + bytes(packet))
    whole.pts, whole.dts, whole.is_keyframe = packet.pts, packet.dts, packet.is_keyframe
    whole.stream, whole.time_base = stream, Fraction(1, 10)
    return whole


@pytest.mark.parametrize(
    ("name", "codec"),
    [("s.ts", "libx264"), ("s.webm", "libvpx-vp9"), ("s.mkv", "libvpx"), ("m.ts", "mpeg2video")],
)
@pytest.mark.parametrize("background", [(0, 0, 0), (30, 40, 210)])
def test_another_shape_in_mid_stream_gets_bars_and_a_note(tmp_path, name, codec, background):
    path = shapes(tmp_path / name, [(160, 80), (80, 160)], codec=codec)
    clip = read_clip(VideoRequest(path, fps=5, background=background))
    assert clip.frames.shape == (10, 80, 160, 3)
    assert clip.warnings == ("the picture's shape changes at 0:01: bars keep it",)
    for frame in clip.frames[:5]:
        assert np.abs(frame.reshape(-1, 3).mean(axis=0) - RED).max() < 8
    for frame in clip.frames[5:]:
        assert (frame[:, :60] == background).all()
        assert (frame[:, 100:] == background).all()
        for rows, colour in ((slice(2, 36), GREEN), (slice(44, 78), BLUE)):
            assert np.abs(frame[rows, 64:96].reshape(-1, 3).mean(axis=0) - colour).max() < 8


def test_a_wider_picture_gets_its_bars_above_and_below(tmp_path):
    path = shapes(tmp_path / "wide.ts", [(120, 90), (160, 90)])
    frame = read_clip(VideoRequest(path, fps=5)).frames[-1]
    assert frame.shape == (90, 120, 3)
    rows = np.flatnonzero(frame[:, 60].max(axis=-1) > 100)
    assert (rows[0], rows[-1], len(rows)) == (11, 78, 68)  # 120 * 9 / 16 = 67.5


def test_another_resolution_of_the_same_shape_fills_the_frame_without_a_note(tmp_path):
    path = shapes(tmp_path / "same.ts", [(192, 108), (128, 72), (256, 144)])
    clip = read_clip(VideoRequest(path, fps=5))
    assert clip.frames.shape == (15, 108, 192, 3)
    assert clip.warnings == ()
    assert np.abs(clip.frames[5:, :50].reshape(-1, 3).mean(axis=0) - GREEN).max() < 8
    assert clip.frames[5:].max(axis=-1).min() > 100


@pytest.mark.parametrize("codec", ["libx264", "mpeg2video"])
def test_other_pixels_in_mid_stream_are_another_shape(tmp_path, codec):
    """Broadcasts go from 4:3 to 16:9 at one stored size."""
    path = shapes(
        tmp_path / "aspect.ts", [(160, 120)] * 2, (Fraction(1), Fraction(4, 3)), codec=codec, per=20
    )
    clip = read_clip(VideoRequest(path, fps=5))
    assert clip.warnings == ("the picture's shape changes at 0:02: bars keep it",)
    assert (clip.frames[-1, :14] == 0).all()
    assert (clip.frames[-1, -14:] == 0).all()
    assert clip.frames[-1, 17:-17].max(axis=-1).min() > 100


def test_a_picture_that_is_turned_in_mid_stream(tmp_path):
    """By a display orientation SEI (ITU-T H.264, D.2.27) before each frame: a quarter against the clock."""
    turned = b"\0\0\0\1\x06\x2f\x03\x08\0\x14\x80"
    path = shapes(tmp_path / "upright.ts", [(160, 80), (80, 160)], before=turned)
    clip = read_clip(VideoRequest(path, fps=5))
    assert clip.warnings == ()
    halves = clip.frames[-1, :, 4:76], clip.frames[-1, :, 84:156]
    for half, colour in zip(halves, (GREEN, BLUE), strict=True):
        assert np.abs(half.reshape(-1, 3).mean(axis=0) - colour).max() < 8
    path = shapes(tmp_path / "turned.ts", [(160, 80), (160, 80)], before=turned)
    clip = read_clip(VideoRequest(path, fps=5))
    assert clip.warnings == ("the picture's shape changes at 0:01: bars keep it",)
    assert clip.frames[-1, :, :58].max() == 0


def test_frames_of_a_later_shape_are_limited_too(tmp_path):
    path = shapes(tmp_path / "large.ts", [(160, 80), (320, 320)])
    with pytest.raises(VideoError, match="320x320 pixels, the limit is 12800"):
        read_clip(VideoRequest(path, fps=5, limits=VideoLimits(canvas_pixels=160 * 80)))


def test_decord_leaves_a_changed_shape_to_pyav(tmp_path):
    path = shapes(tmp_path / "s.mkv", [(160, 80), (80, 160)], codec="libvpx")
    request = VideoRequest(path, fps=5)
    clip, other = read_clip(request), read_clip(replace(request, decoder="decord"))
    assert np.array_equal(clip.frames, other.frames)
    assert other.warnings == ("PyAV read it, not decord: the picture's shape changes", *clip.warnings)


def test_bars_are_as_wide_on_both_sides():
    pixels = np.full((2, 2, 3), 9, np.uint8)
    assert (
        framed(pixels, (6, 2), (1, 2, 3))[0].tolist() == [[1, 2, 3]] * 2 + [[9, 9, 9]] * 2 + [[1, 2, 3]] * 2
    )
    assert framed(pixels, (2, 2), (1, 2, 3)) is pixels


# --- fields ------------------------------------------------------------------------------------


def interlaced(
    path: Path, codec: str, order: str, pixels: str = "yuv420p", count: int = 8, **options: str
) -> Path:
    """A white bar 8 wide that moves 8 to the right from field to field, of ``order`` tff or bff."""
    from av.codec.context import Flags

    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(codec, rate=25, options=options)
        stream.width, stream.height, stream.pix_fmt = 160, 64, pixels
        stream.bit_rate = 4_000_000
        stream.codec_context.flags |= int(Flags.interlaced_dct) | int(Flags.interlaced_me)
        for number in range(count):
            woven = np.full((64, 160, 3), 16, np.uint8)
            for later in (0, 1):
                line = later if order == "tff" else 1 - later
                left = 8 * (2 * number + later)
                woven[line::2, left : left + 8] = 235
            frame = tagged(av.VideoFrame.from_ndarray(woven, format="rgb24").reformat(format=pixels), order)
            frame.pts, frame.time_base = number, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def tagged(frame: av.VideoFrame, order: str) -> av.VideoFrame:
    """``frame`` as an interlaced one."""
    graph = Graph()
    nodes = (
        graph.add_buffer(
            width=frame.width, height=frame.height, format=frame.format, time_base=Fraction(1, 25)
        ),
        graph.add("setfield", f"mode={order}"),
        graph.add("buffersink"),
    )
    graph.link_nodes(*nodes).configure()
    frame.pts = 0
    graph.push(frame)
    found = graph.pull()
    assert isinstance(found, av.VideoFrame)
    return found


@pytest.mark.parametrize("order", ["tff", "bff"])
@pytest.mark.parametrize(
    ("name", "codec", "pixels", "options"),
    [
        ("mpeg2.ts", "mpeg2video", "yuv420p", {}),
        ("mpeg2.mpg", "mpeg2video", "yuv420p", {}),
        ("h264.mp4", "libx264", "yuv420p", {"crf": "10", "x264-params": "{}=1"}),
        ("prores.mov", "prores_ks", "yuv422p10le", {}),
    ],
)
def test_an_interlaced_frame_shows_one_moment(tmp_path, name, codec, pixels, options, order):
    options = {key: value.format(order) for key, value in options.items()}
    path = interlaced(tmp_path / name, codec, order, pixels, **options)
    for max_pixels in (None, 80 * 32):
        clip = read_clip(VideoRequest(path, max_frames=8, max_pixels=max_pixels))
        scale = clip.width / 160
        for number, frame in enumerate(clip.frames):
            left = scale * 8 * (2 * number + (order == "bff"))  # the upper field's
            columns = np.flatnonzero(frame[2:-2].mean(axis=(0, 2)) > 126)
            assert (columns[0], columns[-1] + 1) == pytest.approx((left, left + 8 * scale), abs=1)
            assert np.ptp(frame[2:-2, columns[len(columns) // 2]].astype(int), axis=0).max() < 24
    by_decord = read_clip(VideoRequest(path, max_frames=8, decoder="decord"))
    assert by_decord.decoder == "pyav"


def test_progressive_frames_keep_all_their_lines(tmp_path):
    lines = np.zeros((64, 128, 3), np.uint8)
    lines[::2] = 255
    frame = av.VideoFrame.from_ndarray(lines, format="rgb24")
    path = write(tmp_path / "lines.mp4", [frame] * 2, "libx264", "yuv444p", crf="4")
    seen = read_clip(VideoRequest(path, max_frames=1)).frames[0]
    assert seen[::2].min() > 240
    assert seen[1::2].max() < 15
